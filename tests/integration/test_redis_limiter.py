"""The limiter while Redis is killed, frozen, full or read-only: nobody waits, nothing raises, all recovers."""

import asyncio
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis as redis_client

from proxy.domain.bucket import Charge, Lease, Spend
from proxy.embedded import Valkey
from proxy.redis.client import connect
from proxy.redis.limiter import RedisLimiter

TENANT = UUID(int=11)
LIMIT = UUID(int=12)


def requests(per_minute=60, burst=60, name="r"):
    return Charge(f"th:{{{TENANT}}}:{name}", "key", "requests", per_minute, burst, 1, LIMIT)


def tokens(cost, name="t"):
    return Charge(f"th:{{{TENANT}}}:{name}", "key", "tokens", 60, 1_000, cost, LIMIT)


def slots(n, name="c"):
    return Lease(f"th:{{{TENANT}}}:{name}", "key", LIMIT, n)


def spend(*items):
    charges = tuple(i for i in items if isinstance(i, Charge))
    return Spend(TENANT, uuid4(), charges, tuple(i for i in items if isinstance(i, Lease)))


@pytest.fixture(scope="module")
def module_server(server_dir: Path):
    with Valkey.start(server_dir / "limiter-faults", with_password=False) as server:
        yield server


@pytest.fixture
def server(module_server: Valkey):
    with redis_client.Redis.from_url(module_server.url) as client:
        client.flushall()
    yield module_server
    module_server.resume() if module_server.running else module_server.restart()


@pytest.fixture
async def make(server):
    made = []

    async def build(timeout_s=0.2, **settings):
        client = connect(server.url, timeout_s=timeout_s)
        limiter = RedisLimiter(client, **settings)
        await limiter.start()
        made.append((limiter, client))
        return limiter

    yield build
    for limiter, client in made:
        await limiter.aclose()
        await client.aclose()


