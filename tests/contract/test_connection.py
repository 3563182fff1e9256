"""The lean HTTP client over real sockets, on both loops: framing in any pieces, ends at any place, and
which connections are used again. The other side is written out by hand in each test."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.bedrock import dialing, pool
from proxy.bedrock.client import BedrockUpstream
from proxy.bedrock.connection import BUFFER_BYTES_MAX, HEAD_BYTES_MAX
from proxy.bedrock.credentials import FixedCredentials
from proxy.domain.catalogue import Target
from proxy.errors import UpstreamFailure
from proxy.ports import UpstreamRequest

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-One: a\r\nx-one: b\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def running(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(scenario, 20))

    return running


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


# ---- framing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED + b"1\r\no\r\n1;x=y\r\nk\r\n0\r\nX-Late: 1\r\n\r\n"])
def test_an_answer_may_be_split_at_every_byte(run: Run, answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        for cut in range(1, len(answer)):
            await peer.heard()
            await peer.say(answer[:cut])
            await peer.say(answer[cut:])

    async def scenario() -> None:
        async with against(script) as world:
            for _ in range(1, len(answer)):
                response = await world.send()
                assert (response.status, await response.read()) == (200, b"ok")
                assert response.headers.get("x-one", "a, b") == "a, b" and "x-late" not in response.headers
                response.close()
            assert world.connections == 1

    run(scenario())


def test_bytes_one_by_one(run: Run) -> None:
    answer = CHUNKED + b"3\r\none\r\n2\r\n\r\n\r\n0\r\n\r\n"

    async def scenario() -> None:
        async with against(always(*(answer[n : n + 1] for n in range(len(answer))))) as world:
            assert [await world.read() for _ in range(2)] == [b"one\r\n"] * 2
            assert world.connections == 1

    run(scenario())


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


@pytest.mark.parametrize("pieces", [
    [b"HTTP/1.1 100 Continue\r\n\r\n", INTERIM, WHOLE],
    [b"HTTP/1.1 100 Continue\r\n\r\n" + INTERIM + WHOLE],
])  # fmt: skip
def test_interim_answers_are_passed_over(run: Run, pieces: list[bytes]) -> None:
    async def scenario() -> None:
        async with against(always(*pieces)) as world:
            for _ in range(2):
                response = await world.send()
                assert (response.status, await response.read()) == (200, b"ok")
                assert "link" not in response.headers
                response.close()
            assert world.connections == 1

    run(scenario())


@pytest.mark.parametrize(("answer", "body"), [
    (b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end"),
    (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end"),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", b"ok"),
])  # fmt: skip
def test_an_answer_that_ends_with_its_connection(run: Run, answer: bytes, body: bytes) -> None:
    async def scenario() -> None:
        async with against(once(answer[:-2], answer[-2:])) as world:
            assert [await world.read(), await world.read()] == [body, body]
            assert world.connections == 2

    run(scenario())


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"200 OK\r\nContent-Length: 0"])
def test_an_answer_without_a_body(run: Run, status: bytes) -> None:
    async def scenario() -> None:
        async with against(always(b"HTTP/1.1 " + status + b"\r\n\r\n")) as world:
            assert [await world.read(), await world.read()] == [b"", b""]
            assert world.connections == 1

    run(scenario())


def test_a_large_body_goes_up_and_comes_down_whole(run: Run) -> None:
    body = bytes(range(256)) * 20_000

    async def script(peer: Peer) -> None:
        heard = await peer.heard()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(heard))
        await peer.say(heard)

    async def scenario() -> None:
        async with against(script) as world:
            assert await world.read(body=body) == body

    run(scenario())


# ---- what is wrong with an answer ----------------------------------------------------------------


BROKEN = {
    "nothing": b"",
    "a cut status line": b"HTTP/1.1 20",
    "a cut head": WHOLE[:-10],
    "a cut body": WHOLE[:-1],
    "a cut chunk": CHUNKED + b"5\r\nab",
    "no last chunk": CHUNKED + b"2\r\nab\r\n",
    "an interim answer only": INTERIM,
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "two framings": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "a chunk of no size": CHUNKED + b"x\r\nab\r\n",
    "a large head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_BYTES_MAX + b"\r\n" + WHOLE[17:],
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: 1234\r\n" * 8000 + WHOLE[17:],
    "an endless head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000,
    "endless interim answers": INTERIM * 3000,
    "endless trailers": CHUNKED + b"2\r\nok\r\n0\r\n" + b"X: " + b"x" * 300_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_fails_as_one_that_was_sent(run: Run, name: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.heard()
        await peer.say(WHOLE if peer.number > 1 else BROKEN[name])

    async def scenario() -> None:
        async with against(script) as world:
            assert (await failure(world.read())).sent
            assert await world.read() == b"ok"  # by another connection
            assert world.connections == 2

    run(scenario())


@pytest.mark.parametrize("after", [b"x", WHOLE, b"\r\nHTTP"])
def test_what_follows_an_answer_is_not_taken_for_the_next(run: Run, after: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.heard()
        await peer.say(WHOLE + after)
        await peer.heard()
        await peer.say(b"HTTP/1.1 500 Never\r\nContent-Length: 0\r\n\r\n")

    async def scenario() -> None:
        async with against(script) as world:
            assert [await world.read(), await world.read()] == [b"ok", b"ok"]
            assert world.connections == 2

    run(scenario())


def test_silence_is_bounded_before_the_head_and_after_it(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.heard()
        if peer.number > 1:
            await peer.say(CHUNKED + b"2\r\nab\r\n")
        await peer.reader.read()

    async def scenario() -> None:
        async with against(script) as world:
            began = time.monotonic()
            assert (await failure(world.send(first_byte_timeout=0.1))).sent
            response = await world.send(read_timeout=0.1)
            assert await anext(response.chunks()) == b"ab"
            assert (await failure(response.read())).sent
            assert 0.2 <= time.monotonic() - began < 3
            response.close()

    run(scenario())


def test_an_answer_that_came_while_the_process_stood_still_is_not_silence(run: Run) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        link, _address = listening.accept()
        link.recv(65536)
        time.sleep(0.05)
        link.sendall(WHOLE)
        link.recv(1)
        link.close()

    async def scenario() -> None:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        world = World()
        async with BedrockUpstream(FixedCredentials("A", "s"), endpoint_url=url) as upstream:
            world.upstream = upstream
            reading = asyncio.ensure_future(world.read(first_byte_timeout=0.2))
            while not world.upstream._pool or not world.upstream._pool._lent:
                await asyncio.sleep(0.001)
            time.sleep(0.4)
            assert await reading == b"ok"

    server = threading.Thread(target=serve)
    server.start()
    run(scenario())
    server.join(10)
    listening.close()


# ---- streams -------------------------------------------------------------------------------------


def test_a_byte_is_read_before_the_next_is_sent(run: Run) -> None:
    async def scenario() -> None:
        read = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.heard()
            await peer.say(CHUNKED + b"1\r\na\r\n")
            await read.wait()
            await peer.say(b"1\r\nb\r\n0\r\n\r\n")

        async with against(script) as world:
            response = await world.send()
            chunks = response.chunks()
            assert await anext(chunks) == b"a"
            read.set()
            assert await anext(chunks) == b"b"
            assert [chunk async for chunk in chunks] == []
            response.close()

    run(scenario())


def test_a_slow_reader_bounds_what_is_held(run: Run) -> None:
    size = 24_000_000
    said = 0

    async def script(peer: Peer) -> None:
        nonlocal said
        await peer.heard()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while said < size:
            peer.writer.write(bytes(100_000))
            await peer.writer.drain()
            said += 100_000

    async def scenario() -> None:
        async with against(script) as world:
            response = await world.send(read_timeout=0.2)
            await asyncio.sleep(0.5)  # longer than the peer may be silent: it is not the peer who waits
            assert said < size
            assert response._connection._buffered <= BUFFER_BYTES_MAX + (256 << 10)
            assert sum([len(chunk) async for chunk in response.chunks()]) == size
            response.close()

    run(scenario())


def test_a_reader_that_is_cancelled_leaves_no_connection_to_be_used_again(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.heard()
        await peer.say(CHUNKED + b"2\r\nab\r\n" if peer.number == 1 else b"")
        if peer.number > 2:
            await peer.say(WHOLE)
        await peer.reader.read()

    async def scenario() -> None:
        async with against(script) as world:
            response = await world.send()
            reading = asyncio.ensure_future(response.read())
            await asyncio.sleep(0.02)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            response.close()
            sending = asyncio.ensure_future(world.send())
            await asyncio.sleep(0.02)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            assert await world.read() == b"ok"
            assert world.connections == 3

    run(scenario())


# ---- which connection ----------------------------------------------------------------------------


def test_a_connection_that_was_closed_while_idle_is_dropped_before_use(run: Run) -> None:
    async def scenario() -> None:
        async with against(once(WHOLE)) as world:
            for _ in range(3):
                assert await world.read() == b"ok"
                await asyncio.sleep(0.02)
            assert world.connections == 3

    run(scenario())


def test_a_close_that_the_loop_has_not_seen_yet_is_asked_of_the_kernel(run: Run) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def serve() -> None:
        for _ in range(2):
            link, _address = listening.accept()
            link.recv(65536)
            link.sendall(WHOLE)
            closing.wait(10)
            link.close()

    async def scenario() -> None:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        world = World()
        async with BedrockUpstream(FixedCredentials("A", "s"), endpoint_url=url) as upstream:
            world.upstream = upstream
            assert await world.read() == b"ok"
            closing.set()
            time.sleep(0.3)  # the whole process stands still while the peer closes
            assert await world.read() == b"ok"

    server = threading.Thread(target=serve)
    server.start()
    run(scenario())
    server.join(10)
    listening.close()


def test_a_kept_connection_that_dies_under_a_request_was_sent_it_once(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.heard()
        await peer.say(WHOLE)
        await peer.heard()

    async def scenario() -> None:
        async with against(script) as world:
            assert await world.read() == b"ok"
            assert (await failure(world.read())).sent
            assert world.connections == 1

    run(scenario())


def test_a_connection_on_which_somebody_speaks_unasked_is_dropped(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.heard()
        await peer.say(WHOLE)
        await asyncio.sleep(0.01)
        await peer.say(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await peer.reader.read()

    async def scenario() -> None:
        async with against(script) as world:
            assert await world.read() == b"ok"
            await asyncio.sleep(0.05)
            assert await world.read() == b"ok"
            assert world.connections == 2

    run(scenario())


def test_the_last_in_is_the_first_out_and_the_old_are_closed(run: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr(pool, "IDLE_CONNECTION_SECONDS", 0.3)
    monkeypatch.setattr(pool, "SWEEP_SECONDS", 0.1)
    ended: list[int] = []

    async def script(peer: Peer) -> None:
        try:
            await always(WHOLE)(peer)
        finally:
            ended.append(peer.number)

    async def scenario() -> None:
        async with against(script) as world:
            both = [await world.send(), await world.send()]
            for response in both:
                response.close()
            for _ in range(8):
                assert await world.read() == b"ok"
                await asyncio.sleep(0.1)
            assert world.connections == 2
            assert ended == [1]

    run(scenario())


def test_a_call_takes_the_connection_that_another_gives_back(run: Run) -> None:
    async def scenario() -> None:
        async with against(always(WHOLE), connections_max=1, connect_timeout=5.0) as world:
            first = await world.send()
            waiting = [asyncio.ensure_future(world.read()) for _ in range(3)]
            await asyncio.sleep(0.02)
            waiting[0].cancel()
            first.close()
            assert await asyncio.gather(*waiting[1:]) == [b"ok", b"ok"]
            assert world.connections == 1

    run(scenario())


def test_the_next_address_is_tried(run: Run) -> None:
    async def scenario() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # bound, not listening: refuses
            nobody = (socket.AF_INET, 0, closed.getsockname())
            server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
            there = (socket.AF_INET, 0, server.sockets[0].getsockname())
            (await dialing.connected([nobody, there])).close()
            (await dialing.connected([there, nobody])).close()
            for nowhere in ([nobody], [nobody, nobody]):
                with pytest.raises(ConnectionRefusedError):
                    await dialing.connected(nowhere)
            server.close()
            await asyncio.sleep(0.02)

    run(scenario())


# ---- certainly not sent --------------------------------------------------------------------------


async def test_a_connection_that_closed_before_its_use_was_handed_nothing() -> None:
    async with against(always(WHOLE)) as world:
        response = await world.send()
        connection = response._connection
        response.close()
        connection.abort()
        with pytest.raises(UpstreamFailure) as caught:
            connection.begin(b"", b"", 1.0, 1.0)
        assert not caught.value.sent


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b"])
def test_a_header_that_would_be_read_as_two_is_not_sent(run: Run, value: str) -> None:
    async def scenario() -> None:
        async with against(always(WHOLE)) as world:
            assert not (await failure(world.send(headers={"x-amzn-bedrock-trace": value}))).sent
            assert world.connections == 0

    run(scenario())


def _authority(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server and of a client that trusts nobody else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    public = certificate.public_bytes(pem)
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = directory / "server.pem"
    path.write_bytes(secret + public)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(path)
    return served, ssl.create_default_context(cadata=public.decode())


def test_tls_with_an_authority_of_ones_own(run: Run, tmp_path: Path) -> None:
    served, trusting = _authority(tmp_path)
    body = b"x" * 3_000_000

    async def script(peer: Peer) -> None:
        while True:
            heard = await peer.heard()
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(heard))
            await peer.say(heard)

    async def scenario() -> None:
        async with against(script, served, ssl_context=trusting) as world:
            assert [await world.read(), await world.read(body=body)] == [b"{}", body]
            assert world.connections == 1
        async with against(script, served) as world:
            assert not (await failure(world.read())).sent

    run(scenario())
