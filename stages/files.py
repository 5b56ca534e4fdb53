"""Every file that the pipeline writes: whole or not at all, and the same bytes every time."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import StageError

if TYPE_CHECKING:
    from PIL import Image

DATA_RAW = Path("data/raw")
DATA_PREPARED = Path("data/prepared")
MODELS = Path("models")
REPORTS = Path("reports")
METRICS = REPORTS / "metrics.json"
COMPARISON = REPORTS / "comparison.csv"
FIGURES = REPORTS / "figures"
STUDY = Path("study")
CELLS = STUDY / "cells"
LOCKS = ("dvc.lock", "study/dvc.lock")
VALIDATION = "validation"  # in the place of a cell's seed: trained without the validation images

SIGNIFICANT_DIGITS = 6
NUMBERS = re.compile(r"(?<=\[)[\s\d.,e+-]+(?=\])")  # all that stands in a list of numbers


def model_path(model: str) -> Path:
    return MODELS / f"{model}.safetensors"


def history_path(model: str) -> Path:
    """Loss and accuracy of each epoch."""
    return REPORTS / f"history_{model}.csv"


def predictions_path(model: str) -> Path:
    """Each test image's class, predicted class and confidence."""
    return REPORTS / f"predictions_{model}.csv"


def training_path(model: str) -> Path:
    """Loss and accuracy of the last epoch, and SHA-256 of the weights before training, after the
    first batch and after each epoch."""
    return REPORTS / f"train_{model}.json"


def confusion_path(model: str) -> Path:
    return REPORTS / f"confusion_{model}.csv"


def cell_path(recipe: str, model: str, seed: int | str) -> Path:
    """One cell of the study."""
    return CELLS / f"{recipe}-{model}-{seed}.json"


def rounded(value: Any) -> Any:
    """``value`` with each float in it at 6 significant digits; the one place that rounds."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn the reason why ``what`` cannot be written into a StageError."""
    try:
        yield
    except OSError as error:
        raise StageError(
            f"{what} cannot be written ({error.strerror}); once that is mended, `dvc repro` goes "
            "on from here"
        ) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside ``path``, then rename: a reader sees the old file or the new one, also after a
    power cut. What a killed process leaves beside it is overwritten by the next.

    Raises:
        StageError: It cannot be written, because the disk is full or the folder read-only.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_png(path: Path, image: "Image.Image") -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Sorted keys, rounded floats, numbers of a list on one line; a NaN raises ValueError, because
    JSON has none."""
    text = json.dumps(rounded(value), indent=2, sort_keys=True, allow_nan=False)
    text = NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    write_text(path, text + "\n")


def fingerprint_lines(fingerprints: Iterable[tuple[str, str]]) -> list[str]:
    """Names and SHA-256 as `sha256sum` writes them. `dvc metrics show` leaves lists out."""
    return [f"{sha256}  {name}" for name, sha256 in fingerprints]


def read_fingerprints(lines: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name, of what :func:`fingerprint_lines` made."""
    pairs = (line.split("  ", 1) for line in lines)
    return {name: sha256 for sha256, name in pairs}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([rounded(value) for value in row] for row in rows)
    write_text(path, buffer.getvalue())


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with the columns of the first row; what another row lacks is left empty."""
    header = list(rows[0])
    write_csv(path, header, ([row.get(name, "") for name in header] for row in rows))


def read_csv(path: Path) -> dict[str, list[float]]:
    """Columns by name; every column of the CSV files read back here is a number."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(path: Path) -> str:
    """The md5 that dvc.lock has for ``path``.

    For a file, plain md5; for a folder, DVC's: the md5 of the JSON list of its files' md5s and
    paths, sorted by path, and ``.dir`` behind it.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    entries = [
        {"md5": md5(file), "relpath": file.relative_to(path).as_posix()}
        for file in path.rglob("*")
        if file.is_file()
    ]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode()).hexdigest() + ".dir"
