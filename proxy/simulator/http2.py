"""HTTP/2, cleartext by prior knowledge and over TLS: granian, embedded behind a byte tunnel.

The tunnel keeps one public port for both protocols, and lets a fault cut an HTTP/2 connection before any
byte of an answer, which an ASGI application cannot do by itself.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, cast

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from proxy.simulator.transport import Headers, Out, Request

Handler = Callable[[Request, Out], Coroutine[Any, Any, None] | None]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


_BACKLOG = 128


class Cut(Exception):  # noqa: N818 - not an error
    """Ends an ASGI call in mid-answer: granian resets the stream."""


class AsgiOut:
    """The way out of one ASGI request; messages queue until they are sent."""

    def __init__(self, cut_connection: Callable[[], None]) -> None:
        self._cut_connection = cut_connection
        self._queue: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._started = False
        self._ended = False
        self._cut = False
        self._idle = asyncio.Event()

    @property
    def gone(self) -> bool:
        return self._gone.is_set()

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.start(status, headers, len(body))
        self.write(body)
        self.end()

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        if length is not None:
            encoded.append((b"content-length", str(length).encode()))
        self._started = True
        self._queue.put_nowait({"type": "http.response.start", "status": status, "headers": encoded})

    def write(self, data: bytes) -> None:
        if data:
            self._queue.put_nowait({"type": "http.response.body", "body": data, "more_body": True})

    def end(self) -> None:
        self._ended = True
        self._queue.put_nowait({"type": "http.response.body", "body": b"", "more_body": False})
        self._queue.put_nowait(None)

    def reset(self) -> None:
        self._cut = True
        if not self._started:
            self._cut_connection()
        self._queue.put_nowait(None)

    def close(self) -> None:
        self.reset()

    async def drain(self) -> None:
        self._idle.clear()
        if not self._queue.empty() and not self.gone:
            await self._idle.wait()

    async def wait_gone(self) -> None:
        await self._gone.wait()

    def leave(self) -> None:
        """The client has gone."""
        self._gone.set()
        self.stop()

    def stop(self) -> None:
        """Nothing more will be written."""
        self._idle.set()
        self._queue.put_nowait(None)

    async def pump(self, send: Send) -> None:
        """Sends until the answer ends. Raises Cut where it is to break off."""
        while (message := await self._queue.get()) is not None:
            await send(message)
            if self._queue.empty():
                self._idle.set()
        if not self.gone and (self._cut or not self._ended):
            raise Cut


async def serve_asgi(
    handler: Handler, scope: Mapping[str, Any], receive: Receive, send: Send, cut: Callable[[], None]
) -> None:
    """One ASGI request through the same handler that HTTP/1.1 uses."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    raw_headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    path = scope["raw_path"].decode("latin-1").partition("?")[0]
    query = scope["query_string"].decode("latin-1")
    request = Request(scope["method"], path, query, raw_headers, dict(raw_headers), bytes(body))
    out = AsgiOut(cut)
    left = handler(request, out)
    watcher = asyncio.ensure_future(_watch(receive, out))
    task = asyncio.ensure_future(left) if left is not None else None
    if task is not None:
        task.add_done_callback(lambda _task: out.stop())
    try:
        await out.pump(send)
    finally:
        watcher.cancel()
        if task is not None:
            await task


async def _watch(receive: Receive, out: AsgiOut) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    out.leave()


class Tunnel(asyncio.Protocol):
    """One end of a pair that copies bytes both ways with back-pressure."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: Tunnel | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transport classes of its own.
        self.transport = cast("asyncio.Transport", transport)

    def join(self, peer: "Tunnel") -> None:
        """Either side may have spoken first: what came before is passed on now."""
        self.peer = peer
        peer.peer = self
        for one, other in ((self, peer), (peer, self)):
            for data in one._early:
                if other.transport is not None:
                    other.transport.write(data)
            one._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.peer is None or self.peer.transport is None:
            self._early.append(data)
        else:
            self.peer.transport.write(data)

    def eof_received(self) -> bool | None:
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()


class _Granian(Server):
    """Granian on a listening file descriptor, which it comes to own, so that no port is guessed."""

    def __init__(self, target: Any, bound: int) -> None:
        super().__init__(
            target, interface=Interfaces.ASGINL, http=HTTPModes.http2, websockets=False, log_enabled=False
        )
        self._bound = bound

    def _init_shared_socket(self) -> None:
        self._ssp = None
        self._shd = SocketHolder(self._bound, False, _BACKLOG)  # type: ignore[call-arg,assignment]


class Http2:
    """The inner server, and the tunnels to it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._address = ("127.0.0.1", 0)
        self._server: _Granian | None = None
        self._serving: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._outer: dict[int, asyncio.Transport] = {}

    async def start(self) -> None:
        bound = socket.socket()
        bound.bind(self._address)
        bound.listen(_BACKLOG)
        bound.setblocking(False)
        self._address = bound.getsockname()
        self._server = _Granian(self._app, bound.detach())
        self._serving = asyncio.get_running_loop().create_task(self._server.serve())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._server is not None and self._serving is not None:
            self._server.stop()  # type: ignore[no-untyped-call]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._serving, 2)

    def tunnel(self, transport: asyncio.Transport, data: bytes) -> asyncio.Protocol:
        """Takes over a connection whose first bytes were ``data``."""
        outer = Tunnel()
        outer.connection_made(transport)
        if data:
            outer.data_received(data)
        task = asyncio.get_running_loop().create_task(self._connect(outer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return outer

    async def _connect(self, outer: Tunnel) -> None:
        loop = asyncio.get_running_loop()
        transport, inner = await loop.create_connection(Tunnel, *self._address)
        outer.join(inner)
        if outer.transport is None or outer.transport.is_closing():
            transport.close()
        else:
            port = transport.get_extra_info("sockname")[1]
            self._outer = {key: kept for key, kept in self._outer.items() if not kept.is_closing()}
            self._outer[port] = outer.transport

    def cut(self, client: object) -> None:
        """Aborts the public connection behind an inner client address ``(host, port)``."""
        if isinstance(client, tuple | list) and len(client) == 2:
            transport = self._outer.pop(int(client[1]), None)
            if transport is not None:
                transport.abort()
