"""What a server takes: for which host, how much, and for how long. For stages/serve.py."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 30.0  # seconds for a request to arrive, and for a client to take a part of the answer
LINGER = 2.0  # seconds in which the rest of a refused body is dropped, while the client reads why
CONNECTIONS = 100  # at once; the next requests are answered with 503
# A page of another site can give its own name the address 127.0.0.1 (DNS rebinding). The browser
# then lets it read what we answer, and tells us its name.
HOSTS = "localhost, 127.0.0.1 or [::1]"
HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)

Refusal = tuple[int, str] | None  # the HTTP status and the reason


class Patient(H11Protocol):
    """uvicorn's protocol, with an end for connections that ask for nothing.

    uvicorn's own limit starts after an answer and ends with the next byte: a connection that sends
    half a request, or nothing, stays open for ever.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > 2 * CONNECTIONS:  # those that do not even ask get no answer
            transport.abort()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer:
            self._timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(PATIENCE, self._end)

    def _end(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.transport.is_closing():
            self._wait()
        else:
            self.transport.abort()


def of_uvicorn() -> dict[str, Any]:
    """The settings of uvicorn that go with this."""
    settings = {"http": Patient, "ws": "none", "limit_concurrency": CONNECTIONS}
    return settings | {"log_level": "warning"}


class _Refused(Exception):
    """A request that is refused, with an HTTP status, before all of it is read or after."""

    def __init__(self, refusal: tuple[int, str], more: bool) -> None:
        self.status, self.reason = refusal
        self.more = more  # whether more of the body may come


class Limits:
    """An ASGI application that gets only requests for this host, and whole and checked bodies.

    Args:
        app: The application behind it.
        path: The path whose bodies are checked. The application reads no other ones.
        of_head: Refuses a request by its content type and the bytes of its body until now. It is
            asked before the body is read, and after each part of it.
        of_body: Refuses a request by its content type and its whole body. It has a thread, so that
            other requests are answered meanwhile.
    """

    def __init__(
        self,
        app: Any,
        path: str,
        of_head: Callable[[str | None, int], Refusal],
        of_body: Callable[[str | None, bytes], Refusal],
    ) -> None:
        self.app, self.path, self.of_head, self.of_body = app, path, of_head, of_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Any) -> None:
            async with asyncio.timeout(PATIENCE):
                await send(message)

        try:
            waiting = await self._checked(scope, receive)
        except _Refused as refused:
            await _answer(refused, receive, sending)
            return

        async def again() -> Any:
            return waiting.pop(0) if waiting else await receive()

        with contextlib.suppress(TimeoutError):  # uvicorn ends the connection
            await self.app(scope, again, sending)

    async def _checked(self, scope: Any, receive: Any) -> list[Any]:
        """The messages with the body, if it had to be read."""
        headers = Headers(scope=scope)
        if not HOST.fullmatch(host := headers.get("host", "localhost")):
            raise _Refused((403, f"the host is {host[:100]}, expected {HOSTS}"), more=True)
        if scope["path"] != self.path:
            return []
        content_type, length = headers.get("content-type"), headers.get("content-length", "0")
        if refusal := self.of_head(content_type, int(length) if length.isdecimal() else 0):
            raise _Refused(refusal, more=True)
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(PATIENCE):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return [message]  # the client has gone
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if refusal := self.of_head(content_type, len(body)):
                        raise _Refused(refusal, more)
        except TimeoutError:
            reason = f"the body has not arrived after {PATIENCE:g} s"
            raise _Refused((408, reason), more=True) from None
        content = bytes(body)
        if refusal := await asyncio.to_thread(self.of_body, content_type, content):
            raise _Refused(refusal, more=False)
        return [{"type": "http.request", "body": content, "more_body": False}]


async def _answer(refused: _Refused, receive: Any, send: Any) -> None:
    """Send the reason. A connection that is closed at once, with bytes unread, would lose it."""
    content = json.dumps({"message": refused.reason}).encode()
    told = {"content-type": "application/json", "content-length": len(content)}
    headers = [(name.encode(), str(value).encode()) for name, value in told.items()]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": refused.more})
    if refused.more:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
