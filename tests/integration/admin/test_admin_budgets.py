"""Budgets, adjustments and limits over the admin REST; money moves through the real bank."""

import asyncio
import datetime as dt
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from proxy.clock import uuid7
from proxy.domain.ledger import Attempt, Operation, Settlement, State, Verdict, Why
from proxy.postgres.bank import PostgresBank

BUDGET = {
    *(
        "id",
        "scope",
        "period",
        "time_zone",
        "limit_usd",
        "effective_limit_usd",
        "settled_usd",
        "reserved_usd",
    ),
    *("overrun_usd", "remaining_usd", "period_start", "resets_at", "models", "on_short", "thresholds"),
    *("floor_output_tokens", "origin", "created_at"),
}
MODEL = "meta.llama-a-v1:0"


@pytest.fixture
async def bank(engine):
    made = PostgresBank(engine, lanes=1)
    await made.start()
    yield made
    await made.aclose()


async def attempt_of(engine, key: str, ceiling: int, **more: Any) -> Attempt:
    """An attempt of this key that could cost `ceiling` nano-dollars."""
    async with engine.connect() as db:
        row = (
            await db.execute(
                text(
                    "SELECT k.tenant, k.project, k.id, c.id AS credential FROM keys k JOIN credentials c "
                    "ON c.key = k.id WHERE k.id = :key AND c.revoked_at IS NULL"
                ),
                {"key": UUID(key)},
            )
        ).one()
    values: dict[str, Any] = {"operation": Operation.CONVERSE, "model": 0, "target": 0, "price": 0}
    return Attempt(
        attempt=uuid7(), call=uuid7(), tenant=row.tenant, project=row.project, key=row.id,
        credential=row.credential, recorder=uuid4(), ceiling=ceiling, **values | more,
    )  # fmt: skip


def posted(attempt: Attempt, cost: int) -> Settlement:
    return Settlement(
        attempt=attempt.attempt, state=State.POST, why=Why.USAGE, cost=cost, upstream_cost=cost, status=200
    )


async def test_the_floor_of_clamped_answers_is_set_and_changed(admin, refused) -> None:
    await admin.tenant()
    body = {"scope": "tenant:acme", "period": "month", "limit_usd": "1", "on_short": "clamp"}
    plain = await admin.post("/budgets", body | {"period": "day"})
    made = await admin.post("/budgets", body | {"floor_output_tokens": 64})
    assert (plain["floor_output_tokens"], made["floor_output_tokens"]) == (1, 64)
    changed = await admin.patch(f"/budgets/{made['id']}", {"floor_output_tokens": 200})
    assert (changed["floor_output_tokens"], changed["on_short"]) == (200, "clamp")
    for wrong in (0, -1, 10_000_001, 2**40, "64", 1.5, None):
        refused(await admin.ask("PATCH", f"/budgets/{made['id']}", {"floor_output_tokens": wrong}), 400)


async def test_a_budget_shows_the_banks_row(admin, engine, bank) -> None:
    await admin.tenant(time_zone="Europe/Berlin")
    key = await admin.key()
    answer = await admin.ask(
        "POST",
        "/budgets",
        {"scope": "tenant:acme", "period": "month", "limit_usd": "100.00", "models": None,
         "on_short": "reject", "thresholds": ["0.5", "0.8", "1"]},
    )  # fmt: skip
    assert answer.status_code == 201
    budget = answer.json()
    assert set(budget) == BUDGET
    assert (budget["settled_usd"], budget["reserved_usd"], budget["remaining_usd"]) == (
        "0.00",
        "0.00",
        "100.00",
    )
    zone = ZoneInfo("Europe/Berlin")
    began, ends = (
        dt.datetime.fromisoformat(budget[name]).astimezone(zone) for name in ("period_start", "resets_at")
    )
    assert (began.day, began.hour, ends.day, ends.hour) == (1, 0, 1, 0) and began < ends

    attempt = await attempt_of(engine, key["id"], 1_500_000_001)
    assert (await bank.admit(attempt)).verdict is Verdict.OK
    held = await admin.get(f"/budgets/{budget['id']}")
    assert (held["reserved_usd"], held["remaining_usd"]) == ("1.500000001", "98.499999999")
    await bank.settle(posted(attempt, 250_000_000))
    spent = await admin.get(f"/budgets/{budget['id']}")
    assert (spent["settled_usd"], spent["reserved_usd"], spent["remaining_usd"]) == ("0.25", "0.00", "99.75")


async def test_a_budget_starts_at_nothing_from_its_creation(admin, engine, bank) -> None:
    await admin.tenant()
    key = await admin.key()
    attempt = await attempt_of(engine, key["id"], 10**9)
    await bank.admit(attempt)
    await bank.settle(posted(attempt, 10**9))
    budget = await admin.post("/budgets", {"scope": "tenant:acme", "period": "total", "limit_usd": "1"})
    assert (budget["settled_usd"], budget["resets_at"]) == ("0.00", None)


