"""A TCP proxy that misbehaves on order: it stands between the product and Postgres, Redis or Bedrock."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit


@dataclass
class Door:
    """`delay`: seconds before each piece is passed on, both ways. `rate`: bytes a second, 0 for no bound.
    `refuse`: new connections are reset. `swallow`: pieces vanish, both ways (a black hole).
    `mute`: what the server says vanishes. `cut_after`: so many bytes of what the server says get through on
    one connection, then it is reset; `cuts` bounds how often that happens.
    """

    host: str
    port: int
    delay: float = 0.0
    rate: float = 0.0
    refuse: bool = False
    swallow: bool = False
    mute: bool = False
    cut_after: int | None = None
    cuts: int = 0
    passed: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    async def to(cls, url: str) -> Door:
        """A door to the server behind this URL."""
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        door = cls(parts.hostname, parts.port)
        door._server = await asyncio.start_server(door._enter, "127.0.0.1", 0, limit=1 << 20)
        return door

    def url(self, url: str) -> str:
        """The same URL through this door."""
        assert self._server is not None
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        port = self._server.sockets[0].getsockname()[1]
        return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{port}"))

    def heal(self) -> None:
        """Pass everything on, as it comes."""
        self.delay = self.rate = 0.0
        self.refuse = self.swallow = self.mute = False
        self.cut_after = None

    def reset(self) -> None:
        """RST on every connection, both sides."""
        for writer in list(self._open):
            _abort(writer)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=3.0)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            if self.refuse:
                return
            there, far = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
            self._open.add(far)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far, said_by_server=False))
                both.create_task(self._pump(there, writer, said_by_server=True))
        except (OSError, ExceptionGroup):
            pass
        finally:
            for side in (writer, far):
                if side is not None:
                    self._open.discard(side)
                    _abort(side)
            self._tasks.discard(task)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, said_by_server: bool
    ) -> None:
        said = 0
        while piece := await source.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.rate:
                await asyncio.sleep(len(piece) / self.rate)
            if self.swallow or (self.mute and said_by_server):
                continue
            if said_by_server and self.cut_after is not None and self.cuts > 0:
                if said + len(piece) > self.cut_after:
                    self.cuts -= 1
                    sink.write(piece[: max(0, self.cut_after - said)])
                    with contextlib.suppress(OSError):
                        await sink.drain()
                    raise ConnectionResetError
                said += len(piece)
            self.passed += len(piece)
            sink.write(piece)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()  # half-closed: the other direction may go on


def _abort(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
