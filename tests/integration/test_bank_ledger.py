"""The read side: calls newest first, entries, standings, spend, labels, and what a server must be like."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import uuid7
from proxy.domain.admission import Amendment
from proxy.domain.ledger import EntryKind, Operation, Outcome, State, Verdict, Why
from proxy.domain.usage import Usage
from proxy.errors import BankAway, ConfigurationError
from proxy.ports import MODEL, PRICE, TAGS, TARGET
from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import check_server, create_engine, normalized
from proxy.postgres.labels import PostgresLabels
from proxy.postgres.ledger import CallFilter, EntryRecord, PostgresLedger
from tests.contract.bank_twin import Caller, PostgresWorld, at_ceiling, post, void

LLAMA = "meta.llama3-1-405b-instruct-v1:0"


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PostgresWorld]:
    engine = create_engine(database_url, pool_size=5)
    bank = PostgresBank(engine, lanes=1)
    await bank.start()
    yield PostgresWorld(engine, bank)
    await bank.aclose()
    await engine.dispose()


async def _history(world: PostgresWorld) -> tuple[Caller, PostgresLabels, list[UUID]]:
    """One of each: POST, VOID, CEILING, HIT and OPEN, minted in that order."""
    caller = await world.caller()
    labels = PostgresLabels(world.engine)
    kinds = {"model": (MODEL, LLAMA), "target": (TARGET, f"us-east-1/{LLAMA}"), "price": (PRICE, "2026-01")}
    ids = {name: await labels.intern(kind, value) for name, (kind, value) in kinds.items()}
    ids["tags"] = await labels.intern(TAGS, '{"team":"search"}')
    attempts = [caller.attempt(100, **ids) for _ in range(5)]
    for number, attempt in enumerate(attempts):  # ids of one millisecond have no order of their own
        attempts[number] = replace(attempt, attempt=UUID(int=attempt.attempt.int + (number << 80)))
    posted, voided, ceiling, hit, opened = attempts
    for attempt in (posted, voided, ceiling, opened):
        await world.bank.admit(attempt)
    await world.bank.settle(
        post(posted, 40, upstream_cost=39, price=ids["price"], usage=Usage(input_tokens=5, output_tokens=6))
    )
    await world.bank.settle(void(voided))
    await world.bank.settle(at_ceiling(ceiling))
    await world.bank.record_hit(hit, post(hit, 0, state=State.HIT, usage=Usage(input_tokens=5)), 40)
    return caller, labels, [a.attempt for a in attempts]


async def test_calls_are_listed_newest_first_with_everything_a_reader_needs(world: PostgresWorld) -> None:
    caller, _, attempts = await _history(world)
    ledger = PostgresLedger(world.engine)
    calls = await ledger.calls(CallFilter(tenant=caller.tenant))
    assert [c.attempt for c in calls] == attempts[::-1]
    assert [c.outcome for c in calls] == [State.OPEN, State.HIT, State.CEILING, State.VOID, State.POST]
    opened, hit, ceiling, voided, posted = calls
    assert (posted.model, posted.target, posted.price_version) == (LLAMA, f"us-east-1/{LLAMA}", "2026-01")
    assert (posted.operation, posted.tags, posted.why) == (Operation.CONVERSE, '{"team":"search"}', Why.USAGE)
    assert (posted.ceiling, posted.cost, posted.upstream_cost) == (100, 40, 39)
    assert posted.usage == Usage(input_tokens=5, output_tokens=6)
    assert (posted.upstream_request_id, posted.status, posted.latency_ms, posted.first_byte_ms) == (
        "req-1", 200, 20, 10,
    )  # fmt: skip
    assert posted.tenant_slug == f"t-{caller.tenant.hex}"
    assert (posted.project, posted.project_slug, posted.key) == (caller.project, "p", caller.key)
    assert posted.finished_at is not None
    assert posted.finished_at >= posted.admitted_at
    assert (opened.cost, opened.finished_at, opened.usage) == (None, None, None)
    assert (hit.cost, hit.saved, hit.ceiling) == (0, 40, 0)
    assert (ceiling.cost, voided.cost) == (100, 0)
    assert ceiling.usage is not None
    assert not ceiling.usage.exact


async def test_pages_follow_each_other_and_filters_narrow(world: PostgresWorld) -> None:
    caller, _, attempts = await _history(world)
    other, _, _ = await _history(world)
    ledger = PostgresLedger(world.engine)
    mine = CallFilter(tenant=caller.tenant)
    first = await ledger.calls(mine, limit=2)
    second = await ledger.calls(mine, limit=10, before=first[-1].attempt)
    assert [c.attempt for c in (*first, *second)] == attempts[::-1]
    now = dt.datetime.now(dt.UTC)
    hour = dt.timedelta(hours=1)
    for narrowed, number in (
        (CallFilter(), 10),
        (CallFilter(key=other.key), 5),
        (CallFilter(project=caller.project, outcome=State.POST), 1),
        (CallFilter(model=LLAMA), 10),
        (CallFilter(model="another"), 0),
        (CallFilter(since=now - hour, until=now + hour), 10),
        (CallFilter(since=now + hour), 0),
        (CallFilter(until=now - hour), 0),
    ):
        assert len(await ledger.calls(narrowed)) == number, narrowed
    found = await ledger.call(attempts[2], tenant=caller.tenant)
    assert found is not None
    assert found.attempt == attempts[2]
    assert await ledger.call(attempts[2], tenant=other.tenant) is None
    assert await ledger.call(uuid7()) is None


async def test_spend_sums_resolved_attempts_by_any_keys(world: PostgresWorld) -> None:
    caller, _, _ = await _history(world)
    ledger = PostgresLedger(world.engine)
    where = CallFilter(tenant=caller.tenant)
    (total,) = await ledger.spend([], where)
    assert (total["cost"], total["upstream_cost"], total["saved"]) == (140, 139, 40)
    assert (total["attempts"], total["hits"], total["input_tokens"]) == (4, 1, 10)
    today = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")
    (row,) = await ledger.spend(["tenant", "model", "day", "tags"], where)
    assert (row["tenant"], row["model"], row["day"]) == (f"t-{caller.tenant.hex}", LLAMA, today)
    assert [r["cost"] for r in await ledger.spend(["outcome"], where)] == [100, 40, 0, 0]
    with pytest.raises(KeyError):
        await ledger.spend(["1; DROP TABLE entries"], where)  # type: ignore[list-item]


async def test_a_budget_says_what_is_left_and_an_amendment_gives_back(world: PostgresWorld) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    ledger = PostgresLedger(world.engine)
    standing = (await ledger.standings([budget, uuid7()]))[budget]
    assert (standing.limit, standing.reserved, standing.remaining, standing.ends_at) == (1000, 100, 900, None)
    await world.bank.settle(at_ceiling(attempt))
    refund = Amendment(
        attempt=attempt.attempt, kind=EntryKind.REFUND, amount=-70, upstream_amount=-75, why=Why.LOG,
        evidence="log/1",
    )  # fmt: skip
    assert await world.bank.amend([refund, replace(refund, attempt=uuid7())]) == [
        Outcome.SETTLED,
        Outcome.UNKNOWN,
    ]
    assert await world.bank.amend([refund]) == [Outcome.ALREADY]
    too_much = replace(refund, evidence="log/2")
    assert await world.bank.amend([too_much]) == [Outcome.REFUSED]
    entries = await ledger.entries(attempt.attempt)
    assert [(e.kind, e.amount, e.evidence) for e in entries] == [
        (EntryKind.CEILING, 100, None),
        (EntryKind.REFUND, -70, "log/1"),
    ]
    assert (await ledger.standings([budget]))[budget].settled == 30
    assert await ledger.violations() == []


async def test_a_call_and_its_entries_are_of_one_moment(world: PostgresWorld) -> None:
    """A refund that is written between the two questions is in neither answer, or in both."""
    caller = await world.caller()
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    await world.bank.settle(at_ceiling(attempt))

    class Interrupted(PostgresLedger):
        async def entries(self, attempt: UUID, *, on: AsyncConnection | None = None) -> list[EntryRecord]:
            refund = Amendment(
                attempt=attempt, kind=EntryKind.REFUND, amount=-70, upstream_amount=-70, why=Why.LOG,
                evidence="log/1",
            )  # fmt: skip
            await world.bank.amend([refund])
            return await super().entries(attempt, on=on)

    for ledger, cost in ((Interrupted(world.engine), 100), (PostgresLedger(world.engine), 30)):
        found = await ledger.call_with_entries(attempt.attempt, tenant=caller.tenant)
        assert found is not None
        call, entries = found
        assert call.cost == sum(entry.amount for entry in entries) == cost
    assert await PostgresLedger(world.engine).call_with_entries(uuid7()) is None
    assert await PostgresLedger(world.engine).call_with_entries(attempt.attempt, tenant=uuid7()) is None


async def test_invariants_name_what_was_tampered_with(world: PostgresWorld) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempts = [caller.attempt(100) for _ in range(2)]
    for attempt in attempts:
        await world.bank.admit(attempt)
    await world.bank.settle(post(attempts[0], 40))
    ledger = PostgresLedger(world.engine)
    lately = dt.datetime.now(dt.UTC) - dt.timedelta(days=40)
    assert await ledger.violations() == await ledger.violations(lately) == []
    await world.run("UPDATE accounts SET reserved = 90 WHERE budget = :id", id=budget)
    assert {v.invariant for v in await ledger.violations()} == {"I2"}
    await world.run("UPDATE accounts SET reserved = 100, settled = 41 WHERE budget = :id", id=budget)
    assert {v.invariant for v in await ledger.violations(lately)} == {"I3"}
    await world.run("UPDATE accounts SET settled = 40 WHERE budget = :id", id=budget)
    await world.run("UPDATE attempts SET state = 2 WHERE attempt = :id", id=attempts[0].attempt)
    assert {v.invariant for v in await ledger.violations()} == {"I4"}


async def test_the_sweeper_reads_each_range_of_ids_once(world: PostgresWorld) -> None:
    caller = await world.caller()
    attempts = [caller.attempt(10) for _ in range(5)]
    for attempt in attempts:
        await world.bank.admit(attempt)
    assert (await world.bank.sweep(3600)).swept == 0
    first = await world.bank.sweep(-1, 3)
    assert (first.leader, first.swept, first.more) == (True, 3, True)
    second = await world.bank.sweep(-1, 3)
    assert (second.swept, second.more) == (2, False)
    # An hour passes: the mark follows, but never nearer than what may still be admitted.
    before = await world.run("SELECT uuid7_time(swept_to) FROM sweep_mark")
    await world.bank.sweep(-1800)
    ((mark, now),) = await world.run("SELECT uuid7_time(swept_to), now() FROM sweep_mark")
    assert mark > before[0][0]
    assert dt.timedelta(minutes=53) < mark - now < dt.timedelta(minutes=55)
    states = await world.bank.states([a.attempt for a in attempts] + [uuid7()])
    assert {s.state for s in states.values()} == {State.CEILING}
    assert states.keys() == {a.attempt for a in attempts}


async def test_labels_are_the_same_for_every_process_and_survive(world: PostgresWorld) -> None:
    one, other = PostgresLabels(world.engine), PostgresLabels(world.engine, max_cached=3)
    made = await asyncio.gather(*(who.intern(MODEL, f"m{n}") for n in range(5) for who in (one, other, one)))
    assert [made[n : n + 3] for n in range(0, 15, 3)] == [[i] * 3 for i in made[::3]]
    assert len(set(made)) == 5
    assert one.known(MODEL, "m0") == made[0]
    assert one.known(TARGET, "m0") is None
    assert len(other._values) == len(other._ids) == 3
    assert await other.values([*made[::3], 0, 10**6]) == {made[3 * n]: f"m{n}" for n in range(5)} | {0: ""}
    third = PostgresLabels(world.engine)
    await third.load()
    assert third.known(MODEL, "m4") == made[-1]
    assert third.known(MODEL, "") == 0
    for bad in ("x" * 2001, "a\x00b"):
        with pytest.raises(ValueError, match="not a label"):
            await third.intern(MODEL, bad)


# ---- what a server must be like --------------------------------------------------------------


async def test_a_server_that_may_lose_money_is_refused(world: PostgresWorld, database_url: str) -> None:
    await check_server(world.engine)
    name = normalized(database_url).database
    await world.run(f"ALTER DATABASE {name} SET synchronous_commit = off")
    await world.run(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    engine = create_engine(database_url)
    with pytest.raises(ConfigurationError, match=r"synchronous_commit is off; default_transaction_isolation"):
        await check_server(engine)
    with pytest.raises(ConfigurationError) as raised:
        await check_server(engine, require_durable=False)
    assert "synchronous_commit" not in str(raised.value)
    await engine.dispose()


async def test_no_server_and_no_postgres_are_told_apart() -> None:
    engine = create_engine("postgres://nobody@127.0.0.1:1/none")
    with pytest.raises(BankAway):
        await check_server(engine)
    with pytest.raises(BankAway):
        await PostgresBank(engine).start()
    with pytest.raises(ConfigurationError, match="mysql"):
        normalized("mysql://nobody@localhost/none")


# ---- plans -----------------------------------------------------------------------------------

_GROW = (
    "INSERT INTO tenants (id, slug, name) SELECT gen_random_uuid(), 'g-' || n, 'G' FROM generate_series(1, 1500) n",
    "INSERT INTO keys (id, tenant, name) SELECT gen_random_uuid(), id, 'k' FROM tenants WHERE slug LIKE 'g-%'",
    (
        "INSERT INTO credentials (id, key, bearer_digest, bearer_prefix, last4, pepper_id)"
        " SELECT gen_random_uuid(), id, sha256(id::text::bytea), 'p', '1234', 1 FROM keys WHERE name = 'k'"
        " AND NOT EXISTS (SELECT FROM credentials c WHERE c.key = keys.id)"
    ),
    (
        "INSERT INTO budgets (id, scope, subject, tenant, period, limit_nano)"
        " SELECT gen_random_uuid(), 'tenant', id, id, 'day', 5 FROM tenants WHERE slug LIKE 'g-%'"
    ),
    (
        "INSERT INTO attempts (attempt, call, tenant, key, credential, recorder, admitted_at, ceiling, model, target,"
        " price, operation, holds) SELECT (left(uuid7_floor(now())::text, 13) || right(gen_random_uuid()::text, 23))::uuid,"
        " gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), now(), 0, 1, 1,"
        " 1, 1, '{}' FROM generate_series(1, 5000)"
    ),
)
_READS = text(
    "SELECT sum(seq_tup_read)::bigint, sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables WHERE relname ~"
    " '^(attempts|entries|accounts|budgets|tenants|projects|keys|credentials)'"
)


@pytest.mark.parametrize("known_to_be_empty", [False, True])
async def test_plans_made_on_empty_tables_stay_good_when_they_have_grown(
    world: PostgresWorld, known_to_be_empty: bool
) -> None:
    """A plan cached while a table was empty must not scan it for ever."""
    if known_to_be_empty:
        async with world.engine.connect() as db:
            await (await db.execution_options(isolation_level="AUTOCOMMIT")).exec_driver_sql("VACUUM ANALYZE")
    caller = await world.caller()
    await world.budget("tenant", caller.tenant, caller.tenant, 10**9)

    async def calls(number: int) -> None:
        for _ in range(number):
            attempt = caller.attempt(10)
            assert (await world.bank.admit(attempt)).verdict is Verdict.OK
            assert (await world.bank.settle(post(attempt, 4))).outcome is Outcome.SETTLED

    async def reads() -> tuple[int, int]:
        await asyncio.sleep(0.02)
        async with world.engine.connect() as db:
            await db.execute(text("SELECT pg_stat_force_next_flush()"))
        async with world.engine.connect() as db:
            row = (await db.execute(_READS)).one()
            return int(row[0]), int(row[1])

    await calls(10)
    for statement in _GROW:
        await world.run(statement)
    # The lane's own backend reports its counts when it is idle for a moment, or when told to.
    lane = await world.bank._lanes[0].connect()
    await lane.execute("SELECT pg_stat_force_next_flush()")
    before = await reads()
    await calls(20)
    await world.bank.sweep(3600)
    await lane.execute("SELECT pg_stat_force_next_flush()")
    after = await reads()
    assert after[0] - before[0] < 500, "no scan of a grown table"
    assert after[1] - before[1] < 20 * 40, "a handful of rows by index for each call"
