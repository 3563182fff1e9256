"""The bank's common case: when it is taken, when it is not, and that nobody can tell by the answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from proxy.domain.ledger import Outcome, State, Verdict
from proxy.postgres import swift
from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import create_engine
from tests.contract.bank_twin import Caller, PostgresWorld, at_ceiling, post, void


@pytest.fixture
async def world(app_database_url: str) -> AsyncIterator[PostgresWorld]:
    engine = create_engine(app_database_url, pool_size=5)
    bank = PostgresBank(engine, lanes=1, admit_timeout_s=1.0)
    await bank.start()
    world = PostgresWorld(engine, bank)
    yield world
    assert await world.faults() == []
    await bank.aclose()
    await engine.dispose()


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many batches went which way; `found`: callers whose budgets were looked up."""
    seen: Counter[str] = Counter()
    answers = swift.Swift.answers

    def counted(self: swift.Swift, row: Any) -> Any:
        done = answers(self, row)
        seen["not plain" if done is None else "swift"] += 1
        seen["found"] += row is not None and row["version"] is not None
        return done

    monkeypatch.setattr(swift.Swift, "answers", counted)
    return seen


async def spending(world: PostgresWorld, limit: int = 10**9) -> Caller:
    caller = await world.caller()
    for scope, subject in (("tenant", caller.tenant), ("project", caller.project), ("key", caller.key)):
        await world.budget(scope, subject, caller.tenant, limit)
    return caller


async def test_plain_calls_go_the_swift_way_and_are_looked_up_once(
    world: PostgresWorld, ways: Counter[str]
) -> None:
    caller = await spending(world)
    for end in (lambda a: post(a, 40), void, at_ceiling):
        attempts = [caller.attempt(100) for _ in range(5)]
        admitted = await asyncio.gather(*map(world.bank.admit, attempts))
        assert {(a.verdict, a.state) for a in admitted} == {(Verdict.OK, State.OPEN)}
        settled = await asyncio.gather(*(world.bank.settle(end(a)) for a in attempts))
        assert {s.outcome for s in settled} == {Outcome.SETTLED}
        assert all(len(s.budgets) == 3 for s in settled)
        states = {(await world.cost(a.attempt))[0] for a in attempts}
        assert states == {settled[0].state}
    assert ways == {"swift": 6, "found": 1}
    first, second = caller.attempt(7), caller.attempt(9)
    await world.bank.admit(first)
    assert (await world.bank.settle_and_admit(void(first), second)).verdict is Verdict.OK
    assert (await world.bank.settle(post(second, 9, upstream_request_id="r-2"))).outcome is Outcome.SETTLED
    assert ways == {"swift": 9, "found": 1}


async def test_what_differs_in_a_batch_reaches_its_own_row(world: PostgresWorld, ways: Counter[str]) -> None:
    """Settlements are sent sorted and answered in the order in which they came."""
    callers = [await spending(world), await world.caller(), await spending(world)]
    attempts = [c.attempt(1000 + n, model=n, target=n + 50, tags=n) for n, c in enumerate(callers * 7)]
    await asyncio.gather(*map(world.bank.admit, attempts))
    settlements = [post(a, n, latency_ms=n, upstream_request_id=f"r{n}") for n, a in enumerate(attempts)]
    order = sorted(range(len(attempts)), key=lambda n: -n * 7 % 11)
    answers = await asyncio.gather(*(world.bank.settle(settlements[n]) for n in order))
    assert ways["swift"] == 2
    assert [len(a.budgets) for a in answers] == [(3, 0, 3)[n % 3] for n in order]
    rows = await world.run(
        "SELECT attempt, cost, latency_ms, upstream_request_id, model, target, tags, ceiling, tenant FROM attempts"
    )
    by_id = {row[0]: tuple(row[1:]) for row in rows}
    for n, attempt in enumerate(attempts):
        assert by_id[attempt.attempt] == (n, n, f"r{n}", n, n + 50, n, 1000 + n, attempt.tenant)


@pytest.mark.parametrize("change", ["budget", "revoked", "limit", "no account"])
async def test_what_is_known_about_a_caller_never_outlives_a_change(
    world: PostgresWorld, ways: Counter[str], change: str
) -> None:
    caller = await spending(world)
    assert (await world.bank.admit(caller.attempt(100))).verdict is Verdict.OK
    if change == "budget":
        fresh = await world.budget("key", caller.key, caller.tenant, 50, models=(7,))
        denied = await world.bank.admit(caller.attempt(100))
        assert (denied.verdict, denied.budget) == (Verdict.DENIED, fresh)
        assert (await world.bank.admit(caller.attempt(50))).verdict is Verdict.OK
        assert (await world.money(fresh)).reserved == 50
    elif change == "revoked":
        await world.revoke(caller)
        assert (await world.bank.admit(caller.attempt(100))).verdict is Verdict.REVOKED
    elif change == "limit":
        budget = (await world.bank.settle(post(a := caller.attempt(1), 1))).budgets
        assert budget == ()
        await world.bank.admit(a)
        (key,) = await world.run(
            "SELECT id FROM budgets WHERE subject = :key AND deleted_at IS NULL", key=caller.key
        )
        await world.set_limit(key[0], 150)
        assert (await world.bank.admit(caller.attempt(100))).verdict is Verdict.DENIED
    else:
        (key,) = await world.run("SELECT id FROM budgets WHERE subject = :key", key=caller.key)
        await world.without_account(key[0])
        await world.run("UPDATE directory_epoch SET version = version + 1")
        assert (await world.bank.admit(caller.attempt(100))).verdict is Verdict.OK, "a new period was opened"
        assert (await world.money(key[0])).reserved == 100, "and holds this call, not the one before"
    assert ways["not plain"] == 1


