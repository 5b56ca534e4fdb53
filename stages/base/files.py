"""Where the files of the pipeline are, and how they are written: always as the same bytes."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc_kit.files import write_bytes, write_text

if TYPE_CHECKING:
    from PIL import Image

DATA_RAW = Path("data/raw")
DATA_PREPARED = Path("data/prepared")
MODELS = Path("models")
REPORTS = Path("reports")
METRICS = REPORTS / "metrics.json"
EVALUATION = REPORTS / "evaluation.json"  # intervals, counts and fingerprints
COMPARISON = REPORTS / "comparison.csv"
FIGURES = REPORTS / "figures"

SIGNIFICANT_DIGITS = 6
NUMBERS = re.compile(r"(?<=\[)[\s\d.,e+-]+(?=\])")  # the content of a list of numbers


def model_path(model: str) -> Path:
    return MODELS / f"{model}.safetensors"


def history_path(model: str) -> Path:
    """Loss and accuracy after each epoch."""
    return REPORTS / f"history_{model}.csv"


def predictions_path(model: str) -> Path:
    """The class, the predicted class and the confidence for each test image."""
    return REPORTS / f"predictions_{model}.csv"


def training_path(model: str) -> Path:
    """SHA-256 of the weights before the training, after the first batch, and after each epoch."""
    return REPORTS / f"train_{model}.json"


def confusion_path(model: str) -> Path:
    return REPORTS / f"confusion_{model}.csv"


def rounded(value: Any) -> Any:
    """``value`` with 6 significant digits for each float in it. Nothing else rounds results."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def write_png(path: Path, image: "Image.Image") -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys, rounded floats, and each list of numbers on one line.

    Raises:
        ValueError: There is a NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(rounded(value), indent=2, sort_keys=True, allow_nan=False)
    text = NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    write_text(path, text + "\n")


def fingerprint_lines(fingerprints: Iterable[tuple[str, str]]) -> list[str]:
    """Names and SHA-256, in the format of `sha256sum`. `dvc metrics show` shows no lists."""
    return [f"{sha256}  {name}" for name, sha256 in fingerprints]


def read_fingerprints(lines: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name, from the lines of :func:`fingerprint_lines`."""
    pairs = (line.split("  ", 1) for line in lines)
    return {name: sha256 for sha256, name in pairs}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([rounded(value) for value in row] for row in rows)
    write_text(path, buffer.getvalue())


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with the columns of the first row. A missing value is an empty field."""
    header = list(rows[0])
    write_csv(path, header, ([row.get(name, "") for name in header] for row in rows))


def read_csv(path: Path) -> dict[str, list[float]]:
    """Columns by name, of a CSV file in which all values are numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
