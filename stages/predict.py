"""``make predict IMAGE=photo.png``: what the trained networks say about other images than MNIST's.

    python -m stages.predict [--format text|json] [--] IMAGE...

An image is a file, a folder of files, or `-` for standard input. One that cannot be used costs a
line on standard error and an exit code of 1, and the others are answered.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dvc_kit.cli import Parser
from dvc_kit.errors import InputError, StageError, main_function
from stages import photo, scoring
from stages.answers import Answer, shown
from stages.base import files, params
from stages.base.params import MODEL_NAMES
from stages.ink import Bytes
from stages.mnist import idx
from stages.scoring import CALIBRATION_BINS, CalibrationBin

STDIN = "-"


# --- from a name to an image ---


def expanded(name: str) -> list[str]:
    """The names of the images in a folder; of another name itself.

    Raises:
        StageError: It is a folder without images.
    """
    if name.startswith("~/"):  # which not every shell replaces behind IMAGE=
        name = str(Path(name).expanduser())
    path = Path(name)
    if name == STDIN or not path.is_dir():
        return [name]
    found = sorted(str(one) for one in path.iterdir() if one.suffix.lower() in photo.SUFFIXES)
    if not found:
        raise StageError(f"is a folder without images ({photo.ENDINGS})")
    return found


def content(name: str) -> bytes:
    """The bytes of an image, or the first of those of one that is too large."""
    most = photo.LARGEST_FILE + 1
    if name == STDIN:
        return sys.stdin.buffer.read(most)
    with Path(name).open("rb") as file:
        return file.read(most)


def prepared(names: list[str]) -> Iterator[tuple[str, photo.Prepared | str]]:
    """Each image, or why there is none, by name."""
    for given in names:
        try:
            inside = expanded(given)
        except (StageError, OSError) as error:
            yield given, reason(error)
            continue
        for name in inside:
            try:
                yield name, photo.prepare(content(name))
            except (StageError, OSError) as error:
                yield name, reason(error)


def reason(error: Exception) -> str:
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def named(name: str) -> str:
    """A name in a line: that of a file may have any characters."""
    return "standard input" if name == STDIN else name if name.isprintable() else ascii(name)


# --- the answers ---


def answers(images: list[Bytes]) -> list[dict[str, Answer]]:
    """For each image (28, 28) the answers by model.

    Raises:
        InputError: A network is missing.
    """
    paths = {name: files.model_path(name) for name in MODEL_NAMES}
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        cure = "`make repro` computes what is missing, and `dvc pull` gets it from a remote"
        raise InputError(f"{' and '.join(missing)}: no such file; {cure}")
    # Importing torch takes seconds, which a mistake in a name need not wait for
    import torch

    from stages.arithmetic import numerics
    from stages.networks import models

    settings = params.load()
    numerics.configure(settings.threads, settings.seed)
    inputs = torch.from_numpy(idx.resize(np.array(images))).unsqueeze(1)
    found: list[dict[str, Answer]] = [{} for _ in images]
    for name, path in paths.items():
        network = models.load_model(name, settings.of_model(name), path)
        rows = models.probabilities(network, models.outputs(network, inputs)).tolist()
        bins = calibration(name)
        for answer, row in zip(found, rows, strict=True):
            answer[name] = Answer(row, bins.get(bin_number(max(row))))
    return found


def bin_number(confidence: float) -> int:
    return min(int(confidence * CALIBRATION_BINS), CALIBRATION_BINS - 1)


def calibration(name: str) -> dict[int, CalibrationBin]:
    """The bins of a model's answers for the test images, by number; none without a report."""
    path = files.predictions_path(name)
    if not path.is_file():
        return {}
    columns = {key: np.array(values) for key, values in files.read_csv(path).items()}
    bins = scoring.calibration(columns["confidence"], columns["actual"] == columns["predicted"])
    return {bin_number(part.confidence): part for part in bins}


# --- from names to answers ---


def as_json(name: str, found: photo.Prepared | str, answers: Mapping[str, Answer]) -> Any:
    """What is said about an image, with the image as `make serve` takes it in `inputs`."""
    if isinstance(found, str):
        return {"image": name, "error": found}
    models = {
        model: {
            "digit": answer.digit,
            "clear": answer.clear,
            "probabilities": answer.probabilities,
            "test_images": answer.alike and answer.alike.count,
            "test_accuracy": answer.alike and answer.alike.accuracy,
        }
        for model, answer in answers.items()
    }
    return {"image": name, "note": found.note, "seen": found.image.tolist(), "models": models}


@main_function
def main() -> None:
    parser = Parser(prog="python -m stages.predict", allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, or -")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    given = parser.parse_args()
    images = list(prepared(given.images))
    for name, found in images:
        if isinstance(found, str):
            print(f"error: {named(name)}: {found}", file=sys.stderr)
    fit = [found.image for _, found in images if not isinstance(found, str)]
    each = iter(answers(fit) if fit else [])
    said = [(name, found, {} if isinstance(found, str) else next(each)) for name, found in images]
    if given.format == "json":
        lines = ",\n".join(json.dumps(as_json(*one)) for one in said)  # a line for each image
        print(f"[\n{lines}\n]")
    else:
        texts = [
            f"{named(name)}{found.note and f' ({found.note})'}\n"
            + shown(idx.resize(found.image[None])[0], by_model)
            for name, found, by_model in said
            if not isinstance(found, str)
        ]
        print(*texts, sep="\n\n", end="\n" if texts else "")
    if len(fit) < len(images):
        sys.exit(1)


if __name__ == "__main__":
    main()
