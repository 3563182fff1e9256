"""A cluster of two masters: the scripts reach the right one, because a call's keys share one hash tag."""

import asyncio
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis as redis_client

from proxy.domain.bucket import Charge, Lease, Spend
from proxy.redis.client import ClusterClient, RedisAway, connect
from proxy.redis.limiter import RedisLimiter
from proxy.redis.signals import Hint, Hints
from tests.support.valkeys import cluster, cluster_url

LIMIT = UUID(int=21)
TENANTS = [UUID(int=i) for i in range(100, 112)]


@pytest.fixture
def masters(server_dir: Path, free_port):
    with cluster(server_dir, free_port, 2) as servers:
        yield servers


def spend(tenant: UUID) -> Spend:
    stem = f"th:{{{tenant}}}:"
    return Spend(
        tenant,
        uuid4(),
        (
            Charge(stem + "r", "key", "requests", 60, 10, 1, LIMIT),
            Charge(stem + "t", "tenant", "tokens", 60, 100, 10, LIMIT),
        ),
        (Lease(stem + "c", "key", LIMIT, 20),),
    )


async def test_limits_of_many_tenants_over_both_masters(masters):
    client = connect(cluster_url(masters[0]), timeout_s=2.0)
    assert isinstance(client, ClusterClient)
    async with RedisLimiter(client) as limiter:
        calls = [spend(tenant) for tenant in TENANTS for _ in range(12)]
        made = await asyncio.gather(*(limiter.spend(call) for call in calls))
        assert {d.mode for d in made} == {"redis"}
        allowed = {
            t: sum(d.allowed for c, d in zip(calls, made, strict=True) if c.tenant == t) for t in TENANTS
        }
        assert set(allowed.values()) <= {10, 11}
        for call in calls:
            await limiter.settle(call, 0)
        await limiter.renew(calls[:3])
        hints = Hints(client)
        await hints.publish(TENANTS[0], Hint(1, 1, 5))
        assert (found := await hints.hint(TENANTS[0])) is not None and found.headroom == 5
        sizes = [redis_client.Redis.from_url(server.url).dbsize() for server in masters]
        assert all(size > len(TENANTS) for size in sizes), sizes
        assert limiter.mode == "redis"
        for server in masters:
            server.kill()
        began = time.monotonic()
        while limiter.mode == "redis":
            await limiter.spend(spend(TENANTS[0]))
        assert time.monotonic() - began < 2.5
    await client.aclose()
    with pytest.raises(RedisAway, match="closed"):
        await client.submit("PING")
