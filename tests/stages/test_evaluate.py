"""The files that evaluate writes, recomputed with scikit-learn from answers made by hand."""

import contextlib
import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from conftest import ROOT
from stages import evaluate, scoring
from stages.base import params, splits
from stages.base.params import MODEL_NAMES
from stages.networks import models
from stages.networks.models import Answers

IMAGES = 400
# Right answers: both 300, LeNet-5 alone 60, the MLP alone 25, neither 15
RIGHT = {
    "lenet5": np.arange(IMAGES) < 360,
    "mlp": (np.arange(IMAGES) < 300) | (np.arange(IMAGES) >= 375),
}
LABELS = np.random.default_rng(0).integers(0, 9, IMAGES).astype(np.uint8)  # there is no 9


def made(name: str) -> Answers:
    """LeNet-5 takes a digit for the next one where it is wrong, the MLP for the one after that."""
    wrong_by = {"lenet5": 1, "mlp": 2}[name]
    predicted = (LABELS + wrong_by * ~RIGHT[name]) % 10
    confidence = np.random.default_rng(wrong_by).uniform(0.4, 1.0, IMAGES)
    rest = (1 - confidence) / 9
    probabilities = np.repeat(rest[:, None], 10, axis=1)
    probabilities[np.arange(IMAGES), predicted] = confidence
    return Answers(f"{name}'s sha256", {"lenet5": 0.25, "mlp": 0.5}[name], probabilities, LABELS)


