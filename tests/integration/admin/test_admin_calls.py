"""Calls, spend, refusals and `/me`, over what the real bank has written."""

import asyncio
import datetime as dt
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from proxy.bedrock.signing import StaticCredentials, signed_headers
from proxy.clock import uuid7
from proxy.domain.ledger import Attempt, Operation, Settlement, State, Why
from proxy.domain.usage import Usage
from proxy.ports import MODEL, PRICE, TARGET
from proxy.postgres.bank import PostgresBank
from proxy.postgres.labels import PostgresLabels
from proxy.postgres.refusals import PostgresRefusals

CALL = {
    *("id", "attempt", "tenant", "project", "key", "operation", "model", "target", "outcome", "usage"),
    *("ceiling_usd", "cost_usd", "price_version", "upstream_request_id", "admitted_at", "finished_at"),
    *("latency_ms", "first_byte_ms"),
}
A, B = "meta.llama-a-v1:0", "meta.llama-b-v1:0"


class World:
    """Two tenants with a key each, and a bank to call with."""

    def __init__(self, engine, bank: PostgresBank, keys: dict[str, Any]) -> None:
        self.engine, self.bank, self.keys = engine, bank, keys
        self.labels = PostgresLabels(engine)

    async def call(
        self,
        slug: str,
        model: str,
        cost: int | None,
        *,
        upstream: int | None = None,
        state: State = State.POST,
    ) -> UUID:
        """One attempt, settled unless `cost` is None."""
        async with self.engine.connect() as db:
            row = (
                await db.execute(
                    text(
                        "SELECT k.*, c.id AS credential FROM keys k JOIN credentials c ON c.key = k.id WHERE k.id = :id"
                    ),
                    {"id": UUID(self.keys[slug]["id"])},
                )
            ).one()
        attempt = Attempt(
            attempt=uuid7(), call=uuid7(), tenant=row.tenant, project=row.project, key=row.id,
            credential=row.credential, recorder=uuid4(), operation=Operation.CONVERSE,
            model=await self.labels.intern(MODEL, model), ceiling=2_000_000_000,
            target=await self.labels.intern(TARGET, f"us-east-1/{model}"),
            price=await self.labels.intern(PRICE, "2026-11-01"),
        )  # fmt: skip
        await self.bank.admit(attempt)
        if cost is not None:
            await self.bank.settle(
                Settlement(
                    attempt=attempt.attempt, state=state, why=Why.USAGE, cost=cost,
                    upstream_cost=cost if upstream is None else upstream, price=attempt.price,
                    usage=Usage(input_tokens=10, output_tokens=20, cache_read_tokens=3, cache_write_5m_tokens=1,
                                cache_write_1h_tokens=2),
                    upstream_request_id="req-1", status=200, latency_ms=120, first_byte_ms=30,
                )
            )  # fmt: skip
        return attempt.attempt


@pytest.fixture
async def world(admin, engine):
    keys = {}
    for slug in ("acme", "other"):
        await admin.tenant(slug)
        await admin.post(f"/tenants/{slug}/projects", {"id": "search", "name": "Search"})
        keys[slug] = await admin.key(slug, project="search")
    bank = PostgresBank(engine, lanes=1)
    await bank.start()
    yield World(engine, bank, keys)
    await bank.aclose()


async def test_a_call_is_shown_as_the_ledger_has_it(admin, world) -> None:
    attempt = await world.call("acme", A, 250_000_000)
    [item] = (await admin.get("/calls"))["items"]
    assert set(item) >= CALL
    assert (item["attempt"], item["tenant"], item["project"]) == (str(attempt), "acme", "search")
    assert (item["key"], item["operation"], item["model"]) == (world.keys["acme"]["id"], "Converse", A)
    assert (item["target"], item["outcome"], item["price_version"]) == (
        f"us-east-1/{A}",
        "POST",
        "2026-11-01",
    )
    assert item["usage"] == {
        "input_tokens": 10, "output_tokens": 20, "cache_read_tokens": 3, "cache_write_tokens": 3,
        "cache_write_5m_tokens": 1, "cache_write_1h_tokens": 2, "images": 0, "guardrail_units": 0,
    }  # fmt: skip
    assert (item["ceiling_usd"], item["cost_usd"], item["upstream_request_id"]) == ("2.00", "0.25", "req-1")
    assert (item["latency_ms"], item["first_byte_ms"]) == (120, 30)
    assert "upstream_cost_usd" not in item and item["finished_at"] >= item["admitted_at"]
    one = await admin.get(f"/calls/{attempt}")
    assert [(e["kind"], e["amount_usd"]) for e in one["entries"]] == [("POST", "0.25")]


async def test_an_open_call_has_a_ceiling_and_no_cost(admin, world) -> None:
    await world.call("acme", A, None)
    [item] = (await admin.get("/calls?outcome=OPEN"))["items"]
    assert (item["cost_usd"], item["finished_at"], item["ceiling_usd"]) == (None, None, "2.00")


