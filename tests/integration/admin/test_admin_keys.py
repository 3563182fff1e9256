"""Issued keys over the admin REST, and how soon the directory follows."""

import asyncio
import datetime as dt
import re
from typing import Any

from sqlalchemy import text

from proxy.keys import TOKEN_PATTERN

KEY = {"id", "tenant", "project", "name", "status", "expires_at", "overrides", "created_at", "credentials"}
SECRETS = {"bearer_token", "aws_access_key_id", "aws_secret_access_key"}


async def until(condition, seconds: float = 1.0) -> None:
    """Revocation and the rest hold within a second."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_key_shows_its_secrets_once(admin, deps) -> None:
    await admin.tenant()
    await admin.post("/tenants/acme/projects", {"id": "search", "name": "Search"})
    answer = await admin.ask(
        "POST", "/keys", {"tenant": "acme", "project": "search", "name": "ci", "expires_at": None}
    )
    assert answer.status_code == 201 and answer.headers["cache-control"] == "no-store"
    issued = answer.json()
    assert set(issued) == KEY | SECRETS
    assert re.fullmatch(TOKEN_PATTERN, issued["bearer_token"])
    assert re.fullmatch(r"THAK[A-Z2-7]{16}", issued["aws_access_key_id"])
    assert len(issued["aws_secret_access_key"]) == 43

    read = await admin.ask("GET", f"/keys/{issued['id']}")
    assert set(read.json()) == KEY
    for secret in (issued["bearer_token"], issued["aws_secret_access_key"]):
        assert secret not in read.text
    [credential] = read.json()["credentials"]
    assert issued["bearer_token"].startswith(credential["prefix"])
    assert credential["aws_access_key_id"] == issued["aws_access_key_id"]

    await until(lambda: deps.directory.by_token(issued["bearer_token"]) is not None)
    caller, secret = deps.directory.by_access_key_id(issued["aws_access_key_id"])
    assert (str(caller.key), caller.project_slug) == (issued["id"], "search")
    assert secret == issued["aws_secret_access_key"]


async def test_a_dump_of_the_database_holds_no_usable_key(admin, engine) -> None:
    await admin.tenant()
    first = await admin.key()
    second = await admin.post(f"/keys/{first['id']}/rotate", {"grace_seconds": 60})
    boss = await admin.post("/admins", {"name": "boss", "role": "admin"})
    async with engine.connect() as db:
        names = (await db.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))).all()
        dump = ""
        for name in names:
            rows = (await db.scalars(text(f"SELECT to_jsonb(x)::text FROM {name} x"))).all()
            dump += "\n".join(rows)
    assert first["id"] in dump
    for issued in (first, second):
        for name in ("bearer_token", "aws_secret_access_key"):
            for secret in (issued[name], issued[name][-30:], issued[name].encode().hex()):
                assert secret not in dump
    assert boss["admin_key"] not in dump and boss["admin_key"][20:] not in dump


async def test_a_key_that_may_not_sign_has_no_pair(admin) -> None:
    await admin.tenant()
    issued = await admin.key(sigv4=False)
    assert issued["aws_access_key_id"] is None and issued["aws_secret_access_key"] is None
    rotated = await admin.post(f"/keys/{issued['id']}/rotate")
    assert rotated["aws_access_key_id"] is None


WHAT_CANNOT_BE_ISSUED: list[Any] = [
    ({"tenant": "nobody"}, 404),
    ({"project": "nothing"}, 404),
    ({"expires_at": "2020-01-01T00:00:00Z"}, 400),
    ({"expires_at": "2030-01-01T00:00:00"}, 400),
    ({"expires_at": 1893456000}, 400),
    ({"name": ""}, 400),
    ({"overrides": {"max_output_tokens": -1}}, 400),
    ({"limit": 9e18}, 400),
    ({"role": "admin"}, 400),
]


async def test_what_cannot_be_issued(admin, refused) -> None:
    await admin.tenant()
    for change, status in WHAT_CANNOT_BE_ISSUED:
        refused(await admin.ask("POST", "/keys", {"tenant": "acme", "name": "ci"} | change), status)


async def test_rotation_keeps_the_key_and_graces_the_old_secrets(admin, deps) -> None:
    await admin.tenant()
    old = await admin.key()
    budget = await admin.post("/budgets", {"scope": f"key:{old['id']}", "period": "month", "limit_usd": "1"})
    new = await admin.post(f"/keys/{old['id']}/rotate", {"grace_seconds": 3600})
    assert new["id"] == old["id"] and new["bearer_token"] != old["bearer_token"]
    assert len(new["credentials"]) == 2
    ends = [one["expires_at"] for one in new["credentials"]]
    assert ends[1] is None
    assert abs(
        dt.datetime.fromisoformat(ends[0]) - dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    ) < dt.timedelta(minutes=1)
    await until(lambda: deps.directory.by_token(new["bearer_token"]) is not None)
    for issued in (old, new):
        assert str(deps.directory.by_token(issued["bearer_token"]).key) == old["id"]
        assert (
            deps.directory.by_access_key_id(issued["aws_access_key_id"])[1] == issued["aws_secret_access_key"]
        )
    assert (await admin.get(f"/budgets/{budget['id']}"))["scope"] == f"key:{old['id']}"

    newest = await admin.post(f"/keys/{old['id']}/rotate", {"grace_seconds": 0})
    assert len(newest["credentials"]) == 1
    await until(lambda: deps.directory.by_token(newest["bearer_token"]) is not None)
    for issued in (old, new):
        assert deps.directory.by_token(issued["bearer_token"]).refusal == "key_revoked"


async def test_disable_enable_revoke(admin, deps, refused) -> None:
    await admin.tenant()
    issued = await admin.key()
    path, token = f"/keys/{issued['id']}", issued["bearer_token"]

    def refusal() -> str | None:
        caller = deps.directory.by_token(token)
        return "unknown" if caller is None else caller.refusal

    await until(lambda: refusal() is None)
    assert (await admin.post(f"{path}/disable"))["status"] == "disabled"
    await until(lambda: refusal() == "key_disabled")
    assert (await admin.post(f"{path}/enable", {}))["status"] == "active"
    await until(lambda: refusal() is None)
    assert (await admin.post(f"{path}/revoke"))["status"] == "revoked"
    await until(lambda: refusal() == "key_revoked")
    assert (await admin.post(f"{path}/revoke"))["status"] == "revoked"
    for action in ("enable", "disable", "rotate"):
        refused(await admin.ask("POST", f"{path}/{action}", {}), 409)
    refused(await admin.ask("PATCH", path, {"name": "x"}), 409)
    refused(await admin.ask("POST", f"{path}/disable", {"force": True}), 400)


async def test_a_key_is_renamed_and_given_an_end(admin, refused) -> None:
    await admin.tenant()
    issued = await admin.key()
    path = f"/keys/{issued['id']}"
    end = "2031-05-06T07:08:09Z"
    changed = await admin.patch(path, {"name": "nightly", "expires_at": end}, headers={"if-match": '"1"'})
    assert (changed["name"], changed["expires_at"]) == ("nightly", end)
    assert (await admin.patch(path, {"expires_at": None}))["expires_at"] is None
    refused(await admin.ask("PATCH", path, {"name": "late"}, headers={"if-match": '"1"'}), 412)
    refused(await admin.ask("PATCH", path, {"tenant": "other"}), 400)


async def test_keys_are_listed_by_tenant_project_and_status(admin, refused) -> None:
    await admin.tenant()
    await admin.tenant("other")
    await admin.post("/tenants/acme/projects", {"id": "search", "name": "Search"})
    ids = [(await admin.key(**more))["id"] for more in ({}, {"project": "search"}, {"name": "third"})]
    await admin.key("other")
    await admin.post(f"/keys/{ids[2]}/disable")

    async def listed(query: str) -> list[str]:
        return [item["id"] for item in (await admin.get(f"/keys?{query}"))["items"]]

    assert await listed("tenant=acme") == ids
    assert await listed("tenant=acme&project=search") == ids[1:2]
    assert await listed("tenant=acme&status=disabled") == ids[2:]
    page = await admin.get("/keys?tenant=acme&limit=2")
    assert [item["id"] for item in page["items"]] == ids[:2]
    assert await listed(f"tenant=acme&limit=2&cursor={page['next']}") == ids[2:]
    for wrong, status in (
        ("tenant=none", 404),
        ("project=search", 400),
        ("status=lost", 400),
        ("tenat=acme", 400),
    ):
        refused(await admin.ask("GET", f"/keys?{wrong}"), status)
    for wrong in ("00000000-0000-0000-0000-000000000000", "not-a-uuid", "1"):
        refused(await admin.ask("GET", f"/keys/{wrong}"), 404)
