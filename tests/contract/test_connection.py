"""The lean HTTP client over real sockets, on both loops: framing in any pieces, ends at any place, streams.

Which connections are used again is in `test_pool`.
"""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from proxy.bedrock.connection import BUFFER_BYTES_MAX, HEAD_BYTES_MAX
from tests.contract.peers import (
    CHUNKED,
    WHOLE,
    Peer,
    Run,
    against,
    always,
    apart,
    client_of,
    failure,
    once,
)

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
    def serve(listening: socket.socket) -> None:
        link, _address = listening.accept()
        link.recv(65536)
        time.sleep(0.05)
        link.sendall(WHOLE)
        link.recv(1)
        link.close()

    async def scenario(url: str) -> None:
        async with client_of(url) as world:
            reading = asyncio.ensure_future(world.read(first_byte_timeout=0.2))
            while not world.upstream._pool or not world.upstream._pool._lent:
                await asyncio.sleep(0.001)
            time.sleep(0.4)
            assert await reading == b"ok"

    with apart(serve) as url:
        run(scenario(url))


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