def rows_of(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where evaluate has run on these answers."""
    path = tmp_path_factory.mktemp("evaluate")
    for name in ("params.yaml", "recipes.yaml"):
        shutil.copy(ROOT / name, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("MIRROR", "off")
        patch.setattr(splits, "load_split", lambda folder, name: {"test": "the test split"}[name])
        # A model is its name and its file, so that a wrong file or recipe for one of them shows
        patch.setattr(models, "load_model", lambda name, recipe, file: (name, recipe, file))

        def answers(model, part):
            name, recipe, file = model
            assert part == "the test split"
            assert file.as_posix() == f"models/{name}.safetensors"
            assert recipe == params.load().of_model(name)
            return made(name)

        patch.setattr(models, "answers", answers)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            evaluate.main()
        assert torch.get_num_threads() == params.load().threads  # so it has set all of numerics
        torch.set_num_threads(threads)
    assert said.getvalue() == "LeNet-5: test accuracy 90.00%\nMLP: test accuracy 81.25%\n"
    return path / "reports"


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def details(folder):
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_dvc_metrics_show_has_five_columns(metrics, details):
    assert set(metrics) == {"lenet5", "mlp", "paired_difference"}
    assert set(metrics["lenet5"]) == set(metrics["mlp"]) == {"accuracy", "loss"}
    assert isinstance(metrics["paired_difference"], float)
    for part in details.values():  # DVC shows no lists
        values = [part] if isinstance(part, list) else part.values()
        assert all(isinstance(value, list) for value in values)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_predictions_have_a_row_per_image_in_the_order_of_the_images(folder, name):
    rows = rows_of(folder / f"predictions_{name}.csv")
    answers = made(name)
    assert [int(row["index"]) for row in rows] == list(range(IMAGES))
    assert [int(row["actual"]) for row in rows] == LABELS.tolist()
    wrong = [row["actual"] != row["predicted"] for row in rows]
    assert wrong == (~RIGHT[name]).tolist()
    assert [int(row["predicted"]) for row in rows] == answers.probabilities.argmax(1).tolist()
    confidence = [float(row["confidence"]) for row in rows]
    assert confidence == pytest.approx(answers.probabilities.max(1), rel=1e-5)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_confusion_file_has_a_row_per_actual_digit_and_a_column_per_predicted_one(folder, name):
    predictions = rows_of(folder / f"predictions_{name}.csv")
    pairs = [(int(row["actual"]), int(row["predicted"])) for row in predictions]
    rows = rows_of(folder / f"confusion_{name}.csv")
    assert [int(row["actual"]) for row in rows] == list(range(10))
    found = np.array([[int(row[f"predicted_{digit}"]) for digit in range(10)] for row in rows])
    assert (found == confusion_matrix(*zip(*pairs, strict=True), labels=range(10))).all()
    # By hand: LeNet-5 takes a digit for the next one, the MLP for the one after that, never back
    by = {"lenet5": 1, "mlp": 2}[name]
    wrong = {(int(actual), int(predicted)) for actual, predicted in np.argwhere(found)}
    wrong -= {(digit, digit) for digit in range(10)}
    assert wrong <= {(digit, (digit + by) % 10) for digit in range(9)}
    assert len(wrong) > 5


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_scores_of_each_digit_are_scikit_learns(folder, name):
    predictions = rows_of(folder / f"predictions_{name}.csv")
    actual = np.array([int(row["actual"]) for row in predictions])
    predicted = np.array([int(row["predicted"]) for row in predictions])
    rows = [row for row in rows_of(folder / "per_class.csv") if row["model"] == name]
    assert [int(row["digit"]) for row in rows] == list(range(10))
    for row in rows:
        digit = int(row["digit"])
        here = (actual == digit, predicted == digit)
        for column, score in (
            ("precision", precision_score),
            ("recall", recall_score),
            ("f1", f1_score),
        ):
            assert float(row[column]) == pytest.approx(score(*here, zero_division=0), abs=1e-6)
        assert float(row["images"]) == (actual == digit).sum()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_metrics_of_a_model_are_its_own_and_follow_from_its_predictions(
    folder, metrics, details, name
):
    rows = rows_of(folder / f"predictions_{name}.csv")
    right = sum(row["actual"] == row["predicted"] for row in rows)
    found = metrics[name]
    assert right == {"lenet5": 360, "mlp": 325}[name]
    assert details[name]["errors"] == [IMAGES - right]
    assert found["accuracy"] == pytest.approx(right / IMAGES)
    assert found["loss"] == {"lenet5": 0.25, "mlp": 0.5}[name]
    # Wilson's interval: the shares that are 1.96 of their own standard errors from this one
    for share, sign in zip(details[name]["accuracy_interval"], (1, -1), strict=True):
        error = (share * (1 - share) / IMAGES) ** 0.5
        assert right / IMAGES - share == pytest.approx(sign * 1.959964 * error, rel=1e-3)
    # The gap of accuracy and confidence in 15 bins, each with its share of the images
    gap = 0.0
    confidence = np.array([float(row["confidence"]) for row in rows])
    for number in range(15):
        inside = (number / 15 <= confidence) & (confidence < (number + 1) / 15)
        gap += abs(confidence[inside].sum() - RIGHT[name][inside].sum()) / IMAGES
    assert details[name]["calibration_error"] == [pytest.approx(gap, rel=1e-4)]


def test_the_difference_is_positive_where_lenet5_is_better_and_counts_its_lone_right_answers(
    folder, metrics, details
):
    right = {
        name: np.array([r["actual"] == r["predicted"] for r in rows_of(folder / file)])
        for name, file in ((name, f"predictions_{name}.csv") for name in MODEL_NAMES)
    }
    found = {key: value for key, [value] in details["paired_difference"].items()}
    assert found["only_first"] == (right["lenet5"] & ~right["mlp"]).sum() == 60
    assert found["only_second"] == (right["mlp"] & ~right["lenet5"]).sum() == 25
    assert found["accuracy"] == metrics["paired_difference"] == pytest.approx(35 / IMAGES)
    assert 0 < found["low"] < 35 / IMAGES < found["high"]
    assert found["mcnemar_p"] == pytest.approx(2 * binom.cdf(25, 85, 0.5), rel=1e-5)


def test_the_outputs_fingerprints_stand_beside_the_names_of_their_models(details):
    assert details["outputs"] == ["lenet5's sha256  lenet5", "mlp's sha256  mlp"]


def test_the_comparison_has_our_models_scores_and_then_the_published_ones(folder, metrics, details):
    rows = rows_of(folder / "comparison.csv")
    named = [(row["model"], row["source"]) for row in rows]
    assert named == [
        ("lenet5", "recipe documented"),
        ("mlp", "recipe documented"),
        ("lenet5", "published experiment"),
        ("mlp", "published experiment"),
    ]
    assert [int(row["parameters"]) for row in rows] == [61_706, 62_110] * 2
    for row in rows[:2]:
        part = details[row["model"]]
        assert [float(row[name]) for name in ("accuracy_low", "accuracy_high")] == (
            part["accuracy_interval"]
        )
        assert [float(row["calibration_error"])] == part["calibration_error"]
        for column in ("loss", "accuracy"):
            assert float(row[column]) == metrics[row["model"]][column]
    published = [[float(row["loss"]), float(row["accuracy"])] for row in rows[2:]]
    assert published == [[1.519, 0.945], [0.0928, 0.9731]]
    for row in rows[2:]:
        assert row["calibration_error"] == row["accuracy_low"] == row["accuracy_high"] == ""


def comparison_row(model, source, parameters, loss, accuracy, **more) -> dict:
    row = {"model": model, "source": source, "parameters": parameters}
    return {**row, "loss": loss, "accuracy": accuracy, **more}


COMPARED = [
    comparison_row("lenet5", "recipe documented", 61706, 0.0421373, 0.9862,
                   calibration_error=0.00421016, accuracy_low=0.98372, accuracy_high=0.988307),
    comparison_row("mlp", "recipe documented", 62110, 0.128654, 0.9626,
                   calibration_error=0.00929424, accuracy_low=0.9587, accuracy_high=0.966145),
    comparison_row("lenet5", "published experiment", 61706, 1.519, 0.945),
]  # fmt: skip
DIFFERENCE = {
    "accuracy": -0.0236,
    "low": -0.0302158,
    "high": 0.0169748,
    "mcnemar_p": 0.00314159,
    "only_first": 12,
    "only_second": 34,
}


def test_the_comparison_to_read_has_the_rows_and_the_difference_with_its_sign(folder, details):
    text = evaluate.comparison_markdown(COMPARED, DIFFERENCE)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    header, marks, *rows = [re.sub(" +", " ", line) for line in lines]
    columns = [title.strip() for title in header.strip("|").split("|")]
    assert columns == [
        *("model", "source", "test accuracy", "95 % interval"),
        *("test loss", "calibration error", "parameters"),
    ]
    assert re.sub("-+", "-", marks) == "| - | - | -: | :-: | -: | -: | -: |"
    assert rows == [
        "| LeNet-5 | recipe documented | 98.62% | 98.37% to 98.83% | 0.0421 | 0.0042 | 61,706 |",
        "| MLP | recipe documented | 96.26% | 95.87% to 96.61% | 0.1287 | 0.0093 | 62,110 |",
        "| LeNet-5 | published experiment | 94.50% | | 1.5190 | | 61,706 |",
    ]
    assert text.splitlines()[-1] == (
        "LeNet-5 minus MLP on the same images: -2.36 percentage points (95 % interval -3.02 to "
        "+1.70; exact McNemar p = 0.0031). LeNet-5 alone is right on 12 images, the MLP alone on "
        "34."
    )
    better = {**DIFFERENCE, "accuracy": 0.0236, "low": 0.0202158, "high": 0.0269748}
    sentence = evaluate.comparison_markdown([], better).splitlines()[-1]
    assert "+2.36 percentage points (95 % interval +2.02 to +2.70; " in sentence

    written = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "| LeNet-5 | recipe documented | 90.00% | 86." in re.sub(" +", " ", written)
    assert "| MLP | published experiment | 97.31% | |" in re.sub(" +", " ", written)
    [low] = details["paired_difference"]["low"]
    assert f"+8.75 percentage points (95 % interval {100 * low:+.2f} to" in written
    assert written.endswith("alone is right on 60 images, the MLP alone on 25.\n")


def test_a_confidence_of_exactly_one_falls_into_the_last_bin():
    (last,) = scoring.calibration(np.ones(4), np.array([True, True, True, False]))
    assert (last.count, last.confidence, last.accuracy) == (4, 1.0, 0.75)
