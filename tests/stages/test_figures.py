"""The content of the figures: the data that matplotlib is given, and the comparison to read."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from conftest import ROOT
from dvc_mlflow.errors import InputError
from stages import plot
from stages.base import files
from stages.base.params import MODEL_NAMES
from stages.base.splits import Split, save_split
from stages.scoring import CalibrationBin, accuracy_interval
from stages.show import figures

LENET5, MLP = "LeNet-5", "MLP"
NAMES = {LENET5: "lenet5", MLP: "mlp"}


def lines_of(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The points of each line that has a label, by its label."""
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


# --- learning curves ---

COLUMNS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def history(start: float) -> dict[str, list[float]]:
    """Every number of it is another."""
    values = [start + step / 100 for step in range(12)]
    columns = {name: values[3 * at : 3 * at + 3] for at, name in enumerate(COLUMNS)}
    return {"epoch": [1.0, 2.0, 3.0], **columns}


HISTORIES = {"lenet5": history(0.1), "mlp": history(0.5)}


UNITS = {"loss": "cross-entropy loss (nats, logarithmic)", "accuracy": "accuracy (%)"}
DIGITS = {"loss": 4, "accuracy": 2}


def curves_in(axes: Axes, metric: str) -> dict[str, list[float]]:
    """The values of each curve by its split. Its epochs, unit and label are checked."""
    assert axes.get_ylabel() == UNITS[metric]
    found = {}
    for split, (x, y) in lines_of(axes).items():
        assert x == [1.0, 2.0, 3.0]
        (label,) = [text.get_text() for text in axes.texts if text.xy == (3.0, y[-1])]
        assert label == f"{split} {y[-1]:.{DIGITS[metric]}f}"
        found[split] = [value / {"loss": 1, "accuracy": 100}[metric] for value in y]
    return found


def assert_curves(figure: Figure) -> None:
    """A panel for each model and metric that its title names, with train and test."""
    shown = []
    for axes in figure.axes:
        title, metric = axes.get_title().split(": ")
        found = curves_in(axes, metric)
        assert list(found) == ["train", "test"]
        for split, values in found.items():
            assert values == pytest.approx(HISTORIES[NAMES[title]][f"{split}_{metric}"])
        shown.append((title, metric))
    assert shown == [(title, metric) for title in NAMES for metric in UNITS]


def assert_four_curves(figure: Figure, name: str) -> None:
    """A panel for each split and metric that its title names."""
    shown = []
    for axes in figure.axes:
        split, metric = axes.get_title().split(": ")
        (found,) = curves_in(axes, metric).items()
        assert found[0] == split.split()[0]
        assert found[1] == pytest.approx(HISTORIES[name][f"{found[0]}_{metric}"])
        shown.append(f"{found[0]}_{metric}")
    assert sorted(shown) == sorted(COLUMNS)


# --- confusion ---


def matrices() -> dict[str, np.ndarray]:
    """Nothing in them is symmetric: above the diagonal are other counts than below it."""
    counts = np.arange(100).reshape(10, 10) % 7
    found = {}
    for model, right in (("lenet5", 500), ("mlp", 300)):
        found[model] = np.triu(counts, 1) + right * np.eye(10, dtype=int)
        found[model][9, 0] = right // 100
    return found


def assert_confusion(figure: Figure, expected: dict[str, np.ndarray]) -> None:
    by_title = {axes.get_title().split(":")[0]: axes for axes in figure.axes[:-1]}
    assert list(by_title) == [LENET5, MLP]
    for title, axes in by_title.items():
        matrix = expected[NAMES[title]]
        assert axes.get_xlabel() == "predicted digit"
        assert axes.get_ylabel() == "actual digit"
        counts = np.zeros((10, 10), int)
        for text in axes.texts:
            x, y = text.get_position()
            counts[int(y), int(x)] = int(text.get_text())
        assert (counts == matrix).all()
        wrong = matrix.sum() - matrix.trace()
        assert axes.get_title() == f"{title}: {wrong} mistakes in {matrix.sum():,}"
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the digit 0 is at the top, as in a table


def test_the_confusion_figure_has_actual_digits_down_and_predicted_ones_across():
    found = matrices()
    figure = figures.confusion(found)
    assert_confusion(figure, found)
    *panels, scale = figure.axes
    for axes, matrix in zip(panels, found.values(), strict=True):
        (image,) = axes.images
        shade = np.asarray(image.get_array())
        assert shade.diagonal() == pytest.approx(np.zeros(10))
        for actual, predicted in itertools.permutations(range(10), 2):
            share = matrix[actual, predicted] / matrix[actual].sum()
            assert shade[actual, predicted] == pytest.approx(share)
    scales = {axes.images[0].get_clim() for axes in panels}
    largest = max(axes.images[0].get_array().max() for axes in panels)
    assert scales == {(0, largest)} == {scale.get_ylim()}  # one scale for both, and it is shown