MONEY_IS_DECIMAL_STRINGS_ONLY = [
    "1e3",
    "0.1234567891",
    "-1",
    "NaN",
    "Infinity",
    "",
    "1.",
    ".5",
    " 1",
    "1 ",
    "1,00",
    "1\n",
    "\u0661",
    1,
    1.5,
    None,
    True,
    "1000000000.01",
    "99999999999",
]


async def test_money_is_decimal_strings_only(admin, refused) -> None:
    await admin.tenant()
    for limit in MONEY_IS_DECIMAL_STRINGS_ONLY:
        body = {"scope": "tenant:acme", "period": "month", "limit_usd": limit}
        refused(await admin.ask("POST", "/budgets", body), 400)
        refused(await admin.ask("POST", "/budgets", body | {"limit_usd": "1", "thresholds": [limit]}), 400)


async def test_money_is_exact_to_the_ninth_decimal(admin) -> None:
    await admin.tenant()
    made = await admin.post(
        "/budgets", {"scope": "tenant:acme", "period": "month", "limit_usd": "999999999.123456789"}
    )
    assert made["limit_usd"] == "999999999.123456789"


async def test_one_live_budget_per_scope_period_and_models(admin, refused) -> None:
    await admin.tenant()
    body = {"scope": "tenant:acme", "period": "month", "limit_usd": "1"}
    first = await admin.post("/budgets", body)
    refused(await admin.ask("POST", "/budgets", body | {"limit_usd": "2"}), 409)
    await admin.post("/budgets", body | {"period": "day"})
    both = ["meta.llama-b-v1:0", MODEL]
    limited = await admin.post("/budgets", body | {"models": both})
    assert limited["models"] == sorted(both)
    refused(await admin.ask("POST", "/budgets", body | {"models": [*reversed(both), MODEL]}), 409)
    await admin.post("/budgets", body | {"models": [MODEL]})
    await admin.delete(f"/budgets/{first['id']}")
    refused(await admin.ask("GET", f"/budgets/{first['id']}"), 404)
    again = await admin.post("/budgets", body)
    assert again["id"] != first["id"]
    wrong = body | {"models": ["us.meta.llama-a-v1:0"]}
    assert "base model" in refused(await admin.ask("POST", "/budgets", wrong), 400)["detail"]


async def test_scopes(admin, refused) -> None:
    await admin.tenant()
    await admin.post("/tenants/acme/projects", {"id": "search", "name": "Search"})
    key = await admin.key(project="search")
    body = {"period": "week", "limit_usd": "1"}
    names = ["tenant:acme", "project:acme/search", f"key:{key['id']}"]
    ids = [(await admin.post("/budgets", body | {"scope": name}))["id"] for name in names]
    for name, ident in zip(names, ids, strict=True):
        found = (await admin.get(f"/budgets?scope={name}"))["items"]
        assert [(one["id"], one["scope"]) for one in found] == [(ident, name)]
    assert len((await admin.get("/budgets?tenant=acme"))["items"]) == 3
    for unknown in ("tenant:nobody", "project:acme/none", "project:acme", "project:none/search",
                    "key:00000000-0000-0000-0000-000000000000", "key:x", "tenant:acme/search"):  # fmt: skip
        refused(await admin.ask("POST", "/budgets", body | {"scope": unknown}), 404)
    for wrong in ("acme", "org:acme", "tenant:", "tenant:ac me", ""):
        refused(await admin.ask("POST", "/budgets", body | {"scope": wrong}), 400)


async def test_editing_a_limit_never_resets_usage(admin, engine, bank, refused) -> None:
    await admin.tenant()
    key = await admin.key()
    budget = await admin.post("/budgets", {"scope": "tenant:acme", "period": "month", "limit_usd": "10"})
    path = f"/budgets/{budget['id']}"
    attempt = await attempt_of(engine, key["id"], 4 * 10**9)
    await bank.admit(attempt)
    await bank.settle(posted(attempt, 3 * 10**9))

    lowered = await admin.patch(path, {"limit_usd": "2"}, headers={"if-match": '"1"'})
    assert (lowered["limit_usd"], lowered["settled_usd"], lowered["remaining_usd"]) == (
        "2.00",
        "3.00",
        "0.00",
    )
    refusal = await bank.admit(await attempt_of(engine, key["id"], 1))
    assert refusal.verdict is Verdict.DENIED
    refused(await admin.ask("PATCH", path, {"limit_usd": "5"}, headers={"if-match": '"1"'}), 412)
    raised = await admin.patch(path, {"limit_usd": "5", "on_short": "clamp", "thresholds": ["1", "0.5"]})
    assert (raised["remaining_usd"], raised["on_short"], raised["thresholds"]) == (
        "2.00",
        "clamp",
        ["0.5", "1"],
    )
    for fixed in ({"period": "day"}, {"scope": "tenant:x"}, {"models": None}, {"time_zone": "UTC"}, {}):
        refused(await admin.ask("PATCH", path, fixed), 400)


