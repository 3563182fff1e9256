"""Changing the master key refuses nobody."""

import pytest

from proxy.directory import Directory
from proxy.keys import Keyring, SealError
from proxy.postgres.rotation import Rewrapped, rewrap
from proxy.postgres.tenants import PostgresRoster


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


async def test_a_secret_nobody_can_open_stops_it(admin, engine) -> None:
    await admin.tenant()
    await admin.key()
    with pytest.raises(SealError):
        await rewrap(engine, Keyring(bytes([7] * 32)))