# --- mistakes ---

SEEN = np.arange(40)
PICTURES = np.random.default_rng(0).integers(0, 256, (40, 32, 32)).astype(np.uint8)


def answers(wrong: list[int], sure: list[float]) -> dict[str, np.ndarray]:
    """Of 40 images; a wrong digit is three after the right one."""
    actual = SEEN % 10
    predicted, confidence = actual.copy(), np.full(40, 0.999)
    predicted[wrong] = (actual[wrong] + 3) % 10
    confidence[wrong] = sure
    return {"actual": actual, "predicted": predicted, "confidence": confidence}


# More mistakes than are shown, and fewer
WRONG = {"lenet5": list(range(2, 38, 2)), "mlp": [3, 4, 30]}
SURE = {"lenet5": [0.5 + (7 * at % 18) / 50 for at in range(18)], "mlp": [0.7, 0.9, 0.8]}
ANSWERS = {name: answers(WRONG[name], SURE[name]) for name in MODEL_NAMES}


def assert_mistakes(figure: Figure, name: str) -> None:
    pairs = sorted(zip(WRONG[name], SURE[name], strict=True), key=lambda pair: -pair[1])
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == min(15, len(pairs))
    for axes, (index, sure) in zip(shown, pairs, strict=False):
        digit = index % 10
        assert axes.get_title() == f"{digit} taken for {(digit + 3) % 10}\n{100 * sure:.2f}% sure"
        assert [text.get_text() for text in axes.texts] == [f"no. {index}"]
        (image,) = axes.images
        assert (255 - np.asarray(image.get_array()) == PICTURES[index]).all()
    title = {"lenet5": LENET5, "mlp": MLP}[name]
    assert figure.get_suptitle().startswith(f"{title}: ")
    assert f"its {len(pairs)} mistakes" in figure.get_suptitle()


# --- reliability ---


def assert_reliability(figure: Figure, bins: dict[str, list[tuple[float, float, int]]]) -> None:
    """Bins are (confidence, accuracy, images)."""
    upper, lower = figure.axes
    lines = lines_of(upper)
    assert lines.pop("perfectly calibrated") == ([0, 100], [0, 100])
    assert list(lines) == [LENET5, MLP]
    colors = {str(line.get_label()): line.get_color() for line in upper.lines}
    below = {line.get_color(): line for line in lower.lines}
    bars = {to_hex(bars.get_color()[0]): bars.get_segments() for bars in upper.collections}
    for title, (x, y) in lines.items():
        confidence, accuracy, images = zip(*bins[NAMES[title]], strict=True)
        assert x == pytest.approx([100 * value for value in confidence])
        assert y == pytest.approx([100 * value for value in accuracy])
        for bar, at, share, count in zip(
            bars[to_hex(colors[title])], x, accuracy, images, strict=True
        ):
            low_high = accuracy_interval(np.arange(count) < round(share * count))
            assert bar[:, 0] == pytest.approx([at, at])
            assert bar[:, 1] == pytest.approx([100 * value for value in low_high])
        counted = below[colors[title]]
        assert list(counted.get_xdata()) == x
        assert list(counted.get_ydata()) == list(images)


# --- the study's ---


