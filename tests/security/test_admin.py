"""The admin REST against a client that means harm: fields, money, names, webhooks, guesses."""

from __future__ import annotations

import csv
import io
import secrets
import time
from typing import Any

import pytest
import redis

from proxy.keys import Keyring
from proxy.web.admin.access import AdminAuthenticator
from proxy.web.admin.exports import as_csv
from proxy.web.admin.lockout import GUESSES_MAX, WINDOW_SECONDS, Lockout
from proxy.web.admin.problems import Problem
from tests.security.raw import BODY, INVOKE, free_port
from tests.support.stack import CLAUDE, Key, Proxy, running


def told(stack: Proxy, method: str, path: str, body: Any, status: int, **headers: str) -> Any:
    got, _, answer = stack.request(method, f"/admin/v1{path}", body, headers=headers)
    assert got == status, answer
    return answer


FORBIDDEN: list[dict[str, Any]] = [
    {"tenant": "other"}, {"tenant_id": "other"}, {"org_id": "other"}, {"role": "admin"}, {"limit": 9e18},
    {"id": "x"}, {"key": "x"}, {"status": "active"}, {"plan": "unlimited"}, {"bearer_token": "th_live_x"},
    {"created_at": "2020-01-01T00:00:00Z"}, {"__proto__": {"role": "admin"}}, {"Name": "x"}, {"name ": "x"},
]  # fmt: skip


@pytest.mark.parametrize("fields", FORBIDDEN)
def test_a_field_that_is_not_on_the_list_is_refused(stack: Proxy, key: Key, fields: dict[str, Any]) -> None:
    before = stack.admin("GET", f"/keys/{key.id}")
    answer = told(stack, "PATCH", f"/keys/{key.id}", {"name": "new", **fields}, 400)
    assert answer["errors"][0]["field"] == next(iter(fields))
    assert stack.admin("GET", f"/keys/{key.id}") == before


AMOUNTS = [0.1 + 0.2, 1e-9, 1, "NaN", "nan", "Infinity", "-1", "-0.01", "1e3", "1_000", "0x10", " 1", "1 ", "1\n", "١",
           "1.0000000001", "10000000001", "9" * 400, "", "1,50", "+1", "--1", None, True, [], {}]  # fmt: skip


@pytest.mark.parametrize("amount", AMOUNTS, ids=repr)
def test_money_is_a_decimal_string(stack: Proxy, key: Key, amount: Any) -> None:
    body = {"scope": f"tenant:{key.tenant}", "period": "month", "limit_usd": amount}
    told(stack, "POST", "/budgets", body, 400)
    if not isinstance(amount, str):
        raw = f'{{"scope": "tenant:{key.tenant}", "period": "month", "limit_usd": NaN}}'.encode()
        assert stack.request("POST", "/admin/v1/budgets", raw)[0] == 400
    assert stack.admin("GET", f"/budgets?tenant={key.tenant}")["items"] == []


