"""The schema: up, down and up again with data in it; models and migrations agree; what guards the facts."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.postgres import migrate
from proxy.postgres.bank import PostgresBank
from proxy.postgres.desk_tables import Base
from proxy.postgres.engine import create_engine
from tests.contract.bank_twin import PostgresWorld, post


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PostgresWorld]:
    engine = create_engine(database_url, pool_size=4)
    bank = PostgresBank(engine, lanes=1)
    await bank.start()
    yield PostgresWorld(engine, bank)
    await bank.aclose()
    await engine.dispose()


async def _use(url: str) -> None:
    """A little of everything, through the bank."""
    engine = create_engine(url, pool_size=4)
    world = PostgresWorld(engine, PostgresBank(engine, lanes=1))
    await world.bank.start()
    caller = await world.caller()
    await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(10)
    await world.bank.admit(attempt)
    await world.bank.settle(post(attempt, 3))
    await world.run("SELECT audit_append('me', 'try', 'thing', NULL, NULL)")
    assert await world.faults() == []
    await world.bank.aclose()
    await engine.dispose()


async def test_up_down_and_up_again_on_data(empty_database_url: str) -> None:
    url = empty_database_url
    assert migrate.current(url) is None
    for revision in ("head", "head", "0002"):
        migrate.upgrade(url, revision)
        assert migrate.current(url) == (migrate.head() if revision == "head" else revision)
        await _use(url)
        migrate.downgrade(url, "base")
        assert migrate.current(url) is None
    engine = create_engine(url)
    async with engine.connect() as db:
        left = await db.execute(
            text(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname !~ '^alembic'"
                " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            )
        )
        assert left.all() == []
    await engine.dispose()


async def test_days_that_were_summed_beyond_the_mark_count_once(
    database_url: str, world: PostgresWorld
) -> None:
    """Until revision 0003 a day was summed with whatever was in it, and the mark stayed behind."""
    caller = await world.caller()
    await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(10)
    await world.bank.admit(attempt)
    await world.bank.settle(post(attempt, 3))
    migrate.downgrade(database_url, "0003")
    await asyncio.sleep(1.1)
    await world.run("SELECT * FROM roll_usage(10)")
    await world.run("UPDATE usage_mark SET rolled_to = (SELECT min(at) FROM entries) - interval '1 second'")
    migrate.upgrade(database_url)
    for _ in range(2):
        await world.run("SELECT * FROM roll_usage(10)")
        assert await world.run("SELECT sum(attempts), sum(cost) FROM usage_days") == [(1, 3)]


def test_two_processes_at_once_migrate_once(empty_database_url: str) -> None:
    program = "import sys; from proxy.postgres.migrate import upgrade; upgrade(sys.argv[1])"
    runners = [
        subprocess.Popen(
            [sys.executable, "-c", program, empty_database_url], stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [(runner.communicate(timeout=60)[1], runner.returncode) for runner in runners] == [("", 0)] * 2
    assert migrate.current(empty_database_url) == migrate.head()


# SQLAlchemy reflects that a CHECK was added NOT VALID in a form that it does not take itself
@pytest.mark.filterwarnings("ignore:Can't validate argument 'dialect_options'")
async def test_models_and_migrations_describe_the_same_tables(world: PostgresWorld) -> None:
    def partition(name: str | None, kind: str, _: Any) -> bool:
        return not (kind == "table" and name is not None and "_y20" in name)

    def compare(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection, opts={"include_name": partition, "compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, Base.metadata))

    async with world.engine.connect() as db:
        assert await db.run_sync(compare) == []


# ---- roles and facts -------------------------------------------------------------------------


@pytest.fixture
def owner_database_url(database_url: str, as_role: Callable[[str, str], str]) -> str:
    return as_role(database_url, "tollhouse_owner")


async def _refused(engine: AsyncEngine, statement: str) -> str:
    with pytest.raises(DBAPIError) as raised:
        async with engine.begin() as db:
            await db.exec_driver_sql(statement)
    return str(raised.value.orig)


async def test_the_application_role_works_but_cannot_change_facts(app_database_url: str) -> None:
    await _use(app_database_url)
    engine = create_engine(app_database_url)
    for statement in (
        "UPDATE entries SET amount = 0",
        "DELETE FROM entries",
        "DELETE FROM attempts",
        "DELETE FROM accounts",
        "UPDATE audit SET actor = 'somebody else'",
        "TRUNCATE audit",
        "ALTER TABLE entries DISABLE TRIGGER ALL",
        "UPDATE labels SET value = 'x'",
        "SELECT grant_application('tollhouse_app')",
    ):
        message = await _refused(engine, statement)
        assert "permission denied" in message or "must be owner" in message, (statement, message)
    async with engine.begin() as db:  # made with the owner's rights
        assert await db.scalar(text("SELECT ensure_partitions(7)")) == 6
    await engine.dispose()


async def test_the_owner_cannot_change_facts_by_mistake(owner_database_url: str) -> None:
    await _use(owner_database_url)
    engine = create_engine(owner_database_url)
    async with engine.begin() as db:
        partition = await db.scalar(text("SELECT tableoid::regclass::text FROM entries LIMIT 1"))
    for table in ("entries", "audit", str(partition)):
        for statement in (f"UPDATE {table} SET at = now()", f"DELETE FROM {table}", f"TRUNCATE {table}"):
            assert "append-only" in await _refused(engine, statement)
    await engine.dispose()


async def test_the_audit_chain_shows_its_first_bad_record(world: PostgresWorld) -> None:
    for number in range(5):
        await world.run(
            "SELECT audit_append('me', 'do', 'thing', NULL, CAST(:after AS jsonb))",
            after=f'{{"n": {number}}}',
        )
    assert await world.run("SELECT audit_first_bad()") == [(None,)]
    await world.run("ALTER TABLE audit DISABLE TRIGGER keep")
    await world.run("UPDATE audit SET after = '{\"n\": 9}' WHERE seq = 3")
    assert await world.run("SELECT audit_first_bad()") == [(3,)]
    await world.run("DELETE FROM audit WHERE seq = 2")
    assert await world.run("SELECT audit_first_bad()") == [(3,)]


# ---- the directory's epoch -------------------------------------------------------------------


async def test_every_write_of_the_directory_is_seen_by_a_poller_in_order(world: PostgresWorld) -> None:
    caller = await world.caller()
    ((seen,),) = await world.run("SELECT version FROM directory_epoch")
    await world.revoke(caller)
    ((version, changed),) = await world.run(
        "SELECT version, changed FROM credentials WHERE changed > :seen", seen=seen
    )
    assert (version, changed) == (2, seen + 1)
    await world.run("UPDATE tenants SET name = 'N' WHERE id = :id", id=caller.tenant)
    ((version, changed),) = await world.run(
        "SELECT version, changed FROM tenants WHERE id = :id", id=caller.tenant
    )
    assert (version, changed) == (2, seen + 2)


async def test_a_writer_is_never_overtaken_by_a_later_version(world: PostgresWorld) -> None:
    first, second = await world.caller(), await world.caller()
    async with world.engine.begin() as slow:
        await slow.execute(text("UPDATE tenants SET name = 'slow' WHERE id = :id"), {"id": first.tenant})
        fast = asyncio.create_task(
            world.run("UPDATE tenants SET name = 'fast' WHERE id = :id", id=second.tenant)
        )
        await asyncio.sleep(0.05)
        assert not fast.done(), "it waits, so that no poller sees the later version first"
    await fast
    rows = await world.run("SELECT name FROM tenants WHERE name IN ('slow', 'fast') ORDER BY changed")
    assert [row[0] for row in rows] == ["slow", "fast"]


async def test_what_a_budget_counts_is_fixed(world: PostgresWorld) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 100, models=(9, 7, 9))
    assert await world.run("SELECT models FROM budgets WHERE id = :id", id=budget) == [([7, 9],)]
    for change in ("period = 'day'", "time_zone = 'Asia/Tokyo'", "models = NULL", "scope = 'key'"):
        with pytest.raises(DBAPIError, match="fixed"):
            await world.run(f"UPDATE budgets SET {change} WHERE id = :id", id=budget)
    with pytest.raises(DBAPIError, match="budgets_one_live"):
        await world.budget("tenant", caller.tenant, caller.tenant, 5, models=(7, 9))
    await world.end_budget(budget)
    await world.budget("tenant", caller.tenant, caller.tenant, 5, models=(7, 9))


# ---- periods ---------------------------------------------------------------------------------


def _local_midnight(day: dt.date, zone: ZoneInfo) -> dt.datetime:
    """The moment a local date begins; where midnight is skipped or repeated, as Postgres has it."""
    naive = dt.datetime.combine(day, dt.time())
    early, late = naive.replace(tzinfo=zone, fold=0), naive.replace(tzinfo=zone, fold=1)
    skipped = early.astimezone(dt.UTC).astimezone(zone).replace(tzinfo=None) != naive
    return (early if skipped else late).astimezone(dt.UTC)


def _first_day(period: str, local: dt.date) -> dt.date:
    if period == "month":
        return local.replace(day=1)
    return local - dt.timedelta(days=local.weekday()) if period == "week" else local


def _next(period: str, day: dt.date) -> dt.date:
    if period == "month":
        return (day.replace(day=28) + dt.timedelta(days=4)).replace(day=1)
    return day + dt.timedelta(days=7 if period == "week" else 1)


@pytest.mark.parametrize(
    "zone",
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Asia/Kolkata",
        "America/Havana",
        "Asia/Beirut",
        "Pacific/Apia",
    ],
)
@pytest.mark.parametrize("period", ["day", "week", "month"])
async def test_periods_are_calendar_periods_of_the_zone(world: PostgresWorld, zone: str, period: str) -> None:
    """Also where clocks change at midnight; and one period's end is the next one's start."""
    info = ZoneInfo(zone)
    moments = [
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=17 * n)
        for n in range(0, 365 * 24 // 17, 3)
    ]
    rows = await world.run(
        "SELECT p.starts_at, p.ends_at, n.starts_at FROM unnest(CAST(:moments AS timestamptz[])) AS m(moment),"
        " period_bounds(:period, :zone, m.moment, 0) AS p, period_bounds(:period, :zone, m.moment, 1) AS n"
        " ORDER BY m.moment",
        moments=moments,
        period=period,
        zone=zone,
    )
    for moment, (starts, ends, following) in zip(moments, rows, strict=True):
        first = _first_day(period, moment.astimezone(info).date())
        assert starts == _local_midnight(first, info)
        assert ends == _local_midnight(_next(period, first), info)
        assert ends == following
        assert starts <= moment < ends


async def test_accounts_are_opened_two_periods_ahead_and_roll(world: PostgresWorld) -> None:
    caller = await world.caller()
    budget = uuid4()
    await world.run(
        "INSERT INTO budgets (id, scope, subject, tenant, period, time_zone, limit_nano)"
        " VALUES (:id, 'tenant', :tenant, :tenant, 'day', 'Europe/Berlin', 100)",
        id=budget,
        tenant=caller.tenant,
    )
    count = "SELECT count(*) FROM accounts WHERE budget = :id"
    assert await world.run(count, id=budget) == [(3,)]
    assert await world.bank.roll_periods() == 0
    assert await world.run("SELECT roll_periods(now() + interval '1 day')") == [(1,)]
    assert await world.run("SELECT roll_periods(now() + interval '30 days')") == [(3,)]
    overlaps = await world.run(
        "SELECT count(*) FROM accounts a JOIN accounts b ON a.budget = b.budget AND a.id < b.id"
        " AND a.starts_at < b.ends_at AND b.starts_at < a.ends_at"
    )
    assert overlaps == [(0,)]


async def test_a_top_up_with_an_end_reaches_the_periods_it_touches(world: PostgresWorld) -> None:
    caller = await world.caller()
    budget = uuid4()
    await world.run(
        "INSERT INTO budgets (id, scope, subject, tenant, period, limit_nano) VALUES (:id, 'tenant', :tenant, :tenant, 'day', 100)",
        id=budget,
        tenant=caller.tenant,
    )
    ((tomorrow,),) = await world.run("SELECT date_trunc('day', now(), 'UTC') + interval '1 day'")
    await world.run(
        "INSERT INTO adjustments (id, budget, amount, until, reason) VALUES (:id, :budget, 40, :until, 'x')",
        id=uuid4(),
        budget=budget,
        until=tomorrow + dt.timedelta(days=2, hours=6),
    )
    await world.top_up(budget, 7)
    await world.run("SELECT roll_periods(now() + interval '1 day')")
    rows = await world.run(
        "SELECT limit_target, boost_amounts, limit_at(limit_target, boost_amounts, boost_untils, starts_at)"
        " FROM accounts WHERE budget = :id ORDER BY starts_at",
        id=budget,
    )
    assert rows == [(107, [40], 147), (100, [40], 140), (100, [40], 140), (100, [40], 140)]
    await world.run("UPDATE budgets SET limit_nano = 90 WHERE id = :id", id=budget)
    rows = await world.run(
        "SELECT limit_target FROM accounts WHERE budget = :id ORDER BY starts_at", id=budget
    )
    assert [row[0] for row in rows] == [97, 90, 90, 90]


async def test_partitions_reach_months_ahead(world: PostgresWorld) -> None:
    ((days,),) = await world.run("SELECT partition_days_ahead()")
    assert 4 * 28 < days < 6 * 31
    assert await world.bank.ensure_partitions(4) == 0
    assert await world.bank.ensure_partitions(6) == 4
    ((more,),) = await world.run("SELECT partition_days_ahead()")
    assert 55 < more - days < 65
