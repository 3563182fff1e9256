"""Reports: by day and from the ledger alike, in the tenant's own days; files that validate; retention."""

from __future__ import annotations

import csv
import datetime as dt
import io
import random
import time
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from proxy.domain import focus
from proxy.postgres.upkeep import PostgresUpkeep
from tests.integration.admin.ledgers import Past, next_month
from tests.support.stack import nano

A, B = "meta.llama-a-v1:0", "meta.llama-b-v1:0"
KIWI = ZoneInfo("Pacific/Auckland")
LAST_MONTH = (dt.date.today().replace(day=1) - dt.timedelta(days=1)).replace(day=1)


def at(day: dt.date, hour: int = 12, minute: int = 0) -> dt.datetime:
    return dt.datetime(day.year, day.month, day.day, hour, minute, tzinfo=dt.UTC)


@pytest.fixture
async def past(admin, owner) -> Past:
    return Past(owner)


@pytest.fixture
async def keys(admin) -> dict[str, UUID]:
    """One tenant in UTC, one in Auckland (UTC+12 or +13)."""
    made = {}
    for slug, zone in (("acme", "UTC"), ("kiwi", KIWI.key)):
        await admin.tenant(slug, time_zone=zone)
        await admin.post(f"/tenants/{slug}/projects", {"id": "search", "name": "Search"})
        made[slug] = UUID((await admin.key(slug, project="search"))["id"])
    return made


async def spend(admin: Any, query: str) -> dict[tuple[str, ...], str]:
    report = await admin.get(f"/reports/spend?{query}")
    groups = [g.split(":")[0] for g in query.split("group_by=")[1].split("&", maxsplit=1)[0].split(",")]
    assert not report["truncated"]
    return {tuple(item[g] for g in groups): item["cost_usd"] for item in report["items"]}


async def test_the_days_and_the_ledger_say_the_same_whatever_is_rolled_up(admin, past, keys) -> None:
    model, target = await past.label(1, A), await past.label(2, f"us-east-1/{A}")
    tags = await past.label(4, "stage=prod&team=search")
    day = LAST_MONTH + dt.timedelta(days=9)
    for hour in (0, 11, 12, 23):
        for slug in keys:
            await past.call(keys[slug], at(day, hour), 10**9 + hour, model=model, target=target, tags=tags)
    questions = [
        "group_by=tenant", "group_by=tenant,day", "group_by=month,model,target", "group_by=tag:team",
        "group_by=tag:none", "group_by=key,project,operation,outcome", "group_by=tags",
        f"group_by=tenant,day&since={day}T11:30:00Z&until={day}T23:00:00Z",
        f"group_by=day&tenant=kiwi&since={day}T00:00:00Z&until={day + dt.timedelta(days=1)}T00:00:00Z",
        f"group_by=model&model={A}", "group_by=model&model=none",
    ]  # fmt: skip

    async def ask() -> list[Any]:
        return [await spend(admin, question) for question in questions]

    fresh = await ask()
    assert fresh[0] == {("acme",): "4.000000046", ("kiwi",): "4.000000046"}
    kiwi_days = sorted(d for tenant, d in fresh[1] if tenant == "kiwi")
    assert kiwi_days == [str(day), str(day + dt.timedelta(days=1))]  # noon UTC is another day there
    assert fresh[3] == {("search",): "8.000000092"} and fresh[4] == {("",): "8.000000092"}
    assert fresh[7] == {
        ("acme", str(day)): "1.000000012",
        ("kiwi", str(day + dt.timedelta(days=1))): "1.000000012",
    }
    time.sleep(1.1)  # the mark stays a second behind
    rolled = await past.roll()
    assert (rolled.leader, rolled.rolled, rolled.waiting) == (True, 0, 0)
    assert await ask() == fresh
    await past.run("INSERT INTO usage_dirty SELECT DISTINCT tenant, day, month FROM usage_days")
    await past.run("UPDATE usage_days SET cost = cost + 1")  # a dirty day is not believed
    assert await ask() == fresh
    assert tuple(await past.roll(2))[1:3] == (2, 1)
    assert await ask() == fresh
    assert (await past.roll()).waiting == 0
    assert await ask() == fresh
    await past.run("TRUNCATE usage_days")  # so this is what the answers come from, but for partial days
    assert await spend(admin, "group_by=tenant") == {}


