"""The inference routes as one raw ASGI application: bytes in, bytes out, errors in the dialect of
the path. Everything that decides is in the pipeline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

from litestar import Response

from proxy.clock import uuid7
from proxy.deadline import Deadline
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

    __slots__ = ("_receive", "_send", "_under_way", "_watch", "begun", "finished", "gone")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None
        self._under_way: Awaitable[None] | None = None
        self.begun = False
        self.finished = False
        self.gone = False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        if self._watch is None:  # only streams can be left half-way
            self._watch = asyncio.ensure_future(self._wait_until_gone())
        if self._under_way is not None:
            await self._under_way
        self._under_way = self._begun({"type": "http.response.body", "body": data, "more_body": True})

    def _begun(self, message: dict[str, Any]) -> Awaitable[None]:
        """A piece that is on its way. granian begins to send when it is called, so that its end is awaited
        before the next piece is given to it: one at a time and in order as before, without waking this
        loop for each. A stream of 50 events, 100 at once, took 3.2 ms of CPU so and 3.8 ms before. Other
        servers' coroutines begin when they are awaited and are made tasks.
        """
        sending: Awaitable[None] = self._send(message)
        return asyncio.ensure_future(sending) if asyncio.iscoroutine(sending) else sending

    async def finish(self, data: bytes = b"") -> None:
        self.finished = True
        if self._under_way is not None:
            await self._under_way
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
        #: bytes of bodies that came in pieces and whose requests have not ended
        self._held = 0
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path = raw_path_of(scope)
        connection = Connection(receive, send)
        try:
            await self._serve(scope, raw_path, connection, receive)
        except Refusal as refusal:
            try:
                await self._refuse(wire_of(raw_path), refusal, connection)
            finally:
                # Frames it passed may keep it (an ending names its refusal): a cycle, which only the garbage
                # collector would end, and that stops the worker for 35 ms when thousands are refused.
                refusal.__traceback__ = None
        except asyncio.CancelledError:
            raise
        except Exception:
            incident = str(uuid7())
            log.exception("internal error %s", incident)
            if connection.begun:
                raise  # the server cuts the connection, so a half answer is seen as one
            await connection.answer(*problems.internal_error(wire_of(raw_path), incident))
        finally:
            connection.close()

    async def _serve(self, scope: Scope, raw_path: bytes, connection: Connection, receive: Receive) -> None:
        headers = _headers(scope["headers"])
        body = _Body(self, receive, headers)
        request = Request(
            id=uuid7(), endpoint=_no_endpoint, method=scope["method"], raw_path=raw_path,
            query=scope.get("query_string", b""), raw_headers=scope["headers"], headers=headers, read=body.read,
        )  # fmt: skip
        asked = listed(raw_path) if request.method == "GET" else None
        if asked is not None:
            listing = self._models(request, asked)
            await connection.answer(200, [(b"content-type", b"application/json")], listing)
            return
        request.endpoint = match(request.method, raw_path)
        if self._inside >= self._pipeline.max_calls:
            raise Unavailable(BUSY, reason="overloaded")
        self._inside += 1
        try:
            await self._pipeline.handle(request, connection)
        finally:
            self._inside -= 1
            self._held -= body.held

    async def _refuse(self, wire: Wire, refusal: Refusal, connection: Connection) -> None:
        if connection.begun:
            log.error("a refusal after the answer began: %s", refusal)
            raise RuntimeError("cut")
        if isinstance(refusal, UpstreamAnswer):
            status, headers, body = problems.upstream_error(wire, refusal.status, refusal.kind, str(refusal))
        else:
            status, headers, body = problems.render(wire, refusal)
        await connection.answer(status, headers + refusal.headers, body)


class _Body:
    """The body of one request, read once."""

    __slots__ = ("_headers", "_inference", "_receive", "held")

    def __init__(self, inference: Inference, receive: Receive, headers: Mapping[str, str]) -> None:
        self._inference = inference
        self._receive = receive
        self._headers = headers
        #: bytes that count as held until the request has ended
        self.held = 0

    async def read(self, limit: int) -> bytes:
        """The whole body. Refuses by Content-Length first, then by what really arrives."""
        limit = min(limit, HARD_BODY_BYTES)
        if self._headers.get("content-encoding", "") not in {"", "identity"}:
            raise Invalid("compressed request bodies are not accepted", reason="content_encoding")
        length = self._headers.get("content-length", "")
        declared = int(length) if length.isdecimal() else None
        if declared is not None and declared > limit:
            await self._discard()
            raise TooLarge(f"the body has {declared} bytes; at most {limit} are accepted")
        seconds = self._inference._body_seconds
        try:
            with Deadline(seconds):
                body, more = await self._piece()
                # the server's parser holds a body to its length, and asking it once more costs 10 µs
                if more and len(body) != declared:
                    return await self._rest(body, limit)
        except TimeoutError:
            raise Invalid(f"the body did not arrive within {seconds:g} s", reason="slow_body") from None
        if len(body) > limit:
            raise TooLarge(f"the body has {len(body)} bytes; at most {limit} are accepted")
        return body

    async def _piece(self) -> tuple[bytes, bool]:
        """The next bytes, and whether more follow."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Invalid("the body broke off or was wrongly framed")
        return message.get("body", b""), message.get("more_body", False)

    async def _rest(self, first: bytes, limit: int) -> bytes:
        inference, parts, size, more = self._inference, [first], len(first), True
        while more:
            part, more = await self._piece()
            parts.append(part)
            size += len(part)
            self.held += len(part)
            inference._held += len(part)
            if inference._held > HELD_BYTES and size > LARGE_BYTES:
                raise Unavailable(BUSY, reason="overloaded")
            if size > limit:
                parts.clear()
                await self._discard()
                raise TooLarge(f"the body has more than {limit} bytes")
        return b"".join(parts)

    async def _discard(self) -> None:
        """Read on without keeping anything: a client that is still sending would see a broken
        connection and not the reason. Bounded; whoever sends more does see it broken.
        """
        left = DISCARDED_BYTES
        with contextlib.suppress(TimeoutError), Deadline(self._inference._body_seconds):
            while left > 0:
                message = await self._receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that somebody behind the edge reads; signatures are proven over the raw ones."""
    headers: dict[str, str] = {}
    size = 0
    for name, value in raw:
        size += len(name) + len(value)
        if known := _read_as(name):
            headers[known] = value.decode("latin-1")
    if size > MAX_HEADER_BYTES:
        raise Invalid("the request's headers are too large")
    return headers


#: besides `x-amzn-bedrock-*`: how the body is framed, what is forwarded, what says how to share an answer
_READ = frozenset(
    {
        "accept", "amz-sdk-invocation-id", "amz-sdk-request", "anthropic-beta", "anthropic-version", "cache-control",
        "content-encoding", "content-length", "content-type", "idempotency-key",
    }
)  # fmt: skip


@lru_cache(maxsize=128)
def _read_as(name: bytes) -> str:
    """A header's name in lower case, "" for one that nobody reads."""
    known = name.decode("latin-1").lower()
    return known if known in _READ or known.startswith("x-amzn-bedrock-") else ""


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
