"""Which connections the lean HTTP client uses, and what was certainly not sent on any; on both loops."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from proxy.bedrock import dialing, pool
from proxy.errors import UpstreamFailure
from tests.contract.peers import WHOLE, Peer, Run, against, always, apart, client_of, failure, once
from tests.support.certificates import certificate, contexts

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
    closing = threading.Event()

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            link, _address = listening.accept()
            link.recv(65536)
            link.sendall(WHOLE)
            closing.wait(10)
            link.close()

    async def scenario(url: str) -> None:
        async with client_of(url) as world:
            assert await world.read() == b"ok"
            closing.set()
            time.sleep(0.3)  # the whole process stands still while the peer closes
            assert await world.read() == b"ok"

    with apart(serve) as url:
        run(scenario(url))


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


def test_tls_with_an_authority_of_ones_own(run: Run, tmp_path: Path) -> None:
    served, trusting = contexts(certificate(tmp_path))
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
