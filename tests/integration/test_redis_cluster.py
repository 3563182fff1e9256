"""A cluster of two masters: the scripts reach the right one, because a call's keys share one hash tag."""

import asyncio
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis as redis_client

from proxy.domain.bucket import Charge, Lease, Spend
from proxy.embedded import Valkey
from proxy.redis.client import ClusterClient, RedisAway, connect
from proxy.redis.limiter import RedisLimiter
from proxy.redis.signals import Hint, Hints

LIMIT = UUID(int=21)
TENANTS = [UUID(int=i) for i in range(100, 112)]
HALVES = (("0", "8191"), ("8192", "16383"))


@pytest.fixture
def masters(server_dir: Path, free_port):
    buses = [free_port(), free_port()]
    servers = [
        Valkey.start(
            server_dir / f"cluster-{uuid4().hex[:8]}",
            with_password=False,
            settings={"cluster-enabled": "yes", "cluster-port": str(bus), "cluster-node-timeout": "1500"},
        )
        for bus in buses
    ]
    clients = [redis_client.Redis.from_url(server.url) for server in servers]
    for client, half in zip(clients, HALVES, strict=True):
        client.execute_command("CLUSTER ADDSLOTSRANGE", *half)
    clients[0].execute_command("CLUSTER MEET", "127.0.0.1", str(servers[1].port), str(buses[1]))
    began = time.monotonic()
    while any("ok" not in str(c.execute_command("CLUSTER INFO")["cluster_state"]) for c in clients):
        assert time.monotonic() - began < 15, "the cluster did not form"
        time.sleep(0.05)
    yield servers
    for client, server in zip(clients, servers, strict=True):
        client.close()
        server.stop()


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
    client = connect(masters[0].url.replace("redis://", "redis+cluster://").removesuffix("/0"), timeout_s=2.0)
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
