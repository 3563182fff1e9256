"""One HTTP/1.1 connection to Bedrock: one request at a time, its answer as it arrives.

    idle ──begin──> waiting ──head──> answering ──end──> idle, or closed

A request counts as sent once `begin` has taken it: only that hands bytes to a transport. The parser is
llhttp in its strict form; whatever it finds wrong with an answer ends the connection.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from functools import lru_cache

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from proxy.errors import UpstreamFailure

#: head of an answer, and whatever else is no body: interim answers, chunk extensions, trailers
HEAD_BYTES_MAX = 64 << 10
#: body that waits for its reader; above it nothing is read until that has been taken
BUFFER_BYTES_MAX = 128 << 10
#: bodies up to here are copied behind their head, so that both leave in one segment and one system call
JOINED_BYTES_MAX = 64 << 10
#: a connection idle for less is one whose end the loop would have seen
LOOK_AFTER_SECONDS = 0.2

_LINE_BYTES = 4  # colon, space, line break
_INTERIM = range(100, 200)
_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # Linux


class Connection(asyncio.Protocol):
    """See the module. `headers` have names in lower case, several values of one name joined by commas.

    `complete` is True between exchanges; a connection whose exchange did not get there is dirty.
    """

    __slots__ = (
        "_answering", "_buffered", "_feed", "_framed", "_head_bytes", "_headed", "_idle_limit", "_keep", "_limit", "_loop",
        "_other_bytes", "_parser", "_parts", "_paused", "_progress", "_since", "_timer", "_transport", "_waiter",
        "_writing", "complete", "failure", "headers", "idle_since", "lost", "origin", "status",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: str) -> None:
        self.origin = origin
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = True
        #: why the exchange broke, once it did
        self.failure: str | None = None
        self.lost = False
        #: the loop's time at which the last exchange ended
        self.idle_since = 0.0
        self._loop = loop
        self._parser = HttpResponseParser(self)
        self._feed: Callable[[bytes], None] = self._parser.feed_data
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parts: list[bytes] = []
        self._buffered = 0
        self._paused = False  # reading
        self._writing = False  # the request is still on its way into the socket
        self._keep = False
        self._headed = False

    # ---- what a client does with it ------------------------------------------------------------

    def begin(self, head: bytes, body: bytes, first_byte: float, idle: float) -> None:
        """Send one request. `first_byte` bounds the time until its answer's head is here, `idle` the
        silence after that; seconds. The head must be well-formed, and no HEAD request. Raises
        `UpstreamFailure`, unsent, on a connection that has just closed.
        """
        transport = self._transport
        if not self.complete:
            raise RuntimeError("the connection is not free")
        if transport is None or transport.is_closing():
            raise UpstreamFailure("The connection to Bedrock closed before its use.", sent=False)
        self.status, self.headers = 0, {}
        self.complete = self._headed = self._answering = self._framed = self._keep = False
        self._head_bytes = self._other_bytes = 0
        self._idle_limit = idle
        self._since = self._loop.time()
        self._arm(first_byte)
        if len(body) > JOINED_BYTES_MAX:
            transport.writelines((head, body))
        else:
            transport.write(head + body)

    async def head(self) -> None:
        """Return once `status` and `headers` are those of the answer. Raises `UpstreamFailure`."""
        while not self._headed:
            if self.failure is not None:
                raise self._broken()
            await self.arrival()

    def more(self) -> bytes | None:
        """What has arrived of the body since the last time; empty at its end, None when nothing has: then
        wait for an `arrival`. Raises `UpstreamFailure`.
        """
        if self._parts and (data := self.take()):
            return data
        if self.complete:
            return b""
        if self.failure is not None:
            raise self._broken()
        return None

    async def arrival(self) -> None:
        """Return when something may have changed."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """What has arrived, whatever comes next."""
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts, self._buffered = [], 0
        if self._paused:
            self._paused = False
            self._since = self._loop.time()
            if self._transport is not None and not self.lost:
                self._transport.resume_reading()
        return data

    def free(self) -> bool:
        """Make ready for another exchange. False when this one did not end cleanly."""
        transport = self._transport
        clean = self.complete and self._keep and not self.lost and self.failure is None
        if not clean or transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        if self._parts:
            self.take()
        self.idle_since = self._loop.time()
        return True

    def usable(self, now: float) -> bool:
        """Whether the peer still keeps it, as far as this machine knows. After a while without use the
        kernel is asked, too: it may know of an end that the loop has not come to yet.
        """
        transport = self._transport
        if self.lost or self.failure is not None or transport is None or transport.is_closing():
            return False
        return now - self.idle_since < LOOK_AFTER_SECONDS or not _hung_up(transport)

    def abort(self) -> None:
        """Drop it, whatever is under way."""
        self._fail("ConnectionClosed")

    # ---- what the transport says ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.complete or self.failure is not None:  # nobody asked
            self.abort()
            return
        self._progress = False
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._keep = False
            if not self.complete:
                self._fail(type(error).__name__)
            return
        finally:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        if not self.complete:
            self._received(len(data))

    def _received(self, size: int) -> None:
        """Bounds of an answer that goes on."""
        if self._headed:
            self._since = self._loop.time()
            if not self._answering:
                self._answering = True
                self._arm(self._idle_limit)
        if self._progress:
            self._other_bytes = 0
            if self._buffered > BUFFER_BYTES_MAX and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()
        else:
            self._other_bytes += size
            if self._other_bytes > HEAD_BYTES_MAX:
                self._fail("HeadTooLarge")

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended(exc)
        self._feed = _deaf
        del self._parser  # it holds on to this object

    def pause_writing(self) -> None:
        self._writing = True

    def resume_writing(self) -> None:
        self._writing = False
        self._since = self._loop.time()

    # ---- what the parser says ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + _LINE_BYTES
        if self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError("the head is too large")
        if self._headed:
            return  # trailers
        known, text = _lowered(name), value.decode("latin-1")
        headers = self.headers
        headers[known] = f"{headers[known]}, {text}" if known in headers else text

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status in _INTERIM:
            self.headers = {}
            return
        self.status = status
        headers = self.headers
        self._framed = "content-length" in headers or _is_chunked(headers.get("transfer-encoding", ""))
        self._headed = True

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        self._buffered += len(data)
        self._progress = True

    def on_message_complete(self) -> None:
        if self._headed:
            self._keep = self._parser.should_keep_alive()
            self._finish()

    # ---- inside --------------------------------------------------------------------------------

    def _finish(self) -> None:
        self.complete = True
        self._disarm()

    def _ended(self, error: Exception | None) -> None:
        """The peer sends no more. That ends the body of an answer which says no length, and breaks others."""
        self.lost = True
        if self.complete or self.failure is not None:
            return
        if self._headed and not self._framed and error is None:
            self._finish()
            self._wake()
        else:
            self._fail("ServerDisconnected" if error is None else type(error).__name__)

    def _fail(self, why: str) -> None:
        if self.failure is None:
            self.failure = why
        self._disarm()
        self._wake()
        if self._transport is not None:
            self._transport.abort()

    def _broken(self) -> UpstreamFailure:
        return UpstreamFailure(f"The connection to Bedrock failed: {self.failure}", sent=True)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arm(self, limit: float) -> None:
        self._disarm()
        self._limit = limit
        self._timer = self._loop.call_later(limit, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """The one timer of an exchange: moved on lazily, instead of at every arrival."""
        now = self._loop.time()
        if self._paused or self._writing:  # it is not the peer who is waited for
            self._since = now
        left = self._since + self._limit - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._fail("Silence")


def _deaf(_: object) -> None:
    """Bytes that arrive after the end."""


@lru_cache(maxsize=128)
def _lowered(name: bytes) -> str:
    return name.decode("latin-1").lower()


def _is_chunked(codings: str) -> bool:
    return codings.lower().rpartition(",")[2].strip() == "chunked"


def _hung_up(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    if sock is None or not _HUNG_UP:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), _HUNG_UP)
    return bool(poll.poll(0))
