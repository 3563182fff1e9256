"""`limiter.lua` gives the same integers as its Python twin, on random sequences with one clock."""

import struct
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis as redis_client
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from proxy.domain.bucket import RATE_MAX, UNITS_MAX, Charge, Lease, Spend
from proxy.domain.bucketstore import Buckets
from proxy.redis.client import connect
from proxy.redis.limiter import SCRIPT, RedisLimiter

NOW = 1_700_000_000_000_000
TENANT = UUID(int=3)
LIMIT = UUID(int=4)

RATES = st.one_of(st.sampled_from([0, 1, 7, 60, 997, 100_000, RATE_MAX]), st.integers(0, RATE_MAX))
BURSTS = st.one_of(st.integers(1, 50), st.integers(1, UNITS_MAX))
COSTS = st.one_of(st.integers(0, 60), st.integers(0, UNITS_MAX))
PAUSES = st.one_of(
    st.just(0),
    st.integers(0, 100_000),
    st.sampled_from([4_999_999, 5_000_000, 59_999_999, 60_000_000]),
    st.integers(-5_000_000, 90_000_000),
)
OPS = st.sampled_from(["spend", "spend", "spend", "settle", "renew"])


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[int, str, Spend, int | None]]:
    """Steps on a few shared buckets whose rates and modes are fixed, as those of limits are."""
    prefix = f"th:{{{TENANT}}}:{uuid4().hex}:"
    buckets = [
        (
            prefix + str(i),
            draw(st.sampled_from(["requests", "tokens"])),
            draw(RATES),
            draw(BURSTS),
            draw(st.booleans()),
        )
        for i in range(draw(st.integers(0, 3)))
    ]
    leases = [
        Lease(f"{prefix}c{i}", "key", LIMIT, draw(st.integers(0, 3)), draw(st.booleans()))
        for i in range(draw(st.integers(0, 2)))
    ]
    spends: list[Spend] = []
    for _ in range(draw(st.integers(1, 6))):
        charges = tuple(
            Charge(k, "key", dimension, rate, burst, draw(COSTS), LIMIT, enforce)  # type: ignore[arg-type]
            for k, dimension, rate, burst, enforce in buckets
        )
        spends.append(Spend(TENANT, uuid4(), charges, tuple(leases)))
    steps = st.tuples(PAUSES, OPS, st.sampled_from(spends), st.one_of(st.none(), COSTS))
    return draw(st.lists(steps, min_size=1, max_size=14))


def _backwards() -> list[tuple[int, str, Spend, int | None]]:
    """A lease has ended; then the clock steps back to when it had not."""
    lease = Lease(f"th:{{{TENANT}}}:backwards", "key", LIMIT, 1, enforce=False)
    first, second, third = (Spend(TENANT, uuid4(), (), (lease,)) for _ in range(3))
    return [(1, "spend", first, None), (60_000_000, "spend", second, None), (-1, "spend", third, None)]


BACKWARDS = _backwards()


@pytest.fixture
def server(redis_url):
    with redis_client.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def program(redis_url):
    """How the limiter writes KEYS and ARGV; no connection is made."""
    return RedisLimiter(connect(redis_url), clock_us=lambda: 0)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=sequences())
@example(steps=BACKWARDS)
def test_lua_equals_python(server, program, steps):
    twin, now = Buckets(), NOW
    for pause, op, spend, actual in steps:
        now += pause
        want: Any
        if op == "spend":
            want = twin.spend(spend, now)
        elif op == "settle":
            want = int(twin.settle(spend, actual, now))
        else:
            want = int(twin.renew(spend, now))
        program._clock_us = lambda now=now: now
        keys, args = program._program(op, spend, actual or 0)
        got = integers(server.eval(SCRIPT.source, len(keys), *keys, *args))
        assert got == want, (op, now - NOW, spend, actual)


async def test_every_key_has_a_ttl_and_stays_under_the_hash_tag(redis_url, server):
    client = connect(redis_url, timeout_s=2.0)
    charge = Charge(f"th:{{{TENANT}}}:r", "key", "requests", 1, 1, 5, LIMIT)
    lease = Lease(f"th:{{{TENANT}}}:c", "key", LIMIT, 2)
    async with RedisLimiter(client) as limiter:
        spends = [Spend(TENANT, uuid4(), (charge,), (lease,)) for _ in range(3)]
        assert [(await limiter.spend(s)).allowed for s in spends] == [True, False, False]
        await limiter.renew(spends)
        keys = {key.decode(): server.pttl(key) for key in server.keys("*")}
        assert {k.split(":")[1] for k in keys} == {"workers", f"{{{TENANT}}}"}
        assert all(0 < ttl for ttl in keys.values()), keys
        assert keys[spends[0].record] <= 60_000
        assert keys[spends[1].record] <= 5_000
        assert 290_000 < keys[spends[0].buckets] <= 361_000, "the hash outlives its last bucket by a minute"
        assert server.hexists(spends[0].buckets, charge.key)
        await limiter.settle(spends[0], None)
        await client.submit("PING")
        assert not server.exists(lease.key)
    await client.aclose()
    assert server.zcard("th:workers") == 0


