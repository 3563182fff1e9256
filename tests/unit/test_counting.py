"""Inputs that are counted because only their byte bound keeps a call from its budget."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.call import Call, Leg, Question
from proxy.counting import LEAVE_ALONE, Counter, bounded
from proxy.domain.ledger import Operation, State, Why
from proxy.errors import BudgetHeld, BudgetSpent
from proxy.exchange import Exchange
from proxy.testing_upstream import Scripted
from tests.support.exchanges import BODY, CEILING, HEADERS, Client, World

COUNT = 100


class Asked:
    """A call of which Bedrock can tell the input: its ceiling is then the count."""

    def __init__(self, world: World, leg: Leg, body: bytes = b"what") -> None:
        self.leg, self.body = leg, body
        self.probe = replace(world.leg(9), ceiling=0)
        self.best = 10

    def at_best(self, tokens: int | None = None) -> int:
        return self.best

    async def question(self) -> Question | None:
        return Question(leg=self.probe, operation=Operation.COUNT_TOKENS, body=self.body, read=self.read)

    @staticmethod
    def read(body: bytes) -> int | None:
        return orjson.loads(body).get("inputTokens")  # type: ignore[no-any-return]

    def counted(self, tokens: int) -> None:
        self.leg = replace(self.leg, ceiling=tokens)

    def legs(self) -> tuple[Leg, ...]:
        return (self.leg,)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def counted(count: int = COUNT) -> Scripted:
    return Scripted(headers={"x-amzn-requestid": "c-1"}, chunks=[orjson.dumps({"inputTokens": count})])


ANSWER = Scripted(headers=HEADERS, chunks=[BODY])


@pytest.fixture
def make(tmp_path: Path):
    def world(*answers: Scripted, limit: int, per_second: int = 5, **options: Any) -> World:
        remaining = list(answers)
        made = World(tmp_path, lambda _: remaining.pop(0), limit=limit, **options)
        made.clock = Clock()  # type: ignore[attr-defined]
        made.kit.counts = Counter(per_second, made.clock)  # type: ignore[attr-defined]
        return made

    return world


def call(world: World, body: bytes = b"what") -> Call:
    made = world.call()
    made.countable = Asked(world, made.legs[0], body)
    return made


async def run(world: World, made: Call | None = None) -> Client:
    client = Client()
    await Exchange(world.kit, made or call(world), client).run()
    return client


def rows(world: World) -> list[tuple[Operation, State, Why, int]]:
    return [(r.attempt.operation, r.state, r.entries[0].why, r.attempt.ceiling) for r in world.attempts()]


COUNTED = (Operation.COUNT_TOKENS, State.POST, Why.USAGE, 0)


async def test_a_call_that_fits_is_not_counted(make):
    w = make(ANSWER, limit=CEILING)
    assert (await run(w)).status == 200
    assert len(w.upstream.requests) == 1


async def test_a_count_makes_the_call_fit_and_is_a_row_of_its_own(make):
    w = make(counted(), ANSWER, limit=CEILING - 1)
    assert (await run(w)).status == 200
    assert rows(w) == [COUNTED, (Operation.INVOKE_MODEL, State.POST, Why.USAGE, bounded(COUNT))]
    assert w.attempts()[0].attempt.call == w.attempts()[1].attempt.call
    assert w.money() == (0, 5)
    w.nothing_is_open()


async def test_a_count_that_does_not_help_makes_the_refusal_final(make):
    w = make(counted(CEILING), limit=CEILING - 1)
    with pytest.raises(BudgetSpent):
        await run(w)
    assert rows(w) == [COUNTED]
    w.nothing_is_open()


async def test_the_same_input_is_asked_about_once(make):
    w = make(counted(), ANSWER, ANSWER, limit=CEILING - 1)
    await run(w)
    await run(w)
    assert [r[0] for r in rows(w)].count(Operation.COUNT_TOKENS) == 1


@pytest.mark.parametrize(
    ("answer", "state", "why"),
    [
        (Scripted(status=400, headers={"x-amzn-errortype": "ValidationException"}, chunks=[b"{}"]),
         State.VOID, Why.UPSTREAM_ERROR),
        (Scripted(chunks=[b"{}"]), State.CEILING, Why.UPSTREAM_ERROR),
        (Scripted(chunks=[b'{"inp'], cut=True), State.CEILING, Why.CUT),
        (Scripted(unreachable=True), State.VOID, Why.NEVER_SENT),
    ],
)  # fmt: skip
async def test_a_target_that_does_not_count_keeps_its_byte_bound_and_is_left_alone(make, answer, state, why):
    w = make(answer, counted(), ANSWER, limit=CEILING - 1)
    for _ in range(2):
        with pytest.raises(BudgetSpent):
            await run(w)
    assert rows(w) == [(Operation.COUNT_TOKENS, state, why, 0)]
    assert w.money() == (0, 0)
    w.clock.now += LEAVE_ALONE + 1
    assert (await run(w)).status == 200
    w.nothing_is_open()


async def test_a_call_that_waits_to_be_counted_is_held_not_spent(make):
    """It might fit if it were counted, so it must not be told that it never will."""
    w = make(counted(CEILING), counted(), ANSWER, limit=CEILING - 1, per_second=1)
    with pytest.raises(BudgetSpent):
        await run(w, call(w, b"one"))
    with pytest.raises(BudgetHeld):
        await run(w, call(w, b"two"))
    w.clock.now += 1
    assert (await run(w, call(w, b"two"))).status == 200


async def test_a_call_is_counted_while_it_waits(make):
    w = make(counted(CEILING), counted(), ANSWER, limit=CEILING - 1, per_second=1, held_wait=5.0)
    with pytest.raises(BudgetSpent):
        await run(w, call(w, b"one"))
    waits = asyncio.create_task(run(w, call(w, b"two")))
    await asyncio.sleep(0.05)
    assert not waits.done()
    w.clock.now += 1
    assert (await waits).status == 200


async def test_a_hopeless_call_is_not_counted(make):
    w = make(limit=5)
    with pytest.raises(BudgetSpent):
        await run(w)
    assert rows(w) == []


async def test_counting_can_be_off(make):
    w = make(limit=CEILING - 1, per_second=0)
    with pytest.raises(BudgetSpent):
        await run(w)
    assert rows(w) == []


async def test_a_client_that_cancels_during_the_count_leaves_nothing_open(make):
    w = make(Scripted(first_byte_after=0.15, chunks=[b"{}"]), limit=CEILING - 1)
    task = asyncio.create_task(run(w))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await w.kit.settler.drain(3.0)
    assert rows(w) == [(Operation.COUNT_TOKENS, State.CEILING, Why.CUT, 0)]
    w.nothing_is_open()