async def until(condition, limit_s=2.0):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_kill_under_load_changes_the_mode_at_once_and_recovers(make, server):
    limiter = await make()
    limit = requests(60_000, 1_000)
    slowest, modes, stop = 0.0, set(), asyncio.Event()

    async def caller():
        nonlocal slowest
        while not stop.is_set():
            began = time.monotonic()
            made = await limiter.spend(item := spend(limit, slots(100)))
            modes.add(made.mode)
            await limiter.settle(item, None)
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.001)

    load = [asyncio.create_task(caller()) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert limiter.mode == "redis"
    server.kill()
    assert await until(lambda: limiter.mode == "local") < 1
    await asyncio.sleep(0.2)
    await asyncio.to_thread(server.restart)
    assert await until(lambda: limiter.mode == "redis") < 1
    await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(*load)
    assert modes == {"redis", "local"}
    assert slowest < 0.5
    assert (await limiter.spend(spend(limit))).mode == "redis"


async def test_death_is_noticed_without_any_call(make, server):
    limiter = await make()
    server.kill()
    assert await until(lambda: limiter.mode == "local") < 1
    await asyncio.to_thread(server.restart)
    assert await until(lambda: limiter.mode == "redis") < 1


async def test_a_frozen_server_costs_one_deadline_once(make, server):
    limiter = await make()
    await limiter.spend(spend(requests()))
    server.pause()
    began = time.monotonic()
    first = await asyncio.gather(*(limiter.spend(spend(requests())) for _ in range(30)))
    assert time.monotonic() - began < 0.3
    assert {d.mode for d in first} == {"local"}
    began = time.monotonic()
    for _ in range(30):
        assert (await limiter.spend(spend(requests()))).mode == "local"
    assert time.monotonic() - began < 0.15
    await asyncio.sleep(0.6)  # probes that fail meanwhile hold nobody up
    began = time.monotonic()
    await limiter.spend(spend(requests()))
    assert time.monotonic() - began < 0.1
    server.resume()
    assert await until(lambda: limiter.mode == "redis") < 1


async def test_local_mode_enforces_an_equal_part(make, server):
    limiter = await make(replicas=4)
    server.kill()
    await until(lambda: limiter.mode == "local")
    limit = requests(60, 40)
    made = [await limiter.spend(spend(limit)) for _ in range(20)]
    assert sum(d.allowed for d in made) == 10
    assert made[-1].limited is not None and made[-1].limited.limit_id == LIMIT
    held = [spend(slots(8)) for _ in range(3)]
    assert [(await limiter.spend(s)).allowed for s in held] == [True, True, False]
    await limiter.settle(held[0], None)
    assert (await limiter.spend(spend(slots(8)))).allowed
    first = spend(tokens(250))
    assert (await limiter.spend(first)).snapshots[0].remaining == 0
    await limiter.settle(first, 50)
    assert (await limiter.spend(spend(tokens(0)))).snapshots[0].remaining == 200


@pytest.mark.parametrize(("away", "allowed"), [("deny", False), ("allow", True)])
async def test_the_other_declared_modes(make, server, away, allowed):
    limiter = await make(away=away)
    server.kill()
    await until(lambda: limiter.mode == away)
    made = await limiter.spend(spend(requests(60, 1)))
    assert (made.allowed, made.mode, made.limited) == (allowed, away, None)
    assert made.retry_after_ms == (0 if allowed else 1_000)


async def test_never_reached_server_is_away_from_the_start(free_port):
    client = connect(f"redis://127.0.0.1:{free_port()}", timeout_s=0.2)
    async with RedisLimiter(client) as limiter:
        assert limiter.mode == "local"
        assert (await limiter.spend(spend(requests()))).mode == "local"
        await limiter.renew([spend(slots(1))])
        await limiter.settle(spend(slots(1)), 5)
    await client.aclose()


async def test_workers_count_each_other(make):
    limiters = [await make() for _ in range(3)]
    await until(lambda: limiters[0].replicas == 3)
    await limiters[2].aclose()
    await until(lambda: limiters[0].replicas == 2)


async def test_settlements_of_an_outage_are_delivered_afterwards(make, server):
    limiter = await make()
    running = [spend(tokens(100), slots(10)) for _ in range(10)]
    assert all([(await limiter.spend(s)).allowed for s in running])
    assert not (await limiter.spend(spend(tokens(1)))).allowed
    server.pause()
    for each in running:
        await limiter.settle(each, 10)
    await until(lambda: limiter.mode == "local")
    server.resume()
    await until(lambda: limiter.mode == "redis" and not limiter._backlog)
    after = await limiter.spend(spend(tokens(0), slots(10)))
    assert after.snapshots[0].remaining in (900, 901, 902)
    assert after.snapshots[1].remaining == 9
    assert limiter.counters.lost_settlements == 0


async def test_a_late_spend_of_a_dead_connection_holds_nothing(make, server):
    """The server is frozen with a spend in its socket; the call is decided locally, runs and ends."""
    limiter = await make()
    late = spend(tokens(500), slots(1))
    server.pause()
    assert (await limiter.spend(late)).mode == "local"
    await limiter.settle(late, 100)
    server.resume()
    await until(lambda: limiter.mode == "redis" and not limiter._backlog)
    after = await limiter.spend(spend(tokens(0), slots(1)))
    assert after.allowed


async def test_a_call_decided_locally_holds_its_slot_in_redis_once_it_is_back(make, server):
    limiter = await make()
    server.kill()
    await until(lambda: limiter.mode == "local")
    running, over = spend(slots(1)), spend(slots(5, "other"))
    assert (await limiter.spend(running)).mode == "local"
    assert (await limiter.spend(over)).mode == "local"
    await asyncio.to_thread(server.restart)
    await until(lambda: limiter.mode == "redis")
    await limiter.settle(over, 1)
    await limiter.renew([running])
    assert not (await limiter.spend(spend(slots(1)))).allowed
    await limiter.settle(running, None)
    assert (await limiter.spend(spend(slots(1)))).allowed
    assert not limiter._unasked


async def test_leases_of_running_calls_return_after_data_loss(make, server):
    limiter = await make()
    running = spend(slots(1))
    assert (await limiter.spend(running)).allowed
    with redis_client.Redis.from_url(server.url) as client:
        client.flushall()
    await limiter.renew([running])
    assert not (await limiter.spend(spend(slots(1)))).allowed


@pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [
        (("CONFIG SET", "maxmemory", "1"), ("CONFIG SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    ],
    ids=["full", "read-only"],
)
async def test_a_server_that_takes_no_writes_is_away(make, server, break_it, mend_it):
    limiter = await make()
    with redis_client.Redis.from_url(server.url) as client:
        client.execute_command(*break_it)
        try:
            assert (await limiter.spend(spend(requests()))).mode == "local"
            await asyncio.sleep(0.3)
            assert limiter.mode == "local"
        finally:
            client.execute_command(*mend_it)
    await until(lambda: limiter.mode == "redis")
    assert limiter.counters.errors >= 1


async def test_a_lost_connection_alone_is_no_outage(make, server):
    """Idle cuts and failovers close connections; the call is asked again, once, under the same id."""
    limiter = await make()
    await limiter.spend(spend(requests()))
    with redis_client.Redis.from_url(server.url) as client:
        for taken in range(2, 6):
            client.client_kill_filter(_type="normal", skipme=True)
            made = await limiter.spend(spend(requests(60, 60)))
            assert (made.mode, made.allowed) == ("redis", True)
            assert made.snapshots[0].remaining in (60 - taken, 61 - taken)
    assert limiter.mode == "redis"


async def test_leases_expire_by_the_clock_of_the_server(make):
    limiter = await make(lease_ttl_s=0.6)
    held = spend(slots(1))
    assert (await limiter.spend(held)).allowed
    assert not (await limiter.spend(spend(slots(1)))).allowed
    await asyncio.sleep(0.4)
    await limiter.renew([held])
    await asyncio.sleep(0.4)
    assert not (await limiter.spend(spend(slots(1)))).allowed
    await asyncio.sleep(0.3)
    assert (await limiter.spend(spend(slots(1)))).allowed


async def test_two_workers_share_one_bucket_exactly(make):
    workers = [await make(timeout_s=2.0) for _ in range(2)]
    limit = requests(60, 100)
    made = await asyncio.gather(*(workers[i % 2].spend(spend(limit)) for i in range(500)))
    assert sum(d.allowed for d in made) in (100, 101)  # a second may pass
    assert {d.mode for d in made} == {"redis"}
