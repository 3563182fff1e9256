"""Corrections of money: transfers, refunds of ceilings, costs priced again; and what is left of a tenant."""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from proxy import policyfile
from tests.integration.admin.ledgers import Past
from tests.support.stack import nano

USD = 10**9
MODEL = "meta.llama3-1-8b-instruct-v1:0"
NOW = dt.datetime.now(dt.UTC)
SPAN = {"since": (NOW - dt.timedelta(days=2)).isoformat(), "until": (NOW + dt.timedelta(hours=1)).isoformat()}


@pytest.fixture
async def past(admin, owner) -> Past:
    return Past(owner)


@pytest.fixture
async def key(admin) -> UUID:
    await admin.tenant("acme")
    return UUID((await admin.key("acme"))["id"])


async def budget(admin: Any, scope: str, usd: str = "10") -> Any:
    return await admin.post("/budgets", {"scope": scope, "period": "month", "limit_usd": usd})


async def invariants(past: Past) -> list[Any]:
    return list(await past.run("SELECT * FROM check_invariants()"))


async def test_a_transfer_moves_what_is_left_and_no_more(admin, past, key, refused) -> None:
    one, other = await budget(admin, "tenant:acme"), await budget(admin, f"key:{key}", "5")
    body = {"source": one["id"], "target": other["id"], "amount_usd": "4", "reason": "launch"}
    made = await admin.post("/transfers", body)
    assert (made["source"]["amount_usd"], made["target"]["amount_usd"]) == ("-4.00", "4.00")
    limits = {b["scope"]: b["effective_limit_usd"] for b in (await admin.get("/budgets"))["items"]}
    assert limits == {"tenant:acme": "6.00", f"key:{key}": "9.00"}
    again = await asyncio.gather(
        *(admin.ask("POST", "/transfers", body | {"amount_usd": "3"}) for _ in range(3))
    )
    assert sorted(answer.status_code for answer in again) == [201, 201, 409]
    for wrong in ({"amount_usd": "0"}, {"target": one["id"]}, {"amount_usd": "-1"}):
        refused(await admin.ask("POST", "/transfers", body | wrong), 400)
    refused(await admin.ask("POST", "/transfers", body | {"target": str(UUID(int=1))}), 404)
    assert (await admin.get("/audit?limit=1"))["items"][0]["action"] == "budget.transfer"


async def test_a_ceiling_is_refunded_once_and_never_below_nothing(admin, past, key, refused) -> None:
    attempt = await past.call(key, NOW, 3 * USD, state=3)
    posted = await past.call(key, NOW, USD)
    path = f"/calls/{attempt}/refund"
    done = await admin.post(path, {"amount_usd": "1", "reason": "seen in the log"})
    assert (done["corrected"], done["amount_usd"]) == (1, "-1.00")
    again = await admin.post(path, {"amount_usd": "1", "reason": "seen in the log"})
    assert (again["corrected"], again["already"], again["amount_usd"]) == (0, 1, "0.00")
    refused(await admin.ask("POST", path, {"amount_usd": "2.5", "reason": "more"}), 409)
    refused(await admin.ask("POST", f"/calls/{posted}/refund", {"amount_usd": "1", "reason": "x"}), 409)
    refused(await admin.ask("POST", f"/calls/{UUID(int=9)}/refund", {"amount_usd": "1", "reason": "x"}), 404)
    shown = await admin.get(f"/calls/{attempt}")
    assert shown["cost_usd"] == "2.00" and [e["kind"] for e in shown["entries"]] == ["CEILING", "REFUND"]
    assert await invariants(past) == []


async def test_an_incident_releases_its_ceilings_and_nothing_else(admin, past, key) -> None:
    target, other = await past.label(2, "us-east-1/a"), await past.label(2, "us-east-1/b")
    for n in range(3):
        await past.call(key, NOW - dt.timedelta(hours=n), 2 * USD, state=3, target=target)
    await past.call(key, NOW, 2 * USD, state=3, target=other)
    await past.call(key, NOW - dt.timedelta(days=3), 2 * USD, state=3, target=target)
    await past.call(key, NOW, 2 * USD, target=target)
    body = {"incident": "INC-7", "target": "us-east-1/a", "keep_share": "0.25", **SPAN}
    dry = await admin.post("/ceilings/release", body | {"dry_run": True})
    assert (dry["found"], dry["corrected"], dry["amount_usd"], dry["dry_run"]) == (3, 3, "-4.50", True)
    assert (await admin.get("/reports/spend"))["total_usd"] == "12.00"
    done = await admin.post("/ceilings/release", body)
    assert (done["found"], done["corrected"], done["amount_usd"]) == (3, 3, "-4.50")
    assert (await admin.get("/reports/spend"))["total_usd"] == "7.50"
    again = await admin.post("/ceilings/release", body)
    assert (again["corrected"], again["already"]) == (0, 3)
    [trail] = (await admin.get("/audit?object=ledger"))["items"]
    assert trail["after"] == {"reason": "INC-7", "attempts": 3, "amount_usd": "-4.50"}
    assert await invariants(past) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(policyfile.directory(), tmp_path / "policies")
    return tmp_path / "policies"


def halve_prices(folder: Path, since: dt.datetime, model: str = MODEL) -> None:
    (folder / "prices" / "2026-11-24.yaml").write_text(
        f'effective_from: {since:%Y-%m-%dT%H:%M:%SZ}\nprices:\n  {model}:\n    - {{input: "0.10", output: "0.10"}}\n'
    )


