"""The inference routes as one raw ASGI application: bytes in, bytes out, errors in the dialect of
the path. Everything that decides is in the pipeline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from litestar import Response

from proxy.clock import uuid7
from proxy.errors import Invalid, NotServed, Refusal, TooLarge, Unavailable, UpstreamAnswer
from proxy.pipeline import Pipeline, Request
from proxy.web import problems
from proxy.web.routes import Wire, listed, match, wire_of

log = logging.getLogger("tollhouse.web")

Scope = Mapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[dict[str, Any]], Any]

#: largest body read before it is known whose it is (the head is always checked first)
HARD_BODY_BYTES = 25_000_000
MAX_HEADER_BYTES = 65_536
DISCARDED_BYTES = 100_000_000
#: bytes of bodies that came in pieces which one worker holds at a time; large ones above it are refused
HELD_BYTES = 512_000_000
LARGE_BYTES = 1_000_000
BUSY = "the proxy is busy; please retry"


class Connection:
    """A client's connection as a sink. Sending to a client that has left is silent: what happens
    to the money must not depend on who is still listening.
    """

    __slots__ = ("_receive", "_send", "_watch", "begun", "finished", "gone")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None
        self.begun = False
        self.finished = False
        self.gone = False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        if self._watch is None:  # only streams can be left half-way
            self._watch = asyncio.ensure_future(self._wait_until_gone())
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        self.finished = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        await self.start(status, headers)
        await self.finish(body)

    async def _wait_until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = not self.finished

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()


class Inference:
    """The ASGI application behind every path that is not the admin's."""

    def __init__(
        self, pipeline: Pipeline, models: Callable[[Request, str], bytes], body_seconds: float
    ) -> None:
        self._pipeline = pipeline
        self._models = models
        self._body_seconds = body_seconds
        self._inside = 0
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path = raw_path_of(scope)
        wire = wire_of(raw_path)
        connection = Connection(receive, send)
        try:
            await self._serve(scope, raw_path, connection, receive)
        except Refusal as refusal:
            await self._refuse(wire, refusal, connection)
        except asyncio.CancelledError:
            raise
        except Exception:
            incident = str(uuid7())
            log.exception("internal error %s", incident)
            if connection.begun:
                raise  # the server cuts the connection, so a half answer is seen as one
            await connection.answer(*problems.internal_error(wire, incident))
        finally:
            connection.close()

    async def _serve(self, scope: Scope, raw_path: bytes, connection: Connection, receive: Receive) -> None:
        headers = _headers(scope["headers"])
        mine: list[int] = []
        request = Request(
            id=uuid7(), endpoint=_no_endpoint, method=scope["method"], raw_path=raw_path,
            query=scope.get("query_string", b""), raw_headers=scope["headers"], headers=headers,
            read=lambda limit: self._read(receive, headers, limit, mine),
        )  # fmt: skip
        asked = listed(raw_path) if request.method == "GET" else None
        if asked is not None:
            body = self._models(request, asked)
            await connection.answer(200, [(b"content-type", b"application/json")], body)
            return
        request.endpoint = match(request.method, raw_path)
        if self._inside >= self._pipeline.max_calls:
            raise Unavailable(BUSY, reason="overloaded")
        self._inside += 1
        try:
            await self._pipeline.handle(request, connection)
        finally:
            self._inside -= 1
            self._held -= sum(mine)

    async def _refuse(self, wire: Wire, refusal: Refusal, connection: Connection) -> None:
        if connection.begun:
            log.error("a refusal after the answer began: %s", refusal)
            raise RuntimeError("cut")
        if isinstance(refusal, UpstreamAnswer):
            status, headers, body = problems.upstream_error(wire, refusal.status, refusal.kind, str(refusal))
        else:
            status, headers, body = problems.render(wire, refusal)
        await connection.answer(status, headers + refusal.headers, body)

    async def _read(self, receive: Receive, headers: Mapping[str, str], limit: int, mine: list[int]) -> bytes:
        """The request body. Refuses by Content-Length first, then by what really arrives. `mine` gets the
        bytes that count as held until the request has ended.
        """
        limit = min(limit, HARD_BODY_BYTES)
        if "content-encoding" in headers and headers["content-encoding"] not in ("", "identity"):
            raise Invalid("compressed request bodies are not accepted", reason="content_encoding")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await self._discard(receive)
            raise TooLarge(f"the body has {declared} bytes; at most {limit} are accepted")
        try:
            async with asyncio.timeout(self._body_seconds):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Invalid("the body broke off or was wrongly framed")
                body: bytes = message.get("body", b"")
                if not message.get("more_body", False):
                    return _checked(body, limit)
                parts, size = [body], len(body)
                while message.get("more_body", False):
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Invalid("the body broke off or was wrongly framed")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._held += len(parts[-1])
                    mine.append(len(parts[-1]))
                    if self._held > HELD_BYTES and size > LARGE_BYTES:
                        raise Unavailable(BUSY, reason="overloaded")
                    if size > limit:
                        parts.clear()
                        await self._discard(receive)
                        raise TooLarge(f"the body has more than {limit} bytes")
                return b"".join(parts)
        except TimeoutError:
            raise Invalid(
                f"the body did not arrive within {self._body_seconds:g} s", reason="slow_body"
            ) from None

    async def _discard(self, receive: Receive) -> None:
        """Read on without keeping anything: a client that is still sending would see a broken
        connection and not the reason. Bounded; whoever sends more does see it broken.
        """
        left = DISCARDED_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._body_seconds):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return


def _checked(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        raise TooLarge(f"the body has {len(body)} bytes; at most {limit} are accepted")
    return body


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    size = 0
    for name, value in raw:
        size += len(name) + len(value)
        headers[name.decode("latin-1").lower()] = value.decode("latin-1")
    if size > MAX_HEADER_BYTES:
        raise Invalid("the request's headers are too large")
    return headers


def raw_path_of(scope: Scope) -> bytes:
    """The path exactly as received, without the query."""
    raw = scope.get("raw_path")
    path = raw if isinstance(raw, bytes) and raw else scope["path"].encode()
    return path.partition(b"?")[0]


#: first segments of every inference path; what lies behind them is matched on the raw path
MOUNTS = ("/model", "/guardrail", "/openai", "/anthropic", "/v1")


def no_route(request: Any, _: Exception) -> Response[bytes]:
    """The answer to a path that is no route, in the dialect it looks like, with the reason where it
    is an operation of Bedrock's that cannot be governed.
    """
    raw_path = raw_path_of(request.scope)
    try:
        match(request.method, raw_path)
        refusal: Refusal = NotServed("no such route")
    except Refusal as error:
        refusal = error
    status, headers, body = problems.render(wire_of(raw_path), refusal)
    named = {n.decode(): v.decode() for n, v in headers if n not in {b"content-length", b"content-type"}}
    return Response(body, status_code=status, headers=named, media_type="application/json")


class _NoEndpoint:
    operation = None
    wire = "bedrock"
    stream = None
    model = None
    guardrail = None


_no_endpoint: Any = _NoEndpoint()


__all__ = ["Connection", "Inference", "Unavailable", "raw_path_of"]
