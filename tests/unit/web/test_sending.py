"""A stream's pieces reach the server one at a time and in order, whatever its `send` returns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.web.inference import Connection


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


class Eager:
    """Like granian's: it begins when it is called, and is awaited for its end."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.under_way = 0

    def __call__(self, message: dict[str, Any]) -> asyncio.Future[None]:
        name = message.get("body", b"start").decode()
        assert self.under_way == 0, f"{name} before the one before it had ended"
        self.under_way += 1
        self.log.append(f"began {name}")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.005, self._end, name, done)
        return done

    def _end(self, name: str, done: asyncio.Future[None]) -> None:
        self.under_way -= 1
        self.log.append(f"ended {name}")
        done.set_result(None)


class Coroutine(Eager):
    """Like other servers': nothing happens until it is awaited."""

    async def begin(self, message: dict[str, Any]) -> None:
        await super().__call__(message)

    def __call__(self, message: dict[str, Any]) -> Any:
        return self.begin(message)


@pytest.mark.parametrize("server", [Eager, Coroutine])
async def test_one_at_a_time_and_in_order(server: type[Eager]) -> None:
    send = server()
    connection = Connection(never, send)
    await connection.start(200, [])
    for piece in (b"a", b"b", b"c"):
        await connection.send(piece)
        await asyncio.sleep(0)
        assert send.log[-1] == f"began {piece.decode()}", "no piece waits for the next one"
    await connection.finish(b"d")
    connection.close()
    assert send.log == [
        f"{what} {name}" for name in ("start", "a", "b", "c", "d") for what in ("began", "ended")
    ]
    assert send.under_way == 0


async def test_a_slow_reader_holds_the_stream_back() -> None:
    send = Eager()
    connection = Connection(never, send)
    await connection.start(200, [])
    await connection.send(b"a")
    began = asyncio.get_running_loop().time()
    await connection.send(b"b")
    assert asyncio.get_running_loop().time() - began >= 0.004
    await connection.finish()
    connection.close()
