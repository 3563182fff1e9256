"""`/reports/prompt-caching`: what was measured of prompts' beginnings, for those it concerns."""

from uuid import UUID

import pytest
from sqlalchemy import text

from proxy.advice import ModelAdvice
from proxy.domain.prefix import Advice, Tally
from tests.integration.admin.conftest import Admin

SYSTEM = Advice(place="system", ttl="5m", read_tokens=9_000, write_tokens=1_000, saved=23_550_000)
LOSS = Advice(place="messages", ttl="5m", read_tokens=0, write_tokens=12_001, saved=-9_000_750)
SONNET = ModelAdvice(
    model="anthropic.claude-sonnet-4-20250514-v1:0",
    tally=Tally(calls=10, tokens=12_001, cached=1, repeated_5m=9_000, repeated_1h=12_001),
    minimum_tokens=1024,
    options=[SYSTEM, LOSS],
)
LLAMA = ModelAdvice(model="meta.llama-a-v1:0", tally=Tally(calls=3), minimum_tokens=None, options=[])


@pytest.fixture
async def measured(admin: Admin, deps, engine) -> Admin:
    for slug in ("acme", "other", "quiet"):
        await admin.tenant(slug)
    async with engine.connect() as db:
        ids = {row.slug: UUID(str(row.id)) for row in await db.execute(text("SELECT id, slug FROM tenants"))}
    deps.prefixes.found = {ids["acme"]: [SONNET, LLAMA], ids["other"]: [LLAMA]}
    return admin


async def test_it_says_what_and_where_in_tokens_and_dollars(measured) -> None:
    page = await measured.get("/reports/prompt-caching?tenant=acme")
    assert page["next"] is None
    sonnet, llama = page["items"]
    assert sonnet == {
        "tenant": "acme", "model": SONNET.model, "calls": 10, "input_tokens": 12_001, "cached_tokens": 1,
        "repeated_share_5m": "0.7499", "repeated_share_1h": "1.0000", "minimum_tokens": 1024,
        "advice": "Place a cache point at the end of the system prompt (ttl 5m).",
        "best": {"place": "system", "ttl": "5m", "read_tokens": 9_000, "write_tokens": 1_000, "saved_usd": "0.02355"},
        "options": [
            {"place": "system", "ttl": "5m", "read_tokens": 9_000, "write_tokens": 1_000, "saved_usd": "0.02355"},
            {"place": "messages", "ttl": "5m", "read_tokens": 0, "write_tokens": 12_001, "saved_usd": "-0.00900075"},
        ],
    }  # fmt: skip
    assert (llama["advice"], llama["best"], llama["options"]) == (
        "This model takes no cache points.",
        None,
        [],
    )
    assert (await measured.get("/reports/prompt-caching?tenant=quiet"))["items"] == []


async def test_all_tenants_come_in_pages_of_tenants(measured) -> None:
    seen, cursor = [], ""
    while cursor is not None:
        page = await measured.get(f"/reports/prompt-caching?limit=1{cursor and f'&cursor={cursor}'}")
        seen.append([(one["tenant"], one["model"]) for one in page["items"]])
        cursor = page["next"]
    assert seen == [[("acme", SONNET.model), ("acme", LLAMA.model)], [("other", LLAMA.model)], []]


async def test_a_tenant_admin_sees_its_own_and_an_auditor_all(measured, refused) -> None:
    me, auditor = [
        measured.with_key((await measured.post("/admins", who))["admin_key"])
        for who in (
            {"name": "a", "role": "tenant-admin", "tenant": "other"},
            {"name": "b", "role": "auditor"},
        )
    ]
    assert {one["tenant"] for one in (await me.get("/reports/prompt-caching"))["items"]} == {"other"}
    refused(await me.ask("GET", "/reports/prompt-caching?tenant=acme"), 404)
    assert len((await auditor.get("/reports/prompt-caching"))["items"]) == 3


async def test_what_is_wrong_and_what_is_away(measured, deps, refused) -> None:
    refused(await measured.ask("GET", "/reports/prompt-caching?tenant=nobody"), 404)
    refused(await measured.ask("GET", "/reports/prompt-caching?model=x"), 400)
    refused(await measured.ask("GET", "/reports/prompt-caching?cursor=x"), 400)
    deps.prefixes.found = None
    answer = await measured.ask("GET", "/reports/prompt-caching?tenant=acme")
    assert "Redis" in refused(answer, 503)["detail"] and answer.headers["retry-after"]
