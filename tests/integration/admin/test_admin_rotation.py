"""Changing the master key refuses nobody."""

from uuid import UUID

import pytest
from litestar import Litestar
from sqlalchemy import text

from proxy.directory import Directory
from proxy.domain.delivery import webhook_context
from proxy.keys import Keyring, SealError
from proxy.postgres.rotation import Rewrapped, rewrap
from proxy.postgres.tenants import PostgresRoster
from proxy.web.admin import admin_routes
from tests.integration.admin.conftest import ADMIN_KEY, Admin


async def test_a_changed_master_key_refuses_nobody(admin, deps, engine) -> None:
    await admin.tenant()
    keys = [await admin.key() for _ in range(3)]
    await admin.post(f"/keys/{keys[2]['id']}/revoke")
    both = Keyring(bytes([7] * 32), previous=bytes(32))

    async def accepts(keyring: Keyring) -> tuple[list[bool], list[bool]]:
        directory = Directory(PostgresRoster(engine), keyring, deps.policies)
        await directory.load()
        tokens = [directory.by_token(key["bearer_token"]) is not None for key in keys[:2]]
        pairs = [directory.by_access_key_id(key["aws_access_key_id"]) for key in keys[:2]]
        good = [
            found is not None and found[1] == key["aws_secret_access_key"]
            for found, key in zip(pairs, keys, strict=False)
        ]
        return tokens, good

    assert await accepts(both) == ([True, True], [True, True])
    assert await rewrap(engine, both) == Rewrapped(secrets=2, bearers_left=2)
    assert await rewrap(engine, both) == Rewrapped(secrets=0, bearers_left=2)
    assert await accepts(both) == ([True, True], [True, True])
    assert await accepts(Keyring(bytes([7] * 32))) == ([False, False], [True, True])
    assert (await admin.get("/audit?object=keys"))["items"][0]["after"]["secrets"] == 2
    for key in keys[:2]:
        await admin.post(f"/keys/{key['id']}/revoke")
    assert (await rewrap(engine, both)).bearers_left == 0


async def test_admin_keys_under_the_old_key_are_counted_until_they_are_made_anew(admin, deps, engine) -> None:
    first = await admin.post("/admins", {"name": "ann", "role": "admin"})
    both = Keyring(bytes([7] * 32), previous=bytes(32))
    assert (await rewrap(engine, both)).admins_left == 1
    deps.keyring = both
    app = Litestar(route_handlers=[*admin_routes(deps)], openapi_config=None, logging_config=None)
    ann = Admin(app, first["admin_key"])
    fresh = await ann.post("/admins", {"name": "ann again", "role": "admin"})
    assert (await rewrap(engine, both)).admins_left == 1
    await Admin(app, fresh["admin_key"]).delete(f"/admins/{first['id']}")
    assert (await rewrap(engine, both)).admins_left == 0


async def test_webhooks_and_kept_answers_move_too(admin, deps, engine) -> None:
    await admin.tenant()
    hooks = [
        await admin.post("/webhooks", {"name": f"h{n}", "url": "https://hooks.example.com/"})
        for n in range(3)
    ]
    await admin.delete(f"/webhooks/{hooks[2]['id']}")
    order = {"idempotency-key": "order-1"}
    issued = await admin.post("/keys", {"tenant": "acme", "name": "ci"}, headers=order)
    old, new = deps.keyring, Keyring(bytes([7] * 32), previous=bytes(32))

    done = await rewrap(engine, new)
    assert (done.secrets, done.webhooks, done.webhooks_lost, done.answers) == (1, 2, 0, 1)
    assert await rewrap(engine, new) == Rewrapped(secrets=0, bearers_left=1)
    trail = (await admin.get("/audit?object=webhooks"))["items"]
    assert [one["after"]["webhooks"] for one in trail] == [2]

    alone = Keyring(bytes([7] * 32))
    async with engine.connect() as db:
        kept = {row.id: row.sealed for row in await db.execute(text("SELECT id, sealed FROM webhooks"))}
    for hook in hooks[:2]:
        ident = UUID(hook["id"])
        assert alone.unseal_answer(kept[ident], webhook_context(ident)).decode() == hook["secret"]
        with pytest.raises(SealError):
            old.unseal_answer(kept[ident], webhook_context(ident))
    deps.keyring = alone  # as a replica that was never told the old key
    again = Litestar(route_handlers=[*admin_routes(deps)], openapi_config=None, logging_config=None)
    replay = await Admin(again, ADMIN_KEY).post("/keys", {"tenant": "acme", "name": "ci"}, headers=order)
    assert replay["bearer_token"] == issued["bearer_token"]


async def test_a_webhook_whose_secret_is_lost_is_counted_and_holds_nothing_up(admin, engine) -> None:
    hook = await admin.post("/webhooks", {"name": "h", "url": "https://hooks.example.com/"})
    done = await rewrap(engine, Keyring(bytes([7] * 32), previous=bytes([8] * 32)))
    assert (done.webhooks, done.webhooks_lost) == (0, 1)
    assert hook["secret"]


async def test_a_secret_nobody_can_open_stops_it(admin, engine) -> None:
    await admin.tenant()
    await admin.key()
    with pytest.raises(SealError):
        await rewrap(engine, Keyring(bytes([7] * 32)))
