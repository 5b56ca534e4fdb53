"""What a worker sends, checked against its order before anything of it is used or written.

A worker is another machine: its clone may have other code, its memory may be damaged, and its name
is shown on this terminal.
"""

import json
import textwrap
from typing import Annotated, Any

from pydantic import Field, ValidationError

from dvc_kit.errors import StageError
from dvc_kit.strict import Section
from stages.base.params import CLASSES
from study.orders import Order, Reply, Task

SHOWN = 500  # characters of a reason
ROUNDED = 1e-6  # a cell has six significant digits
Share = Annotated[float, Field(ge=0, le=1)]
Digit = Annotated[int, Field(ge=0, lt=CLASSES)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}  (weights|outputs)$")]

OF_TEST = {"accuracy", "calibration_error", "images", "loss", "negative_log_likelihood"}
SCALED = {"calibration_error", "negative_log_likelihood"}


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
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.shorten(shown, SHOWN, placeholder="...")


def explained(error: ValidationError) -> str:
    """The first of pydantic's reasons."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return line(": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]]))


def read(given: Any, order: Order, at: str) -> Reply:
    """The reply to an order.

    Args:
        given: The fields of a reply, if all is well.
        at: The address of the worker.

    Raises:
        StageError: It has other fields than a reply has, or is of another cell or address.
    """
    try:
        reply = Reply.model_validate(given)
    except ValidationError as error:
        reason = f"is none ({explained(error)}): is its clone at commit {order.commit[:12]}?"
    else:
        if (reply.stage, reply.address) == (order.stage, at):
            shown = {"worker": line(reply.worker), "fault": line(reply.fault)}
            return reply.model_copy(update=shown)
        reason = f"is of {line(reply.stage)} from {line(reply.address) or 'no address'}"
    raise StageError(f"its reply to {order.stage} {reason}")


def mistake_in(reply: Reply, task: Task) -> str:
    """Why the bytes of a reply are not those that were asked for, or nothing."""
    reason = task.mistake(reply.content)
    return f"its file is not that of {task.order.stage} ({reason})" if reason else ""


def mistake_in_cell(content: bytes, of_validation: bool, epochs: int) -> str:
    """Why these bytes are not the file of a cell of so many epochs, or nothing."""
    try:
        cell = CellFile.model_validate_json(content)
    except ValidationError as error:
        return explained(error)
    return _contradiction(cell, of_validation, epochs)


def _contradiction(cell: CellFile, of_validation: bool, epochs: int) -> str:
    """The first thing in a cell that does not go with the rest, or with its order; or nothing."""
    names = {f"test_{name}" for name in OF_TEST}
    if of_validation:
        names |= {f"validation_{name}" for name in OF_TEST} | {"temperature"}
        names |= {f"test_scaled_{name}" for name in SCALED}
    if odd := sorted(cell.scores.keys() ^ names):
        return line(f"scores.{odd[0]} is {'too much' if odd[0] in cell.scores else 'missing'}")
    for name in ("test_accuracy", "test_loss"):
        if [getattr(cell, name)] != cell.scores[name]:
            return f"{name} is not the one of scores"
    if any(len(column) != epochs for column in dict(cell.history).values()):
        return f"history does not have {epochs} epochs in each column"
    [images], count = cell.scores["test_images"], len(cell.errors.index)
    if any(len(column) != count for column in dict(cell.errors).values()):
        return "the columns of errors are not equally long"
    if abs(images * (1 - cell.test_accuracy) - count) > ROUNDED * images:
        return f"errors has {count} images, and test_accuracy is {cell.test_accuracy}"
    return ""


def first_difference(one: bytes, other: bytes) -> str:
    """Where two files of the same training begin to differ."""
    first, second = json.loads(one), json.loads(other)
    histories = [content.pop("history", {}) for content in (first, second)]
    for at, epoch in enumerate(histories[0].get("epoch", [])):
        for name in sorted(histories[0]):
            values = [str(history.get(name, [])[at : at + 1]) for history in histories]
            if values[0] != values[1]:
                return f"from epoch {epoch} on, in {name}: {values[0]} and {values[1]}"
    if first.get("sha256") != second.get("sha256"):
        return "in the weights after the last epoch, or in their outputs (sha256)"
    names = [name for name in sorted(first) if first[name] != second.get(name)]
    return f"in {names[0]}" if names else "in the form of the file"
