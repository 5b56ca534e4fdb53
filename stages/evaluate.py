"""Stage evaluate: both models on the 10,000 test images, side by side."""

from dataclasses import asdict
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from stages import alone, files, mnist, models, numerics, params, scoring, tracking
from stages.errors import main_function
from stages.models import Answers
from stages.params import MODEL_NAMES, Params
from stages.tables import TITLES

DIGITS = range(mnist.CLASSES)


def model_metrics(answers: Answers) -> dict[str, Any]:
    """What metrics.json says of one model; fractions, and loss in nats."""
    low, high = scoring.accuracy_interval(answers.correct)
    bins = scoring.calibration(answers.confidence, answers.correct)
    return {
        "accuracy": float(answers.correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "calibration_error": scoring.calibration_error(bins),
        "errors": int((~answers.correct).sum()),
        "loss": answers.loss,
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
    """Model, digit, precision, recall, F1 and images of each digit."""
    columns = precision_recall_fscore_support(
        answers.labels, answers.predicted, labels=DIGITS, zero_division=0.0
    )
    return [
        [name, digit, *row]
        for digit, row in zip(DIGITS, np.transpose(columns).tolist(), strict=True)
    ]


def comparison_rows(settings: Params, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a model of ours, then a row a model of the published experiment."""
    rows: list[dict[str, Any]] = []
    for name in MODEL_NAMES:
        ours = {key: metrics[name][key] for key in ("loss", "accuracy", "calibration_error")}
        interval = {key: metrics[name][key] for key in ("accuracy_low", "accuracy_high")}
        parameters = sum(models.PARAMETERS[name].values())
        row = {"model": name, "source": f"recipe {settings.recipe}", "parameters": parameters}
        rows.append(row | ours | interval)
    for name in MODEL_NAMES:
        loss, accuracy = scoring.PUBLISHED[name]
        parameters = sum(models.PARAMETERS[name].values())
        row = {"model": name, "source": "published experiment", "parameters": parameters}
        rows.append(row | {"loss": loss, "accuracy": accuracy})
    return rows


@main_function
def main() -> None:
    settings = params.load()
    with alone.holding("evaluate"), tracking.run("evaluate"):
        numerics.configure(settings.threads, settings.seed)
        test = mnist.load_split(files.DATA_PREPARED, "test")
        answers = {}
        for name in MODEL_NAMES:
            network = models.load_model(name, settings.of_model(name), files.model_path(name))
            answers[name] = models.answers(network, test)
        difference = scoring.paired_difference(answers["lenet5"].correct, answers["mlp"].correct)
        metrics: dict[str, Any] = {name: model_metrics(answers[name]) for name in MODEL_NAMES}
        rows = comparison_rows(settings, metrics)
        for name in MODEL_NAMES:
            write_predictions(name, answers[name])
            write_confusion(name, answers[name])
        files.write_csv(
            files.REPORTS / "per_class.csv",
            ["model", "digit", "precision", "recall", "f1", "images"],
            (row for name in MODEL_NAMES for row in class_rows(name, answers[name])),
        )
        files.write_rows(files.COMPARISON, rows)
        outputs = [(name, answers[name].outputs_sha256) for name in MODEL_NAMES]
        metrics |= {"difference": asdict(difference), "outputs": files.fingerprint_lines(outputs)}
        files.write_json(files.METRICS, metrics)
        for name in MODEL_NAMES:
            print(f"{TITLES[name]}: test accuracy {metrics[name]['accuracy']:.2%}")


if __name__ == "__main__":
    main()
