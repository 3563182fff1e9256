"""The cache and the sums of prefixes on a cluster: everything of a tenant lies in one slot."""

from __future__ import annotations

from uuid import UUID

from proxy.domain.prefix import Tally
from proxy.domain.usage import Usage
from proxy.ports import Answer
from proxy.redis.cache import RedisCache
from proxy.redis.client import connect
from proxy.redis.prefixes import RedisPrefixes
from tests.integration.test_redis_cluster import masters

__all__ = ["masters"]

KEY = bytes(range(32))


async def test_answers_of_many_tenants_over_both_masters(masters):
    url = masters[0].url.replace("redis://", "redis+cluster://").removesuffix("/0")
    client = connect(url, timeout_s=5.0)
    cache, sums = RedisCache(client), RedisPrefixes(client)
    answer = Answer(
        status=200, headers=(), body=b"x" * 1000, stream=True, usage=Usage(), cost=1, model="m", made_at=1.0
    )
    for tenant in map(UUID, (f"{i:032x}" for i in range(8))):
        assert not (await cache.find(tenant, KEY, b"a")).busy
        assert (await cache.find(tenant, KEY, b"b")).busy
        for i in range(3):  # two fit
            shelf = await cache.store(tenant, bytes([i]) * 32, b"", answer, 60, 1_000)
            assert shelf is not None and shelf.stored
        assert shelf is not None and shelf.evicted == 1
        cache.announce(tenant, KEY[::-1], b"a")
        assert (await cache.find(tenant, KEY[::-1], b"b")).busy
        assert [await cache.promise(tenant, KEY, r) for r in (b"1", b"1", b"2")] == [True, True, False]
        await sums.add({(tenant, "m"): Tally(calls=2, tokens=7)})
        assert await sums.report(tenant) == {"m": Tally(calls=2, tokens=7)}
        assert await cache.purge(tenant) == 2
        assert (await cache.find(tenant, bytes([2]) * 32, b"")).answer is None
    await client.aclose()
