"""``make serve``: a registered model answers images over HTTP, and a page to draw them.

    python -m stages.serve [MODEL [PORT]]

The model is built from the weights that a commit's dvc.lock holds. The server is MLflow's scoring
server, as `mlflow models serve` starts it, with a check before it. Without the check it would cut
the fractions off a float image, and answer 500 to a request without a content type. Nor would it
limit what a request may be, and how long it may take (stages/limits.py).
"""

import json
import os
import sys
import tempfile
from email.message import Message
from itertools import chain
from pathlib import Path
from typing import Any

from dvc_kit import strict
from dvc_kit.commands import shown
from dvc_kit.errors import InputError, StageError, main_function
from dvc_mlflow import find, history, models, reasons, store, sync
from dvc_mlflow.content import Content
from stages import hooks, limits
from stages.base.params import MODEL_NAMES
from stages.show import page

MODEL = "models:/mnist@champion"
PORT = 5001
LARGEST_BODY = 40 * 2**20  # bytes; 10,000 images are 25 to 40 MB of JSON
# What begins a list, an object or a text. Each costs much more than its byte in memory and time, so
# they are counted before any is made. Among images, the next one is a row of 28 pixels away.
OPENING = (b"[", b"{", b'"')
MOST_OPENED = 1_000  # in any body
SHORTEST_ROW = 56  # bytes: [0,0, ... ,0]
DEEPEST = 8  # dimensions that a refusal shows


def refusal_of_head(content_type: str | None, length: int) -> limits.Refusal:
    """The HTTP status and the reason if a request is refused by its head, or None.

    Args:
        length: The bytes of the body that are known of.
    """
    told = Message()
    told["content-type"] = content_type or ""
    if told.get_content_type() != "application/json":
        return 415, f"the content type is {content_type or 'missing'}, expected application/json"
    if (charset := told.get_content_charset("utf-8")) != "utf-8":
        return 415, f"the charset is {charset}, expected utf-8"
    if length > LARGEST_BODY:
        return 413, f"the body has {length:,} bytes, expected at most {LARGEST_BODY:,}"
    return None


def refusal(content_type: str | None, body: bytes) -> limits.Refusal:
    """The HTTP status and the reason if a request is refused, or None."""
    if refused := refusal_of_head(content_type, len(body)):
        return refused
    expected = 'expected {"inputs": images}, integers from 0 to 255 of shape (N, 28, 28)'
    unreadable = 400, f"the body is not readable as images: {expected}"
    if sum(map(body.count, OPENING)) > MOST_OPENED + len(body) // SHORTEST_ROW:
        return unreadable
    try:
        content = json.loads(body.decode("utf-8-sig"))  # of other encodings, MLflow sees another
        nested = unnested(content["inputs"]) if list(content) == ["inputs"] else None
    except (ValueError, TypeError, RecursionError):
        return unreadable  # not JSON, not an object, or nested too deep
    if nested is None:
        return unreadable
    shape, pixels = nested
    kinds = {*map(type, pixels)}
    if kinds != {int} or shape[1:] != (28, 28):
        names = {int: "int64", float: "float64"}
        told = ", ".join(sorted(names.get(kind, kind.__name__) for kind in kinds)) or "empty"
        return 400, f"the images are {told} of shape {shape}: {expected}"
    if not 0 <= min(pixels) <= max(pixels) <= 255:
        low, high = strict.shown(min(pixels)), strict.shown(max(pixels))
        return 400, f"the pixels reach from {low} to {high}: {expected}"
    return None


def unnested(nested: object) -> tuple[tuple[int, ...], list[Any]] | None:
    """The shape of nested lists and their values; None if lists beside each other differ in length.

    Of more than :data:`DEEPEST` dimensions, the values are still lists. Unlike NumPy, it takes no
    longer for many small lists than for a few long ones, and it keeps true and 1 apart.
    """
    shape: list[int] = []
    values: list[Any] = [nested]
    while list in (kinds := {*map(type, values)}) and len(shape) < DEEPEST:
        lengths = {*map(len, values)} if kinds == {list} else set()
        if len(lengths) != 1:
            return None
        shape += lengths
        values = [*chain.from_iterable(values)]
    return tuple(shape), values


def application(model: Path, drawing: str) -> Any:
    """MLflow's scoring server for a model in a folder, behind :func:`refusal` and the limits.

    Args:
        drawing: The page at `/`.
    """
    from fastapi.responses import HTMLResponse
    from mlflow.pyfunc import scoring_server

    loaded = scoring_server.load_model_with_mlflow_config(str(model))  # type: ignore[no-untyped-call]
    app = scoring_server.init(loaded)
    app.get("/", response_class=HTMLResponse)(lambda: drawing)
    return limits.Limits(app, "/invocations", refusal_of_head, refusal)


def build(what: str, folder: Path) -> tuple[str, str]:
    """Build a model anew, from the file of weights in the history that it was logged from.

    Args:
        what: See :func:`find.logged_model`.
        folder: Gets the model, in the format of MLflow.

    Returns:
        A description: the file, and the commit that holds it. A page to draw digits, with the
        networks of that commit.

    Raises:
        StageError: No commit holds its weights, or they cannot be had.
    """
    model = find.logged_model(what)
    md5, path = model.tags.get("md5", ""), model.tags.get("file", "")
    holding = history.commits_naming(md5) if md5 else []
    if not holding:
        raise StageError(f"{what} is refused: its bytes match no dvc.lock of this history")
    commit = holding[-1]
    with sync.state_of(commit) as state:
        [(project, results)] = [
            (project, results)
            for project in state.projects
            for results in [list(project.locked().values())]
            if any(path in result.outs for result in results)
        ]
        trained = {path: result for result in results for path in result.models}
        result = next(result for result in results if path in result.outs)
        needed = [path, *hooks.reads(result)]
        with Content(project, state.made, commit).laid([*needed, *trained]) as missing:
            for lost in (one for one in needed if one in missing):
                raise StageError(
                    f"{lost} of commit {commit[:10]} is not in the cache: "
                    f"`{shown(['git', 'checkout', commit[:10]], ['dvc', 'pull', lost])}` brings it"
                )
            models.export(result, Path(path), folder)
            there = {Path(one).stem: Path(one) for one in trained if one not in missing}
            networks: dict[str, page.Trained] = {}
            for name in (name for name in MODEL_NAMES if name in there):
                recipe = hooks.recipe_of(trained[there[name].as_posix()], name)
                networks[name] = page.Trained(there[name].read_bytes(), recipe.dropout)
    return f"{what} is {path} (md5 {md5}) of commit {commit[:10]}", page.drawing(networks)


@main_function
def main() -> None:
    what, port, *more = [*sys.argv[1:], *(MODEL, str(PORT))[len(sys.argv) - 1 :]]
    if more or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError("usage: python -m stages.serve [MODEL [PORT]]")
    os.chdir(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="serve-") as scratch:
        folder = Path(scratch) / "model"
        with reasons.explained():
            store.find_experiment()
            said, drawing = build(what, folder)
            print(said)
            app = application(folder, drawing)
        import uvicorn

        print(f"draw a digit: http://127.0.0.1:{port}/")
        print(f"answers POST http://127.0.0.1:{port}/invocations", flush=True)
        uvicorn.run(app, port=int(port), **limits.of_uvicorn())


if __name__ == "__main__":
    main()