def test_the_story_has_one_mark_per_seed_at_its_error_beside_its_recipe():
    accuracies = {
        ("published", "lenet5"): [95.0, 95.5],
        ("published", "mlp"): [97.0, 97.4],
        ("record", "lenet5"): [99.5, 99.6],
        ("record", "mlp"): [98.7, 98.9],
    }
    intervals = {key: (min(v) - 0.1, max(v) + 0.2) for key, v in accuracies.items()}
    intervals["record", "mlp"] = None
    figure = figures.story(accuracies, intervals, {"lenet5": 94.5, "mlp": 97.31}, [], "said")
    assert figure.get_suptitle() == "said"
    (axes,) = figure.axes
    heights = heights_of(axes)
    assert axes.yaxis_inverted() and heights["published"] < heights["record"]  # as in the tables
    colors = {line.get_label(): line.get_color() for line in axes.lines}
    drawn = [(line, np.array(line.get_xydata(), float)) for line in axes.lines]
    for (recipe, model), values in accuracies.items():
        title = {"lenet5": LENET5, "mlp": MLP}[model]
        marks = [
            points
            for line, points in drawn
            if line.get_linestyle() == "None"
            and line.get_color() == colors[title]
            and abs(points[0, 1] - heights[recipe]) < 0.4
        ]
        assert len(marks) == 1
        assert marks[0][:, 0] == pytest.approx([100 - value for value in values])
        height = marks[0][0, 1]
        there = [p for line, p in drawn if line.get_linestyle() == "-" and height in p[:, 1]]
        low_high = intervals[recipe, model]
        wide = [points for points in there if points[0, 0] != points[1, 0]]
        assert len(wide) == (0 if low_high is None else 1)
        if low_high is not None:
            assert sorted(wide[0][:, 0]) == pytest.approx([100 - low_high[1], 100 - low_high[0]])
        (said,) = [text for text in axes.texts if text.xy[1] == height]
        assert said.get_text() == f"{np.mean(values):.2f}"  # as the label of the axis says
    (lenet5, mlp) = (mark.get_offsets()[0] for mark in axes.collections)
    assert [lenet5[0], mlp[0]] == pytest.approx([5.5, 2.69])
    assert abs(lenet5[1] - heights["published"]) < 0.4
    assert heights["published"] - 0.4 < lenet5[1] < mlp[1] < heights["published"] + 0.4


def heights_of(axes: Axes) -> dict[str, float]:
    """Where each row of the story is, by its label."""
    labels = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(labels, axes.get_yticks(), strict=True))


def test_ablations_stand_below_the_recipes_under_a_heading():
    accuracies = {
        ("record_without_decay", "mlp"): [98.0],
        ("fast", "mlp"): [97.0],
        ("record", "mlp"): [99.0],
    }
    figure = figures.story(
        accuracies, dict.fromkeys(accuracies), {}, ["record_without_decay"], "said"
    )
    (axes,) = figure.axes
    heights = heights_of(axes)
    assert list(heights) == ["fast", "record", "record without one ingredient", "without decay"]
    said = {text.get_text(): text.xy[1] for text in axes.texts}
    near = {name: min(heights, key=lambda row: abs(heights[row] - said[name])) for name in said}
    assert near == {"98.00": "without decay", "97.00": "fast", "99.00": "record"}