async def test_a_cost_of_ours_and_of_awss_are_told_apart(admin, world) -> None:
    await world.call("acme", A, 300, upstream=200)
    [item] = (await admin.get("/calls"))["items"]
    assert (item["cost_usd"], item["upstream_cost_usd"]) == ("0.0000003", "0.0000002")


async def test_calls_are_filtered_and_paged_newest_first(admin, world, refused) -> None:
    first = await world.call("acme", A, 1)
    await asyncio.sleep(0.002)
    second = await world.call("acme", B, 2)
    await asyncio.sleep(0.002)
    third = await world.call("other", A, 3)

    async def listed(query: str) -> list[str]:
        return [item["attempt"] for item in (await admin.get(f"/calls?{query}"))["items"]]

    every = [str(one) for one in (third, second, first)]
    assert await listed("") == every
    assert await listed("tenant=acme") == every[1:]
    assert await listed("tenant=acme&project=search") == every[1:]
    assert await listed(f"key={world.keys['other']['id']}") == every[:1]
    assert await listed(f"model={A}") == [every[0], every[2]]
    assert await listed("model=none") == []
    assert await listed("outcome=POST") == every and await listed("outcome=HIT") == []
    now = dt.datetime.now(dt.UTC)
    past, future = (f"{now + dt.timedelta(hours=h):%Y-%m-%dT%H:%M:%SZ}" for h in (-1, 1))
    assert await listed(f"since={past}&until={future}") == every
    assert await listed(f"since={future}") == [] and await listed(f"until={past}") == []
    page = await admin.get("/calls?limit=2")
    assert [item["attempt"] for item in page["items"]] == every[:2]
    assert await listed(f"limit=2&cursor={page['next']}") == every[2:]
    for wrong in ("outcome=SPENT", "since=yesterday", "since=2026-11-24T00:00:00", "since=0001-01-01T00:00:00Z",
                  "key=x", "limit=500", "org=acme", "until=9999-12-31T23:59:59-23:00"):  # fmt: skip
        refused(await admin.ask("GET", f"/calls?{wrong}"), 400)


async def test_a_call_is_found_by_the_id_that_its_answer_and_the_metrics_name(admin, world, refused) -> None:
    for slug in ("acme", "acme", "other"):
        await world.call(slug, A, 1)
    items = (await admin.get("/calls"))["items"]
    assert len({item["id"] for item in items}) == 3
    for item in items:
        assert (await admin.get(f"/calls?call={item['id']}"))["items"] == [item]
        assert (await admin.get(f"/calls?call={item['id']}&tenant={item['tenant']}"))["items"] == [item]
    assert (await admin.get(f"/calls?call={items[0]['id']}&tenant=acme"))["items"] == []
    for nobodys in (UUID(int=0), uuid4(), UUID(int=(1 << 128) - 1)):
        assert (await admin.get(f"/calls?call={nobodys}"))["items"] == []
    refused(await admin.ask("GET", "/calls?call=x"), 400)


async def test_spend_is_summed_by_what_one_asks(admin, world, refused) -> None:
    for slug, model, cost in (
        ("acme", A, 10**9),
        ("acme", A, 5 * 10**8),
        ("acme", B, 1),
        ("other", A, 2 * 10**9),
    ):
        await world.call(slug, model, cost)
    await world.call("acme", A, None)
    report = await admin.get("/reports/spend?group_by=tenant,model")
    assert [(one["tenant"], one["model"], one["cost_usd"], one["attempts"]) for one in report["items"]] == [
        ("other", A, "2.00", 1), ("acme", A, "1.50", 2), ("acme", B, "0.000000001", 1),
    ]  # fmt: skip
    assert (report["total_usd"], report["truncated"]) == ("3.500000001", False)
    assert "project" not in report["items"][0]
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    by_day = await admin.get("/reports/spend?group_by=day,project,outcome,operation&tenant=acme")
    assert [(o["day"], o["tenant"], o["project"], o["outcome"], o["operation"]) for o in by_day["items"]] == [
        (today, "acme", "search", "POST", "Converse")
    ]
    for wrong in ("group_by=", "group_by=org", "group_by=tenant;drop", "time_zone=Mars", "format=xml"):
        refused(await admin.ask("GET", f"/reports/spend?{wrong}"), 400)


