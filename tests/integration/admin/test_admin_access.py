"""Who may call what: driven by the route map, so that a new route cannot be forgotten."""

import json
import re
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from proxy.web.admin import openapi_document

DOCUMENT = openapi_document()
ROUTES = [
    (
        method.upper(),
        re.sub(
            r"\{(tenant|project)\}",
            "acme",
            re.sub(r"\{(?!tenant|project)\w+\}", str(uuid4()), path.replace("{month}", "2026-01")),
        ),
    )
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
]
ADMIN_ROUTES = [(method, path) for method, path in ROUTES if path.startswith("/admin/v1/")]
WRITES = [(method, path) for method, path in ADMIN_ROUTES if method != "GET"]
OF_ALL_TENANTS = ("/admin/v1/audit", "/admin/v1/audit/verify", "/admin/v1/admins")


@pytest.fixture
async def keys(admin) -> dict[str, Any]:
    """Clients by role, over two tenants that have one of everything."""
    things: dict[str, dict[str, str]] = {}
    for slug in ("acme", "other"):
        await admin.tenant(slug)
        await admin.post(f"/tenants/{slug}/projects", {"id": "search", "name": "Search"})
        key = await admin.key(slug, project="search")
        scope = {"scope": f"key:{key['id']}"}
        budget = await admin.post("/budgets", scope | {"period": "month", "limit_usd": "1"})
        limit = await admin.post("/limits", scope | {"concurrency": 1})
        things[slug] = {
            "key": key["id"],
            "budget": budget["id"],
            "limit": limit["id"],
            "token": key["bearer_token"],
        }
    people = {
        "admin": admin,
        "nobody": admin.with_key(None),
        "issued": admin.with_key(things["acme"]["token"]),
    }
    roles: tuple[tuple[str, str | None], ...] = (("auditor", None), ("tenant-admin", "acme"), ("admin", None))
    for role, tenant in roles:
        made = await admin.post("/admins", {"name": role, "role": role, "tenant": tenant})
        people["second admin" if role == "admin" else role] = admin.with_key(made["admin_key"])
    return people | {"things": things}


def test_the_route_map_is_complete() -> None:
    assert len(ADMIN_ROUTES) > 30 and len(WRITES) > 15
    assert DOCUMENT["openapi"].startswith("3.1")


async def test_no_route_answers_without_an_admin_key(admin, keys, refused) -> None:
    wrong = [
        None,
        "",
        "x",
        "a" * 300,
        "th_live_" + "a" * 51,
        "tha_live_" + "a" * 51,
        keys["things"]["acme"]["token"],
    ]
    for method, path in ADMIN_ROUTES:
        told = set()
        for key in wrong[:-1]:
            answer = await admin.with_key(key).ask(method, path, b"not even json")
            told.add(refused(answer, 401)["detail"])
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert len(told) == 1
        refused(await admin.with_key(wrong[-1]).ask(method, path, b"not even json"), 403)


async def test_other_schemes_and_places_for_the_key_are_refused(admin, refused) -> None:
    key = admin.http.headers["authorization"].removeprefix("Bearer ")
    nobody = admin.with_key(None)
    for headers in (
        {"authorization": f"Basic {key}"},
        {"authorization": key},
        {"x-api-key": key},
        {"cookie": f"key={key}"},
    ):
        refused(await nobody.ask("GET", "/tenants", headers=headers), 401)
    refused(await nobody.ask("GET", f"/tenants?key={key}"), 401)
    twice = [("authorization", f"Bearer {key}"), ("authorization", "Bearer x")]
    answer = await nobody.http.request("GET", "/admin/v1/tenants", headers=twice)
    refused(answer, 401)


async def test_an_auditor_reads_everything_and_writes_nothing(keys, refused) -> None:
    for method, path in ADMIN_ROUTES:
        answer = await keys["auditor"].ask(method, path, {} if method != "GET" else None)
        if method == "GET":
            assert answer.status_code in (200, 404), (path, answer.text)
        else:
            refused(answer, 403)


async def test_a_tenant_admin_finds_nothing_of_another_tenant(keys, refused) -> None:
    me, other = keys["tenant-admin"], keys["things"]["other"]
    swapped = {"key": other["key"], "budget": other["budget"], "limit": other["limit"]}
    bodies = {"rotate": {"grace_seconds": 1}, "adjustments": {"amount_usd": "1", "reason": "x"}}
    patches = {"key": {"name": "x"}, "budget": {"limit_usd": "2"}, "limit": {"concurrency": 2}}
    asked = 0
    for path, operations in DOCUMENT["paths"].items():
        noun = next((n for n in swapped if path.startswith(f"/admin/v1/{n}s/{{")), None)
        tenant = path.startswith("/admin/v1/tenants/{")
        if not (noun or tenant):
            continue
        for method in operations:
            url = re.sub(r"\{\w+\}", swapped[noun] if noun else "other", path, count=1).replace(
                "{project}", "search"
            )
            body: Any = (
                patches.get(noun or "") if method == "patch" else bodies.get(url.rsplit("/", 1)[-1], {})
            )
            if url.endswith("/projects"):
                body = {"id": "new", "name": "New"}
            answer = await me.ask(method.upper(), url, None if method in ("get", "delete") else body)
            refused(answer, 403 if tenant and method in ("patch", "delete") else 404)
            asked += 1
    assert asked > 15
    for path in ("/keys", "/limits", "/budgets", "/calls", "/refusals", "/reports/spend"):
        refused(await me.ask("GET", f"{path}?tenant=other"), 404)
    for path in ("/keys", "/limits", "/budgets"):
        shown = {item["id"] for item in (await me.get(path))["items"]}
        assert shown and not shown & set(other.values())
    assert [item["id"] for item in (await me.get("/tenants"))["items"]] == ["acme"]
    refused(await me.ask("GET", f"/calls?key={other['key']}"), 404)
    for path in ("/budgets", "/limits"):
        refused(await me.ask("GET", f"{path}?scope=key:{other['key']}"), 404)
    body = {"scope": f"key:{other['key']}", "period": "day", "limit_usd": "1"}
    refused(await me.ask("POST", "/budgets", body), 404)
    refused(await me.ask("POST", "/keys", {"tenant": "other", "name": "x"}), 404)