async def test_costs_are_explained_and_priced_again_by_a_backdated_version(
    admin, deps, past, key, folder, refused
) -> None:
    deps.policies = policies = policyfile.load(folder)
    route = policies.resolve(MODEL)
    priced = policies.priced(route.model, route.targets[0])
    version = await past.label(3, priced.version(NOW.timestamp()))
    model, target = await past.label(1, MODEL), await past.label(2, route.targets[0].label)
    usage = policyfile_usage(1_000_000, 500_000)
    cost = priced.cost(usage, "default", "standard", NOW.timestamp())[0]
    right = await past.call(key, NOW, cost, model=model, target=target, tokens=(1_000_000, 500_000))
    odd = await past.call(key, NOW, cost + 1, model=model, target=target, tokens=(1_000_000, 500_000))
    await past.run("UPDATE attempts SET price = :v, price_final = :v", v=version)
    shown = await admin.get(f"/calls/{right}/price")
    assert (shown["tier"], shown["book_cost_usd"]) == ("default", shown["cost_usd"])
    assert "1,000,000 x" in shown["lines"][1]
    nothing = await admin.get(f"/calls/{odd}/price")
    assert (nothing["tier"], nothing["lines"]) == (None, [])
    body = {"reason": "contract of November", "model": MODEL, **SPAN}
    same = await admin.post("/prices/recalculate", body)
    assert (same["found"], same["corrected"], same["unexplained"]) == (2, 0, 1)

    halve_prices(folder, NOW - dt.timedelta(hours=1))
    deps.policies = policyfile.load(folder)
    dry = await admin.post("/prices/recalculate", body | {"dry_run": True})
    done = await admin.post("/prices/recalculate", body)
    assert dry["amount_usd"] == done["amount_usd"] and done["corrected"] == 1
    assert nano((await admin.get(f"/calls/{right}"))["cost_usd"]) == 150_000_000
    assert nano(done["amount_usd"]) == 150_000_000 - cost
    again = await admin.post("/prices/recalculate", body)
    assert (again["corrected"], again["amount_usd"]) == (0, "0.00")
    (folder / "prices" / "2026-11-24.yaml").unlink()
    deps.policies = policyfile.load(folder)
    back = await admin.post("/prices/recalculate", body)
    assert back["corrected"] == 1 and nano((await admin.get(f"/calls/{right}"))["cost_usd"]) == cost
    refused(await admin.ask("POST", "/prices/recalculate", body | {"until": body["since"]}), 400)
    assert await invariants(past) == []


def policyfile_usage(given: int, written: int) -> Any:
    from proxy.domain.usage import Usage

    return Usage(input_tokens=given, output_tokens=written)


async def test_a_deleted_tenant_leaves_its_money_and_nothing_that_tells_who_it_was(
    admin, deps, past, key, refused
) -> None:
    await admin.patch("/tenants/acme", {"name": "Acme Rockets"})
    await admin.post("/tenants/acme/projects", {"id": "search", "name": "Secret Search"})
    await budget(admin, "tenant:acme")
    await admin.post("/webhooks", {"name": "w", "url": "https://acme.example/x", "tenant": "acme"})
    made = await admin.post("/admins", {"name": "Joe of Acme", "role": "tenant-admin", "tenant": "acme"})
    tags = await past.label(4, "owner=joe")
    await past.call(key, NOW - dt.timedelta(days=1), 2 * USD, tags=tags)
    await asyncio.sleep(1.1)
    await past.roll()
    await admin.delete("/tenants/acme")
    assert deps.cache.purged
    assert (await admin.get("/reports/spend?group_by=tenant,tags"))["items"][0]["tags"] == ""
    assert (await admin.get("/reports/spend"))["total_usd"] == "2.00"
    refused(await admin.with_key(made["admin_key"]).ask("GET", "/tenants"), 401)
    await past.roll()
    for table in ("tenants", "projects", "keys", "credentials", "admins", "webhooks", "alerts", "usage_days"):
        dump = str(await past.run(f"SELECT * FROM {table}"))
        for secret in ("Rockets", "Secret", "Joe", "acme.example"):
            assert secret not in dump, table
    assert not await past.run(
        "SELECT FROM credentials WHERE sigv4_ciphertext IS NOT NULL OR revoked_at IS NULL"
    )
    assert not await past.run("SELECT FROM budgets WHERE deleted_at IS NULL")
    assert not await past.run("SELECT FROM attempts WHERE tags <> 0")


async def test_a_tenants_cache_is_purged(admin, deps, key, refused) -> None:
    assert await admin.post("/tenants/acme/cache/purge") == {"deleted": 2, "model": None}
    one = {"model": "meta.llama-a-v1:0"}
    assert await admin.post("/tenants/acme/cache/purge", one) == {"deleted": 1} | one
    assert [model for _, model in deps.cache.purged] == [None, "meta.llama-a-v1:0"]
    refused(await admin.ask("POST", "/tenants/acme/cache/purge", {"model": "meta.llama-z"}), 400)
    refused(await admin.ask("POST", "/tenants/acme/cache/purge", {"models": []}), 400)
    refused(await admin.ask("POST", "/tenants/none/cache/purge"), 404)
    assert (await admin.get("/audit?limit=1"))["items"][0]["action"] == "cache.purge"
