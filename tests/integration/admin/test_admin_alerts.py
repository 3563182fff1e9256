"""Alerts are told once per crossing; webhooks are signed, retried, and go nowhere inside."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web

from proxy.domain.delivery import allowed_networks
from proxy.postgres.alerts import PostgresAlerts
from proxy.worker.alerts import Watchman
from proxy.worker.deliveries import Courier
from tests.integration.admin.ledgers import Past

USD = 10**9
LOOPBACK = allowed_networks("127.0.0.0/8, ::1/128")


@dataclass
class Receiver:
    """A real HTTP server that keeps what it is sent."""

    url: str = ""
    status: int = 200
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()

    async def receive(request: web.Request) -> web.Response:
        made.got.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        headers = {"Location": "http://127.0.0.1:1/"} if made.status == 302 else {}
        return web.Response(status=made.status, headers=headers)

    app = web.Application()
    app.router.add_post("/{any:.*}", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook"  # type: ignore[union-attr]
    yield made
    await runner.cleanup()


@pytest.fixture
def alerts(engine) -> PostgresAlerts:
    return PostgresAlerts(engine)


@pytest.fixture
async def spent(admin, owner) -> AsyncIterator[Any]:
    """A tenant with a budget of 100 USD; `spent(usd)` sets what it has spent."""
    await admin.tenant()
    budget = await admin.post("/budgets", {"scope": "tenant:acme", "period": "month", "limit_usd": "100"})
    past = Past(owner)

    async def spend(usd: int) -> None:
        await past.run(
            "UPDATE accounts SET settled = :n, limit_effective = greatest(limit_target, :n) WHERE budget = :b",
            n=usd * USD, b=UUID(budget["id"]),
        )  # fmt: skip

    yield spend


async def told(admin: Any, query: str = "") -> list[str]:
    return [one["message"] for one in (await admin.get(f"/alerts?limit=200{query}"))["items"]]


async def test_a_crossing_is_told_once_and_again_after_it_was_over(admin, alerts, spent) -> None:
    watchmen = [Watchman(alerts) for _ in range(3)]

    async def look() -> int:
        before = len(await told(admin, "&kind=threshold"))
        await asyncio.gather(*(w.budgets_and_keys() for w in watchmen))
        return len(await told(admin, "&kind=threshold")) - before

    await spent(49)
    assert await look() == 0
    await spent(85)
    assert await look() == 2
    assert await look() == 0
    [last, *_] = (await admin.get("/alerts?kind=threshold"))["items"]
    assert last["tenant"] == "acme" and last["data"]["spent_usd"] == "85.00"
    await spent(60)  # a refund
    assert await look() == 0
    await spent(90)
    assert await look() == 1
    [budget] = (await admin.get("/budgets"))["items"]
    await admin.post(f"/budgets/{budget['id']}/adjustments", {"amount_usd": "100", "reason": "launch"})
    assert await look() == 0
    await spent(170)
    assert await look() == 2


async def test_keys_anomalies_and_ceilings_are_noticed(admin, alerts, owner) -> None:
    await admin.tenant()
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=30)).isoformat()
    key = UUID((await admin.key("acme", expires_at=soon))["id"])
    past = Past(owner)
    now = dt.datetime.now(dt.UTC)
    for days in range(1, 9):
        await past.call(key, now - dt.timedelta(days=days), USD)
    await past.call(key, now - dt.timedelta(seconds=1), 50 * USD, state=3)
    watchman = Watchman(alerts)
    for _ in range(2):
        await watchman.budgets_and_keys()
        await watchman.spend_and_ceilings()
    kinds = sorted(one["kind"] for one in (await admin.get("/alerts"))["items"])
    assert kinds == ["anomaly", "ceilings", "key_expiry"]
    await watchman.prune()


@pytest.fixture
def inside(deps) -> None:
    """This deployment's webhooks may be on this machine."""
    deps.settings.webhook_networks = "127.0.0.0/8"


