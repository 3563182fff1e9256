"""What the tables refuse whoever writes, what the bank refuses in their place, and how a ledger comes under these checks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.exc import IntegrityError

from proxy.domain.admission import Amendment
from proxy.domain.ledger import Attempt, EntryKind, Outcome, State, Verdict, Why
from proxy.errors import BankAway
from proxy.postgres import migrate
from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import create_engine
from tests.contract.bank_twin import PostgresWorld, post


async def _world(url: str) -> PostgresWorld:
    engine = create_engine(url, pool_size=4)
    world = PostgresWorld(engine, PostgresBank(engine, lanes=1))
    await world.bank.start()
    return world


async def _end(world: PostgresWorld) -> None:
    await world.bank.aclose()
    await world.engine.dispose()


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PostgresWorld]:
    made = await _world(database_url)
    yield made
    await _end(made)


_ACCOUNT = "UPDATE accounts SET {} WHERE budget = :budget"
_ATTEMPT = "UPDATE attempts SET {} WHERE attempt = :attempt"


@pytest.mark.parametrize(
    "statement",
    [
        _ACCOUNT.format("reserved = 1001"),
        _ACCOUNT.format("settled = 1001"),
        _ACCOUNT.format("reserved = -1"),
        _ACCOUNT.format("settled = -1"),
        _ATTEMPT.format("ceiling = -1"),
        _ATTEMPT.format("cost = -1"),
        _ATTEMPT.format("upstream_cost = -1"),
    ],
)
async def test_no_row_holds_money_that_cannot_be(world: PostgresWorld, statement: str) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(10)
    await world.bank.admit(attempt)
    names = {"budget": budget} if ":budget" in statement else {"attempt": attempt.attempt}
    with pytest.raises(IntegrityError, match="violates check constraint"):
        await world.run(statement, **names)
    assert await world.faults() == []


@pytest.mark.parametrize(
    ("slot_and_kind", "amount", "evidence"),
    [
        ("0, 0", "0", "NULL"),  # open is no fact
        ("0, 5", "-1", "NULL"),  # a correction is not the terminal entry
        ("0, 1", "-1", "NULL"),
        ("1, 1", "1", "NULL"),  # a second terminal entry
        ("1, 3", "1", "NULL"),
        ("-1, 6", "1", "NULL"),
        ("1, 5", "0", "'x'"),  # a refund lowers
        ("1, 5", "1", "'x'"),
        ("1, 7", "-1", "'x'"),  # an overrun raises
        ("1, 8", "1", "'x'"),
        ("1, 6", "1", "repeat('x', 201)"),
    ],
)
async def test_no_entry_says_what_cannot_be(
    world: PostgresWorld, slot_and_kind: str, amount: str, evidence: str
) -> None:
    attempt = (await world.caller()).attempt(10)
    await world.bank.admit(attempt)
    with pytest.raises(IntegrityError, match="entries_sound"):
        await world.run(
            "INSERT INTO entries (attempt, slot, kind, why, amount, evidence, at)"
            f" VALUES (:attempt, {slot_and_kind}, 1, {amount}, {evidence}, now())",
            attempt=attempt.attempt,
        )


async def test_sound_entries_of_every_kind_are_taken(world: PostgresWorld) -> None:
    attempt = (await world.caller()).attempt(10)
    await world.bank.admit(attempt)
    for slot, (kind, amount) in enumerate([(3, 10), (5, -1), (6, -2), (6, 2), (7, 0)]):
        await world.run(
            "INSERT INTO entries (attempt, slot, kind, why, amount, evidence, at)"
            " VALUES (:attempt, :slot, :kind, 1, :amount, :evidence, now())",
            attempt=attempt.attempt, slot=slot, kind=kind, amount=amount, evidence=str(slot) if slot else None,
        )  # fmt: skip


@pytest.mark.parametrize("judged", [False, True])
async def test_the_bank_takes_no_amount_that_a_sum_could_not_hold(world: PostgresWorld, judged: bool) -> None:
    """Both of its functions; `judged`: a denial has just sent the lane to the long one."""
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 10**18)
    running = caller.attempt(10)
    await world.bank.admit(running)
    if judged:
        await world.budget("key", caller.key, caller.tenant, 10**15)
        assert (await world.bank.admit(caller.attempt(10**16))).verdict is Verdict.DENIED
    for ceiling in (10**16 + 1, 10**17, -1):
        with pytest.raises(BankAway, match="cannot store"):
            await world.bank.admit(caller.attempt(ceiling))
    with pytest.raises(BankAway, match="cannot store"):
        await world.bank.settle(post(running, 5, upstream_cost=10**17 + 1))
    assert (await world.bank.settle(post(running, 5))).outcome is Outcome.SETTLED
    money = await world.money(budget)
    assert (money.settled, money.reserved) == (5, 0)
    assert await world.faults() == []


async def test_hits_and_corrections_have_the_same_bounds(world: PostgresWorld) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    for saved in (-1, 10**17 + 1):
        hit = caller.attempt(0)
        with pytest.raises(BankAway, match="cannot store"):
            await world.record_hit(hit, post(hit, 0, state=State.HIT), saved)
    ended = caller.attempt(100)
    await world.bank.admit(ended)
    await world.bank.settle(post(ended, 7))
    with pytest.raises(BankAway, match="did not amend"):
        await world.bank.amend([_adjustment(ended, 10**17 + 1)])
    assert await world.bank.amend([_adjustment(ended, 3)]) == [Outcome.SETTLED]
    assert (await world.money(budget)).settled == 10
    assert await world.faults() == []


def _adjustment(attempt: Attempt, amount: int) -> Amendment:
    return Amendment(
        attempt=attempt.attempt, kind=EntryKind.ADJUST, amount=amount, upstream_amount=0, why=Why.OPERATOR, evidence="bill"
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        "overrun = -1",
        "limit_target = -1",
        "boost_amounts = '{1,2}', boost_untils = '{}'",
        "ends_at = starts_at",
    ],
)
async def test_what_only_functions_hold_is_looked_for(world: PostgresWorld, wrong: str) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    assert await world.faults() == []
    await world.run(f"UPDATE accounts SET {wrong} WHERE budget = :budget", budget=budget)
    assert any(fault.startswith("I1") for fault in await world.faults())


async def test_an_older_ledger_comes_under_these_checks_with_its_open_attempts(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    migrate.upgrade(url, "0002")
    world = await _world(url)
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    ended, running, later = (caller.attempt(100) for _ in range(3))
    for attempt in (ended, running):
        await world.bank.admit(attempt)
    await world.bank.settle(post(ended, 7))
    await _end(world)
    world = await _world(url)  # as a release before this one left it
    await world.run("DROP FUNCTION bank_settle_and_admit_swiftly")
    await world.run("DROP TYPE swift_answer")
    await world.run(
        "CREATE FUNCTION bank_settle_and_admit_swiftly(x integer, OUT at_us bigint) LANGUAGE sql AS 'SELECT NULL::bigint'"
    )
    await _end(world)

    migrate.upgrade(url)
    world = await _world(url)
    assert (await world.bank.settle(post(running, 5))).outcome is Outcome.SETTLED
    assert (await world.bank.admit(later)).verdict is Verdict.OK
    await _end(world)
    migrate.downgrade(url, "0002")
    world = await _world(url)
    assert (await world.bank.settle(post(later, 3))).outcome is Outcome.SETTLED
    money = await world.money(budget)
    assert (money.settled, money.reserved) == (7 + 5 + 3, 0)
    with pytest.raises(IntegrityError, match="attempts_bounds"):
        await world.run("UPDATE attempts SET ceiling = -1")
    assert await world.faults() == []
    await _end(world)