@pytest.mark.parametrize("seed", range(2))
async def test_a_report_is_exact_after_every_step(admin, past, keys, seed) -> None:
    """Calls, corrections, rounds of the worker, days in doubt and a clock that went back, in any order, beside
    sums that the test keeps itself.
    """
    dice = random.Random(seed)
    zones = {"acme": dt.UTC, "kiwi": KIWI}
    told: dict[tuple[str, str], int] = {}
    attempts: list[tuple[UUID, tuple[str, str]]] = []
    today = dt.datetime.now(dt.UTC)
    for _ in range(60):
        step = dice.choice(["call"] * 6 + ["adjust"] * 2 + ["roll"] * 3 + ["doubt", "pause", "back"])
        if step == "call":
            slug = dice.choice(["acme", "kiwi"])
            when = today - dt.timedelta(minutes=dice.randrange(3 * 1440))
            place = (slug, str(when.astimezone(zones[slug]).date()))
            cost = dice.randrange(1, 10**9)
            attempts.append((await past.call(keys[slug], when, cost, state=dice.choice([1, 3])), place))
            told[place] = told.get(place, 0) + cost
        elif step == "adjust" and attempts:
            attempt, place = dice.choice(attempts)
            amount = dice.randrange(1, 10**6)
            await past.adjust(attempt, amount, f"price {dice.random()}")
            told[place] += amount
        elif step == "roll":
            await past.roll(dice.choice([0, 1, 1000]))
        elif step == "doubt":
            await past.run("SELECT usage_doubt()")
        elif step == "pause":
            time.sleep(1.1)
        elif step == "back":  # the mark is ahead of the clock
            time.sleep(1.1)
            await past.run(
                "UPDATE usage_mark SET rolled_to = now() + interval '9 seconds' WHERE isfinite(rolled_to)"
            )
            await past.roll(1000)
        found = await spend(admin, "group_by=tenant,day")
        assert {place: nano(usd) for place, usd in found.items()} == told, step
    time.sleep(1.1)
    assert (await past.roll()).waiting == 0
    rows = await past.run(
        "SELECT n.slug, u.day::text, sum(u.cost) FROM usage_days u JOIN tenants n ON n.id = u.tenant GROUP BY 1, 2"
    )
    assert {(slug, day): cost for slug, day, cost in rows} == told


async def test_a_worker_that_was_away_goes_on_by_hours(admin, past, keys) -> None:
    for hours in (30, 9, 9, 2):
        when = dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours)
        attempt = await past.call(keys["acme"], when, 10**9)
        await past.run("ALTER TABLE entries DISABLE TRIGGER USER")
        await past.run("UPDATE entries SET at = :at WHERE attempt = :a", at=when, a=attempt)
    rounds = [(await past.roll()) for _ in range(31)]
    assert [r.waiting for r in rounds] == [1] * 29 + [0, 0]
    assert sum(r.rolled for r in rounds) == 0
    assert await past.run("SELECT sum(attempts), sum(cost) FROM usage_days") == [(4, 4 * 10**9)]
    assert await spend(admin, "group_by=tenant") == {("acme",): "4.00"}


async def test_a_day_that_is_over_is_summed_once_more(admin, past, keys, engine) -> None:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    await past.call(keys["acme"], yesterday, 10**9)
    time.sleep(1.1)
    await past.roll()
    await past.run("UPDATE usage_days SET cost = 0")  # whatever went wrong
    assert await PostgresUpkeep(engine).doubt() == 1
    assert await spend(admin, "group_by=tenant") == {("acme",): "1.00"}  # at once: the day is not believed
    await past.roll()
    assert await past.run("SELECT sum(cost) FROM usage_days") == [(10**9,)]


async def test_a_late_correction_reaches_the_day_of_its_call(admin, past, keys) -> None:
    day = LAST_MONTH + dt.timedelta(days=3)
    attempt = await past.call(keys["acme"], at(day), 500)
    time.sleep(1.1)
    await past.roll()
    await past.adjust(attempt, -200, "price")
    assert await spend(admin, "group_by=day&tenant=acme") == {(str(day),): "0.0000003"}
    time.sleep(1.1)
    await past.roll()
    assert await spend(admin, "group_by=day&tenant=acme") == {(str(day),): "0.0000003"}
    [row] = await past.run("SELECT cost, adjusted, refunded FROM usage_days")
    assert tuple(row) == (300, -200, 0)


async def test_an_unfinished_transaction_holds_the_mark(past, keys, owner) -> None:
    async with owner.connect() as slow:
        await slow.execute(text("SELECT pg_advisory_xact_lock(1)"))
        began = (await slow.execute(text("SELECT now()"))).scalar_one()
        time.sleep(1.1)
        assert (await past.roll()).rolled_to < began
        await slow.rollback()
    time.sleep(0.1)
    assert (await past.roll()).rolled_to > began


