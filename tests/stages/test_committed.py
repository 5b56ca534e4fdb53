"""The committed reports come out of the committed weights, to the byte, and say what is so."""

import base64
import csv
import json
import re
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from conftest import ROOT, as_inputs, assert_readable
from dvc_kit.errors import InputError
from dvc_kit.files import sha256
from stages import evaluate, plot, scoring
from stages.base import files, splits
from stages.base.params import MODEL_NAMES, TITLES
from stages.mnist import idx
from stages.show import figures, page


def weights_on_the_page() -> dict[str, bytes]:
    """The files of the committed models: DVC keeps them elsewhere, and the page embeds them."""
    text = (ROOT / page.PATH).read_text(encoding="utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return {name: base64.b64decode(file) for name, file in json.loads(data)["weights"].items()}


@dataclass
class Again:
    """Where evaluate and plot have run on the committed weights and histories."""

    folder: Path
    drawn: dict[str, Figure]


@pytest.fixture(scope="module")
def again(raw, tmp_path_factory) -> Again:
    folder, drawn = tmp_path_factory.mktemp("again"), {}
    for name in ("params.yaml", "recipes.yaml", *(f"reports/history_{m}.csv" for m in MODEL_NAMES)):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / files.MODELS).mkdir()
    for name, content in weights_on_the_page().items():
        (folder / files.model_path(name)).write_bytes(content)
    test = idx.split(raw, validation_size=0, train_limit=1, seed=0)["test"]
    splits.save_split(folder / files.DATA_PREPARED, "test", as_inputs({"test": test})["test"])
    save = figures.save

    def saved(figure: Figure, path: Path) -> None:
        drawn[path.stem] = figure
        save(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MIRROR", "off")
        patch.setattr(figures, "save", saved)
        evaluate.main()
        plot.main()
    return Again(folder, drawn)


def test_the_weights_are_those_that_the_trainings_ended_with():
    weights = weights_on_the_page()
    assert list(weights) == list(MODEL_NAMES)
    for name, content in weights.items():
        trained = json.loads((ROOT / files.training_path(name)).read_text(encoding="utf-8"))
        assert [*files.read_fingerprints(trained["weights"]).values()][-1] == sha256(content)


def test_evaluate_and_plot_write_the_committed_bytes(again):
    cached = {files.predictions_path(name) for name in MODEL_NAMES}  # git has none
    written = {
        path.relative_to(again.folder)
        for path in (again.folder / "reports").rglob("*")
        if path.is_file()
    } - cached
    assert len(written) == 19
    changed = [path for path in written if (again.folder / path).read_bytes() != committed(path)]
    assert changed == [], "run `dvc repro`, and commit what it writes"


def committed(path: Path) -> bytes:
    return (ROOT / path).read_bytes() if (ROOT / path).is_file() else b""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_tables_of_a_model_are_scikit_learns(again, raw, name):
    predictions = files.read_csv(again.folder / files.predictions_path(name))
    actual, predicted = (np.array(predictions[key], int) for key in ("actual", "predicted"))
    assert bytes(actual.astype(np.uint8)) == raw[idx.TEST_LABELS][8:]
    counts = [[*row.values()][1:] for row in rows_of(ROOT / files.confusion_path(name))]
    assert (np.array(counts, int) == confusion_matrix(actual, predicted)).all()
    by_digit = [row for row in rows_of(ROOT / "reports/per_class.csv") if row["model"] == name]
    found = [[float(row[key]) for row in by_digit] for key in ("precision", "recall", "f1")]
    expected = precision_recall_fscore_support(actual, predicted)[:3]
    assert np.allclose(found, expected, atol=1e-6)
    metrics = json.loads((ROOT / files.METRICS).read_text(encoding="utf-8"))[name]
    assert metrics["accuracy"] == (actual == predicted).mean()


def test_the_model_card_has_the_scores_and_disputed_labels_of_the_files(again):
    text = (again.folder / "reports/model_card.md").read_text(encoding="utf-8")
    shown = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    scores = json.loads((ROOT / files.EVALUATION).read_text(encoding="utf-8"))
    for name in MODEL_NAMES:
        [row] = [row for row in shown if TITLES[name] in row]
        predictions = files.read_csv(again.folder / files.predictions_path(name))
        wrong = np.array(predictions["actual"]) != np.array(predictions["predicted"])
        low, high = (f"{end:.2%}" for end in scores[name]["accuracy_interval"])
        assert row[2:4] == [f"{(~wrong).mean():.2%}", f"{low} to {high}"]
        counts = [int(wrong.sum()), int(wrong[[*scoring.NO_MAJORITY]].sum())]
        assert row[4:7] == [f"{scores[name]['calibration_error']:.4f}", *map(str, counts)]


def test_a_model_that_is_worse_has_another_sign():
    better, worse = np.arange(400) < 360, np.arange(400) < 300
    other = asdict(scoring.paired_difference(worse, better))
    sentence = evaluate.comparison_markdown([], other).splitlines()[-1]
    assert "-15.00 percentage points (95 % interval -1" in sentence
    assert sentence.endswith("LeNet-5 alone is right on 0 images, the MLP alone on 60.")


def test_texts_of_a_figure_lie_within_it_and_not_on_each_other(again):
    assert len(again.drawn) == 7
    for figure in again.drawn.values():
        assert_readable(figure)


COMPARISON = (
    "model,source,accuracy,accuracy_low,accuracy_high,loss\n"
    "lenet5,recipe a,0.9862,0.98,0.99,0.04\nmlp,recipe a,0.9626,0.96,0.97,0.13\n"
)


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
