"""Stage evaluate: both models on the 10,000 test images, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import dvc_mlflow
from dvc_mlflow.errors import main_function
from dvc_mlflow.files import write_text
from stages import scoring
from stages.base import files, numerics, params, splits
from stages.base.params import MODEL_NAMES, TITLES, Params
from stages.networks import models
from stages.networks.models import Answers
from stages.show.tables import table

DIGITS = range(params.CLASSES)


def model_metrics(answers: Answers) -> dict[str, float]:
    """The part of metrics.json for one model. The accuracy is a fraction, the loss is in nats."""
    return {"accuracy": float(answers.correct.mean()), "loss": answers.loss}


def model_details(answers: Answers) -> dict[str, list[float]]:
    """The part of evaluation.json for one model. `dvc metrics show` does not show lists."""
    bins = scoring.calibration(answers.confidence, answers.correct)
    return {
        "accuracy_interval": list(scoring.accuracy_interval(answers.correct)),
        "calibration_error": [scoring.calibration_error(bins)],
        "errors": [int((~answers.correct).sum())],
    }


def write_predictions(name: str, answers: Answers) -> None:
    labels: list[int] = answers.labels.tolist()
    columns = (answers.predicted.tolist(), answers.confidence.tolist())
    rows = zip(range(len(labels)), labels, *columns, strict=True)
    header = ["index", "actual", "predicted", "confidence"]
    files.write_csv(files.predictions_path(name), header, rows)


def write_confusion(name: str, answers: Answers) -> None:
    matrix = confusion_matrix(answers.labels, answers.predicted, labels=DIGITS).tolist()
    rows = ([digit, *counts] for digit, counts in zip(DIGITS, matrix, strict=True))
    header = ["actual", *(f"predicted_{digit}" for digit in DIGITS)]
    files.write_csv(files.confusion_path(name), header, rows)


def class_rows(name: str, answers: Answers) -> list[list[Any]]:
    """Per digit: model, digit, precision, recall, F1 score, and number of images."""
    columns = precision_recall_fscore_support(
        answers.labels, answers.predicted, labels=DIGITS, zero_division=0.0
    )
    return [
        [name, digit, *row]
        for digit, row in zip(DIGITS, np.transpose(columns).tolist(), strict=True)
    ]


def comparison_rows(
    settings: Params, metrics: dict[str, Any], details: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per model: first ours, then those of the published experiment."""
    rows: list[dict[str, Any]] = []
    for name in MODEL_NAMES:
        ours = {key: metrics[name][key] for key in ("loss", "accuracy")}
        ours["calibration_error"] = details[name]["calibration_error"][0]
        low, high = details[name]["accuracy_interval"]
        interval = {"accuracy_low": low, "accuracy_high": high}
        parameters = sum(models.PARAMETERS[name].values())
        row = {"model": name, "source": f"recipe {settings.recipe}", "parameters": parameters}
        rows.append(row | ours | interval)
    for name in (name for name in MODEL_NAMES if name in scoring.PUBLISHED):
        loss, accuracy = scoring.PUBLISHED[name]
        parameters = sum(models.PARAMETERS[name].values())
        row = {"model": name, "source": "published experiment", "parameters": parameters}
        rows.append(row | {"loss": loss, "accuracy": accuracy})
    return rows


def comparison_markdown(rows: Sequence[Mapping[str, Any]], difference: Mapping[str, Any]) -> str:
    """The table of the models, and a sentence about their difference.

    Args:
        rows: From :func:`comparison_rows`.
        difference: The fields of :class:`scoring.PairedDifference`.
    """
    lines = []
    for row in rows:
        interval = error = ""
        if "accuracy_low" in row:
            interval = f"{row['accuracy_low']:.2%} to {row['accuracy_high']:.2%}"
            error = f"{row['calibration_error']:.4f}"
        scores = [f"{row['accuracy']:.2%}", interval, f"{row['loss']:.4f}", error]
        lines.append([TITLES[row["model"]], row["source"], *scores, f"{row['parameters']:,}"])
    shown = table(
        "model | source | test accuracy | 95 % interval | test loss | calibration error "
        "| parameters",
        "llrcrrr",
        lines,
    )
    points = [100 * difference[key] for key in ("accuracy", "low", "high")]
    return (
        f"{shown}\n\nLeNet-5 minus MLP on the same images: {points[0]:+.2f} percentage points "
        f"(95 % interval {points[1]:+.2f} to {points[2]:+.2f}; "
        f"exact McNemar p = {difference['mcnemar_p']:.2g}). LeNet-5 alone is right on "
        f"{difference['only_first']} images, the MLP alone on {difference['only_second']}.\n"
    )


@main_function
def main() -> None:
    settings = params.load()
    with dvc_mlflow.run("evaluate"):
        numerics.configure(settings.threads, settings.seed)
        test = splits.load_split(files.DATA_PREPARED, "test")
        answers = {}
        for name in MODEL_NAMES:
            network = models.load_model(name, settings.of_model(name), files.model_path(name))
            answers[name] = models.answers(network, test)
        difference = scoring.paired_difference(answers["lenet5"].correct, answers["mlp"].correct)
        metrics: dict[str, Any] = {name: model_metrics(answers[name]) for name in MODEL_NAMES}
        details: dict[str, Any] = {name: model_details(answers[name]) for name in MODEL_NAMES}
        for name in MODEL_NAMES:
            write_predictions(name, answers[name])
            write_confusion(name, answers[name])
        files.write_csv(
            files.REPORTS / "per_class.csv",
            ["model", "digit", "precision", "recall", "f1", "images"],
            (row for name in MODEL_NAMES for row in class_rows(name, answers[name])),
        )
        rows = comparison_rows(settings, metrics, details)
        files.write_rows(files.COMPARISON, rows)
        # The Markdown has the numbers of the files: rounded to 6 digits, then to those it shows
        compared = comparison_markdown(files.rounded(rows), files.rounded(asdict(difference)))
        write_text(files.COMPARISON.with_suffix(".md"), compared)
        outputs = [(name, answers[name].outputs_sha256) for name in MODEL_NAMES]
        details |= {
            "paired_difference": {key: [value] for key, value in asdict(difference).items()},
            "outputs": files.fingerprint_lines(outputs),
        }
        files.write_json(files.METRICS, {**metrics, "paired_difference": difference.accuracy})
        files.write_json(files.EVALUATION, details)
        for name in MODEL_NAMES:
            print(f"{TITLES[name]}: test accuracy {metrics[name]['accuracy']:.2%}")


if __name__ == "__main__":
    main()
