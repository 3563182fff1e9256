"""Several workers, several connections, things that go wrong between them: money stays exact."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from proxy.domain.ledger import Admission, Outcome, Settled, State, Verdict
from proxy.embedded import Postgres
from proxy.errors import BankAway
from proxy.postgres import lane as lane_module
from proxy.postgres import migrate
from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import create_engine
from proxy.postgres.wire import Move
from tests.contract.bank_twin import PostgresWorld, at_ceiling, post, void

Worlds = Callable[..., Awaitable[PostgresWorld]]


@pytest.fixture
async def worlds(database_url: str) -> AsyncIterator[Worlds]:
    """Makes worlds over one database, each with an engine and a bank of its own, like worker processes."""
    made: list[PostgresWorld] = []

    async def make(**options: Any) -> PostgresWorld:
        engine = create_engine(database_url, pool_size=6)
        world = PostgresWorld(engine, PostgresBank(engine, **options))
        await world.bank.start()
        made.append(world)
        return world

    yield make
    assert await made[0].faults() == []
    for world in made:
        await world.bank.aclose()
        await world.engine.dispose()


async def test_three_workers_share_a_budget_for_exactly_a_hundred_calls(worlds: Worlds) -> None:
    first, second, third = [await worlds() for _ in range(3)]
    caller = await first.caller()
    for scope, subject in (("tenant", caller.tenant), ("project", caller.project), ("key", caller.key)):
        await first.budget(scope, subject, caller.tenant, 100 * 13)

    async def one(world: PostgresWorld) -> list[Verdict]:
        return [(await world.bank.admit(caller.attempt(13))).verdict for _ in range(3)]

    answers = await asyncio.gather(*(one(w) for w in (first, second, third) for _ in range(22)))
    verdicts = [verdict for several in answers for verdict in several]
    assert verdicts.count(Verdict.OK) == 100
    assert verdicts.count(Verdict.DENIED) == 198 - 100


async def test_a_budget_for_a_hundred_calls_admits_a_hundred_of_many(worlds: Worlds) -> None:
    """Three levels, each with room for exactly a hundred, asked by many tasks at once."""
    world = await worlds()
    caller = await world.caller()
    budgets = [
        await world.budget("tenant", caller.tenant, caller.tenant, 100 * 70),
        await world.budget("project", caller.project, caller.tenant, 100 * 70 + 69),
        await world.budget("key", caller.key, caller.tenant, 100 * 70),
    ]
    verdicts: list[Verdict] = []

    async def one() -> None:
        for _ in range(5):
            verdicts.append((await world.bank.admit(caller.attempt(70))).verdict)

    await asyncio.gather(*(one() for _ in range(64)))
    assert verdicts.count(Verdict.OK) == 100
    assert verdicts.count(Verdict.DENIED) == 220
    assert [(await world.money(b)).reserved for b in budgets] == [7000] * 3


async def test_the_same_attempts_on_two_connections_reserve_once(worlds: Worlds) -> None:
    first, second = await worlds(), await worlds()
    caller = await first.caller()
    free = await first.caller()  # no budget: no lock on an account makes these wait for each other
    budget = await first.budget("tenant", caller.tenant, caller.tenant, 10_000)
    for who in (caller, free):
        for _ in range(20):
            attempts = [who.attempt(10) for _ in range(10)]
            answers = await asyncio.gather(
                *(first.bank.admit(a) for a in attempts), *(second.bank.admit(a) for a in reversed(attempts))
            )
            verdicts = [a.verdict for a in answers]
            assert (verdicts.count(Verdict.OK), verdicts.count(Verdict.DUPLICATE)) == (10, 10)
    assert (await first.money(budget)).reserved == 2000


async def test_two_settlements_of_one_attempt_are_one(worlds: Worlds) -> None:
    first, second = await worlds(), await worlds()
    for budgeted in (True, False):
        caller = await first.caller()
        if budgeted:
            await first.budget("tenant", caller.tenant, caller.tenant, 10_000)
        attempts = [caller.attempt(10) for _ in range(40)]
        await asyncio.gather(*map(first.bank.admit, attempts))
        outcomes = await asyncio.gather(
            *(first.bank.settle(post(a, 4)) for a in attempts),
            *(second.bank.settle(at_ceiling(a)) for a in reversed(attempts)),
        )
        words = [s.outcome for s in outcomes]
        assert words.count(Outcome.SETTLED) == 40
        assert words.count(Outcome.ALREADY) + words.count(Outcome.REFUNDED) == 40


async def test_a_settlement_races_the_sweeper_and_both_are_right(worlds: Worlds) -> None:
    first, second = await worlds(), await worlds()
    caller = await first.caller()
    budget = await first.budget("tenant", caller.tenant, caller.tenant, 10_000)
    attempts = [caller.attempt(10) for _ in range(60)]
    await asyncio.gather(*map(first.bank.admit, attempts))
    settling = asyncio.gather(*(first.bank.settle(post(a, 4)) for a in attempts))
    swept, rival = await asyncio.gather(second.bank.sweep(-1, 30), first.bank.sweep(-1, 30))
    outcomes = await settling
    assert {s.outcome for s in outcomes} <= {Outcome.SETTLED, Outcome.REFUNDED}
    assert swept.leader or rival.leader
    assert (await first.money(budget)).settled == 60 * 4


async def test_work_on_one_attempt_keeps_its_order(worlds: Worlds) -> None:
    """A settlement asked for while its admission is still under way finds the row."""
    world = await worlds(lanes=4)
    caller = await world.caller()
    attempts = [caller.attempt(10) for _ in range(50)]
    pairs = [
        (asyncio.create_task(world.bank.admit(a)), asyncio.create_task(world.bank.settle(void(a))))
        for a in attempts
    ]
    assert [(await admitted).verdict for admitted, _ in pairs] == [Verdict.OK] * 50
    assert [(await settled).outcome for _, settled in pairs] == [Outcome.SETTLED] * 50


async def test_one_poison_attempt_harms_nobody_else(worlds: Worlds) -> None:
    world = await worlds(lanes=1)
    caller = await world.caller()
    good = [caller.attempt(10) for _ in range(20)]
    poison = [caller.attempt(10**17), caller.attempt(2**70), caller.attempt(-1)]
    running = caller.attempt(10)
    await world.bank.admit(running)
    batch = [*good[:7], poison[0], *good[7:9], poison[1], *good[9:], poison[2]]
    admitting = [asyncio.create_task(world.bank.admit(a)) for a in batch]
    settling = [asyncio.create_task(world.bank.settle(s)) for s in (post(running, 5), post(good[0], 10**18))]
    answers = await asyncio.gather(*admitting, return_exceptions=True)
    settled, absurd = await asyncio.gather(*settling, return_exceptions=True)
    for attempt, answer in zip(batch, answers, strict=True):
        if attempt in poison:
            assert isinstance(answer, BankAway)
        else:
            assert isinstance(answer, Admission)
            assert answer.verdict is Verdict.OK
    assert isinstance(settled, Settled)
    assert settled.outcome is Outcome.SETTLED
    assert isinstance(absurd, BankAway)


async def test_text_of_bedrock_cannot_poison_a_batch(worlds: Worlds) -> None:
    world = await worlds()
    caller = await world.caller()
    attempt = caller.attempt(10)
    await world.bank.admit(attempt)
    odd = post(attempt, 5, upstream_request_id="a\x00b\ud800" + "x" * 500, latency_ms=2**40, status=-3)
    odd = replace(odd, usage=replace(odd.usage, input_tokens=2**80, output_tokens=-5))
    assert (await world.bank.settle(odd)).outcome is Outcome.SETTLED
    ((request, tokens),) = await world.run(
        "SELECT upstream_request_id, input_tokens FROM attempts WHERE attempt = :id", id=attempt.attempt
    )
    assert request.startswith("abxxx")
    assert tokens == 2**31 - 1


async def test_a_tenant_that_is_refused_leaves_the_cheap_statement_to_the_others(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await worlds(lanes=1)
    spent, *others = [await world.caller() for _ in range(4)]
    for caller, limit in ((spent, 5), *((other, 10_000) for other in others)):
        await world.budget("tenant", caller.tenant, caller.tenant, limit)
    [lane] = world.bank._lanes
    asked: list[tuple[bool, int]] = []
    move = lane._move

    async def watched(moves: Sequence[Move], *, skip_locked: bool, judge: bool) -> Any:
        asked.append((judge, len(moves)))
        return await move(moves, skip_locked=skip_locked, judge=judge)

    monkeypatch.setattr(lane, "_move", watched)

    async def crowd() -> list[Verdict]:
        callers = [spent, *others, spent]
        return [a.verdict for a in await asyncio.gather(*(world.bank.admit(c.attempt(10)) for c in callers))]

    verdicts = [Verdict.DENIED, Verdict.OK, Verdict.OK, Verdict.OK, Verdict.DENIED]
    assert await crowd() == verdicts
    assert asked == [(False, 5)], "nobody knew; the whole batch was judged"
    asked.clear()
    assert await crowd() == verdicts
    assert sorted(asked) == [(False, 3), (True, 2)]
    await asyncio.sleep(lane_module.JUDGE_S)
    asked.clear()
    assert await crowd() == verdicts
    assert asked == [(False, 5)], "a moment later it is tried with the others again"
    assert await world.faults() == []


async def test_a_locked_account_delays_the_others_by_one_lock_timeout_only(worlds: Worlds) -> None:
    world = await worlds(lanes=1, admit_timeout_s=0.8)
    locked, *others = [await world.caller() for _ in range(5)]
    for caller in (locked, *others):
        await world.budget("tenant", caller.tenant, caller.tenant, 10_000)
    before = locked.attempt(10)
    await world.bank.admit(before)
    async with world.engine.connect() as administrator:
        await administrator.exec_driver_sql(
            f"UPDATE accounts SET version = version WHERE budget IN (SELECT id FROM budgets WHERE subject = '{locked.tenant}')"
        )
        stuck = [asyncio.create_task(world.bank.admit(locked.attempt(10))) for _ in range(5)]
        settling = asyncio.create_task(world.bank.settle(post(before, 7)))
        waits = []
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            began = time.monotonic()
            answers = await asyncio.gather(*(world.bank.admit(caller.attempt(10)) for caller in others))
            assert {a.verdict for a in answers} == {Verdict.OK}
            waits.append(time.monotonic() - began)
        assert max(waits) < 0.6, "250 ms, and some room for a slow machine"
        assert sorted(waits)[len(waits) // 2] < 0.1, "later batches do not wait at all"
        for answer in await asyncio.gather(*stuck, return_exceptions=True):
            assert isinstance(answer, BankAway)
        await administrator.rollback()
    assert (await settling).outcome is Outcome.SETTLED
    assert (await world.bank.admit(locked.attempt(10))).verdict is Verdict.OK


async def test_connections_that_are_killed_under_load_lose_nothing(worlds: Worlds) -> None:
    world, killer = await worlds(), await worlds()
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 10**9)
    done = asyncio.Event()

    async def call() -> int:
        number = 0
        while not done.is_set():
            attempt = caller.attempt(10)
            admitted = await world.bank.admit(attempt)
            assert admitted.verdict in {Verdict.OK, Verdict.DUPLICATE}
            assert admitted.state is State.OPEN
            settled = await world.bank.settle(post(attempt, 3))
            assert settled.outcome in {Outcome.SETTLED, Outcome.ALREADY}
            number += 1
        return number

    callers = [asyncio.create_task(call()) for _ in range(16)]
    for _ in range(4):
        await asyncio.sleep(0.1)
        killed = await killer.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'SELECT %bank_settle%' AND pid <> pg_backend_pid()"
        )
        assert killed
    done.set()
    calls = sum(await asyncio.gather(*callers))
    assert calls > 50
    money = await world.money(budget)
    assert (money.settled, money.reserved) == (calls * 3, 0)


async def test_a_bank_that_is_away_says_so_in_time_and_comes_back(server_dir: Path) -> None:
    home = server_dir / "postgres-that-dies"
    with Postgres.start(home, throwaway=True) as server:
        migrate.upgrade(server.url)
        port = server.port
        engine = create_engine(server.url, pool_size=6)
        world = PostgresWorld(engine, PostgresBank(engine, admit_timeout_s=0.5, settle_timeout_s=20))
        await world.bank.start()
        caller = await world.caller()
        budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
        running = caller.attempt(10)
        await world.bank.admit(running)
    began = time.monotonic()
    answers = await asyncio.gather(
        *(world.bank.admit(caller.attempt(10)) for _ in range(50)), return_exceptions=True
    )
    assert {type(a) for a in answers} == {BankAway}
    assert time.monotonic() - began < 1.5
    with pytest.raises(BankAway):
        await world.bank.clock_skew_seconds()
    settling = asyncio.create_task(world.bank.settle(post(running, 4)))
    await asyncio.sleep(0.2)
    with Postgres.start(home, throwaway=True, port=port):
        assert (await settling).outcome is Outcome.SETTLED
        assert (await world.bank.admit(caller.attempt(10))).verdict is Verdict.OK
        assert abs(await world.bank.clock_skew_seconds()) < 5
        assert (await world.money(budget)).settled == 4
        assert await world.faults() == []
        await world.bank.aclose()
        await engine.dispose()


async def test_a_server_that_hangs_is_given_up_and_found_again(worlds: Worlds) -> None:
    """A statement that gets no answer, as over a dead network: here somebody holds the whole table."""
    world, other = await worlds(lanes=1, admit_timeout_s=0.6), await worlds()
    caller = await world.caller()
    attempt = caller.attempt(10)
    async with other.engine.connect() as somebody:
        await somebody.exec_driver_sql("LOCK TABLE attempts IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(BankAway):
            await world.bank.admit(attempt)
        await somebody.rollback()
    assert (await world.bank.admit(attempt)).state is State.OPEN


async def test_too_many_waiting_calls_are_shed_at_once(worlds: Worlds) -> None:
    world, other = await worlds(lanes=1, max_waiting=10, max_items=5), await worlds()
    caller = await world.caller()
    await world.budget("tenant", caller.tenant, caller.tenant, 10**6)
    async with other.engine.connect() as somebody:
        await somebody.exec_driver_sql("LOCK TABLE accounts IN EXCLUSIVE MODE")
        calls = [asyncio.create_task(world.bank.admit(caller.attempt(1))) for _ in range(60)]
        await asyncio.sleep(0.05)
        shed = [c for c in calls if c.done()]
        assert len(shed) >= 45
        assert {type(c.exception()) for c in shed} == {BankAway}
        await somebody.rollback()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(a, Admission) for a in answers) == 60 - len(shed)


async def test_entries_refuse_to_be_changed_even_by_their_owner(worlds: Worlds) -> None:
    world = await worlds()
    caller = await world.caller()
    attempt = caller.attempt(10)
    await world.bank.admit(attempt)
    await world.bank.settle(post(attempt, 5))
    for statement in (
        "UPDATE entries SET amount = 0",
        "DELETE FROM entries",
        "TRUNCATE entries",
        "DELETE FROM tenants",
    ):
        with pytest.raises(DBAPIError, match=r"append-only|never deleted"):
            await world.run(statement)
