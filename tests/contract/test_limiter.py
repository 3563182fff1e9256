"""What every limiter owes the pipeline, asked of the one in memory and the one over a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from proxy.domain.bucket import LEASE_TTL_US, Charge, Lease, Spend
from proxy.ports import Limiter
from proxy.redis.client import connect
from proxy.redis.limiter import RedisLimiter
from proxy.testing_limiter import ManualClock, MemoryLimiter

LIMIT = UUID(int=7)
TTL_S = LEASE_TTL_US / 1e6


@asynccontextmanager
async def over_redis(url: str, clock: ManualClock) -> AsyncIterator[Limiter]:
    client = connect(url, timeout_s=2.0)
    async with RedisLimiter(client, clock_us=clock) as limiter:
        yield limiter
        assert limiter.mode == "redis"
        assert limiter.counters.failures == limiter.counters.errors == 0
    await client.aclose()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture(params=["memory", "redis"])
async def limiter(request, clock):
    if request.param == "memory":
        yield MemoryLimiter(clock)
        return
    async with over_redis(request.getfixturevalue("redis_url"), clock) as limiter:
        yield limiter


class Scene:
    """Spends of one tenant whose keys no other test uses."""

    def __init__(self):
        self.tenant = uuid4()

    def key(self, name: str) -> str:
        return f"th:{{{self.tenant}}}:{name}"

    def requests(self, per_minute=60, burst=10, *, name="r", enforce=True):
        return Charge(self.key(name), "key", "requests", per_minute, burst, 1, LIMIT, enforce)

    def tokens(self, cost, per_minute=6_000, burst=1_000, *, name="t", enforce=True):
        return Charge(self.key(name), "key", "tokens", per_minute, burst, cost, LIMIT, enforce)

    def slots(self, slots, *, name="c", enforce=True):
        return Lease(self.key(name), "key", LIMIT, slots, enforce)

    def spend(self, *items):
        charges = tuple(i for i in items if isinstance(i, Charge))
        leases = tuple(i for i in items if isinstance(i, Lease))
        return Spend(self.tenant, uuid4(), charges, leases)


@pytest.fixture
def scene():
    return Scene()


async def test_burst_then_rate(limiter, clock, scene):
    made = [await limiter.spend(scene.spend(scene.requests())) for _ in range(12)]
    assert [d.allowed for d in made] == [True] * 10 + [False] * 2
    assert [d.snapshots[0].remaining for d in made] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert made[-1].retry_after_ms == 1_000
    assert made[-1].limited == scene.requests()
    clock.advance(us=999_999)
    assert not (await limiter.spend(scene.spend(scene.requests()))).allowed
    clock.advance(us=1)
    assert (await limiter.spend(scene.spend(scene.requests()))).allowed


@pytest.mark.parametrize(("per_minute", "burst"), [(7, 7), (997, 13), (123_457, 40)])
async def test_burst_is_exact_where_the_rate_does_not_divide_a_minute(limiter, scene, per_minute, burst):
    made = [await limiter.spend(scene.spend(scene.requests(per_minute, burst))) for _ in range(burst + 3)]
    assert [d.allowed for d in made] == [True] * burst + [False] * 3
    assert [d.snapshots[0].remaining for d in made] == [*range(burst - 1, -1, -1), 0, 0, 0]


async def test_all_or_nothing(limiter, scene):
    wide, narrow = scene.requests(600, 100, name="wide"), scene.requests(60, 1, name="narrow")
    slots = scene.slots(5)
    assert (await limiter.spend(scene.spend(wide, narrow, slots))).allowed
    for _ in range(3):
        refused = await limiter.spend(scene.spend(wide, narrow, slots))
        assert not refused.allowed
        assert refused.limited == narrow
    probe = await limiter.spend(scene.spend(wide, slots))
    assert [s.remaining for s in probe.snapshots] == [98, 3]


async def test_concurrency_refuses_takes_from_no_bucket_and_comes_back(limiter, scene):
    bucket, slots = scene.requests(), scene.slots(2)
    first, second = scene.spend(bucket, slots), scene.spend(bucket, slots)
    assert (await limiter.spend(first)).allowed
    assert (await limiter.spend(second)).allowed
    refused = await limiter.spend(scene.spend(bucket, slots))
    assert (refused.allowed, refused.limited, refused.retry_after_ms) == (False, slots, 1_000)
    assert refused.snapshots[0].remaining == 8
    await limiter.settle(first, None)
    assert (await limiter.spend(scene.spend(bucket, slots))).allowed


async def test_leases_expire_unless_renewed(limiter, clock, scene):
    slots = scene.slots(1)
    forgotten = scene.spend(slots)
    assert (await limiter.spend(forgotten)).allowed
    clock.advance(seconds=TTL_S - 1)
    assert not (await limiter.spend(scene.spend(slots))).allowed
    clock.advance(seconds=1)
    kept = scene.spend(slots)
    assert (await limiter.spend(kept)).allowed
    for _ in range(5):
        clock.advance(seconds=TTL_S / 2)
        await limiter.renew([kept])
    assert not (await limiter.spend(scene.spend(slots))).allowed


async def test_same_id_gets_the_first_decision_and_takes_once(limiter, clock, scene):
    bucket, slots = scene.requests(60, 2), scene.slots(2)
    spend = scene.spend(bucket, slots)
    first = await limiter.spend(spend)
    clock.advance(us=500_000)
    assert [await limiter.spend(spend) for _ in range(5)] == [first] * 5
    assert (await limiter.spend(scene.spend(bucket, slots))).allowed
    refused = scene.spend(bucket, slots)
    no = await limiter.spend(refused)
    assert not no.allowed
    await limiter.settle(spend, None)
    assert await limiter.spend(refused) == no
    assert not (await limiter.spend(spend)).allowed, "a packet that comes after its own settle takes nothing"
    assert (await limiter.spend(scene.spend(slots))).allowed
    assert not (await limiter.spend(scene.spend(slots))).allowed


async def test_settle_gives_back_what_was_not_used(limiter, scene):
    spend = scene.spend(scene.tokens(1_000))
    assert (await limiter.spend(spend)).snapshots[0].remaining == 0
    await limiter.settle(spend, 300)
    await limiter.settle(spend, 300)
    await limiter.settle(spend, None)
    assert (await limiter.spend(scene.spend(scene.tokens(1)))).snapshots[0].remaining == 699


async def test_settle_charges_what_was_used_beyond_the_estimate(limiter, clock, scene):
    spend = scene.spend(scene.tokens(100))
    await limiter.spend(spend)
    await limiter.settle(spend, 2_000)
    refused = await limiter.spend(scene.spend(scene.tokens(1)))
    assert (refused.allowed, refused.retry_after_ms) == (False, 10_010)
    clock.advance(seconds=10.01)
    assert (await limiter.spend(scene.spend(scene.tokens(1)))).allowed


async def test_refused_later_gives_every_token_back_but_not_the_request(limiter, scene):
    spend = scene.spend(scene.requests(), scene.tokens(1_000))
    await limiter.spend(spend)
    await limiter.settle(spend, None)
    after = await limiter.spend(scene.spend(scene.requests(), scene.tokens(1)))
    assert [s.remaining for s in after.snapshots] == [8, 999]


async def test_cost_above_the_burst_passes_on_a_full_bucket_and_leaves_debt(limiter, clock, scene):
    assert (await limiter.spend(scene.spend(scene.tokens(5_000)))).allowed
    refused = await limiter.spend(scene.spend(scene.tokens(5_000)))
    assert (refused.allowed, refused.retry_after_ms) == (False, 50_000)
    clock.advance(seconds=50)
    assert (await limiter.spend(scene.spend(scene.tokens(5_000)))).allowed


async def test_observed_limits_count_and_never_refuse(limiter, scene):
    bucket, slots = scene.requests(60, 2, enforce=False), scene.slots(1, enforce=False)
    made = [await limiter.spend(scene.spend(bucket, slots)) for _ in range(3)]
    assert [d.allowed for d in made] == [True] * 3
    assert [d.observed for d in made] == [(), (slots,), (bucket, slots)]
    same_bucket = replace(bucket, enforce=True)
    assert not (await limiter.spend(scene.spend(same_bucket))).allowed


async def test_settle_without_spend_touches_nothing_and_bars_a_late_spend(limiter, scene):
    spend = scene.spend(scene.tokens(500), scene.slots(1))
    await limiter.settle(spend, 0)
    assert not (await limiter.spend(spend)).allowed
    fresh = await limiter.spend(scene.spend(scene.tokens(1), scene.slots(1)))
    assert [s.remaining for s in fresh.snapshots] == [999, 0]


async def test_renew_after_settle_takes_no_slot(limiter, scene):
    spend = scene.spend(scene.slots(1))
    await limiter.spend(spend)
    await limiter.settle(spend, None)
    await limiter.renew([spend])
    assert (await limiter.spend(scene.spend(scene.slots(1)))).allowed


async def test_renew_of_an_unknown_call_takes_its_enforced_slots(limiter, scene):
    shadow = scene.slots(1, name="shadow", enforce=False)
    await limiter.renew([scene.spend(scene.slots(1), shadow)])
    refused = await limiter.spend(scene.spend(scene.slots(1), shadow))
    assert (refused.allowed, refused.observed) == (False, ())


async def test_limits_of_zero_refuse(limiter, scene):
    for item in (scene.requests(0, 1, name="zero"), scene.slots(0, name="none")):
        refused = await limiter.spend(scene.spend(item))
        assert (refused.allowed, refused.limited, refused.retry_after_ms) == (False, item, 60_000)
        assert refused.snapshots[0].remaining == 0


async def test_concurrent_spends_take_exactly_the_burst(limiter, scene):
    bucket = scene.requests(100, 100)
    made = await asyncio.gather(*(limiter.spend(scene.spend(bucket)) for _ in range(500)))
    assert sum(d.allowed for d in made) == 100


async def test_cancelled_spend_leaves_the_limiter_usable(limiter, scene):
    task = asyncio.create_task(limiter.spend(scene.spend(scene.requests())))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    made = await asyncio.gather(
        *(limiter.spend(scene.spend(scene.requests(name=f"b{i}"))) for i in range(20))
    )
    assert all(d.allowed and d.snapshots[0].remaining == 9 for d in made)
