"""A small TCP balancer: connections go round the backends that say they are ready, as behind a Service."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

_CHUNK = 1 << 16
_PROBE = b"GET /health/ready HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"
_PROBE_SECONDS = 0.1


class Balancer:
    """Belongs to the event loop it was started in."""

    def __init__(self, ports: list[int]) -> None:
        self.port = 0
        #: connections by backend
        self.served: Counter[int] = Counter()
        self._ports = ports
        self._ready = set(ports)
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._tasks = {asyncio.create_task(self._probe(port)) for port in self._ports}

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, until either side ends it."""
        back = await self._connect()
        if back is None:
            writer.close()
            return
        ways = [asyncio.create_task(_pump(reader, back[1])), asyncio.create_task(_pump(back[0], writer))]
        self._tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)
        self._tasks.difference_update(ways)
        for side in (writer, back[1]):
            side.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self._ports:
            self._turn += 1
            port = self._ports[self._turn % len(self._ports)]
            if port not in self._ready:
                continue
            try:
                found = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            self.served[port] += 1
            return found
        return None

    async def _probe(self, port: int) -> None:
        while True:
            answer = b""
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2.0):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    try:
                        writer.write(_PROBE)
                        answer = await reader.readline()
                    finally:
                        writer.close()
            if b" 200 " in answer:
                self._ready.add(port)
            else:
                self._ready.discard(port)
            await asyncio.sleep(_PROBE_SECONDS)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side ends. An answer that breaks off reaches the client as one that broke off."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def balancing(ports: list[int]) -> AsyncIterator[Balancer]:
    balancer = Balancer(ports)
    server = await asyncio.start_server(balancer.handle, "127.0.0.1", 0)
    balancer.port = server.sockets[0].getsockname()[1]
    balancer.start()
    try:
        yield balancer
    finally:
        server.close()
        balancer.stop()
