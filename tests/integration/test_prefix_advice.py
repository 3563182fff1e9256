"""What workers saw of prefixes adds up in Redis, holds no text, and becomes an advice in money."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest
import redis as redis_client

from proxy.advice import PrefixLog
from proxy.domain.prefix import Tally
from proxy.domain.rates import Rates
from proxy.domain.usage import Usage
from proxy.redis.client import connect
from proxy.redis.prefixes import RedisPrefixes

MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
RATES = Rates(
    input=3_000_000_000, cache_read=300_000_000, cache_write_5m=3_750_000_000, cache_write_1h=6_000_000_000
)
CANARY = "the-canary-in-the-prompt "


def prompt(question: str) -> dict[str, object]:
    return {
        "system": [{"text": CANARY * 400}],
        "messages": [{"role": "user", "content": [{"text": question}]}],
    }


@pytest.fixture
async def sums(redis_url):
    client = connect(redis_url, timeout_s=5.0)
    yield RedisPrefixes(client)
    await client.aclose()


async def test_two_workers_make_one_advice(sums, redis_url):
    tenant, other = uuid4(), uuid4()
    workers = [PrefixLog(sums, lambda model: RATES if model == MODEL else None) for _ in range(2)]
    for worker in workers:
        for i in range(5):
            worker.observe(tenant, MODEL, prompt(f"question {i}"), 10_100, Usage(input_tokens=2_500))
        worker.observe(tenant, "meta.llama3", {"prompt": "x"}, 20, Usage(input_tokens=5))
        await worker.flush()
    claude, llama = await workers[0].report(tenant) or []
    assert (claude.model, claude.tally.calls, llama.tally.calls) == (MODEL, 10, 2)
    best = claude.options[0]
    assert (best.place, best.ttl) == ("system", "5m")
    read, write = best.read_tokens, best.write_tokens
    assert read == 4 * write > 0
    assert best.saved == (read * 2_700_000_000 - write * 750_000_000) // 1_000_000
    assert claude.sentence == "Place a cache point at the end of the system prompt (ttl 5m)."
    assert llama.sentence == "This model takes no cache points."
    assert await workers[0].report(other) == []
    with redis_client.Redis.from_url(redis_url) as client:
        names = client.keys()
        assert names and all(0 < client.ttl(name) <= 25 * 3600 for name in names)
        assert CANARY.strip().encode() not in b"".join(client.dump(name) for name in names)


async def test_hours_add_up_and_yesterday_is_forgotten(sums, redis_url):
    tenant, hour = uuid4(), int(time.time()) // 3600
    await sums.add({(tenant, MODEL): Tally(calls=1)})
    with redis_client.Redis.from_url(redis_url) as client:
        client.hset(f"th:{{{tenant}}}:prefix:{hour - 3}", f"{MODEL} calls", 10)
        client.hset(f"th:{{{tenant}}}:prefix:{hour - 40}", f"{MODEL} calls", 100)
    found = await sums.report(tenant)
    assert found[MODEL].calls == 11


async def test_losses_and_prompts_that_never_repeat_are_told(sums):
    tenant = uuid4()
    log = PrefixLog(sums, lambda _: RATES)
    for i in range(3):
        body = prompt("q") | {"system": [{"text": f"{i}" + CANARY * 400}]}
        log.observe(tenant, MODEL, body, 10_100, Usage(input_tokens=2_500))
    log.observe(tenant, MODEL + "-short", {"prompt": "x"}, 20, Usage(input_tokens=5))
    await log.flush()
    long, short = await log.report(tenant) or []
    assert all(o.saved < 0 for o in long.options) or short.options == []
    assert {long.sentence[:40], short.sentence[:40]} == {
        "No way of placing cache points would hav",
        "No prompt had a prefix of 1024 tokens th",
    }


async def test_redis_away_is_a_gap_and_no_error(free_port):
    client = connect(f"redis://127.0.0.1:{free_port()}/0")
    log = PrefixLog(RedisPrefixes(client), lambda _: RATES)
    log.observe(uuid4(), MODEL, prompt("q"), 10_100, Usage(input_tokens=2_500))
    await log.flush()
    assert await log.report(uuid4()) is None
    await client.aclose()


def test_a_body_that_cannot_be_taken_apart_is_only_left_out(sums):
    log = PrefixLog(sums, lambda _: None)
    log.observe(uuid4(), MODEL, {"messages": [object()]}, 5_000, Usage(input_tokens=9))
