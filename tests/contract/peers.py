"""The other side of the client's sockets, written out by hand: peers that answer what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from proxy.bedrock.client import BedrockUpstream
from proxy.bedrock.credentials import FixedCredentials
from proxy.domain.catalogue import Target
from proxy.errors import UpstreamFailure
from proxy.ports import UpstreamRequest

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-One: a\r\nx-one: b\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Run = Callable[[Coroutine[Any, Any, None]], None]


class Peer:
    """The other end of one connection, the `number`th that was made."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader, self.writer, self.number = reader, writer, number

    async def heard(self) -> bytes:
        """The body of the next request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await self.reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        """Sent by itself: the loop has turned before anything follows it."""
        self.writer.write(data)
        await self.writer.drain()
        await asyncio.sleep(0.001)


Script = Callable[[Peer], Awaitable[None]]


class World:
    """A client, and how many connections it made."""

    def __init__(self) -> None:
        self.upstream: BedrockUpstream
        self.connections = 0

    async def send(self, **changes: Any) -> Any:
        facts: dict[str, Any] = {
            "target": Target(model="m", model_id="m", region="us-east-1"),
            "method": "POST", "path": "/model/m/invoke", "headers": {"content-type": "application/json"},
            "body": b"{}", "first_byte_timeout": 5.0, "read_timeout": 5.0,
        }  # fmt: skip
        return await self.upstream.send(UpstreamRequest(**(facts | changes)))

    async def read(self, **changes: Any) -> bytes:
        response = await self.send(**changes)
        try:
            return bytes(await response.read())
        finally:
            response.close()


@asynccontextmanager
async def against(script: Script, tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[World]:
    world = World()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await script(Peer(reader, writer, world.connections))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with BedrockUpstream(FixedCredentials("A", "s"), endpoint_url=url, **options) as upstream:
        world.upstream = upstream
        yield world
    server.close()
    await asyncio.sleep(0.02)  # both sides see their ends


def always(*pieces: bytes) -> Script:
    """Answers every request with these pieces."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.heard()
            for piece in pieces:
                await peer.say(piece)

    return script


def once(*pieces: bytes) -> Script:
    """Answers one request with these pieces and closes."""

    async def script(peer: Peer) -> None:
        await peer.heard()
        for piece in pieces:
            await peer.say(piece)

    return script


async def failure(sending: Awaitable[Any]) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as caught:
        await sending
    return caught.value


@contextmanager
def apart(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A peer in a thread of its own, which goes on while the client's process stands still; its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = threading.Thread(target=serve, args=(listening,))
    server.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.join(10)
        listening.close()


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[World]:
    world = World()
    async with BedrockUpstream(FixedCredentials("A", "s"), endpoint_url=url) as upstream:
        world.upstream = upstream
        yield world
