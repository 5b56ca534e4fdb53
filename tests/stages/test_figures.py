"""What the committed bytes do not say of the figures: they can be read, also in rare cases."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dvc_kit.errors import InputError
from stages import plot
from stages.base.params import MODEL_NAMES
from stages.scoring import CalibrationBin
from stages.show import figures
from study import pictures

COLUMNS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
HISTORY = {"epoch": [1.0, 2.0, 3.0]} | {
    name: [(at + epoch) / 20 for epoch in (5, 3, 1)] for at, name in enumerate(COLUMNS)
}
PICTURES = np.random.default_rng(0).integers(0, 256, (40, 32, 32)).astype(np.uint8)
# Nothing in it is symmetric: above the diagonal are other counts than below it
MATRIX = np.triu(np.arange(100).reshape(10, 10) % 7, 1) + 500 * np.eye(10, dtype=int)
WRONG, SURE = [3, 4, 30], [0.7, 0.9, 0.8]  # of 40 images


def mistakes_figure() -> Figure:
    """Of a digit that is wrong, the answer is three more."""
    actual, confidence = np.arange(40) % 10, np.full(40, 0.999)
    predicted = actual.copy()
    predicted[WRONG], confidence[WRONG] = (actual[WRONG] + 3) % 10, SURE
    return figures.mistakes("lenet5", PICTURES, actual, predicted, confidence)


def texts_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Each text that is drawn and where it stands, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = set()  # labels of ticks outside of the part of an axis that is shown
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (axes.axison and low <= tick.get_loc() <= high):
                    unseen |= {tick.label1, tick.label2}
    return [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()))
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text not in unseen
    ]


def story_figure() -> Figure:
    recipes = ["published", "documented", "fast", "record"]
    accuracies, intervals = {}, {}
    for at, recipe in enumerate(recipes):
        for model, mean in (("lenet5", 95.1 + 1.4 * at), ("mlp", 96.5 + 0.7 * at)):
            accuracies[recipe, model] = [mean - 0.1, mean, mean + 0.1]
            intervals[recipe, model] = (mean - 0.2, mean + 0.2)
    published = {"lenet5": 94.5, "mlp": 97.31}
    return pictures.story(accuracies, intervals, published, ["record"], "What the figure shows")


def missed_figure() -> Figure:
    rows = [
        {"index": at, "label": 1, "lenet5": 2, "mlp": 3, "no_majority": at % 2} for at in range(40)
    ]
    return pictures.missed(PICTURES, rows)


ALL = {
    "curves": lambda: figures.curves(
        dict.fromkeys(MODEL_NAMES, HISTORY), "LeNet-5 and the MLP, recipe documented"
    ),
    "four curves": lambda: figures.four_curves("mlp", HISTORY, "MLP, recipe documented"),
    "confusion": lambda: figures.confusion(dict.fromkeys(MODEL_NAMES, MATRIX)),
    "mistakes": mistakes_figure,
    "reliability": lambda: figures.reliability(
        {name: [CalibrationBin(9, 0.5, 0.4), CalibrationBin(90, 0.9, 0.95)] for name in MODEL_NAMES}
    ),
    "story": story_figure,
    "missed": missed_figure,
}


@pytest.mark.parametrize("name", ALL)
def test_texts_of_a_figure_lie_within_it_and_not_on_each_other(name):
    figure = ALL[name]()
    texts = texts_of(figure)
    width, height = figure.bbox.size
    for text, box in texts:
        assert box.height >= 9, f"{text} is too small"
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, f"{text} is cut"
    for (text, a), (other, b) in itertools.combinations(texts, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, down) < 2, f"{text!r} lies on {other!r}"


def test_fewer_mistakes_than_places_are_shown_with_the_surest_first():
    shown = [axes for axes in mistakes_figure().axes if axes.images]
    assert [axes.get_title() for axes in shown] == [
        "4 taken for 7\n90.00% sure",
        "0 taken for 3\n80.00% sure",
        "3 taken for 6\n70.00% sure",
    ]
    for axes, index in zip(shown, (4, 30, 3), strict=True):
        assert [text.get_text() for text in axes.texts] == [f"no. {index}"]
        assert (255 - np.asarray(axes.images[0].get_array()) == PICTURES[index]).all()


def test_a_confusion_matrix_has_actual_digits_down_and_predicted_ones_across():
    axes, *_ = figures.confusion(dict.fromkeys(MODEL_NAMES, MATRIX)).axes
    counts = np.zeros((10, 10), int)
    for text in axes.texts:
        x, y = text.get_position()
        counts[int(y), int(x)] = int(text.get_text())
    assert (counts == MATRIX).all()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted digit", "actual digit")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the digit 0 is at the top, as in a table


def test_a_digit_without_images_and_a_model_without_mistakes_have_no_shade():
    perfect = {name: 9 * np.eye(10, dtype=int) for name in MODEL_NAMES}
    low, high = figures.confusion(perfect).axes[0].images[0].get_clim()
    assert low == 0 < high
    counts = np.diag([0] + [9] * 9)
    counts[4, 0] = 3
    for axes in figures.confusion(dict.fromkeys(MODEL_NAMES, counts)).axes[:2]:
        shade = np.asarray(axes.images[0].get_array())
        assert shade[0].tolist() == [0] * 10
        assert shade.max() == shade[4, 0] == pytest.approx(3 / 12)
        assert ": 3 mistakes in 84" in axes.get_title()


def heights_of(axes: Axes) -> dict[str, float]:
    """Where each row of the story is, by its label."""
    labels = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(labels, axes.get_yticks(), strict=True))


def test_each_seed_of_the_story_is_at_its_error_beside_its_recipe():
    recipes = ["published", "published", "record", "record_without_decay"]
    values = [[95.0, 95.5], [97.0, 97.4], [99.5, 99.6], [98.9]]
    accuracies = dict(zip(zip(recipes, ["lenet5", "mlp"] * 2, strict=True), values, strict=True))
    intervals = {key: (min(v) - 0.1, max(v) + 0.2) for key, v in accuracies.items()}
    published = {"lenet5": 94.5, "mlp": 97.31}
    figure = pictures.story(accuracies, intervals, published, ["record_without_decay"], "said")
    (axes,) = figure.axes
    heights = heights_of(axes)
    rows = ["published", "record", "record without one ingredient", "without decay"]
    assert list(heights) == rows and axes.yaxis_inverted() and axes.xaxis_inverted()
    drawn = [np.array(line.get_xydata(), float) for line in axes.lines]
    marks = [points for points, line in zip(drawn, axes.lines, strict=True)
             if line.get_linestyle() == "None"]  # fmt: skip
    for points, ((recipe, _), values) in zip(marks, accuracies.items(), strict=True):
        row = recipe.removeprefix("record_").replace("_", " ")
        assert np.abs(points[:, 1] - heights[row]).max() < 0.4
        assert points[:, 0] == pytest.approx([100 - value for value in values])
    said = [text.get_text() for text in axes.texts]
    assert said == [f"{np.mean(values):.2f}" for values in accuracies.values()]
    offsets = np.array([mark.get_offsets()[0] for mark in axes.collections])
    assert offsets[:, 0] == pytest.approx([5.5, 2.69])  # the published ones
    assert offsets[0, 1] < heights["published"] < offsets[1, 1]
    for label in axes.get_xticklabels():
        assert 100 - float(label.get_text()) == pytest.approx(label.get_position()[0])


def test_the_missed_images_have_no_empty_line_whether_none_or_too_many():
    rows = [{"index": at % 40, "label": 1, "lenet5": 2, "mlp": 3, "no_majority": int(at == 7)}
            for at in range(50)]  # fmt: skip
    for count, shown in ((0, 0), (1, 1), (8, 8), (9, 9), (50, 48)):
        figure = pictures.missed(PICTURES, rows[:count])
        panels = [axes for axes in figure.axes if axes.images]
        titles = [axes.get_title() for axes in panels]
        star = [" *" if at == 7 else "" for at in range(shown)]
        assert titles == [f"no. {at % 40}: 1{star[at]}\n2, 3" for at in range(shown)]
        lines = {axes.get_subplotspec().rowspan.start for axes in figure.axes}
        assert len(lines) == max(1, -(-shown // 8))


def test_a_figure_file_is_a_png_that_names_no_version_of_matplotlib(tmp_path):
    for name in ("a.png", "b.png"):
        figures.save(Figure(figsize=(1, 1)), tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert b"matplotlib" not in content.lower()
    assert content == (tmp_path / "b.png").read_bytes()


COMPARISON = "model,source,accuracy\nlenet5,recipe a,0.9862\nmlp,recipe a,0.9626\n"


@pytest.mark.parametrize("content", [None, b"", b"a,b\n1,x\n", b"a,b\n1\n", b"[", b"\xff"])
def test_a_result_that_is_missing_or_damaged_is_named_with_the_stage_that_makes_it(
    content, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("reports").mkdir()
    history = partial(plot.read, Path("reports/history_mlp.csv"), "train_mlp")
    for name, stage, read in (
        ("history_mlp.csv", "train_mlp", history),
        ("comparison.csv", "evaluate", plot.comparison),
        ("comparison.md", "evaluate", plot.comparison),
    ):
        path = Path("reports", name)
        Path("reports/comparison.csv").write_text(COMPARISON, encoding="utf-8")
        path.write_bytes(content) if content is not None else path.unlink(missing_ok=True)
        if content in (None, b"\xff") or (path.suffix == ".csv" and content not in (b"", b"[")):
            with pytest.raises(InputError, match=rf"^{path} is missing or damaged \(") as refused:
                read()
            assert str(refused.value).endswith(f"): `dvc repro {stage}` makes it again")
