"""Identical prompts are paid once: kept answers, answers under way, and the tries of one call."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from botocore.eventstream import EventStreamBuffer

from proxy.embedded import Valkey
from tests.support.stack import LLAMA, Key, Proxy, get_json, nano, running

STREAM = "invoke-with-response-stream"


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_gen_len": 64, "temperature": 0, **more}


def path(operation: str = "invoke", model: str = LLAMA) -> str:
    return f"/model/{quote(model, safe='')}/{operation}"


def call(
    stack: Proxy, key: Key, prompt: str, operation: str = "invoke", **headers: str
) -> tuple[int, dict[str, str], Any]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return stack.request("POST", path(operation), body(prompt), key=key.bearer_token, headers=sent)


async def crowd(stack: Proxy, key: Key, n: int, operation: str, prompt: str) -> list[httpx.Response]:
    """The same request n times at once."""
    limits = httpx.Limits(max_connections=n)
    headers = {"authorization": f"Bearer {key.bearer_token}"}
    async with httpx.AsyncClient(base_url=stack.url, timeout=60, limits=limits) as client:
        return await asyncio.gather(
            *(client.post(path(operation), json=body(prompt), headers=headers) for _ in range(n))
        )


def chunks_of(stream: bytes) -> Iterable[dict[str, Any]]:
    """What botocore's own parser reads from an InvokeModelWithResponseStream answer."""
    buffer: Any = EventStreamBuffer()
    buffer.add_data(stream)
    for event in buffer:
        assert event.headers[":message-type"] == "event"
        yield json.loads(base64.b64decode(json.loads(event.payload)["bytes"]))


def outcomes(stack: Proxy, key: Key) -> Counter[str]:
    return Counter(item["outcome"] for item in stack.settled_calls(tenant=key.tenant))


def upstream_calls(simulator: Any) -> int:
    return int(get_json(f"{simulator.url}/_bill?summary=1")["count"])


@pytest.mark.parametrize("operation", ["invoke", STREAM])
async def test_two_hundred_identical_calls_are_one_call_upstream(stack, simulator, operation):
    key = stack.key()
    answers = await crowd(stack, key, 200, operation, "Which is the longest river? [[delay_ms=300]]")
    assert {a.status_code for a in answers} == {200}
    assert upstream_calls(simulator) == 1
    assert len({a.content for a in answers}) == 1
    assert len({a.headers["x-amzn-requestid"] for a in answers}) == 200
    assert Counter(a.headers["x-tollhouse-cache"] for a in answers) == {"hit": 199, "miss": 1}
    if operation == STREAM:
        parts = list(chunks_of(answers[0].content))
        assert parts[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] > 0
    assert outcomes(stack, key) == {"POST": 1, "HIT": 199}
    [paid] = stack.calls(tenant=key.tenant, outcome="POST")
    hits = stack.calls(tenant=key.tenant, outcome="HIT")
    assert {nano(i["cost_usd"]) for i in hits} == {0}
    assert {nano(i["saved_usd"]) for i in hits} == {nano(paid["cost_usd"])}


@pytest.mark.parametrize("operation", ["invoke", STREAM])
def test_a_repeated_call_costs_nothing_and_shows_the_originals_usage(stack, simulator, operation):
    key = stack.key()
    first = call(stack, key, "Name a bird.", operation)
    second = call(stack, key, "Name a bird.", operation)
    assert (first[0], second[0]) == (200, 200)
    assert first[2] == second[2]
    assert (first[1]["x-tollhouse-cache"], second[1]["x-tollhouse-cache"]) == ("miss", "hit")
    assert second[1]["age"].isdigit() and nano(second[1]["x-tollhouse-cost"]) == 0
    assert first[1]["x-amzn-requestid"] != second[1]["x-amzn-requestid"]
    assert upstream_calls(simulator) == 1
    hit, post = stack.settled_calls(tenant=key.tenant)
    assert (hit["outcome"], post["outcome"]) == ("HIT", "POST")
    assert hit["usage"] == post["usage"]
    assert hit["id"] == second[1]["x-tollhouse-call-id"]


