"""The files that evaluate writes, recomputed with scikit-learn from answers made by hand."""

import contextlib
import csv
import io
import json
import shutil
from dataclasses import asdict

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


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_files_of_a_model_are_its_own_and_follow_from_its_answers(folder, name):
    answers, rows = made(name), rows_of(folder / f"predictions_{name}.csv")
    assert [int(row["index"]) for row in rows] == list(range(IMAGES))
    actual = np.array([int(row["actual"]) for row in rows])
    predicted = np.array([int(row["predicted"]) for row in rows])
    assert (actual == LABELS).all() and (predicted == answers.probabilities.argmax(1)).all()
    confidence = np.array([float(row["confidence"]) for row in rows])
    assert confidence == pytest.approx(answers.probabilities.max(1), rel=1e-5)

    confusion = rows_of(folder / f"confusion_{name}.csv")
    counts = [[int(row[f"predicted_{digit}"]) for digit in range(10)] for row in confusion]
    assert [int(row["actual"]) for row in confusion] == list(range(10))
    assert counts == confusion_matrix(actual, predicted, labels=range(10)).tolist()

    by_digit = [row for row in rows_of(folder / "per_class.csv") if row["model"] == name]
    assert len(by_digit) == 10
    for digit, row in enumerate(by_digit):
        assert int(row["digit"]) == digit and float(row["images"]) == (actual == digit).sum()
        scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
        for column, score in scores.items():
            expected = score(actual == digit, predicted == digit, zero_division=0)
            assert float(row[column]) == pytest.approx(expected, abs=1e-6)

    metrics, details = (
        json.loads((folder / file).read_text(encoding="utf-8"))[name]
        for file in ("metrics.json", "evaluation.json")
    )
    share = RIGHT[name].mean()
    assert metrics == {"accuracy": share, "loss": {"lenet5": 0.25, "mlp": 0.5}[name]}
    assert details["errors"] == (~RIGHT[name]).sum()
    # Wilson's interval: the shares that are 1.96 of their own standard errors from this one
    for end, sign in zip(details["accuracy_interval"], (1, -1), strict=True):
        error = (end * (1 - end) / IMAGES) ** 0.5
        assert share - end == pytest.approx(sign * 1.959964 * error, rel=1e-3)
    # The gap of accuracy and confidence in 15 bins, each with its share of the images
    bins = [(number / 15 <= confidence) & (confidence < (number + 1) / 15) for number in range(15)]
    gap = sum(abs(confidence[at].sum() - RIGHT[name][at].sum()) for at in bins) / IMAGES
    assert details["calibration_error"] == pytest.approx(gap, rel=1e-4)


def test_the_difference_is_positive_where_the_first_model_is_better(folder):
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    details = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    found = details["paired_difference"]
    assert (found["only_first"], found["only_second"]) == (60, 25)
    assert found["accuracy"] == metrics["paired_difference"] == pytest.approx(35 / IMAGES)
    assert 0 < found["low"] < 35 / IMAGES < found["high"]
    assert found["mcnemar_p"] == pytest.approx(2 * binom.cdf(25, 85, 0.5), rel=1e-5)
    assert details["outputs"] == ["lenet5's sha256  lenet5", "mlp's sha256  mlp"]


def test_the_comparison_has_our_scores_and_then_the_published_ones(folder):
    rows = rows_of(folder / "comparison.csv")
    assert [(row["model"], row["source"]) for row in rows] == [
        *((name, "recipe documented") for name in MODEL_NAMES),
        *((name, "published experiment") for name in MODEL_NAMES),
    ]
    assert [int(row["parameters"]) for row in rows] == [61_706, 62_110] * 2
    assert [float(row["loss"]) for row in rows] == [0.25, 0.5, 1.519, 0.0928]
    assert [float(row["accuracy"]) for row in rows] == [0.9, 0.8125, 0.945, 0.9731]
    details = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for row in rows[:2]:
        low_high = [float(row[key]) for key in ("accuracy_low", "accuracy_high")]
        assert low_high == details[row["model"]]["accuracy_interval"]
        assert float(row["calibration_error"]) == details[row["model"]]["calibration_error"]
    # To read: the committed table has the form, test_committed.py; here is another sign
    sentence = (folder / "comparison.md").read_text(encoding="utf-8").splitlines()[-1]
    assert sentence.startswith("LeNet-5 minus MLP on the same images: +8.75 percentage points")
    assert sentence.endswith("LeNet-5 alone is right on 60 images, the MLP alone on 25.")
    other = scoring.paired_difference(RIGHT["mlp"], RIGHT["lenet5"])
    sentence = evaluate.comparison_markdown([], asdict(other)).splitlines()[-1]
    assert "-8.75 percentage points (95 % interval -1" in sentence
