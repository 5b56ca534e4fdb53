"""Stage evaluate: the models on the 10,000 test images, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from dvc_kit.errors import main_function
from dvc_kit.files import write_text
from stages import card, scoring
from stages.arithmetic import numerics
from stages.base import files, params, splits
from stages.base.params import MODEL_NAMES, TITLES
from stages.base.stage import running
from stages.networks import MODELS, models
from stages.networks.models import Answers
from stages.scoring import METRICS
from stages.show.tables import table

DIGITS = range(params.CLASSES)


Scores = Mapping[str, float]
Interval = tuple[float, float]


def numbers(scores: Scores, shown: bool) -> dict[str, float]:
    """The metrics of one model that `dvc metrics show` shows, or the others."""
    return {name: scores[name] for name, metric in METRICS.items() if metric.shown == shown}


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
    recipe: str, scores: Mapping[str, Scores], intervals: Mapping[str, Interval]
) -> list[dict[str, Any]]:
    """One row per model: first ours, then those of the published experiment."""
    rows: list[dict[str, Any]] = []
    for name, (low, high) in intervals.items():
        row = {"model": name, "source": f"recipe {recipe}", "parameters": MODELS[name].parameters}
        row |= {key: scores[name][key] for key, metric in METRICS.items() if metric.title}
        rows.append(row | {"accuracy_low": low, "accuracy_high": high})
    for name, (loss, accuracy) in scoring.PUBLISHED.items():
        row = {"model": name, "source": "published experiment"}
        row |= {"parameters": MODELS[name].parameters, "loss": loss, "accuracy": accuracy}
        rows.append(row)
    return rows


def comparison_markdown(rows: Sequence[Mapping[str, Any]], difference: Mapping[str, Any]) -> str:
    """The table of the models, and a sentence about the difference of the first two.

    Args:
        rows: From :func:`comparison_rows`.
        difference: The fields of :class:`scoring.PairedDifference`.
    """
    accuracy = METRICS["accuracy"]
    others = {key: metric for key, metric in METRICS.items() if metric.title and metric != accuracy}
    lines = []
    for row in rows:
        ends = [f"{row[key]:.2%}" for key in ("accuracy_low", "accuracy_high") if key in row]
        scores = [
            format(row[key], metric.form) if key in row else "" for key, metric in others.items()
        ]
        named = [TITLES[row["model"]], row["source"], format(row["accuracy"], accuracy.form)]
        lines.append([*named, " to ".join(ends), *scores, f"{row['parameters']:,}"])
    columns = ["model", "source", accuracy.title, "95 % interval"]
    columns += [*(metric.title for metric in others.values()), "parameters"]
    shown = table(" | ".join(columns), f"llrc{'r' * len(others)}r", lines)
    first, second = list(MODELS.values())[:2]
    points = [100 * difference[key] for key in ("accuracy", "low", "high")]
    return (
        f"{shown}\n\n{first.title} minus {second.title} on the same images: {points[0]:+.2f} "
        f"percentage points (95 % interval {points[1]:+.2f} to {points[2]:+.2f}; "
        f"exact McNemar p = {difference['mcnemar_p']:.2g}). {first.title} alone is right on "
        f"{difference['only_first']} images, {second.spoken} alone on "
        f"{difference['only_second']}.\n"
    )


@main_function
def main() -> None:
    settings = params.load()
    with running("evaluate"):
        numerics.configure(settings.threads, settings.seed)
        test = splits.load_split(files.DATA_PREPARED, "test")
        answers: dict[str, Answers] = {}
        for name in MODEL_NAMES:
            network = models.load_model(name, settings.of_model(name), files.model_path(name))
            answers[name] = models.answers(network, test)
        first, second = (answers[name].correct for name in MODEL_NAMES[:2])
        difference = scoring.paired_difference(first, second)
        scores: dict[str, Scores] = {}
        intervals: dict[str, Interval] = {}
        metrics: dict[str, Any] = {}
        details: dict[str, Any] = {}
        for name, given in answers.items():
            scores[name] = {key: metric.of(given) for key, metric in METRICS.items()}
            intervals[name] = scoring.accuracy_interval(given.correct)
            metrics[name] = numbers(scores[name], shown=True)
            interval = {"accuracy_interval": intervals[name]}
            details[name] = numbers(scores[name], shown=False) | interval
            write_predictions(name, given)
            write_confusion(name, given)
        files.write_csv(
            files.REPORTS / "per_class.csv",
            ["model", "digit", "precision", "recall", "f1", "images"],
            (row for name, given in answers.items() for row in class_rows(name, given)),
        )
        rows = comparison_rows(settings.recipe, scores, intervals)
        files.write_rows(files.COMPARISON, rows)
        # The Markdown has the numbers of the files: rounded to 6 digits, then to those it shows
        compared = comparison_markdown(files.rounded(rows), files.rounded(asdict(difference)))
        write_text(files.COMPARISON.with_suffix(".md"), compared)
        write_text(files.REPORTS / "model_card.md", card.text(settings, answers))
        outputs = [(name, given.outputs_sha256) for name, given in answers.items()]
        details |= {
            "paired_difference": asdict(difference),
            "outputs": files.fingerprint_lines(outputs),
        }
        files.write_json(files.METRICS, {**metrics, "paired_difference": difference.accuracy})
        files.write_json(files.EVALUATION, details)
        for name in MODEL_NAMES:
            print(f"{TITLES[name]}: test accuracy {metrics[name]['accuracy']:.2%}")


if __name__ == "__main__":
    main()