def test_stock_boto3_reads_replayed_answers_of_all_operations(stack, simulator):
    client = stack.boto3(stack.key())
    messages = [{"role": "user", "content": [{"text": "Name a bird."}]}]
    config = {"maxTokens": 48, "temperature": 0.0}

    def once() -> tuple[Any, ...]:
        whole = client.invoke_model(modelId=LLAMA, body=json.dumps(body("Name a bird.")))
        streamed = client.invoke_model_with_response_stream(
            modelId=LLAMA, body=json.dumps(body("Name a bird."))
        )
        said = client.converse(modelId=LLAMA, messages=messages, inferenceConfig=config)
        told = client.converse_stream(modelId=LLAMA, messages=messages, inferenceConfig=config)
        seen = [
            r["ResponseMetadata"]["HTTPHeaders"]["x-tollhouse-cache"] for r in (whole, streamed, said, told)
        ]
        parts = [
            whole["body"].read(),
            list(streamed["body"]),
            said["output"],
            said["usage"],
            list(told["stream"]),
        ]
        return seen, parts

    first, second = once(), once()
    assert first[1] == second[1]
    assert (first[0], second[0]) == (["miss"] * 4, ["hit"] * 4)
    assert upstream_calls(simulator) == 4


def test_a_tenant_never_gets_anothers_answer(stack, simulator):
    one, other = stack.key(), stack.key()
    same_tenant = stack.key(one.tenant)
    seen = [
        call(stack, key, "Name a fish.")[1]["x-tollhouse-cache"] for key in (one, other, same_tenant, other)
    ]
    assert seen == ["miss", "miss", "hit", "hit"]
    assert upstream_calls(simulator) == 2


def test_what_the_client_says_about_caching_holds(stack, simulator):
    key = stack.key()

    def cached(**headers: str) -> str:
        return call(stack, key, "Name a tree.", **headers)[1]["x-tollhouse-cache"]

    assert cached(cache_control="no-store") == "bypass"
    assert cached() == "miss", "no-store left nothing behind"
    assert cached() == "hit"
    assert cached(cache_control="no-cache") == "bypass"
    assert cached(cache_control="max-age=0") == "bypass"
    assert cached(cache_control="max-age=3600") == "hit"
    assert upstream_calls(simulator) == 4


def test_a_replayed_trace_saves_what_the_bill_is_short_of(stack, simulator):
    """Forty prompts asked for two hundred times: to the call, and to the nano-dollar."""
    chance = random.Random(4)
    prompts = [f"Question {i}: " + "why? " * chance.randrange(1, 40) for i in range(40)]
    trace = [(chance.choice(prompts), chance.choice(["invoke", STREAM])) for _ in range(200)]
    unique = len(set(trace))

    def replay(**headers: str) -> tuple[Key, int]:
        simulator.reset()
        key = stack.key()
        for prompt, operation in trace:
            assert call(stack, key, prompt, operation, **headers)[0] == 200
        return key, nano(get_json(f"{simulator.url}/_bill?summary=1")["total_usd"])

    _, full_bill = replay(cache_control="no-store")
    key, bill = replay()
    items = stack.settled_calls(tenant=key.tenant)
    assert Counter(i["outcome"] for i in items) == {"POST": unique, "HIT": 200 - unique}
    assert sum(nano(i["saved_usd"]) for i in items) == full_bill - bill > 0
    assert sum(nano(i["cost_usd"]) for i in items) == bill


def test_a_client_that_timed_out_and_retried_pays_once_with_the_cache_off(stack, simulator):
    key = stack.key(overrides={"cache": {"enabled": False}})
    client = stack.boto3(key, read_timeout=1, retries={"total_max_attempts": 3, "mode": "standard"})
    prompt = body("Take your time. [[delay_ms=1800]]")
    answer = client.invoke_model(modelId=LLAMA, body=json.dumps(prompt))
    assert json.loads(answer["body"].read())["generation"]
    assert answer["ResponseMetadata"]["RetryAttempts"] == 1
    assert upstream_calls(simulator) == 1
    assert outcomes(stack, key) == {"POST": 1, "HIT": 1}
    client.invoke_model(modelId=LLAMA, body=json.dumps(prompt | {"max_gen_len": 63}))
    assert upstream_calls(simulator) == 2


def test_errors_and_cut_streams_are_asked_for_again(stack, simulator):
    key = stack.key()
    assert call(stack, key, "[[fault=error:ModelErrorException:1]] a")[0] == 424
    assert call(stack, key, "[[fault=error:ModelErrorException:1]] a")[1]["x-tollhouse-cache"] == "miss"
    simulator.fault({"fault": "close:2", "times": 1})
    cut = call(stack, key, "Tell a tale.", STREAM)
    assert b"modelStreamErrorException" in cut[2]
    whole = call(stack, key, "Tell a tale.", STREAM)
    assert whole[1]["x-tollhouse-cache"] == "miss"
    assert list(chunks_of(whole[2]))


