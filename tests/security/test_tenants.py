"""Two tenants against each other on every route, and every role on every route; both generated from the
application's own route table, so that a new route cannot be forgotten."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from litestar.routes import HTTPRoute

from proxy.app import Worker
from proxy.settings import Settings
from proxy.web.inference import MOUNTS
from proxy.web.routes import FIXED
from tests.security.raw import BODY, INVOKE
from tests.support.stack import CLAUDE, LLAMA, Key, Proxy

ROUTES = [
    (method, route.path)
    for route in Worker(Settings()).application().routes
    if isinstance(route, HTTPRoute)
    for method in sorted(route.methods - {"OPTIONS"})
]
ADMIN = [(method, path) for method, path in ROUTES if path.startswith("/admin/")]
OBJECTS = [(method, path) for method, path in ADMIN if "{" in path and "{rest" not in path]
COLLECTIONS = [(method, path) for method, path in ADMIN if "{" not in path]
#: of one deployment, the same for all tenants; no row of anybody's is in them
PUBLIC = {"/admin/v1/models", "/admin/v1/plans", "/admin/v1/openapi.json", "/admin/v1/policies",
          "/admin/v1/policies/prices", "/admin/v1/policies/rules"}  # fmt: skip


@dataclass
class Side:
    """One tenant with one of everything. `mark` is in every name it has."""

    slug: str
    mark: str
    key: Key
    admin: str
    ids: dict[str, str] = field(default_factory=dict)


def _side(stack: Proxy, slug: str) -> Side:
    mark = f"{slug}-{secrets.token_hex(6)}"
    stack.tenant(slug, time_zone="UTC")
    stack.admin("POST", f"/tenants/{slug}/projects", {"id": f"{mark}-p", "name": mark}, expect=201)
    key = stack.key(slug, project=f"{mark}-p", name=mark)
    admin = stack.admin("POST", "/admins", {"name": mark, "role": "tenant-admin", "tenant": slug}, expect=201)
    side = Side(slug, mark, key, admin["admin_key"])
    limit = stack.admin("POST", "/limits", {"scope": f"key:{key.id}", "concurrency": 50}, expect=201)
    budget = stack.budget(f"tenant:{slug}", "100.00")
    more = {"amount_usd": "1.00", "reason": mark}
    stack.admin("POST", f"/budgets/{budget['id']}/adjustments", more, expect=201)
    hook = {"name": mark, "url": f"https://{mark}.example.com/", "tenant": slug}
    webhook = stack.admin("POST", "/webhooks", hook, expect=201)
    for _ in range(2):
        tags = {"X-Amzn-Bedrock-Request-Metadata": json.dumps({"team": mark}), "Cache-Control": "no-store"}
        assert stack.request("POST", INVOKE, BODY, key=key.bearer_token, headers=tags)[0] == 200
    assert stack.request("POST", INVOKE, b"{", key=key.bearer_token)[0] == 400
    call = stack.settled_calls(tenant=slug)[0]
    side.ids = {
        "tenant": slug, "project": f"{mark}-p", "key": key.id, "limits": limit["id"], "budgets": budget["id"],
        "webhooks": webhook["id"], "attempt": call["attempt"], "admins": admin["id"], "month": "2026-01",
    }  # fmt: skip
    return side


@dataclass
class World:
    stack: Proxy
    a: Side
    b: Side
    auditor: str

    def ask(self, key: str | None, method: str, path: str, body: Any = None) -> tuple[int, str]:
        status, _, answer = self.stack.request(method, path, body, key=key)
        return status, json.dumps(answer) if not isinstance(answer, bytes) else answer.decode()


@pytest.fixture(scope="module")
def world(module_stack: Proxy) -> World:
    auditor = module_stack.admin("POST", "/admins", {"name": "auditor", "role": "auditor"}, expect=201)
    return World(module_stack, _side(module_stack, "aaa"), _side(module_stack, "bbb"), auditor["admin_key"])


def url_of(path: str, ids: dict[str, str]) -> str:
    noun = path.removeprefix("/admin/v1/").partition("/")[0]

    def value(found: re.Match[str]) -> str:
        name = found[1]
        return ids.get(noun if name == "ident" else name, str(uuid4()))

    return re.sub(r"\{(\w+):\w+\}", value, path)


#: bodies of all writes, aimed at the tenant of `side`; a write that is not here fails the test
def body_of(method: str, path: str, side: Side) -> Any:
    scope = f"tenant:{side.slug}"
    last = path.rsplit("/", 1)[-1]
    amount = {"amount_usd": "1", "reason": "x"}
    span = {"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z"}
    bodies: dict[tuple[str, str], Any] = {
        ("POST", "tenants"): {"id": "ccc", "name": "x"},
        ("POST", "projects"): {"id": "stolen", "name": "x"},
        ("POST", "keys"): {"tenant": side.slug, "name": "x"},
        ("POST", "limits"): {"scope": scope, "concurrency": 1},
        ("POST", "budgets"): {"scope": scope, "period": "day", "limit_usd": "1"},
        ("POST", "adjustments"): amount,
        ("POST", "webhooks"): {"name": "x", "url": "https://hooks.example.com/", "tenant": side.slug},
        ("POST", "admins"): {"name": "x", "role": "tenant-admin", "tenant": side.slug},
        ("POST", "rotate"): {"grace_seconds": 1},
        ("POST", "transfers"): {"source": side.ids["budgets"], "target": str(uuid4()), **amount},
        ("POST", "refund"): amount,
        ("POST", "release"): {"incident": "INC-1", "tenant": side.slug, "reason": "x", **span},
        ("POST", "recalculate"): {"tenant": side.slug, "reason": "x", **span},
        ("PATCH", "{tenant:str}"): {"name": "x"},
        ("PATCH", "{key:uuid}"): {"name": "x"},
    }  # fmt: skip
    patches = {"limits": {"concurrency": 2}, "budgets": {"limit_usd": "2"}, "webhooks": {"name": "x"}}
    if method == "PATCH" and last == "{ident:uuid}":
        return patches[path.split("/")[3]]
    return bodies.get((method, last), {} if method in ("POST", "PATCH") else None)


def test_the_table_has_what_it_must_have() -> None:
    assert len(ADMIN) > 45
    assert len(OBJECTS) > 25
    assert {path for _, path in ROUTES if not path.startswith("/admin/")} == {
        "/health/live", "/health/ready", "/me", "/me/limits", "/me/usage",
    }  # fmt: skip
    assert all(path.decode().startswith(MOUNTS) for path in FIXED)


@pytest.mark.parametrize("method,path", OBJECTS)
def test_what_is_anothers_does_not_exist(world: World, method: str, path: str) -> None:
    """As the administrator of B, with the ids of A: 404 as for an id that nobody has, or 403 where the
    role has no business at all; nothing of A is told, nothing of A is changed."""
    status, told = world.ask(world.b.admin, method, url_of(path, world.a.ids), body_of(method, path, world.a))
    assert status in (403, 404), told
    assert world.a.mark not in told
    ghosts = dict.fromkeys(world.a.ids, "") | {"tenant": "nobody", "project": "nothing", "month": "2026-01"}
    ghost = url_of(path, {name: value for name, value in ghosts.items() if value})
    assert world.ask(world.b.admin, method, ghost, body_of(method, path, world.a))[0] == status


@pytest.mark.parametrize("method,path", COLLECTIONS)
def test_lists_and_creations_reach_the_own_tenant_only(world: World, method: str, path: str) -> None:
    if method == "GET":
        status, told = world.ask(world.b.admin, method, path)
        assert status in (200, 403), told
        assert world.a.mark not in told
        if path in PUBLIC:
            return
        for query in (f"tenant={world.a.slug}", f"key={world.a.key.id}", f"scope=tenant:{world.a.slug}",
                      f"project={world.a.ids['project']}", "order=name", "sort=-id", "group_by=tenant",
                      "cursor=IjAwMDAwMDAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwMCI", "format=csv", "limit=200"):  # fmt: skip
            status, told = world.ask(world.b.admin, method, f"{path}?{query}")
            assert status in (200, 400, 403, 404), told
            assert world.a.mark not in told.replace(world.a.ids["project"], ""), query
            if query.startswith(("order", "sort")):
                assert status in (400, 403)
        return
    status, told = world.ask(world.b.admin, method, path, body_of(method, path, world.a))
    assert status in (400, 403, 404), told
    assert world.a.mark not in told


def test_no_money_moves_between_tenants(world: World) -> None:
    for source, target in ((world.a, world.b), (world.b, world.a)):
        body = {
            "source": source.ids["budgets"],
            "target": target.ids["budgets"],
            "amount_usd": "1",
            "reason": "x",
        }
        assert world.ask(world.b.admin, "POST", "/admin/v1/transfers", body)[0] == 404


def test_nothing_of_the_other_tenant_was_changed(world: World) -> None:
    side = world.a
    for path in (f"/keys/{side.key.id}", f"/limits/{side.ids['limits']}", f"/budgets/{side.ids['budgets']}"):
        world.stack.admin("GET", path, expect=200)
    assert world.stack.admin("GET", f"/keys/{side.key.id}")["name"] == side.mark
    assert world.stack.admin("GET", f"/budgets/{side.ids['budgets']}")["limit_usd"] == "100.00"
    assert world.stack.request("POST", INVOKE, BODY, key=side.key.bearer_token)[0] == 200


@pytest.mark.parametrize("method,path", ADMIN)
def test_only_an_admin_key_opens_an_admin_route(world: World, method: str, path: str) -> None:
    url, body = url_of(path, world.b.ids), body_of(method, path, world.b)
    forged = "tha_live_" + "A" * 51
    for key, wanted in ((None, 401), ("x", 401), (forged, 401), (world.b.key.bearer_token, 403)):
        status, told = world.ask(key, method, url, body)
        assert status == wanted, told
        assert world.b.mark not in told
    headers = {"x-api-key": world.stack.admin_key, "Cookie": f"key={world.stack.admin_key}"}
    assert world.stack.request(method, url, body, key=None, headers=headers)[0] == 401


@pytest.mark.parametrize("method,path", [route for route in ADMIN if route[0] != "GET"])
def test_an_auditor_writes_nothing(world: World, method: str, path: str) -> None:
    status, told = world.ask(world.auditor, method, url_of(path, world.a.ids), body_of(method, path, world.a))
    assert status == 403, told


def test_every_route_but_health_wants_a_key(world: World) -> None:
    for method, path in ROUTES:
        status, _ = world.ask(None, method, url_of(path, world.a.ids), body_of(method, path, world.a))
        assert status == (200 if path.startswith("/health/") else 401), path
    for raw in FIXED:
        assert world.ask(None, "POST", raw.decode(), {"model": LLAMA})[0] == 401
    for operation in ("invoke", "invoke-with-response-stream", "converse", "converse-stream", "count-tokens"):
        assert world.ask(None, "POST", f"/model/{LLAMA}/{operation}", BODY)[0] == 403
    assert world.ask(None, "POST", "/guardrail/abc/version/1/apply", {})[0] == 403
    for path in ("/v1/models", "/openai/v1/models", f"/v1/models/{LLAMA}"):
        assert world.ask(None, "GET", path)[0] == 401


def test_no_other_site_may_ask_with_a_browser(world: World) -> None:
    """There is no cookie and no session to ride on, and no answer that lets another origin read."""
    for path in ("/admin/v1/keys", "/me", INVOKE, "/openai/v1/chat/completions", "/v1/models"):
        preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST",
                     "Access-Control-Request-Headers": "authorization"}  # fmt: skip
        for method in ("OPTIONS", "GET", "POST"):
            status, headers, told = world.stack.request(method, path, None, headers=preflight, key=None)
            assert status in (204, 401, 403, 404, 405), (path, status)
            assert not [name for name in headers if name.startswith("access-control-")]
            assert "set-cookie" not in headers
            assert world.a.mark not in str(told)


def test_an_issued_key_sees_itself(world: World) -> None:
    for path in ("/me", "/me/limits", "/me/usage"):
        status, told = world.ask(world.b.key.bearer_token, "GET", path)
        assert status == 200
        assert world.a.mark not in told and world.a.slug not in told and world.a.key.id not in told
        for query in (f"tenant={world.a.slug}", f"key={world.a.key.id}"):
            assert world.ask(world.b.key.bearer_token, "GET", f"{path}?{query}")[0] == 400
        assert world.ask(world.stack.admin_key, "GET", path)[0] == 401


STORED: list[dict[str, Any]] = [
    {"previous_response_id": "RESPONSE"}, {"conversation": "RESPONSE"}, {"conversation": {"id": "RESPONSE"}},
    {"prompt": {"id": "RESPONSE"}}, {"background": True}, {"store": True, "previous_response_id": "RESPONSE"},
]  # fmt: skip


def test_no_state_of_one_tenant_can_be_named_by_another(world: World, simulator: Any) -> None:
    """Responses are stateless: what Bedrock stores under the shared account is never asked for."""
    model = "openai.gpt-oss-20b-1:0"
    asked = {"model": model, "input": "hello", "max_output_tokens": 16}
    status, told = world.ask(world.a.key.bearer_token, "POST", "/openai/v1/responses", asked)
    assert status == 200, told
    response = json.loads(told)["id"]
    assert simulator.requests()[-1]["path"].endswith("/responses")
    simulator.reset()
    for more in STORED:
        body = json.loads(json.dumps(asked | more).replace("RESPONSE", response))
        for key in (world.b.key.bearer_token, world.a.key.bearer_token):
            assert world.ask(key, "POST", "/openai/v1/responses", body)[0] == 400, more
    for method in ("GET", "DELETE"):
        for path in (f"/openai/v1/responses/{response}", f"/v1/responses/{response}/input_items"):
            assert world.ask(world.b.key.bearer_token, method, path)[0] == 404
    assert simulator.requests() == []


def test_what_is_on_the_allow_list_of_one_tenant_is_not_on_anothers(world: World, simulator: Any) -> None:
    guardrail = "arn:aws:bedrock:us-east-1:123456789012:guardrail/ofa"
    pattern = {"arns_allowed": [guardrail, "*profile/*"]}
    etag = world.stack.request("GET", f"/admin/v1/tenants/{world.a.slug}")[1]["etag"]
    world.stack.admin("PATCH", f"/tenants/{world.a.slug}", {"overrides": pattern}, headers={"If-Match": etag})
    body = {
        "messages": [{"role": "user", "content": [{"text": "x"}]}],
        "inferenceConfig": {"maxTokens": 9},
        "guardrailConfig": {"guardrailIdentifier": guardrail, "guardrailVersion": "1"},
    }
    status, told = world.ask(world.b.key.bearer_token, "POST", f"/model/{CLAUDE}/converse", body)
    assert (status, "allow-list" in told) == (403, True), told
    profile = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile%2Fllama405bapp"
    prompt = "arn:aws:bedrock:us-east-1:123456789012:prompt%2FABCDEFGHIJ"
    for arn in (profile, prompt):
        status, told = world.ask(world.b.key.bearer_token, "POST", f"/model/{arn}/invoke", BODY)
        assert status in (400, 403), told
    assert simulator.requests() == []
