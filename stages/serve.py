"""``make serve``: a registered model answers images over HTTP, and a page to draw them.

    python -m stages.serve [MODEL [PORT]]

The model is built from the weights that a commit's dvc.lock holds. The server is MLflow's scoring
server, as `mlflow models serve` starts it, with a check before it. Without the check it would cut
the fractions off a float image, and answer 500 to a request without a content type.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dvc_mlflow import find, history, models, reasons, store, sync
from dvc_mlflow.content import Content
from dvc_mlflow.errors import InputError, StageError, main_function
from stages import hooks
from stages.base.params import MODEL_NAMES
from stages.show import page

MODEL = "models:/mnist@champion"
PORT = 5001
LARGEST_BODY = 64 * 2**20  # bytes; 10,000 images are about 25 MB of JSON


def refusal(content_type: str | None, body: bytes) -> tuple[int, str] | None:
    """The HTTP status and the reason if a request is refused, or None."""
    if (content_type or "").split(";")[0].strip().lower() != "application/json":
        return 415, f"the content type is {content_type or 'missing'}, expected application/json"
    if len(body) > LARGEST_BODY:
        return 413, f"the body has {len(body):,} bytes, expected at most {LARGEST_BODY:,}"
    expected = 'expected {"inputs": images}, integers from 0 to 255 of shape (N, 28, 28)'
    try:
        content = json.loads(body)
        images = np.array(content["inputs"]) if list(content) == ["inputs"] else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        images = None  # not JSON, nested too deep, or rows of different lengths
    if images is None:
        return 400, f"the body is not readable as images: {expected}"
    if images.dtype.kind not in "iu" or images.shape[1:] != (28, 28):
        return 400, f"the images are {images.dtype} of shape {images.shape}: {expected}"
    if b"true" in body or b"false" in body:  # among numbers, NumPy takes them for 1 and 0
        return 400, f"some pixels are true or false: {expected}"
    if not 0 <= images.min() <= images.max() <= 255:
        return 400, f"the pixels reach from {images.min()} to {images.max()}: {expected}"
    return None


def application(model: Path, drawing: str) -> Any:
    """MLflow's scoring server for a model in a folder, behind :func:`refusal`.

    Args:
        drawing: The page at `/`.
    """
    from fastapi import Request
    from fastapi.responses import HTMLResponse, JSONResponse
    from mlflow.pyfunc import scoring_server

    loaded = scoring_server.load_model_with_mlflow_config(str(model))  # type: ignore[no-untyped-call]
    app = scoring_server.init(loaded)

    async def check_images(request: Request, call_next: Any) -> Any:
        if request.url.path == "/invocations":
            refused = refusal(request.headers.get("content-type"), await request.body())
            if refused:
                return JSONResponse({"message": refused[1]}, refused[0])
        return await call_next(request)

    app.middleware("http")(check_images)
    app.get("/", response_class=HTMLResponse)(lambda: drawing)
    return app


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
    holding = [holder for holder in history.holders() if holder.holds({path: md5})]
    if not holding:
        raise StageError(f"{what} is refused: its bytes match no dvc.lock of this history")
    commit = holding[0].first
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
                    f"{lost} of commit {commit[:10]} is not in the cache: `git checkout "
                    f"{commit[:10]} && dvc pull {lost}` brings it"
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
        uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