async def test_a_short_budget_leaves_nothing_reserved_elsewhere(
    world: PostgresWorld, ways: Counter[str]
) -> None:
    caller = await world.caller()
    wide = await world.budget("tenant", caller.tenant, caller.tenant, 10_000)
    narrow = await world.budget("key", caller.key, caller.tenant, 100)
    assert (await world.bank.admit(caller.attempt(80))).verdict is Verdict.OK
    answers = await asyncio.gather(*(world.bank.admit(caller.attempt(n)) for n in (30, 20, 1)))
    assert [a.verdict for a in answers] == [Verdict.DENIED, Verdict.OK, Verdict.DENIED]
    assert (await world.money(wide)).reserved == (await world.money(narrow)).reserved == 100
    assert ways == {"swift": 1, "not plain": 1, "found": 1}


async def test_what_is_not_plain_is_judged_with_its_neighbours_unharmed(
    world: PostgresWorld, ways: Counter[str]
) -> None:
    caller = await spending(world)
    attempts = [caller.attempt(100) for _ in range(4)]
    await asyncio.gather(*map(world.bank.admit, attempts))
    settlements = [
        post(attempts[0], 10),
        post(attempts[1], 130),
        post(attempts[2], 10),
        post(attempts[3], 10),
    ]
    answers = await asyncio.gather(*map(world.bank.settle, settlements))
    assert [a.outcome for a in answers] == [Outcome.SETTLED] * 4
    assert [a.overrun for a in answers] == [0, 30, 0, 0]
    again = await asyncio.gather(world.bank.settle(settlements[0]), world.bank.admit(attempts[2]))
    assert (again[0].outcome, again[1].verdict) == (Outcome.ALREADY, Verdict.DUPLICATE)
    stale = replace(
        caller.attempt(5), attempt=attempts[0].attempt.__class__(int=attempts[0].attempt.int >> 8)
    )
    assert (await world.bank.admit(stale)).verdict is Verdict.STALE


async def test_a_settlement_by_two_is_counted_once_and_their_locks_are_in_order(
    world: PostgresWorld, app_database_url: str
) -> None:
    """The one who admitted settles the swift way, another at the same time the long one."""
    engine = create_engine(app_database_url, pool_size=5)
    other = PostgresBank(engine, lanes=1)
    await other.start()
    callers = [await spending(world), await spending(world)]
    for _ in range(5):
        attempts = [c.attempt(10) for c in callers for _ in range(8)]
        await asyncio.gather(*map(world.bank.admit, attempts))
        outcomes = await asyncio.gather(
            *(world.bank.settle(post(a, 4)) for a in attempts),
            *(other.settle(post(a, 4)) for a in reversed(attempts)),
        )
        words = [s.outcome for s in outcomes]
        assert (words.count(Outcome.SETTLED), words.count(Outcome.ALREADY)) == (16, 16)
    await other.aclose()
    await engine.dispose()


async def test_the_evidence_of_ceilings_is_found_by_its_index(world: PostgresWorld) -> None:
    query = "SELECT attempt FROM entries WHERE slot = 0 AND kind = 3 AND attempt > '01900000-0000-7000-8000-000000000000'"
    async with world.engine.begin() as db:
        await db.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join((await db.execute(text(f"EXPLAIN {query}"))).scalars())
    assert "attempt_idx" in plan, plan


@pytest.mark.parametrize(("pooler", "limit"), [("none", "1200ms"), ("pgbouncer", "0")])
async def test_behind_a_pooler_nothing_is_set_for_a_session(
    app_database_url: str, pooler: Any, limit: str
) -> None:
    engine = create_engine(app_database_url, pool_size=3, pooler=pooler)
    bank = PostgresBank(engine, lanes=1)
    await bank.start()
    lane = await bank._lanes[0].connect()
    assert await lane.fetchval("SHOW statement_timeout") == limit
    async with engine.connect() as db:
        other = await db.scalar(text("SHOW statement_timeout"))
    assert other == ("10s" if pooler == "none" else "0")
    await bank.aclose()
    await engine.dispose()