async def test_a_webhook_is_called_once_signed_and_in_its_shape(
    inside, admin, deps, alerts, spent, receiver
) -> None:
    hook = await admin.post("/webhooks", {"name": "finance", "url": receiver.url, "events": ["threshold"]})
    slack = {
        "name": "chat",
        "url": receiver.url,
        "format": "slack",
        "tenant": "acme",
        "events": ["threshold"],
    }
    await admin.post("/webhooks", slack)
    await admin.post("/webhooks", {"name": "deaf", "url": receiver.url, "events": ["ceilings"]})
    assert "secret" not in (await admin.get(f"/webhooks/{hook['id']}"))
    await spent(55)
    await Watchman(alerts).budgets_and_keys()
    couriers = [Courier(alerts, deps.keyring, LOOPBACK) for _ in range(3)]
    assert sum(await asyncio.gather(*(c.round() for c in couriers))) == len(receiver.got) == 2
    assert await couriers[0].round() == 0
    bodies = [json.loads(body) for _, body in receiver.got]
    assert {tuple(body) for body in bodies} == {
        ("text",), ("id", "kind", "tenant", "subject", "message", "at", "data")
    }  # fmt: skip
    headers, body = next(g for g in receiver.got if b'"kind"' in g[1])
    at, given = (part.partition("=")[2] for part in headers["x-tollhouse-signature"].split(","))
    expected = hmac.new(hook["secret"].encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(given, expected)
    [sent] = (await admin.get(f"/webhooks/{hook['id']}/deliveries"))["items"]
    assert (sent["status"], sent["tries"], sent["last_error"]) == ("delivered", 1, None)


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_what_is_not_taken_is_tried_again_later(
    inside, admin, deps, alerts, owner, receiver, status
) -> None:
    receiver.status = status
    hook = await admin.post("/webhooks", {"name": "x", "url": receiver.url})
    assert (await admin.ask("POST", f"/webhooks/{hook['id']}/test")).status_code == 202
    courier, path = Courier(alerts, deps.keyring, LOOPBACK), f"/webhooks/{hook['id']}/deliveries"
    assert await courier.round() == 1 and await courier.round() == 0
    [sent] = (await admin.get(path))["items"]
    assert (sent["status"], sent["tries"], sent["last_error"]) == ("waiting", 1, f"it answered {status}")
    assert dt.datetime.fromisoformat(sent["next_at"]) > dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5)
    await Past(owner).run("UPDATE outbox SET next_at = now(), tries = 9")
    assert await courier.round() == 1
    assert (await admin.get(path))["items"][0]["status"] == "failed"
    assert len(receiver.got) == 2


async def test_no_webhook_reaches_the_inside(admin, deps, alerts, owner, receiver, refused) -> None:
    """A name that is public when the webhook is made may be private when it is called."""
    for url in (
        receiver.url,
        "https://169.254.169.254/",
        "https://[::ffff:10.0.0.1]/x",
        "http://example.com/",
    ):
        assert "url" in str(refused(await admin.ask("POST", "/webhooks", {"name": "x", "url": url}), 400))
    port = receiver.url.split(":")[2].split("/")[0]
    courier = Courier(alerts, deps.keyring, ())
    for host in ("localhost", "localhost.", "0x7f.1", "127.1", "2130706433"):
        hook = await admin.post("/webhooks", {"name": "x", "url": f"https://{host}:{port}/"})
        await admin.ask("POST", f"/webhooks/{hook['id']}/test")
        assert await courier.round() == 1
        [sent] = (await admin.get(f"/webhooks/{hook['id']}/deliveries"))["items"]
        assert sent["status"] == "waiting" and sent["last_error"].startswith("not sent: "), sent
        await admin.delete(f"/webhooks/{hook['id']}")
    assert receiver.got == []


async def test_a_tenant_admin_sees_its_own_webhooks_only(admin, refused) -> None:
    for slug in ("acme", "other"):
        await admin.tenant(slug)
    url = "https://hooks.example.com/x"
    made = await admin.post("/admins", {"name": "t", "role": "tenant-admin", "tenant": "acme"})
    theirs = admin.with_key(made["admin_key"])
    every = await admin.post("/webhooks", {"name": "all", "url": url})
    other = await admin.post("/webhooks", {"name": "o", "url": url, "tenant": "other"})
    mine = await theirs.post("/webhooks", {"name": "m", "url": url})
    assert mine["tenant"] == "acme"
    assert [w["id"] for w in (await theirs.get("/webhooks"))["items"]] == [mine["id"]]
    for ident in (every["id"], other["id"]):
        for method, path in (
            ("GET", ""),
            ("PATCH", ""),
            ("DELETE", ""),
            ("POST", "/test"),
            ("GET", "/deliveries"),
        ):
            body = {"name": "n"} if method == "PATCH" else None
            refused(await theirs.ask(method, f"/webhooks/{ident}{path}", body), 404)
    refused(await theirs.ask("POST", "/webhooks", {"name": "x", "url": url, "tenant": "other"}), 404)
    changed = await theirs.patch(
        f"/webhooks/{mine['id']}", {"status": "disabled"}, headers={"If-Match": '"1"'}
    )
    assert changed["status"] == "disabled"
    refused(
        await theirs.ask("PATCH", f"/webhooks/{mine['id']}", {"name": "x"}, headers={"If-Match": '"1"'}), 412
    )
    trail = (await admin.get("/audit?limit=3"))["items"]
    assert trail[0]["action"] == "webhook.change" and "secret" not in str(trail)
