"""``make serve``: a registered model answers images over HTTP, and a page to draw them.

    python -m stages.serve [MODEL [PORT [HOST]]]

The model is built from the weights that a commit's dvc.lock holds. The server is MLflow's scoring
server, as `mlflow models serve` starts it, with a check before it. Without the check it would cut
the fractions off a float image, and answer 500 to a request without a content type. Nor would it
limit the length of a request, and for which host it is.
"""

import asyncio
import ipaddress
import os
import re
import socket
import sys
import tempfile
from email.message import Message
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from dvc_kit.commands import shown
from dvc_kit.errors import InputError, StageError, main_function
from dvc_kit.strict import Section
from dvc_mlflow import find, history, models, reasons, store, sync
from dvc_mlflow.content import Content
from stages import hooks
from stages.base.params import MODEL_NAMES
from stages.base.splits import SIDE
from stages.show import page

MODEL = "models:/mnist@champion"
PORT = 5001
LISTENS = "127.0.0.1"  # without a HOST
CONNECTIONS = 100  # at once; the next requests are answered with 503
LARGEST_BODY = 40 * 2**20  # bytes; 10,000 images are 25 to 40 MB of JSON
# A list, an object or a text costs the parser much more memory than its bytes, so what begins one
# is counted first. Among images, the next one is a row of 28 pixels away.
OPENING = (b"[", b"{", b'"')
MOST_OPENED = 1_000  # in any body
SHORTEST_ROW = 56  # bytes: [0,0, ... ,0]
# A page of another site can give its own name the address 127.0.0.1 (DNS rebinding). The browser
# then lets it read what we answer, and tells us its name.
HOSTS = "localhost, 127.0.0.1 or [::1]"
HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)

Pixel = Annotated[int, Field(ge=0, le=255)]
PixelRow = Annotated[list[Pixel], Field(min_length=SIDE, max_length=SIDE, fail_fast=True)]
Image = Annotated[list[PixelRow], Field(min_length=SIDE, max_length=SIDE, fail_fast=True)]
Refusal = tuple[int, str] | None  # the HTTP status and the reason


class Images(Section):
    """The body of a request."""

    inputs: Annotated[list[Image], Field(min_length=1, fail_fast=True)]


def refusal(content_type: str | None, body: bytes) -> Refusal:
    """The HTTP status and the reason if a request is refused, or None."""
    told = Message()
    told["content-type"] = content_type or ""
    if told.get_content_type() != "application/json":
        return 415, f"the content type is {content_type or 'missing'}, expected application/json"
    if (charset := told.get_content_charset("utf-8")) != "utf-8":
        return 415, f"the charset is {charset}, expected utf-8"
    if len(body) > LARGEST_BODY:
        return 413, f"the body is too long, expected at most {LARGEST_BODY:,} bytes"
    reason = "there are too many lists and texts"
    if sum(map(body.count, OPENING)) <= MOST_OPENED + len(body) // SHORTEST_ROW:
        try:
            Images.model_validate_json(body.removeprefix(b"\xef\xbb\xbf"))  # UTF-8's own mark
            return None
        except ValidationError as error:
            [first, *_] = error.errors(include_url=False, include_context=False)
            reason = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
    expected = f"integers from 0 to 255 of shape (N, {SIDE}, {SIDE})"
    return 400, f'the body is no images ({reason}): expected {{"inputs": images}}, {expected}'


async def whole_body(receive: Any) -> bytes:
    """The body of a request. Of one that is too long, what is beyond the limit is dropped."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")[: LARGEST_BODY + 1 - len(body)]
        more = message.get("more_body", False)
    return bytes(body)


def is_named(told: str, host: str) -> bool:
    """Whether a request that names a host is for a server that listens on another one, too.

    An address in numbers is no name that a page could have taken.
    """
    name = re.sub(r":\d+$", "", told).lower()
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return host != LISTENS and name in {host.lower(), socket.gethostname().lower()}
    return host != LISTENS


def application(model: Path, drawing: str, listens: str = LISTENS) -> Any:
    """MLflow's scoring server for a model in a folder, behind :func:`refusal`.

    Args:
        drawing: The page at `/`.
        listens: The address of this machine that the server is at.
    """
    from fastapi.responses import HTMLResponse, JSONResponse
    from mlflow.pyfunc import scoring_server
    from starlette.datastructures import Headers

    loaded = scoring_server.load_model_with_mlflow_config(str(model))  # type: ignore[no-untyped-call]
    app = scoring_server.init(loaded)
    app.get("/", response_class=HTMLResponse)(lambda: drawing)

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        """The application as ASGI has it, for this host only, with whole and checked images."""
        refused, checked_body = None, []
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "localhost")
            if not HOST.fullmatch(host) and not is_named(host, listens):
                refused = 403, f"the host is {host[:100]}, expected {HOSTS}"
            elif scope["path"] == "/invocations":
                body = await whole_body(receive)
                # In a thread, so that other requests are answered meanwhile
                refused = await asyncio.to_thread(refusal, headers.get("content-type"), body)
                checked_body = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return checked_body.pop() if checked_body else await receive()

        if refused:
            answer = JSONResponse({"message": refused[1]}, refused[0], {"connection": "close"})
            await answer(scope, again, send)
        else:
            await app(scope, again, send)

    return checked


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
    default = (MODEL, str(PORT), LISTENS)
    what, port, host, *more = [*sys.argv[1:], *default[len(sys.argv) - 1 :]]
    if more or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError("usage: python -m stages.serve [MODEL [PORT [HOST]]]")
    os.chdir(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="serve-") as scratch:
        folder = Path(scratch) / "model"
        with reasons.explained():
            store.find_experiment()
            said, drawing = build(what, folder)
            print(said)
            app = application(folder, drawing, host)
        import uvicorn

        shown = LISTENS if host == "0.0.0.0" else host
        print(f"draw a digit: http://{shown}:{port}/")
        print(f"answers POST http://{shown}:{port}/invocations", flush=True)
        if host != LISTENS:
            print(
                f"warning: it listens on {host}: who reaches port {port} there may ask, without a "
                "password",
                file=sys.stderr,
            )
        uvicorn.run(
            app, host=host, port=int(port), limit_concurrency=CONNECTIONS, log_level="warning"
        )


if __name__ == "__main__":
    main()