async def test_a_spreadsheet_runs_nothing_of_ours(admin, world, engine) -> None:
    await world.call("acme", "=cmd|' /C calc'!A0", 10**9)
    answer = await admin.ask("GET", "/reports/spend?group_by=tenant,model&format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    header, row = answer.text.split("\r\n")[:2]
    assert header.startswith("tenant,model,cost_usd,upstream_cost_usd,saved_usd,attempts")
    assert row.startswith("acme,'=cmd|' /C calc'!A0,1.00,1.00,0.00,1")


async def test_refusals_are_counted_by_what_one_asks(admin, world, engine, refused) -> None:
    tenants = {}
    async with engine.connect() as db:
        for slug, ident in (await db.execute(text("SELECT slug, id FROM tenants"))).all():
            tenants[slug] = ident
    key = UUID(world.keys["acme"]["id"])
    await world.labels.intern(MODEL, A)
    await PostgresRefusals(engine).add(
        {
            (tenants["acme"], key, "budget_spent", A): (3, "the budget is spent"),
            (tenants["acme"], key, "rate_limited", A): (1, "too fast"),
            (tenants["other"], UUID(int=0), "budget_spent", None): (5, "spent too"),
        }
    )
    found = (await admin.get("/refusals"))["items"]
    assert [(one["reason"], one["count"]) for one in found] == [("budget_spent", 8), ("rate_limited", 1)]
    found = (await admin.get("/refusals?tenant=acme&group_by=reason,key,model"))["items"]
    assert found[0] == {
        "count": 3, "last_message": "the budget is spent", "reason": "budget_spent", "key": str(key), "model": A,
    }  # fmt: skip
    assert (await admin.get("/refusals?since=2199-01-01T00:00:00Z"))["items"] == []
    refused(await admin.ask("GET", "/refusals?group_by=secret"), 400)


async def test_me_shows_a_key_its_own_affairs_only(admin, deps, world) -> None:
    acme, other = world.keys["acme"], world.keys["other"]
    for slug in ("acme", "other"):
        await admin.post("/budgets", {"scope": f"tenant:{slug}", "period": "month", "limit_usd": "10"})
        await admin.post("/limits", {"scope": f"key:{world.keys[slug]['id']}", "concurrency": 3})
    second = await admin.key("acme", name="second")
    await admin.post("/budgets", {"scope": f"key:{second['id']}", "period": "month", "limit_usd": "1"})
    await world.call("acme", A, 10**9)
    await world.call("other", A, 5 * 10**9)
    me = admin.with_key(acme["bearer_token"])
    async with asyncio.timeout(2):
        while not (limits := (await me.ask("GET", "/me/limits")).json().get("items")):
            await asyncio.sleep(0.01)
    assert [(one["scope"], one["concurrency"]) for one in limits] == [("key", 3)]
    shown = await me.get("/me")
    assert (shown["tenant"], shown["project"], shown["key"], shown["name"]) == (
        "acme",
        "search",
        acme["id"],
        "ci",
    )
    assert [(one["scope"], one["settled_usd"]) for one in shown["budgets"]] == [("tenant:acme", "1.00")]
    assert shown["limits"] == limits and shown["plan"] == "default" and shown["models_allowed"] == ["*"]
    usage = await me.get("/me/usage")
    assert usage["cost_usd"] == "1.00"
    assert [(one["model"], one["input_tokens"]) for one in usage["items"]] == [(A, 10)]
    for path in ("/me", "/me/usage", "/me/limits"):
        assert other["id"] not in (await me.ask("GET", path)).text


async def test_me_takes_every_kind_of_credential(admin, deps, world, refused) -> None:
    acme = world.keys["acme"]
    nobody = admin.with_key(None)
    async with asyncio.timeout(2):
        while deps.directory.by_token(acme["bearer_token"]) is None:
            await asyncio.sleep(0.01)
    assert (await nobody.get("/me", headers={"x-api-key": acme["bearer_token"]}))["key"] == acme["id"]
    credentials = StaticCredentials(acme["aws_access_key_id"], acme["aws_secret_access_key"])
    moment = dt.datetime.now(dt.UTC).timestamp()
    headers = signed_headers(credentials, "us-east-1", "GET", "tollhouse", "/me", {}, b"", moment)
    assert (await nobody.get("/me", headers=headers))["key"] == acme["id"]

    refused(await nobody.ask("GET", "/me"), 401)
    refused(await admin.ask("GET", "/me"), 401)
    forged = headers | {"Authorization": headers["Authorization"][:-1] + "0"}
    forged["Authorization"] = forged["Authorization"][:-4] + "beef"
    refused(await nobody.ask("GET", "/me", headers=forged), 401)
    refused(
        await admin.with_key(acme["bearer_token"]).ask("GET", "/me/usage?key=" + world.keys["other"]["id"]),
        400,
    )
    await admin.patch("/tenants/acme", {"status": "suspended"})
    async with asyncio.timeout(2):
        while (
            answer := await nobody.ask("GET", "/me", headers={"x-api-key": acme["bearer_token"]})
        ).status_code == 200:
            await asyncio.sleep(0.01)
    assert refused(answer, 403)["type"].endswith("tenant-suspended")


async def test_models_and_plans_are_listed(admin) -> None:
    assert [one["id"] for one in (await admin.get("/models"))["items"]] == [A, B]
    assert [one["id"] for one in (await admin.get("/plans"))["items"]] == ["default", "larger", "team"]