def test_the_missed_images_have_their_label_and_both_answers_also_if_there_are_none_or_too_many():
    rows = [
        {"index": at % 40, "label": 1, "lenet5": 2, "mlp": 3, "no_majority": int(at == 7)}
        for at in range(50)
    ]
    for count, shown in ((0, 0), (1, 1), (8, 8), (9, 9), (48, 48), (50, 48)):
        figure = figures.missed(PICTURES, rows[:count])
        panels = [axes for axes in figure.axes if axes.images]
        for axes, row in zip(panels, rows[:shown], strict=True):
            doubtful = " *" if row["no_majority"] else ""
            assert axes.get_title() == f"no. {row['index']}: 1{doubtful}\n2, 3"
            assert (255 - np.asarray(axes.images[0].get_array()) == PICTURES[row["index"]]).all()
        lines = {axes.get_subplotspec().rowspan.start for axes in figure.axes}
        assert len(lines) == max(1, -(-shown // 8))  # no empty line


# --- every figure can be read ---


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
    return figures.story(accuracies, intervals, published, ["record"], "What the figure shows")


def missed_figure() -> Figure:
    rows = [
        {"index": at, "label": 1, "lenet5": 2, "mlp": 3, "no_majority": at % 2} for at in range(40)
    ]
    return figures.missed(PICTURES, rows)


ALL = {
    "curves": lambda: figures.curves(HISTORIES, "LeNet-5 and the MLP, recipe documented"),
    "four curves": lambda: figures.four_curves("mlp", HISTORIES["mlp"], "MLP, recipe documented"),
    "confusion": lambda: figures.confusion(matrices()),
    "mistakes": lambda: figures.mistakes("lenet5", PICTURES, **ANSWERS["lenet5"]),
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


def test_the_story_has_the_paper_of_1998_and_labels_that_are_accuracies():
    figure = story_figure()
    (axes,) = figure.axes
    (line,) = [line for line in axes.lines if "1998" in str(line.get_label())]
    assert list(line.get_xdata()) == [0.8, 0.8]
    assert axes.xaxis_inverted()  # better is to the right
    for label in axes.get_xticklabels():
        assert 100 - float(label.get_text()) == pytest.approx(label.get_position()[0])


def test_a_figure_file_is_a_png_that_names_no_version_of_matplotlib(tmp_path):
    for name in ("a.png", "b.png"):
        figures.save(Figure(figsize=(1, 1)), tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert b"matplotlib" not in content.lower()
    assert content == (tmp_path / "b.png").read_bytes()


# --- stage plot, from files to figures ---

COMPARISON = """\
model,source,parameters,loss,accuracy,calibration_error,accuracy_low,accuracy_high
lenet5,recipe documented,61706,0.0421373,0.9862,0.00421016,0.98372,0.988307
mlp,recipe documented,62110,0.128654,0.9626,0.00929424,0.9587,0.966145
lenet5,published experiment,61706,1.519,0.945,,,
"""
READABLE = "| model | test accuracy |\n| --- | --- |\n| LeNet-5 | 98.62% |\n\nA sentence.\n"


def write_columns(path: Path, columns: dict) -> None:
    rows = zip(*(list(values) for values in columns.values()), strict=True)
    text = "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)])
    path.write_text(f"{text}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, dict[str, Figure]]:
    """The folder with what plot makes, and the figures that it saves by their names."""
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("params.yaml", "recipes.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "reports").mkdir()
    (folder / "models").mkdir()
    for name in MODEL_NAMES:
        (folder / files.model_path(name)).write_bytes(name.encode())
        write_columns(folder / f"reports/history_{name}.csv", HISTORIES[name])
        columns = {"index": SEEN, **ANSWERS[name]}
        write_columns(folder / f"reports/predictions_{name}.csv", columns)
    (folder / "reports/comparison.csv").write_text(COMPARISON, encoding="utf-8")
    (folder / "reports/comparison.md").write_text(READABLE, encoding="utf-8")
    test = Split(PICTURES, (SEEN % 10).astype(np.uint8))
    save_split(folder / "data/prepared", "test", test)
    found: dict[str, Figure] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MIRROR", "off")
        patch.setattr(figures, "save", lambda figure, path: found.update({path.name: figure}))
        plot.main()
    return folder, found


def test_each_figure_file_holds_the_data_of_the_model_that_it_names(drawn):
    _, drawn = drawn
    assert sorted(drawn) == [
        *("confusion.png", "curves.png", "curves_lenet5.png", "curves_mlp.png"),
        *("mistakes_lenet5.png", "mistakes_mlp.png", "reliability.png"),
    ]
    assert_curves(drawn["curves.png"])
    assert drawn["curves.png"].get_suptitle().endswith(" (train: mean over the epoch)")
    for title, name in NAMES.items():
        assert_four_curves(drawn[f"curves_{name}.png"], name)
        assert drawn[f"curves_{name}.png"].get_suptitle() == f"{title}, recipe documented"
        assert_mistakes(drawn[f"mistakes_{name}.png"], name)
    matrices, bins = {}, {}
    for name, columns in ANSWERS.items():
        matrices[name] = np.zeros((10, 10), int)
        for actual, predicted in zip(columns["actual"], columns["predicted"], strict=True):
            matrices[name][actual, predicted] += 1
        sure, right = columns["confidence"], columns["actual"] == columns["predicted"]
        bins[name] = []
        for inside in ((sure >= at / 15) & (sure < (at + 1) / 15) for at in range(15)):
            if inside.any():
                bins[name].append((sure[inside].mean(), right[inside].mean(), inside.sum()))
    assert_confusion(drawn["confusion.png"], matrices)
    assert_reliability(drawn["reliability.png"], bins)


def test_the_numbers_of_plot_are_those_that_its_figures_and_its_page_end_with(drawn):
    folder, drawn = drawn
    numbers = json.loads((folder / "reports/plot.json").read_text(encoding="utf-8"))
    right = {name: found["actual"] == found["predicted"] for name, found in ANSWERS.items()}
    missed = [at for at in range(len(SEEN)) if not (right["lenet5"][at] or right["mlp"][at])]
    assert 0 < len(missed) < min((~right[name]).sum() for name in right)
    assert numbers == {
        "figures": len(drawn),
        "missed_by_both": len(missed),
        **{
            name: {
                "accuracy": pytest.approx(right[name].sum() / len(SEEN), rel=1e-5),
                "loss": HISTORIES[name]["test_loss"][-1],
            }
            for name in right
        },
    }
    whole = (folder / "reports/report.html").read_text(encoding="utf-8")
    assert f'"missed_count":{len(missed)}' in whole.replace(": ", ":")
    assert "<td>98.62%</td>" in whole and "With the recipe documented, LeNet-5 is right on" in whole


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