async def test_statements_add_up_to_the_ledger_and_never_change(admin, past, keys, refused) -> None:
    model = await past.label(1, A)
    before = (LAST_MONTH - dt.timedelta(days=1)).replace(day=1)
    await past.partition(before)
    first = await past.call(keys["kiwi"], at(before + dt.timedelta(days=4)), 7 * 10**9, model=model)
    # 13:00 UTC on the last day of the month is the first of the next in Auckland
    await past.call(keys["kiwi"], at(LAST_MONTH - dt.timedelta(days=1), 13), 2 * 10**9, model=model)
    await past.call(keys["kiwi"], at(LAST_MONTH + dt.timedelta(days=4)), 10**9 + 1, model=model, state=3)
    path = "/tenants/kiwi/statements"
    draft = await admin.get(f"{path}/{before:%Y-%m}")
    assert (draft["status"], draft["total_usd"], draft["usage_usd"]) == ("draft", "7.00", "7.00")
    made = await admin.post(f"{path}/{before:%Y-%m}")
    assert (made["status"], made["issued_by"]) == ("issued", "admin:bootstrap")
    refused(await admin.ask("POST", f"{path}/{before:%Y-%m}"), 409)
    await past.adjust(first, -3 * 10**9, "price of May")
    again = await admin.get(f"{path}/{before:%Y-%m}")
    assert again == made
    second = await admin.post(f"{path}/{LAST_MONTH:%Y-%m}")
    assert (second["usage_usd"], second["corrections_usd"], second["total_usd"]) == (
        "3.000000001", "-3.00", "0.000000001",
    )  # fmt: skip
    [(ledger,)] = await past.run("SELECT sum(amount) FROM entries")
    assert sum(nano(s["total_usd"]) for s in (made, second)) == ledger
    assert [one["month"] for one in (await admin.get(path))["items"]] == [
        f"{LAST_MONTH:%Y-%m}",
        f"{before:%Y-%m}",
    ]
    refused(await admin.ask("POST", f"{path}/{before:%Y-%m}"), 409)  # an earlier month than the last
    refused(await admin.ask("POST", f"{path}/{dt.datetime.now(KIWI):%Y-%m}"), 409)  # it still runs
    for wrong in ("2026-13", "2026", "202611", "x"):
        refused(await admin.ask("GET", f"{path}/{wrong}"), 400)
    sheet = await admin.ask("GET", f"{path}/{LAST_MONTH:%Y-%m}?format=csv")
    rows = list(csv.DictReader(io.StringIO(sheet.text)))
    assert sum(nano(row["cost_usd"]) for row in rows[:-1]) == nano(rows[-1]["cost_usd"]) == 1
    with pytest.raises(DBAPIError, match="append-only"):
        await past.run("UPDATE statements SET total = 0")


async def test_an_open_call_holds_the_statement_back(admin, past, keys, refused) -> None:
    attempt = await past.call(keys["acme"], at(LAST_MONTH), 5)
    await past.run("UPDATE attempts SET state = 0, cost = NULL WHERE attempt = :a", a=attempt)
    draft = await admin.get(f"/tenants/acme/statements/{LAST_MONTH:%Y-%m}")
    assert (draft["open_attempts"], draft["open_ceiling_usd"]) == (1, "0.000000005")
    body = refused(await admin.ask("POST", f"/tenants/acme/statements/{LAST_MONTH:%Y-%m}"), 409)
    assert "still open" in body["detail"]


async def test_a_focus_export_validates_and_adds_up(admin, past, keys) -> None:
    model, odd = await past.label(1, A), await past.label(1, "=cmd()")
    target, tags = await past.label(2, f"us-east-1/{A}"), await past.label(4, "team=search")
    for day in range(3):
        for slug in keys:
            when = at(LAST_MONTH + dt.timedelta(days=day * 9), 20)
            await past.call(keys[slug], when, 10**9 + day, model=model, target=target, tags=tags)
            await past.call(keys[slug], when, 3, model=odd, tokens=(0, 0))
    answer = await admin.ask("GET", "/reports/spend?format=focus")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    header = answer.text.split("\r\n")[0].split(",")
    assert focus.violations(header, rows) == []
    [(ledger,)] = await past.run("SELECT sum(amount) FROM entries")
    assert sum(nano(row["BilledCost"]) for row in rows) == ledger
    assert {row["SkuId"] for row in rows} == {A, "'=cmd()"}
    assert {row["PricingUnit"] for row in rows} == {"Tokens", "Requests"}
    assert {row["Tags"] for row in rows} == {'{"team": "search"}', ""}