INJECTED = [
    "'; DROP TABLE credentials; --", "x' OR '1'='1", "%' --", "\\'; SELECT pg_sleep(5); --", "{{7*7}}", "{% import os %}",
    "${jndi:ldap://x}", "<script>alert(1)</script>", "=cmd|'/C calc'!A0", "return redis.call('FLUSHALL')", "a:b{c}d*?[e]",
    "٣٤٥", "ﬁ", "K", "../../etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("text", INJECTED)
def test_names_are_literal_and_slugs_are_slugs(stack: Proxy, text: str) -> None:
    tenant = stack.tenant()
    made = told(stack, "POST", "/keys", {"tenant": tenant, "name": text}, 201)
    assert stack.admin("GET", f"/keys/{made['id']}")["name"] == text
    for slug in (text, f"{tenant}\n", tenant.upper()):
        told(stack, "POST", "/tenants", {"id": slug, "name": "x"}, 400)
        told(stack, "POST", "/keys", {"tenant": slug, "name": "x"}, 400)
    from urllib.parse import quote

    began = time.monotonic()
    for path in ("/keys", "/calls", "/budgets", "/limits", "/refusals", "/tenants", "/reports/spend"):
        for query in (
            "tenant",
            "project",
            "cursor",
            "order",
            "sort",
            "limit",
            "group_by",
            "since",
            "status",
            "model",
        ):
            status, _, answer = stack.request("GET", f"/admin/v1{path}?{query}={quote(text)}")
            assert status in (200, 400, 404), answer
            if query in ("order", "sort"):
                assert status == 400
    assert time.monotonic() - began < 20
    assert stack.admin("GET", f"/tenants/{tenant}")["id"] == tenant


def test_keys_of_redis_hold_no_text_of_anybody(stack: Proxy) -> None:
    """Tenants are in them by id; names, models and tags of clients by digest or not at all."""
    key = stack.key(name="{x}\u2028:*")
    stack.admin(
        "POST",
        "/limits",
        {"scope": f"key:{key.id}", "requests_per_minute": 1000, "concurrency": 5},
        expect=201,
    )
    for user in ("a:b{c}\nd", "*"):
        chat = {
            "model": CLAUDE,
            "max_tokens": 9,
            "user": user,
            "messages": [{"role": "user", "content": "x"}],
        }
        assert stack.request("POST", "/openai/v1/chat/completions", chat, key=key.bearer_token)[0] == 200
    with redis.Redis.from_url(stack.redis_url) as client:
        names = list(client.scan_iter(count=1000))
    assert names
    for name in names:
        plain = name.decode("latin-1")
        assert key.tenant not in plain
        assert "\n" not in plain and "*" not in plain and "{x}" not in plain and "{c}" not in plain


URLS = [
    "http://169.254.169.254/latest/meta-data", "https://169.254.169.254/", "https://[::ffff:169.254.169.254]/",
    "https://[::1]/", "https://127.0.0.1/", "https://10.0.0.1/", "https://192.168.1.1/", "https://0.0.0.0/", "https://100.64.0.1/",
    "https://[fd00::1]/", "https://[fe80::1%25eth0]/", "https://[64:ff9b::a9fe:a9fe]/", "https://[2002:a9fe:a9fe::]/",
    "file:///etc/passwd", "gopher://x/", "ftp://x/", "https://user:pass@example.com/", "https://example.com\\@127.0.0.1/",
    "https://example.com/#@127.0.0.1/", "https:///x", "https://exa mple.com/", "https://example.com:99999/", "//example.com",
    "javascript:alert(1)", "https://example.com/\r\nX-A: b", "http://example.com/",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_a_webhook_into_the_network_is_refused(stack: Proxy, url: str) -> None:
    told(stack, "POST", "/webhooks", {"name": "x", "url": url}, 400)


@pytest.mark.parametrize(
    "host",
    [
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "127.1",
        "localhost",
        "localhost.",
        "0",
        "[::ffff:7f00:1]",
        "LOCALHOST",
    ],
)
async def test_a_name_is_judged_by_what_it_resolves_to(host: str) -> None:
    """Spellings that only a resolver understands; the connection is made to the judged address itself."""
    from proxy.domain.delivery import UnsafeUrlError
    from proxy.worker.deliveries import Courier

    courier = Courier(None, Keyring(b"k" * 32), ())  # type: ignore[arg-type]
    with pytest.raises((UnsafeUrlError, OSError)):
        await courier._resolved(f"https://{host}/")


async def test_a_name_that_changes_its_address_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from proxy.domain.delivery import UnsafeUrlError
    from proxy.worker.deliveries import Courier

    answers = [["93.184.216.34"], ["127.0.0.1"], ["93.184.216.34", "169.254.169.254"]]

    async def resolve(_host: str, port: int, **_: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
    courier = Courier(None, Keyring(b"k" * 32), ())  # type: ignore[arg-type]
    vetted = await courier._resolved("https://rebind.example/")
    assert [found["host"] for found in await vetted.resolve("rebind.example", 443)] == ["93.184.216.34"]
    for _ in range(2):
        with pytest.raises(UnsafeUrlError):
            await courier._resolved("https://rebind.example/")


CELLS = [
    "=cmd()",
    "+1+cmd()",
    "-1+cmd()",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    '=HYPERLINK("http://x")',
    'a"b',
    "a,b",
    "a\nb",
]


@pytest.mark.parametrize("cell", CELLS)
def test_a_report_runs_in_no_spreadsheet(cell: str) -> None:
    rows = list(csv.reader(io.StringIO(as_csv(["name", "cost"], [{"name": cell, "cost": "-1.50"}]))))
    assert rows[1][1] == "-1.50"
    assert rows[1][0].lstrip("'") == cell
    assert not rows[1][0].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_metrics_have_no_label_of_a_clients_making_and_are_not_public(stack: Proxy, key: Key) -> None:
    import urllib.request

    for path in ("/metrics", "/metrics/", "/admin/v1/metrics", "/v1/metrics"):
        assert stack.request("GET", path)[0] in (401, 403, 404)
    mark = secrets.token_hex(6)
    for i in range(100):
        chat = {"model": f"{mark}-{i}", "user": f"{mark}-{i}", "messages": [{"role": "user", "content": "x"}]}
        assert stack.request("POST", "/openai/v1/chat/completions", chat, key=key.bearer_token)[0] == 404
        stack.request("POST", f"/model/{mark}-{i}/invoke", BODY, key=key.bearer_token)
        stack.request("POST", f"/{mark}-{i}", BODY, key=key.bearer_token)
    url = f"http://127.0.0.1:{stack.settings['TOLLHOUSE_METRICS_PORT']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        shown = answer.read().decode()
    assert mark not in shown
    assert shown.count("\n") < 5000
    assert key.bearer_token not in shown


class Nobody:
    async def admin_by_digest(self, digests: tuple[bytes, ...]) -> None:
        return None


async def test_guesses_at_the_first_admins_key_end_in_a_lockout() -> None:
    now = [100.0]
    keyring = Keyring(b"k" * 32)
    authenticator = AdminAuthenticator(keyring, Nobody(), "correct horse battery staple")
    authenticator._lockout = Lockout(lambda: now[0])
    for i in range(GUESSES_MAX):
        with pytest.raises(Problem) as refused:
            await authenticator.principal(f"Bearer guess-{i}", "10.0.0.1")
        assert refused.value.status == 401
    for guess in ("Bearer guess", "Bearer correct horse battery staple"):
        with pytest.raises(Problem) as refused:
            await authenticator.principal(guess, "10.0.0.1")
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "61")
    assert (await authenticator.principal("Bearer correct horse battery staple", "10.0.0.2")).role == "admin"
    with pytest.raises(Problem) as refused:  # a minted key is no guess: never locked out, here merely unknown
        await authenticator.principal(f"Bearer {keyring.mint_admin().token}", "10.0.0.1")
    assert refused.value.status == 401
    now[0] += WINDOW_SECONDS
    assert (await authenticator.principal("Bearer correct horse battery staple", "10.0.0.1")).role == "admin"


def test_a_revoked_admin_is_dead_at_once(stack: Proxy) -> None:
    made = stack.admin("POST", "/admins", {"name": "leaving", "role": "admin"}, expect=201)
    assert stack.request("GET", "/admin/v1/tenants", key=made["admin_key"])[0] == 200
    stack.admin("DELETE", f"/admins/{made['id']}")
    for _ in range(3):
        assert stack.request("GET", "/admin/v1/tenants", key=made["admin_key"])[0] == 401


@pytest.mark.parametrize("limits", [{"requests_per_minute": 3, "burst_seconds": 60}, {"concurrency": 0}])
def test_an_address_that_a_client_claims_counts_for_nothing(
    stack: Proxy, key: Key, limits: dict[str, int]
) -> None:
    """Buckets are of keys; nothing reads `X-Forwarded-For`."""
    stack.admin("POST", "/limits", {"scope": f"key:{key.id}", **limits}, expect=201)
    time.sleep(0.6)
    got = []
    for i in range(8):
        headers = dict.fromkeys(
            ("X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP"), f"10.0.0.{i}"
        )
        headers["Cache-Control"] = "no-store"
        got.append(stack.request("POST", INVOKE, BODY, key=key.bearer_token, headers=headers)[0])
    assert got.count(429) >= 5, got


def test_no_admin_without_a_key_of_its_own(module_stack: Proxy, tmp_path: Any) -> None:
    """No default password: a proxy that was given no admin key has none. One that is too short ends the start."""
    bare = Proxy(module_stack.database_url, module_stack.redis_url, module_stack.upstream_url, tmp_path / "state",
                 {"TOLLHOUSE_ADMIN_KEY": ""}, module_stack.master_key, admin_key="")  # fmt: skip
    with running(bare):
        for guess in ("", "admin", "password", "tollhouse", "None", module_stack.admin_key):
            headers = {"Authorization": f"Bearer {guess}"}
            assert bare.request("GET", "/admin/v1/tenants", key=None, headers=headers)[0] == 401
    short = Proxy(module_stack.database_url, module_stack.redis_url, module_stack.upstream_url, tmp_path / "other",
                  {"TOLLHOUSE_ADMIN_KEY": "admin"}, module_stack.master_key)  # fmt: skip
    with running(short):
        assert short.request("GET", "/admin/v1/tenants", key="admin")[0] != 200


def test_a_proxy_is_not_its_own_upstream(module_stack: Proxy, tmp_path: Any) -> None:
    port = free_port()
    for host in ("127.0.0.1", "localhost", "[::1]"):
        looped = Proxy(module_stack.database_url, module_stack.redis_url, f"http://{host}:{port}", tmp_path / "state",
                       master_key=module_stack.master_key, port=port)  # fmt: skip
        process = looped.start(wait=False)
        try:
            assert process.wait(20) != 0
            assert looped.log is not None
            assert "its own upstream" in looped.log.read_text()
        finally:
            looped.kill()
