"""The cache while Redis is killed, frozen or full, and what lies in it: a miss, never an error, no secret."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis as redis_client

from proxy.domain.usage import Usage
from proxy.embedded import Valkey
from proxy.errors import Unavailable
from proxy.ports import NOT_FOUND, Answer
from proxy.redis.cache import RedisCache
from proxy.redis.client import connect
from proxy.redis.entries import Entries, UnreadableError

TENANT = UUID(int=21)
KEY = bytes(range(32))
BUDGET = 1 << 26
SECRET = b"the-canary-in-the-answer"


def answer(body: bytes = SECRET * 100) -> Answer:
    return Answer(
        status=200, headers=(("content-type", "application/json"),), body=body, stream=False,
        usage=Usage(input_tokens=1), cost=1, model="m", made_at=1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def module_server(server_dir: Path) -> Iterator[Valkey]:
    with Valkey.start(server_dir / "cache-faults", with_password=False) as server:
        yield server


@pytest.fixture
def server(module_server: Valkey) -> Iterator[Valkey]:
    with redis_client.Redis.from_url(module_server.url) as client:
        client.flushall()
    yield module_server
    module_server.resume() if module_server.running else module_server.restart()


@pytest.fixture
async def cache(server: Valkey) -> AsyncIterator[RedisCache]:
    client = connect(server.url, timeout_s=0.5)
    yield RedisCache(client, key_of=lambda tenant: tenant.bytes * 2)
    await client.aclose()


async def test_redis_killed_in_the_middle_of_a_hit_is_a_miss(server, cache):
    await cache.store(TENANT, KEY, b"", answer(os.urandom(1 << 20)), 60, BUDGET)
    asked = [asyncio.create_task(cache.find(TENANT, KEY, b"me")) for _ in range(50)]
    await asyncio.sleep(0)
    server.kill()
    found = await asyncio.gather(*asked)
    assert all(f == NOT_FOUND or f.answer is not None for f in found)
    began = time.monotonic()
    assert await cache.find(TENANT, KEY, b"me") == NOT_FOUND
    cache.announce(TENANT, KEY, b"me")
    cache.renew(TENANT, KEY, b"me")
    cache.leave(TENANT, KEY, b"me")
    assert await cache.store(TENANT, KEY, b"me", answer(), 60, BUDGET) is None
    assert await cache.promise(TENANT, KEY, b"r")
    assert time.monotonic() - began < 0.3, "after a failure nobody waits"
    with pytest.raises(Unavailable):
        await cache.purge(TENANT)


async def test_a_frozen_redis_delays_one_call(server, cache):
    await cache.store(TENANT, KEY, b"", answer(), 60, BUDGET)
    server.pause()
    began = time.monotonic()
    assert await cache.find(TENANT, KEY, b"") == NOT_FOUND
    first = time.monotonic() - began
    began = time.monotonic()
    for _ in range(100):
        assert await cache.find(TENANT, KEY, b"") == NOT_FOUND
    assert first < 1.0 and time.monotonic() - began < 0.2
    server.resume()
    await asyncio.sleep(1.1)
    assert (await cache.find(TENANT, KEY, b"")).answer == answer()


async def test_a_full_redis_keeps_nothing_and_breaks_nothing(server, cache):
    with redis_client.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)
        try:
            assert await cache.store(TENANT, KEY, b"", answer(), 60, BUDGET) is None
            assert await cache.find(TENANT, KEY, b"me") == NOT_FOUND
        finally:
            client.config_set("maxmemory", 0)


async def test_nothing_that_was_said_is_legible_in_redis_and_every_key_has_an_end(server, cache):
    await cache.find(TENANT, KEY, b"me")
    await cache.store(TENANT, KEY, b"", answer(), 60, BUDGET)
    await cache.promise(TENANT, KEY, b"r")
    with redis_client.Redis.from_url(server.url) as client:
        names = client.keys()
        dumped = b"".join(client.dump(name) for name in names)
        assert len(names) == 5
        assert all(client.pttl(name) > 0 for name in names)
        assert all(b"{%s}" % str(TENANT).encode() in name for name in names)
    assert SECRET not in dumped and SECRET.hex().encode() not in dumped


async def test_a_copied_or_changed_entry_is_a_miss(server, cache):
    other = uuid4()
    await cache.store(TENANT, KEY, b"", answer(), 60, BUDGET)
    with redis_client.Redis.from_url(server.url) as client:
        name = f"th:{{{TENANT}}}:c:{KEY.hex()}"
        entry = client.get(name)
        client.set(f"th:{{{other}}}:c:{KEY.hex()}", entry)
        client.set(f"th:{{{TENANT}}}:c:{KEY[::-1].hex()}", entry)
        assert await cache.find(other, KEY, b"") == NOT_FOUND
        assert await cache.find(TENANT, KEY[::-1], b"") == NOT_FOUND
        for changed in (b"", entry[:1], entry[:40], entry[:-1], entry[:-1] + b"\x00", b"\x10" + entry[1:]):
            client.set(name, changed)
            assert await cache.find(TENANT, KEY, b"") == NOT_FOUND
        client.set(name, entry)
        assert (await cache.find(TENANT, KEY, b"")).answer == answer()


async def test_another_key_does_not_open_what_was_sealed(server):
    client = connect(server.url)
    old, new, opened = (
        RedisCache(client, key_of=k) for k in (lambda t: b"o" * 32, lambda t: b"n" * 32, None)
    )
    await old.store(TENANT, KEY, b"", answer(), 60, BUDGET)
    assert await new.find(TENANT, KEY, b"") == NOT_FOUND
    assert await opened.find(TENANT, KEY, b"") == NOT_FOUND
    await opened.store(TENANT, KEY, b"", answer(), 60, BUDGET)
    assert await old.find(TENANT, KEY, b"") == NOT_FOUND
    await client.aclose()


async def test_ended_entries_stop_counting(server, cache):
    for i in range(10):
        await cache.store(TENANT, bytes([i]) * 32, b"", answer(), 1, BUDGET)
    await asyncio.sleep(1.1)
    shelf = await cache.store(TENANT, KEY, b"", answer(), 60, BUDGET)
    assert shelf.entries == 1


async def test_a_turn_ends_by_itself(server, cache, monkeypatch):
    monkeypatch.setattr("proxy.redis.cache.TURN_MS", 100)
    await cache.find(TENANT, KEY, b"killed")
    assert (await cache.find(TENANT, KEY, b"me")).busy
    await asyncio.sleep(0.15)
    assert not (await cache.find(TENANT, KEY, b"me")).busy


async def test_a_lost_index_is_built_again(server, cache):
    await cache.store(TENANT, KEY, b"", answer(os.urandom(9_000)), 60, 10_000)
    with redis_client.Redis.from_url(server.url) as client:
        client.delete(f"th:{{{TENANT}}}:cache:index")
    shelf = await cache.store(TENANT, KEY[::-1], b"", answer(os.urandom(9_000)), 60, 10_000)
    assert shelf.stored and shelf.bytes < 10_000


def test_few_bytes_cannot_become_many():
    import zstandard

    bomb = b"\x20" + zstandard.ZstdCompressor(level=19).compress(b"\x00" * (200 << 20))
    with pytest.raises(UnreadableError):
        Entries(None).unpack(TENANT, KEY, bomb)