async def test_days_of_another_zone_come_from_the_ledger_and_are_bounded(admin, past, keys, refused) -> None:
    day = LAST_MONTH + dt.timedelta(days=9)
    await past.call(keys["acme"], at(day, 23), 10**9)
    span = f"since={LAST_MONTH}T00:00:00Z&until={next_month(LAST_MONTH)}T00:00:00Z"
    found = await spend(admin, f"group_by=day&tenant=acme&time_zone=Asia/Tokyo&{span}")
    assert found == {(str(day + dt.timedelta(days=1)),): "1.00"}
    refused(await admin.ask("GET", "/reports/spend?group_by=day&time_zone=Asia/Tokyo"), 400)
    wide = "since=2024-01-01T00:00:00Z&until=2026-01-01T00:00:00Z"
    refused(await admin.ask("GET", f"/reports/spend?group_by=day&time_zone=Asia/Tokyo&{wide}"), 400)
    assert await spend(admin, "group_by=day&tenant=acme&time_zone=UTC") == {(str(day),): "1.00"}


async def test_a_dropped_month_leaves_its_totals(admin, past, keys, engine) -> None:
    old = (dt.date.today().replace(day=1) - dt.timedelta(days=100)).replace(day=1)
    await past.partition(old)
    await past.call(keys["kiwi"], at(old + dt.timedelta(days=5)), 3 * 10**9)
    await past.call(keys["acme"], at(LAST_MONTH), 10**9)
    questions = ("group_by=tenant,month", f"group_by=day&until={old + dt.timedelta(days=40)}T00:00:00Z")
    expected = [await spend(admin, q) for q in questions]
    drop = "SELECT drop_ledger_month(CAST(:month AS date), 2)"
    with pytest.raises(DBAPIError, match="do not hold yet"):
        await past.run(drop, month=old)
    time.sleep(1.1)
    await past.roll()
    async with engine.begin() as db:  # as the application: it may ask, the function decides
        await db.execute(text(drop), {"month": old})
    assert (await past.run("SELECT to_regclass('attempts' || :n)", n=f"{old:_y%Ym%m}"))[0][0] is None
    assert [await spend(admin, q) for q in questions] == expected
    [row] = await past.run("SELECT month, attempts, cost FROM ledger_months")
    assert tuple(row) == (old, 1, 3 * 10**9)
    for month, told in (
        (LAST_MONTH, "still kept"),
        (dt.date(2020, 1, 1), "no ledger"),
        (old.replace(day=2), "kept"),
    ):
        with pytest.raises(DBAPIError, match=told):
            await past.run(drop, month=month)


async def test_a_year_of_ten_million_calls_answers_within_a_second(admin, past, keys) -> None:
    """40 tenants x 5 keys x 3 models over a year: 219,000 rows that stand for ten million calls."""
    await past.run(
        """INSERT INTO tenants (id, slug, name, time_zone)
           SELECT gen_random_uuid(), 'team-' || n, 'Team', (ARRAY['UTC', 'Europe/Berlin', 'Asia/Tokyo'])[n % 3 + 1]
             FROM generate_series(1, 40) AS n"""
    )
    await past.run(
        """INSERT INTO usage_days
           SELECT t.id, d::date, date_trunc('month', d)::date, '00000000-0000-0000-0000-000000000000', k.id, m, m, m % 2,
                  3, 1, 46, 1000000 + m, 1000000, 0, 0, 0, 0, 4000, 2000, 0, 0, 0, 0
             FROM tenants t
             CROSS JOIN LATERAL (SELECT gen_random_uuid() AS id FROM generate_series(1, 5)) AS k
             CROSS JOIN generate_series(1, 3) AS m
             CROSS JOIN generate_series(date '2024-01-01', date '2024-12-31', '1 day') AS d
            WHERE t.slug LIKE 'team-%'"""
    )
    await past.run("ANALYZE usage_days")
    [(calls,)] = await past.run("SELECT sum(attempts) FROM usage_days")
    assert calls > 10_000_000
    year = "since=2024-01-01T00:00:00Z&until=2025-01-01T00:00:00Z"
    for group_by in ("tenant", "tenant,month", "model,day", "tag:team,tenant"):
        best = 9.0
        for _ in range(3):  # the machine may be busy with something else
            began = time.perf_counter()
            report = await admin.get(f"/reports/spend?group_by={group_by}&{year}")
            best = min(best, time.perf_counter() - began)
        assert best < 1.0, (group_by, best)
        assert report["items"]
