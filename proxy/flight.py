"""One answer under way, for everybody who asked for the same.

    exchange ──> Tee ──> Flight ──> the leader's client   (a reader like the others, in a task of its own)
                            ├─────> follower
                            └─────> follower

A flight keeps what was said, so that one who comes later reads from the start. What it keeps is
bounded: beyond the bound it takes no newcomers and keeps only what its readers have not read; a
follower that is a whole bound behind is lost. The leader's client slows the answer down as any slow
client does, but not while others read: nobody waits for somebody else's connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.answer import Headers
from proxy.domain.usage import NOTHING, Usage
from proxy.ports import Answer, Sink

#: what the leader's client may be behind while nobody else reads, bytes
WINDOW_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How an answer ended after it had begun."""

    #: settled by its usage, to the last byte
    complete: bool
    usage: Usage = NOTHING
    #: nano-dollars that it was charged
    cost: int = 0
    #: the end of a stream, held back until its settlement
    tail: bytes = b""
    #: all of it, when all of it is at hand
    answer: Answer | None = None
    #: it came out of the cache
    kept: bool = False


@dataclass(slots=True, eq=False)
class Reader:
    """A place in a flight: chunks and bytes read so far. `lost`: what comes next was dropped.

    The leader's own is `waited_for`: the writer sees to it that it never gets lost.
    """

    waited_for: bool = False
    chunks: int = 0
    bytes: int = 0
    lost: bool = False


@dataclass(slots=True, eq=False)
class Flight:
    """Not thread-safe; one event loop owns it. `bound` is in bytes."""

    owner: bytes
    bound: int
    #: told of every change of the bytes kept
    weigh: Callable[[int], None]
    began: tuple[int, tuple[tuple[str, str], ...]] | None = None
    ended: End | None = None
    #: no answer came of it; whoever waits must look for another
    failed: bool = False
    #: everything said is still here
    whole: bool = True
    readers: set[Reader] = field(default_factory=set)
    #: bytes said in all
    total: int = 0
    _chunks: deque[bytes] = field(default_factory=deque)
    _dropped: int = 0  # chunks that are gone
    _kept: int = 0  # bytes that are not
    _pulse: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def joinable(self) -> bool:
        return self.whole and not self.failed

    @property
    def over(self) -> bool:
        return self.failed or self.ended is not None

    # ---- written by the leader ---------------------------------------------------------------

    def begin(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.began = status, headers
        self.wake()

    def add(self, data: bytes) -> None:
        self._chunks.append(data)
        self.total += len(data)
        self._weigh(len(data))
        if self._kept > self.bound:
            self._drop()
        self.wake()

    def end(self, end: End) -> None:
        if not self.over:
            self.ended = end
            self.wake()

    def fail(self) -> None:
        """Nobody will say more; who has not begun looks for another leader."""
        if not self.over:
            self.failed = True
            self.wake()

    def close(self) -> None:
        """Nobody new will read it. Readers that are not done keep what they need by themselves."""
        self.weigh(-self._kept)
        self.weigh = _nothing

    def hold(self, size: int) -> None:
        """Bytes that are kept besides what was said: a whole answer."""
        self._weigh(size)

    def said(self) -> bytes:
        """Everything, while `whole`."""
        return b"".join(self._chunks)

    # ---- read by everybody -------------------------------------------------------------------

    def join(self) -> Reader:
        reader = Reader()
        self.readers.add(reader)
        self.wake()
        return reader

    def leave(self, reader: Reader) -> None:
        self.readers.discard(reader)
        self.wake()

    def read(self, reader: Reader) -> bytes:
        """What is new for the reader; b"" when nothing is."""
        if reader.lost:
            return b""
        start = reader.chunks - self._dropped
        fresh = b"".join(self._chunks[i] for i in range(start, len(self._chunks)))
        reader.chunks, reader.bytes = self._dropped + len(self._chunks), reader.bytes + len(fresh)
        return fresh

    async def changed(self) -> None:
        await self._pulse.wait()

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        self._pulse.set()
        self._pulse = asyncio.Event()

    def _weigh(self, change: int) -> None:
        self._kept += change
        self.weigh(change)

    def _drop(self) -> None:
        """Forget what everybody has read; then, if need be, who has not."""
        self.whole = False
        end = self._dropped + len(self._chunks)
        read = min((r.chunks for r in self.readers if not r.lost), default=end)
        wanted = min((r.chunks for r in self.readers if r.waited_for), default=end)
        while self._dropped < wanted and (self._dropped < read or self._kept > self.bound):
            self._weigh(-len(self._chunks.popleft()))
            self._dropped += 1
        for reader in self.readers:
            reader.lost = reader.lost or reader.chunks < self._dropped


def _nothing(_: int) -> None:
    """A closed flight is nobody's weight."""


class Tee:
    """The leader's sink: what its exchange says goes into the flight, and from there to its client."""

    def __init__(self, flight: Flight, inner: Sink, begins: Callable[[], bool]) -> None:
        """`begins` is asked before the first byte; False: the answer is the leader's alone."""
        self._flight = flight
        self._inner = inner
        self._begins = begins
        self._reader = Reader(waited_for=True)
        self._blocked = False  # the exchange waits for the leader's client
        self._pump: asyncio.Task[None] | None = None

    @property
    def left(self) -> bool:
        """The leader's own client has left."""
        return self._inner.gone

    @property
    def gone(self) -> bool:
        """True when nobody at all reads any more."""
        return self._inner.gone and len(self._flight.readers) <= (self._reader in self._flight.readers)

    async def start(self, status: int, headers: Headers) -> None:
        await self._inner.start(status, headers)
        if not self._flight.over and self._begins():
            self._flight.readers.add(self._reader)
            self._flight.begin(status, shareable(headers))
            self._pump = asyncio.create_task(self._deliver(), name="leader's client")

    async def send(self, data: bytes) -> None:
        if self._pump is None:
            await self._inner.send(data)
            return
        self._flight.add(data)
        while self._behind() and not self._pump.done():
            self._blocked = True
            await self._flight.changed()
        self._blocked = False

    async def finish(self, data: bytes = b"") -> None:
        if self._pump is not None:
            await self._pump
        await self._inner.finish(data)

    def stop(self) -> None:
        """The exchange is over, whatever became of it."""
        self._flight.leave(self._reader)
        if self._pump is not None:
            self._pump.cancel()

    def _behind(self) -> bool:
        """Whether the leader's client must catch up before more is read for it."""
        flight = self._flight
        others = len(flight.readers) > 1
        return flight.total - self._reader.bytes > (flight.bound // 2 if others else WINDOW_BYTES)

    async def _deliver(self) -> None:
        flight, inner = self._flight, self._inner
        while True:
            data = flight.read(self._reader)
            if data:
                if not inner.gone:
                    await inner.send(data)
                if self._blocked:
                    flight.wake()
            elif flight.over:
                return
            else:
                await flight.changed()


def shareable(headers: Headers) -> tuple[tuple[str, str], ...]:
    """The headers of an answer that belong to it and not to the call that got it first."""
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name == b"content-type" or name.startswith(b"x-amzn-bedrock-")
    )
