import asyncio
import time
from uuid import uuid4

import pytest

from proxy.embedded import Valkey
from proxy.redis.client import connect
from proxy.redis.signals import Hint, Hints


@pytest.fixture
async def client(redis_url):
    made = connect(redis_url, timeout_s=2.0)
    yield made
    await made.aclose()


async def test_hint_is_seen_by_another_worker_and_is_dated(client):
    budget, headroom = uuid4(), -(2**60) - 1
    mine, theirs = Hints(client), Hints(client)
    assert await mine.hint(budget) is None
    await mine.publish(budget, Hint(period=20_270_101, version=3, headroom=headroom))
    seen = await theirs.hint(budget)
    assert seen is not None
    assert (seen.period, seen.version, seen.headroom) == (20_270_101, 3, headroom)
    assert seen.at_us > 1_700_000_000_000_000
    assert await mine.hint(budget) == seen


async def test_an_older_version_does_not_come_back(client):
    budget = uuid4()
    await Hints(client).publish(budget, Hint(1, 8, 500))
    await Hints(client).publish(budget, Hint(1, 7, 0))
    seen = await Hints(client).hint(budget)
    assert seen is not None and (seen.version, seen.headroom) == (8, 500)
    await Hints(client).publish(budget, Hint(1, 8, 400))
    seen = await Hints(client).hint(budget)
    assert seen is not None and seen.headroom == 400


async def test_a_hint_is_at_most_a_second_old(client):
    budget = uuid4()
    hints = Hints(client)
    await hints.publish(budget, Hint(1, 1, 0))
    assert await hints.hint(budget) is not None
    await asyncio.sleep(0.85)
    await hints.hint(budget)
    await asyncio.sleep(0.15)
    assert await hints.hint(budget) is None


async def test_without_redis_there_are_no_hints(free_port):
    client = connect(f"redis://127.0.0.1:{free_port()}")
    hints = Hints(client)
    await hints.publish(uuid4(), Hint(1, 1, 0))
    assert await hints.hint(uuid4()) is None
    await client.aclose()


async def test_a_frozen_server_delays_one_call_once(server_dir):
    with Valkey.start(server_dir / "signals-frozen", with_password=False) as server:
        client = connect(server.url, timeout_s=0.2)
        hints = Hints(client)
        assert await hints.hint(uuid4()) is None
        server.pause()
        began = time.monotonic()
        assert [await hints.hint(uuid4()) for _ in range(20)] == [None] * 20
        assert time.monotonic() - began < 0.3
        server.resume()
        await client.aclose()