def test_redis_killed_under_load_is_a_miss_and_never_an_error(database_url, simulator, server_dir, tmp_path):
    with Valkey.start(server_dir / "pay-once", with_password=False) as redis:
        proxy = Proxy(database_url, redis.url, simulator.url, tmp_path / "state")
        with running(proxy) as stack:
            key = stack.key()
            asyncio.run(hits_while_killed(stack, key, redis))
            seen = call(stack, key, "Name a star.")
            assert (seen[0], seen[1]["x-tollhouse-cache"]) == (200, "miss")
            redis.restart()
            time.sleep(1.2)
            seen_again = [call(stack, key, "Name a star.")[1]["x-tollhouse-cache"] for _ in range(2)]
            assert seen_again[1] == "hit"


async def hits_while_killed(stack: Proxy, key: Key, redis: Valkey) -> None:
    await crowd(stack, key, 1, "invoke", "Name a star.")
    waves = [asyncio.create_task(crowd(stack, key, 20, "invoke", "Name a star.")) for _ in range(5)]
    await asyncio.sleep(0.05)
    redis.kill()
    for wave in await asyncio.gather(*waves):
        assert {answer.status_code for answer in wave} == {200}


@pytest.mark.parametrize("operation", ["invoke", STREAM])
async def test_replicas_ask_once_together(stack, simulator, tmp_path, operation):
    other = Proxy(
        stack.database_url,
        stack.redis_url,
        stack.upstream_url,
        tmp_path / "other",
        master_key=stack.master_key,
    )
    with running(other):
        key = stack.key()
        other.await_key(key)
        prompt = "How far is the moon? [[delay_ms=400]]"
        waves = await asyncio.gather(*(crowd(proxy, key, 10, operation, prompt) for proxy in (stack, other)))
        answers = [answer for wave in waves for answer in wave]
        assert {a.status_code for a in answers} == {200}
        assert len({a.content for a in answers}) == 1
        assert upstream_calls(simulator) == 1
        assert outcomes(stack, key) == {"POST": 1, "HIT": 19}


def test_a_retry_that_reaches_another_replica_pays_once(stack, simulator, tmp_path):
    other = Proxy(
        stack.database_url,
        stack.redis_url,
        stack.upstream_url,
        tmp_path / "other",
        master_key=stack.master_key,
    )
    with running(other):
        key = stack.key(overrides={"cache": {"enabled": False}})
        other.await_key(key)
        prompt = "Take your time. [[delay_ms=1500]]"
        tries = {"amz_sdk_invocation_id": "0c3f", "amz_sdk_request": "attempt=1; max=3"}
        with ThreadPoolExecutor() as pool:
            first = pool.submit(call, stack, key, prompt, **tries)
            time.sleep(0.5)
            second = pool.submit(call, other, key, prompt, **tries | {"amz_sdk_request": "attempt=2; max=3"})
            assert first.result()[2] == second.result()[2]
        assert upstream_calls(simulator) == 1
        assert outcomes(stack, key) == {"POST": 1, "HIT": 1}


@pytest.mark.slow
def test_how_long_it_takes_does_not_tell_what_another_tenant_asked(stack, simulator):
    """Another tenant's prompts take as long as fresh ones (Kolmogorov-Smirnov)."""
    one, other = stack.key(), stack.key()
    asked = [f"Is question {i} known?" for i in range(150)]
    for prompt in asked:
        call(stack, one, prompt)
    probes = [(prompt, True) for prompt in asked] + [(f"Is question {i} new?", False) for i in range(150)]
    random.Random(5).shuffle(probes)
    times: dict[bool, list[float]] = {True: [], False: []}
    for prompt, known in probes:
        began = time.perf_counter()
        assert call(stack, other, prompt)[1]["x-tollhouse-cache"] == "miss"
        times[known].append(time.perf_counter() - began)
    # 2.23 sqrt(2/n) is the distance that two equal distributions exceed once in ten thousand tests
    assert distance(times[True], times[False]) < 2.23 * (2 / 150) ** 0.5


def distance(one: list[float], other: list[float]) -> float:
    """Largest difference of two empirical distribution functions."""
    one, other = sorted(one), sorted(other)
    return max(
        abs(bisect_right(one, t) / len(one) - bisect_right(other, t) / len(other)) for t in one + other
    )
