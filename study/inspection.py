"""What a worker sends, checked against its order before anything of it is used or written.

A worker is another machine: its clone may have other code, its memory may be damaged, and its name
is shown on this terminal. The parser of pydantic ends at a depth of 200 and does not recurse in
Python, so no content ends this process.
"""

import json
from hashlib import md5
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from dvc_mlflow.errors import StageError
from stages.base.params import CLASSES, TRAIN_SIZE
from stages.base.strict import Section
from study.settings import VALIDATION
from study.worker import Order, Reply

LARGEST = 2**20  # bytes of a cell: a hundred times as many as most have
LARGEST_REPLY = 2**22  # characters: a cell in hexadecimal digits, and the rest
LONGEST = 10**4  # characters of any other text
SHOWN = 500  # characters of a reason
LONG_AGO = 10**8  # seconds: three years
ROUNDED = 1e-6  # a cell has six significant digits
CONTROL = r"^[^\p{Cc}\p{Zl}\p{Zp}]*$"  # no character that moves the cursor or begins a line

Text = Annotated[str, Field(max_length=LONGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Digit = Annotated[int, Field(ge=0, lt=CLASSES)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}  (weights|outputs)$")]

OF_TEST = {"accuracy", "calibration_error", "images", "loss", "negative_log_likelihood"}
SCALED = {"calibration_error", "negative_log_likelihood"}


class Sent(Section):
    """A :class:`Reply` as it comes."""

    model_config = ConfigDict(val_json_bytes="hex")

    stage: Text
    worker: Annotated[str, Field(min_length=1, max_length=LONGEST, pattern=CONTROL)]
    address: Text
    seconds: Annotated[float, Field(ge=0, le=LONG_AGO)]
    content: Annotated[bytes, Field(max_length=LARGEST)]
    md5: Text
    fault: str
    unfit: bool


class Errors(Section):
    """The mistaken test images."""

    index: list[Annotated[int, Field(ge=0)]]
    label: list[Digit]
    predicted: list[Digit]


class History(Section):
    """The rows of a training, by column."""

    epoch: list[int]
    train_accuracy: list[Share]
    train_loss: list[float]


class CellFile(Section):
    """The content of a cell's file, as study.cell writes it."""

    test_accuracy: Share
    test_loss: float
    scores: dict[str, Annotated[list[float], Field(min_length=1, max_length=1)]]
    errors: Errors
    history: History
    sha256: Annotated[list[Fingerprint], Field(min_length=2, max_length=2)]


def line(text: str) -> str:
    """A text of somebody else's as a part of one line."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST])
    shown = " ".join(shown.split())
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."


def explained(error: ValidationError) -> str:
    """The first of pydantic's reasons."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return line(": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]]))


def read(given: Any, order: Order, at: str) -> Reply:
    """The reply to an order.

    Args:
        given: A text of JSON, if all is well.
        at: The address of the worker.

    Raises:
        StageError: It has other fields than a reply has, or is of another cell or address.
    """
    reason = ""
    if not isinstance(given, str):
        reason = "is no text"
    elif len(given) > LARGEST_REPLY:
        reason = f"has more than {LARGEST_REPLY:,} characters"
    else:
        try:
            reply = Sent.model_validate_json(given)
        except ValidationError as error:
            reason = f"is none ({explained(error)}): is its clone at commit {order.commit[:12]}?"
        else:
            if (reply.stage, reply.address) == (order.stage, at):
                return Reply(**dict(reply) | {"fault": line(reply.fault)})
            reason = f"is of {line(reply.stage)} from {line(reply.address) or 'no address'}"
    raise StageError(f"its reply to {order.stage} {reason}")


def mistake_in(reply: Reply, order: Order, epochs: int) -> str:
    """Why the bytes of a reply are not those of the cell that was asked for, or nothing.

    Args:
        epochs: Those of the training.
    """
    if md5(reply.content).hexdigest() != reply.md5:
        return f"its file of {order.stage} does not have the md5 that it was sent with"
    try:
        cell = CellFile.model_validate_json(reply.content)
    except ValidationError as error:
        reason = explained(error)
    else:
        reason = _contradiction(cell, order.arguments[-1] == VALIDATION, epochs)
    return f"its file of {order.stage} is not that cell ({reason})" if reason else ""


def _contradiction(cell: CellFile, of_validation: bool, epochs: int) -> str:
    """The first thing in a cell that does not go with the rest, or with its order; or nothing."""
    names = {f"test_{name}" for name in OF_TEST}
    if of_validation:
        names |= {f"validation_{name}" for name in OF_TEST} | {"temperature"}
        names |= {f"test_scaled_{name}" for name in SCALED}
    if cell.scores.keys() != names:
        odd = min(cell.scores.keys() ^ names)
        return line(f"scores.{odd} is {'too much' if odd in cell.scores else 'missing'}")
    for name in ("test_accuracy", "test_loss"):
        if [getattr(cell, name)] != cell.scores[name]:
            return f"{name} is not the one of scores"
    columns = dict(cell.history)
    if any(len(column) != epochs for column in columns.values()):
        return f"history does not have {epochs} epochs in each column"
    if cell.history.epoch != [*range(1, epochs + 1)]:
        return f"history.epoch does not count from 1 to {epochs}"
    errors, [images] = cell.errors, cell.scores["test_images"]
    if not len(errors.index) == len(errors.label) == len(errors.predicted):
        return "the columns of errors are not equally long"
    if not 1 <= images <= TRAIN_SIZE or images % 1:
        return f"scores.test_images is {images:g}"
    if errors.index != sorted({*errors.index}) or max(errors.index, default=0) >= images:
        return f"errors.index does not rise, or goes beyond {images:.0f} images"
    if any(map(int.__eq__, errors.label, errors.predicted)):
        return "errors has an image that is no mistake"
    if abs(images * (1 - cell.test_accuracy) - len(errors.index)) > ROUNDED * images:
        return f"errors has {len(errors.index)} images, and test_accuracy is {cell.test_accuracy}"
    if [text[66:] for text in cell.sha256] != ["weights", "outputs"]:
        return "sha256 is not that of the weights and that of the outputs"
    return ""


def difference(one: bytes, other: bytes) -> str:
    """Where two files of the same cell begin to differ."""
    first, second = json.loads(one), json.loads(other)
    histories = first.pop("history"), second.pop("history")
    for at, epoch in enumerate(histories[0].get("epoch", [])):
        for name in sorted(histories[0]):
            values = [str(history.get(name, [])[at : at + 1]) for history in histories]
            if values[0] != values[1]:
                return f"from epoch {epoch} on, in {name}: {values[0]} and {values[1]}"
    if first["sha256"] != second["sha256"]:
        return "in the weights after the last epoch, or in their outputs (sha256)"
    names = [name for name in sorted(first) if first[name] != second.get(name)]
    return f"in {names[0]}" if names else "in the form of the file"