async def test_adjustments_lift_the_limit_for_a_while(admin, engine, bank, refused) -> None:
    await admin.tenant()
    key = await admin.key()
    budget = await admin.post("/budgets", {"scope": "tenant:acme", "period": "month", "limit_usd": "1"})
    path = f"/budgets/{budget['id']}/adjustments"
    made = await admin.post(path, {"amount_usd": "50.00", "until": None, "reason": "launch week"})
    assert (made["amount_usd"], made["until"], made["created_by"]) == ("50.00", None, "admin:bootstrap")
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1.2)).isoformat()
    await admin.post(path, {"amount_usd": "5", "until": soon, "reason": "an hour of load"})
    lifted = await admin.get(f"/budgets/{budget['id']}")
    assert (lifted["limit_usd"], lifted["effective_limit_usd"]) == ("1.00", "56.00")
    await admin.post(path, {"amount_usd": "-0.5", "reason": "too much"})
    assert (await bank.admit(await attempt_of(engine, key["id"], 55 * 10**9))).verdict is Verdict.OK
    await asyncio.sleep(1.3)
    assert (await admin.get(f"/budgets/{budget['id']}"))["effective_limit_usd"] == "50.50"
    amounts = [one["amount_usd"] for one in (await admin.get(path))["items"]]
    assert [Decimal(amount) for amount in amounts] == [Decimal(50), Decimal(5), Decimal("-0.5")]

    for wrong in ({"amount_usd": "0"}, {"amount_usd": "0.000"}, {"amount_usd": 5}, {"reason": ""},
                  {"until": "2020-01-01T00:00:00Z"}, {"until": "2030-01-01"}, {"by": "me"}):  # fmt: skip
        refused(await admin.ask("POST", path, {"amount_usd": "1", "reason": "x"} | wrong), 400)
    refused(
        await admin.ask(
            "POST", "/budgets/" + str(uuid4()) + "/adjustments", {"amount_usd": "1", "reason": "x"}
        ),
        404,
    )


async def test_adjustments_that_pile_up_are_refused_and_not_an_error_of_ours(admin, refused) -> None:
    await admin.tenant()
    budget = await admin.post(
        "/budgets", {"scope": "tenant:acme", "period": "month", "limit_usd": "1000000000"}
    )
    path = f"/budgets/{budget['id']}/adjustments"
    for _ in range(8):
        answer = await admin.ask("POST", path, {"amount_usd": "1000000000", "reason": "more"})
        assert answer.status_code == 201
    refused(await admin.ask("POST", path, {"amount_usd": "1000000000", "reason": "more"}), 400)


async def test_limits(admin, refused) -> None:
    await admin.tenant()
    key = await admin.key()
    body = {
        "scope": f"key:{key['id']}", "requests_per_minute": 60, "tokens_per_minute": 100_000,
        "burst_seconds": 10, "concurrency": 8, "models": None, "mode": "enforce",
    }  # fmt: skip
    made = await admin.post("/limits", body)
    assert {name: made[name] for name in body} == body
    nulls = await admin.post("/limits", dict.fromkeys(body) | {"scope": "tenant:acme", "concurrency": 0})
    assert (nulls["burst_seconds"], nulls["mode"], nulls["concurrency"]) == (60, "enforce", 0)
    path = f"/limits/{made['id']}"
    assert await admin.get(path) == made
    changed = await admin.patch(
        path, {"mode": "observe", "requests_per_minute": None}, headers={"if-match": '"1"'}
    )
    assert (changed["mode"], changed["requests_per_minute"], changed["tokens_per_minute"]) == (
        "observe",
        None,
        100_000,
    )
    refused(await admin.ask("PATCH", path, {"mode": "enforce"}, headers={"if-match": '"1"'}), 412)
    refused(await admin.ask("PATCH", path, {"tokens_per_minute": None, "concurrency": None}), 400)
    refused(await admin.ask("PATCH", path, {"scope": "tenant:acme"}), 400)
    assert [one["id"] for one in (await admin.get(f"/limits?scope=key:{key['id']}"))["items"]] == [made["id"]]
    assert len((await admin.get("/limits?tenant=acme"))["items"]) == 2
    await admin.delete(path)
    refused(await admin.ask("GET", path), 404)
    refused(await admin.ask("DELETE", path), 404)


WRONG_LIMITS: list[Any] = [
    {"requests_per_minute": None},
    {"requests_per_minute": -1},
    {"requests_per_minute": 1.5},
    {"requests_per_minute": "60"},
    {"requests_per_minute": 9e18},
    {"burst_seconds": 0},
    {"mode": "maybe"},
    {"models": []},
    {"models": ["nothing.like-it"]},
    {"per_second": 1},
]


async def test_wrong_limits(admin, refused) -> None:
    await admin.tenant()
    for wrong in WRONG_LIMITS:
        refused(
            await admin.ask("POST", "/limits", {"scope": "tenant:acme", "requests_per_minute": 1} | wrong),
            400,
        )
