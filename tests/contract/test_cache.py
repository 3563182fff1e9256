"""What every cache owes the pipeline, asked of the one in memory and the one over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from proxy.domain.usage import Usage
from proxy.ports import Answer, Cache
from proxy.redis.cache import RedisCache
from proxy.redis.client import connect
from proxy.testing_cache import MemoryCache

A, B = b"a" * 16, b"b" * 16
KEY = bytes(range(32))
TTL, BUDGET = 60, 1 << 20


def answer(body: bytes = b'{"ok":true}', model: str = "m", **fields: object) -> Answer:
    values = {
        "status": 200, "headers": (("content-type", "application/json"),), "body": body, "stream": False,
        "usage": Usage(input_tokens=3, output_tokens=2, cache_write_1h_tokens=7), "cost": 5, "model": model,
        "made_at": 1_700_000_000.25,
    } | fields  # fmt: skip
    return Answer(**values)  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "redis", "sealed"])
async def cache(request) -> AsyncIterator[Cache]:
    if request.param == "memory":
        yield MemoryCache()
        return
    client = connect(request.getfixturevalue("redis_url"), timeout_s=5.0)
    failures: list[int] = []
    key_of = (lambda tenant: tenant.bytes * 2) if request.param == "sealed" else None
    yield RedisCache(client, key_of=key_of, on_failure=lambda: failures.append(1))
    assert not failures
    await client.aclose()


async def test_what_was_stored_is_found_as_it_was(cache):
    tenant, kept = uuid4(), answer(b"\x00\xff" * 100_000, stream=True)
    assert (await cache.find(tenant, KEY, A)).answer is None
    shelf = await cache.store(tenant, KEY, A, kept, TTL, BUDGET)
    assert shelf.stored and (shelf.evicted, shelf.entries) == (0, 1)
    assert (await cache.find(tenant, KEY, b"")).answer == kept


async def test_another_tenant_or_key_finds_nothing(cache):
    tenant = uuid4()
    await cache.store(tenant, KEY, A, answer(), TTL, BUDGET)
    assert (await cache.find(uuid4(), KEY, b"")).answer is None
    assert (await cache.find(tenant, KEY[::-1], b"")).answer is None


async def test_one_has_the_turn_and_the_others_are_told(cache):
    tenant = uuid4()
    found = await asyncio.gather(*(cache.find(tenant, KEY, bytes([i]) * 16) for i in range(1, 11)))
    assert [f.busy for f in found] == [False] + [True] * 9
    assert not (await cache.find(tenant, KEY, bytes([1]) * 16)).busy, "its own turn"


async def test_a_turn_is_given_back_by_its_owner_only(cache):
    tenant = uuid4()
    await cache.find(tenant, KEY, A)
    cache.leave(tenant, KEY, B)
    assert (await cache.find(tenant, KEY, B)).busy
    cache.leave(tenant, KEY, A)
    assert not (await cache.find(tenant, KEY, B)).busy
    assert (await cache.find(tenant, KEY, A)).busy


async def test_an_announced_turn_is_a_turn(cache):
    tenant = uuid4()
    cache.announce(tenant, KEY, A)
    cache.announce(tenant, KEY, B)
    cache.renew(tenant, KEY, A)
    assert (await cache.find(tenant, KEY, B)).busy
    assert not (await cache.find(tenant, KEY, A)).busy


async def test_storing_gives_the_turn_back(cache):
    tenant = uuid4()
    await cache.find(tenant, KEY, A)
    await cache.store(tenant, KEY, A, answer(), TTL, 0)  # too large to keep
    assert not (await cache.find(tenant, KEY, B)).busy


async def test_the_budget_of_bytes_evicts_what_was_used_longest_ago(cache):
    tenant = uuid4()
    keys = [bytes([i]) * 32 for i in range(6)]
    import os

    for key in keys[:4]:
        await cache.store(tenant, key, b"", answer(os.urandom(10_000)), TTL, 45_000)
        await asyncio.sleep(0.003)
    await cache.find(tenant, keys[0], b"")
    await asyncio.sleep(0.003)
    shelf = await cache.store(tenant, keys[4], b"", answer(os.urandom(10_000)), TTL, 45_000)
    assert (shelf.evicted, shelf.entries) == (1, 4)
    assert shelf.bytes <= 45_000
    found = [(await cache.find(tenant, key, b"")).answer is not None for key in keys]
    assert found == [True, False, True, True, True, False]


async def test_an_answer_larger_than_the_budget_is_not_stored_and_evicts_nothing(cache):
    tenant = uuid4()
    import os

    await cache.store(tenant, KEY, b"", answer(), TTL, BUDGET)
    shelf = await cache.store(tenant, KEY[::-1], b"", answer(os.urandom(9_000)), TTL, 5_000)
    assert not shelf.stored
    assert (await cache.find(tenant, KEY, b"")).answer is not None


async def test_storing_again_replaces_and_does_not_count_twice(cache):
    tenant = uuid4()
    first = await cache.store(tenant, KEY, b"", answer(), TTL, BUDGET)
    second = await cache.store(tenant, KEY, b"", answer(), TTL, BUDGET)
    assert (second.entries, second.bytes) == (1, first.bytes)


async def test_purge_deletes_one_tenants_answers_of_one_model_or_all(cache):
    tenant, other = uuid4(), uuid4()
    for i in range(1500):
        await cache.store(tenant, i.to_bytes(32), b"", answer(model="m" if i % 3 else "n"), TTL, BUDGET * 4)
    await cache.store(other, KEY, b"", answer(), TTL, BUDGET)
    assert await cache.purge(tenant, "n") == 500
    assert await cache.purge(tenant, "n") == 0
    assert (await cache.find(tenant, (1).to_bytes(32), b"")).answer is not None
    assert await cache.purge(tenant) == 1000
    assert (await cache.find(tenant, (1).to_bytes(32), b"")).answer is None
    assert (await cache.find(other, KEY, b"")).answer is not None
    shelf = await cache.store(tenant, KEY, b"", answer(), TTL, BUDGET)
    assert shelf.entries == 1


async def test_a_promise_binds_a_key_to_one_request(cache):
    tenant = uuid4()
    assert await cache.promise(tenant, KEY, b"request 1")
    assert await cache.promise(tenant, KEY, b"request 1")
    assert not await cache.promise(tenant, KEY, b"request 2")
    assert await cache.promise(uuid4(), KEY, b"request 2")
