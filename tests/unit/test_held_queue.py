"""Calls that wait for a budget: in order, and never all at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from proxy.errors import BudgetHeld
from proxy.exchange import Exchange
from proxy.settler import _LOOK_AT_ONCE, _LOOK_SECONDS, HeldQueue
from proxy.testing_upstream import Scripted
from tests.support.exchanges import BODY, CEILING, HEADERS, Client, World

CALLERS, COST = 500, 5


async def waiting(
    queue: HeldQueue, budget: UUID, number: int, woken: list[int], seconds: float = 5.0
) -> None:
    await queue.wait(budget, seconds, number)
    woken.append(number)


async def test_one_settlement_wakes_the_first_and_only_the_first():
    queue, budget = HeldQueue(), uuid4()
    woken: list[int] = []
    tasks = [asyncio.create_task(waiting(queue, budget, n, woken)) for n in (2, 0, 1)]
    await asyncio.sleep(0)
    for expected in ([0], [0, 1], [0, 1, 2]):
        queue.freed([budget, uuid4()])
        await asyncio.sleep(0.01)
        assert woken == expected
    await asyncio.gather(*tasks)


async def test_who_waits_again_keeps_the_place():
    queue, budget = HeldQueue(), uuid4()
    woken: list[int] = []
    first, second = queue.place(), queue.place()
    behind = asyncio.create_task(waiting(queue, budget, second, woken))
    await asyncio.sleep(0)
    ahead = asyncio.create_task(waiting(queue, budget, first, woken))
    await asyncio.sleep(0)
    queue.freed([budget])
    await ahead
    assert woken == [first]
    queue.freed([budget])
    await behind


async def test_those_ahead_look_again_by_themselves_and_nobody_waits_for_ever():
    queue, budget = HeldQueue(), uuid4()
    woken: list[int] = []
    began = time.monotonic()
    tasks = [asyncio.create_task(waiting(queue, budget, n, woken, 3.0)) for n in range(_LOOK_AT_ONCE + 2)]
    await asyncio.gather(*tasks[:_LOOK_AT_ONCE])
    assert time.monotonic() - began >= _LOOK_SECONDS * 0.9
    assert woken == list(range(_LOOK_AT_ONCE)), "the rest keeps waiting"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert queue._waiting == {}
    await queue.wait(budget, 0.01, queue.place())


@pytest.fixture
def world(tmp_path: Path) -> World:
    def answer(_: object) -> Scripted:
        return Scripted(headers=HEADERS, chunks=[BODY], first_byte_after=0.01)

    return World(tmp_path, answer, limit=3 * CEILING + CALLERS * COST, held_wait=1.0)


async def test_five_hundred_callers_for_a_few_places_are_no_herd(world: World) -> None:
    """Each asks when it comes and when it gives up; in between, one for every settlement and a few now and
    then. Those who get in do so in the order in which they came.
    """
    served: list[int] = []

    async def caller(number: int) -> None:
        with contextlib.suppress(BudgetHeld):
            await Exchange(world.kit, world.call(), Client()).run()
            served.append(number)

    began = time.monotonic()
    await asyncio.gather(*(caller(n) for n in range(CALLERS)))
    took = time.monotonic() - began
    looks = int(took / _LOOK_SECONDS) + 1
    # every answer settles, and every one who got in wakes the next
    assert len(world.bank.asked) <= 2 * CALLERS + 2 * len(served) + looks * _LOOK_AT_ONCE
    assert len(served) >= 3
    place = {number: at for at, number in enumerate(sorted(served))}
    moved = [abs(place[number] - at) for at, number in enumerate(served)]
    assert sum(moved) / len(moved) < 12, "nearly in order"
    assert world.money()[0] == 0