async def test_a_call_that_fills_no_bucket_leaves_nothing_without_an_end(redis_url, server):
    """The only bucket stays full, so that it is absent; the lease has nowhere to note its own end."""
    client = connect(redis_url, timeout_s=2.0)
    charge = Charge(f"th:{{{TENANT}}}:t", "key", "tokens", 60, 10, 0, LIMIT)
    spend = Spend(TENANT, uuid4(), (charge,), (Lease(f"th:{{{TENANT}}}:c", "key", LIMIT, 2),))
    async with RedisLimiter(client) as limiter:
        assert (await limiter.spend(spend)).allowed
        keys = {key.decode(): server.pttl(key) for key in server.keys("*")}
        assert all(0 < ttl for ttl in keys.values()), keys
        assert spend.buckets not in keys
    await client.aclose()


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def integers(reply: bytes | int) -> tuple[int, ...] | int:
    return reply if isinstance(reply, int) else struct.unpack(f"<{len(reply) // 8}q", reply)


@pytest.mark.parametrize(
    ("keys", "args"),
    [
        ([], []),
        (["r", "b"], ["take", "id", numbers(1000, 0)]),
        (["r", "b"], ["spend", "", numbers(1000, 0)]),
        (["r", "b"], ["spend", "id", numbers(1000)]),
        (["r", "b"], ["spend", "id", numbers(1000, 0) + b"x"]),
        (["r", "b"], ["spend", "id", numbers(0, 0)]),
        (["r"], ["spend", "id", numbers(1000, 0)]),
        (["r", "b"], ["spend", "id", numbers(1000, 0), "f"]),
        (["r", "b"], ["spend", "id", numbers(1000, 0, 1, 1, 1)]),
        (["r", "b"], ["spend", "id", numbers(1000, 0, 1, 1), "f"]),
        (["r", "b", "c"], ["spend", "id", numbers(1000, 0, 1, 1, 1), "f"]),
        (["r", "b"], ["settle", "id", numbers(1000, 0, 1), "f"]),
        (["r", "b", "c"], ["renew", "id", numbers(1000, 0)]),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(server, keys, args):
    with pytest.raises(ResponseError, match="limiter: "):
        server.eval(SCRIPT.source, len(keys), *keys, *args)
    assert server.keys("*") == []


def test_one_id_for_two_different_spends_is_an_error(server):
    one = ["id", numbers(60_000, NOW, 1_000_000, 9_000_000, 1), "f"]
    assert integers(server.eval(SCRIPT.source, 2, "r", "b", "spend", *one)) == (1, 1_000_000)
    with pytest.raises(ResponseError, match="other buckets"):
        server.eval(SCRIPT.source, 2, "r", "b", "spend", "id", numbers(60_000, NOW))


def test_the_worked_call_of_the_head_comment(server):
    packed = numbers(60_000, 5_000_000, 1_000_000, 9_000_000, 1, 3, 1)

    def call(spend: str):
        keys = [f"th:{{t}}:s:{spend}", "th:{t}:full", "th:{t}:x:c"]
        return integers(server.eval(SCRIPT.source, 3, *keys, "spend", spend, packed, "r"))

    assert call("9") == (1, 1_000_000, 1)
    assert call("9") == (1, 1_000_000, 1)
    assert (call("10")[0], call("11")[0]) == (1, 1)
    assert call("12") == (0, 3_000_000, -4)


async def test_a_set_of_leases_keeps_its_end_while_it_is_emptied_and_filled(redis_url, server):
    """Its end is not moved by every call, yet never comes before a lease's and is never missing."""
    client = connect(redis_url, timeout_s=2.0)
    charge = Charge("r", "key", "requests", 1_000_000, 1_000_000, 1, LIMIT)
    lease = Lease(f"th:{{{TENANT}}}:c", "key", LIMIT, 9)
    async with RedisLimiter(client, lease_ttl_s=5) as limiter:
        running: list[Spend] = []
        for step in "+++-+--+--++-+--":
            if step == "+":
                running.append(Spend(TENANT, uuid4(), (charge,), (lease,)))
                assert (await limiter.spend(running[-1])).allowed
            else:
                await limiter.settle(running.pop(0), None)
                await client.submit("PING")
            assert server.zcard(lease.key) == len(running)
            if running:
                assert 5_000 <= server.pttl(lease.key) + 100 <= 10_100
        assert 0 < server.pttl(running[0].buckets if running else Spend(TENANT, uuid4()).buckets)
    await client.aclose()
