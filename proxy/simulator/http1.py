"""HTTP/1.1 on asyncio, so that a fault can do anything to the socket.

A connection whose first bytes are HTTP/2's preface (or that agreed on ``h2`` by ALPN) is handed to the
server of :mod:`proxy.simulator.http2` byte by byte.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

from proxy.simulator.transport import MAX_BODY_BYTES, Headers, Out, Request

Handler = Callable[[Request, Out], Coroutine[Any, Any, None] | None]
Upgrade = Callable[[asyncio.Transport, bytes], asyncio.Protocol]
PREFACE = b"PRI * HTTP/2.0\r\n"
_MAX_HEAD_BYTES = 65_536
_RST_ON_CLOSE = struct.pack("ii", 1, 0)
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class _Clock:
    """The Date header, made once a second."""

    second = 0
    line = ""

    @classmethod
    def date(cls) -> str:
        now = int(time.time())
        if now != cls.second:
            cls.second, cls.line = now, formatdate(now, usegmt=True)
        return cls.line


class Bad(Exception):  # noqa: N818
    """The bytes are no HTTP/1.1 request."""


class Answer:
    """The way out of one HTTP/1.1 request."""

    __slots__ = ("_chunked", "_connection", "_pending", "ended")

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._pending: list[bytes] = []
        self._chunked = False
        self.ended = False

    @property
    def gone(self) -> bool:
        return self._connection.lost

    def _head(self, status: int, headers: Headers, length: str) -> bytes:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
        closing = "" if self._connection.keep_alive else "Connection: close\r\n"
        reason = _REASONS.get(status, "Unknown")
        head = f"HTTP/1.1 {status} {reason}\r\nDate: {_Clock.date()}\r\n{lines}{closing}{length}\r\n"
        return head.encode("latin-1")

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self._pending.append(self._head(status, headers, f"Content-Length: {len(body)}\r\n") + body)
        self.end()

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        self._chunked = length is None
        how = "Transfer-Encoding: chunked\r\n" if length is None else f"Content-Length: {length}\r\n"
        self._pending.append(self._head(status, headers, how))

    def write(self, data: bytes) -> None:
        if data:
            self._pending.append(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _flush(self) -> None:
        if self._pending and not self._connection.lost:
            self._connection.transport.write(b"".join(self._pending))
        self._pending.clear()

    def end(self) -> None:
        if self._chunked:
            self._pending.append(b"0\r\n\r\n")
        self._flush()
        self.ended = True

    def reset(self) -> None:
        self._flush()
        self.ended = True
        self._connection.reset()

    def close(self) -> None:
        self._flush()
        self.ended = True
        self._connection.transport.close()

    async def drain(self) -> None:
        self._flush()
        await self._connection.writable.wait()

    async def wait_gone(self) -> None:
        await self._connection.closed.wait()


class Connection(asyncio.Protocol):
    """Requests are handled one after another; what comes early waits in the buffer."""

    transport: asyncio.Transport

    def __init__(self, handler: Handler, upgrade: Upgrade, connections: "set[Connection]") -> None:
        self._handler = handler
        self._upgrade = upgrade
        self._connections = connections
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._first = True
        self._continued = False
        self._scanned = 0
        self.keep_alive = True
        self.lost = False
        self.writable = asyncio.Event()
        self.writable.set()
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transport classes of its own.
        self.transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._hand_over(b"")

    def _hand_over(self, data: bytes) -> None:
        self._connections.discard(self)
        protocol = self._upgrade(self.transport, data)
        self.transport.set_protocol(protocol)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._first:
            if len(self._buffer) < len(PREFACE) and PREFACE.startswith(self._buffer):
                return
            self._first = False
            if self._buffer.startswith(PREFACE):
                self._hand_over(bytes(self._buffer))
                return
        if self._task is None:
            self._serve()

    def _serve(self) -> None:
        while not self.lost and not self.transport.is_closing():
            try:
                request = self._next()
            except Bad:
                self.keep_alive = False
                Answer(self).whole(400, [("Content-Type", "text/plain")], b"Bad Request")
                self.transport.close()
                return
            if request is None:
                return
            out = Answer(self)
            left = self._handler(request, out)
            if left is not None:
                self._task = asyncio.get_running_loop().create_task(left)
                self._task.add_done_callback(lambda task, out=out: self._done(task, out))  # type: ignore[misc]
                return
            if not self.keep_alive:
                self.transport.close()
                return

    def _done(self, task: asyncio.Task[None], out: Answer) -> None:
        self._task = None
        if task.cancelled():
            self.reset()
        elif (error := task.exception()) is not None:
            context = {"message": "an answer failed", "exception": error, "task": task}
            asyncio.get_running_loop().call_exception_handler(context)
            self.reset()
        elif not out.ended:
            self.reset()
        elif not self.keep_alive:
            self.transport.close()
        else:
            self._serve()

    def _next(self) -> Request | None:
        """The next request when all of it is here. Raises Bad."""
        end = self._buffer.find(b"\r\n\r\n", self._scanned)
        if end < 0:
            self._scanned = max(0, len(self._buffer) - 3)
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise Bad
            return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        target, _, version = rest.rpartition(" ")
        if not target.startswith("/") or version not in {"HTTP/1.1", "HTTP/1.0"}:
            raise Bad
        raw_headers = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise Bad
            raw_headers.append((name.lower(), value.strip()))
        headers = dict(raw_headers)
        body, used = self._body(headers, end + 4)
        if body is None:
            return None
        del self._buffer[:used]
        self._scanned = 0
        self._continued = False
        wants_close = headers.get("connection", "").lower() == "close" or version == "HTTP/1.0"
        self.keep_alive = not wants_close
        path, _, query = target.partition("?")
        return Request(method, path, query, raw_headers, headers, body)

    def _body(self, headers: dict[str, str], start: int) -> tuple[bytes | None, int]:
        """The body, or None while it is incomplete, and where it ends in the buffer."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body, used = _dechunk(self._buffer, start)
        else:
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > MAX_BODY_BYTES:
                raise Bad
            used = start + int(length)
            body = bytes(self._buffer[start:used]) if len(self._buffer) >= used else None
        if body is None and not self._continued and headers.get("expect", "").lower() == "100-continue":
            self._continued = True
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return body, used

    def reset(self) -> None:
        """RST instead of FIN, whatever is unsent."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.lost:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        self.transport.abort()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True
        self._connections.discard(self)
        self.writable.set()
        self.closed.set()


def _dechunk(buffer: bytearray, start: int) -> tuple[bytes | None, int]:
    """A chunked body; None while its end is missing. Raises Bad."""
    parts: list[bytes] = []
    total = 0
    while True:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            return None, start
        try:
            size = int(bytes(buffer[start:line_end]).split(b";")[0], 16)
        except ValueError:
            raise Bad from None
        start = line_end + 2
        if size == 0:
            end = buffer.find(b"\r\n", start)
            return (None, start) if end < 0 else (b"".join(parts), end + 2)
        total += size
        if total > MAX_BODY_BYTES:
            raise Bad
        if len(buffer) < start + size + 2:
            return None, start
        parts.append(bytes(buffer[start : start + size]))
        start += size + 2