async def test_a_tenant_admin_divides_what_its_tenant_has_and_gives_it_no_more(keys, refused) -> None:
    me, admin = keys["tenant-admin"], keys["admin"]
    issued = await me.post("/keys", {"tenant": "acme", "name": "mine"})
    await me.post(f"/keys/{issued['id']}/rotate")
    await me.post("/tenants/acme/projects", {"id": "second", "name": "Second"})
    budget = await me.post("/budgets", {"scope": "project:acme/second", "period": "day", "limit_usd": "1"})
    await me.delete(f"/budgets/{budget['id']}")
    await me.post("/limits", {"scope": f"key:{issued['id']}", "concurrency": 1})

    given = await admin.post("/budgets", {"scope": "tenant:acme", "period": "day", "limit_usd": "1"})
    limit = await admin.post("/limits", {"scope": "tenant:acme", "concurrency": 1})
    assert (await me.get(f"/budgets/{given['id']}"))["limit_usd"] == "1.00"
    refused(await me.ask("PATCH", f"/budgets/{given['id']}", {"limit_usd": "100"}), 403)
    refused(await me.ask("DELETE", f"/budgets/{given['id']}"), 403)
    more = {"amount_usd": "1", "reason": "please"}
    refused(await me.ask("POST", f"/budgets/{given['id']}/adjustments", more), 403)
    refused(await me.ask("PATCH", f"/limits/{limit['id']}", {"concurrency": 9}), 403)
    refused(await me.ask("DELETE", f"/limits/{limit['id']}"), 403)
    refused(
        await me.ask("POST", "/budgets", {"scope": "tenant:acme", "period": "week", "limit_usd": "1"}), 403
    )
    refused(await me.ask("POST", "/tenants", {"id": "new", "name": "New"}), 403)
    for path in OF_ALL_TENANTS:
        refused(await me.ask("GET", path), 403)
    refused(await me.ask("POST", "/admins", {"name": "x", "role": "admin"}), 403)


async def test_a_revoked_admin_key_is_dead_at_once(keys, refused) -> None:
    admin, second = keys["admin"], keys["second admin"]
    await second.get("/tenants")
    [ident] = [one["id"] for one in (await admin.get("/admins"))["items"] if one["name"] == "admin"]
    await admin.delete(f"/admins/{ident}")
    refused(await second.ask("GET", "/tenants"), 401)
    refused(await admin.ask("DELETE", f"/admins/{ident}"), 404)


async def test_the_key_of_a_deleted_tenants_admin_is_dead(keys, refused) -> None:
    await keys["admin"].delete("/tenants/acme")
    refused(await keys["tenant-admin"].ask("GET", "/tenants"), 401)


WRONG_ADMINS = [
    {"name": "x", "role": "tenant-admin"},
    {"name": "x", "role": "admin", "tenant": "acme"},
    {"name": "x", "role": "root"},
    {"name": "x"},
]


async def test_wrong_admins(admin, refused) -> None:
    await admin.tenant()
    for body in WRONG_ADMINS:
        refused(await admin.ask("POST", "/admins", body), 400)


async def test_every_write_leaves_a_record_and_the_chain_holds(keys, engine, owner, refused) -> None:
    admin = keys["admin"]
    page = await admin.get("/audit?limit=200")
    actions = [item["action"] for item in page["items"]]
    assert {
        "tenant.create",
        "project.create",
        "key.issue",
        "budget.create",
        "limit.create",
        "admin.create",
    } <= set(actions)
    assert page["items"] == sorted(page["items"], key=lambda item: -item["seq"])
    key = keys["things"]["acme"]["key"]
    await admin.post(f"/keys/{key}/disable")
    [disabled, issued] = (await admin.get(f"/audit?object=key:{key}"))["items"]
    assert (disabled["action"], disabled["before"]["status"], disabled["after"]["status"]) == (
        "key.disable",
        "active",
        "disabled",
    )
    assert issued["actor"] == "admin:bootstrap" and "bearer_token" not in issued["after"]
    assert await admin.get("/audit/verify") == {"intact": True, "first_bad": None}

    refused(await admin.ask("POST", "/tenants", {"id": "acme", "name": "Again"}), 409)
    assert len((await admin.get("/audit?limit=200"))["items"]) == len(page["items"]) + 1
    with pytest.raises(ProgrammingError, match="permission denied"):
        async with engine.begin() as db:
            await db.execute(text("UPDATE audit SET actor = 'nobody' WHERE seq = 3"))
    async with owner.begin() as db:
        await db.execute(text("ALTER TABLE audit DISABLE TRIGGER ALL"))
        await db.execute(text("UPDATE audit SET actor = 'nobody' WHERE seq = 3"))
    assert await admin.get("/audit/verify") == {"intact": False, "first_bad": 3}


async def test_the_document_is_served(admin) -> None:
    served = await admin.get("/openapi.json")
    assert served == json.loads(json.dumps(DOCUMENT))
    assert set(served["paths"]) >= {"/admin/v1/keys/{key}/rotate", "/me/usage"}
