"""What makes a call dearer or cheaper: tiers, latency, prompt caching."""

import json
from decimal import Decimal
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from proxy.simulator.launch import Simulator

LLAMA = "meta.llama3-1-405b-instruct-v1:0"
CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"


def connect(url: str, region: str = "us-east-1"):
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=url,
        region_name=region,
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def bedrock(simulator: Simulator):
    return connect(simulator.url)


def prompt(text: str) -> str:
    return json.dumps({"prompt": text, "max_gen_len": 50})


def talk(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": text}]}]


def test_tiers_are_echoed_and_priced_as_served(simulator, bedrock):
    model = "qwen.qwen3-32b-v1:0"
    costs = {}
    for tier in ("default", "flex", "priority"):
        answer = bedrock.converse(modelId=model, messages=talk("x [[tokens=50]]"), serviceTier={"type": tier})
        assert answer["serviceTier"]["type"] == tier
        costs[tier] = Decimal(simulator.bill()["calls"][-1]["cost_usd"])
    assert costs["flex"] < costs["default"] < costs["priority"]
    answer = bedrock.converse(modelId=LLAMA, messages=talk("x"), serviceTier={"type": "priority"})
    assert answer["serviceTier"]["type"] == "default"
    answer = bedrock.invoke_model(modelId=LLAMA, body=prompt("x"), serviceTier="flex")
    assert answer["serviceTier"] == "default"


def test_latency_optimized_falls_back_in_silence(simulator):
    bedrock = connect(simulator.url, region="us-east-2")
    model = f"us.{LLAMA}"
    short = bedrock.invoke_model(
        modelId=model, body=prompt("x [[tokens=10]]"), performanceConfigLatency="optimized"
    )
    assert short["performanceConfigLatency"] == "optimized"
    long = bedrock.converse(
        modelId=model, messages=talk("abcd " * 11_001), performanceConfig={"latency": "optimized"}
    )
    assert long["performanceConfig"]["latency"] == "standard"
    first, second = simulator.bill()["calls"]
    assert Decimal(first["cost_usd"]) == Decimal(3 * (first["input_tokens"] + 10)) / 10**6
    tokens = second["input_tokens"] + second["output_tokens"]
    assert Decimal(second["cost_usd"]) == Decimal("2.4") * tokens / 10**6
    elsewhere = connect(simulator.url).converse(
        modelId=model, messages=talk("x"), performanceConfig={"latency": "optimized"}
    )
    assert elsewhere["performanceConfig"]["latency"] == "standard"


def test_cache_points_write_first_and_read_later(simulator, bedrock):
    cached = [{"text": "abcd " * 100}, {"cachePoint": {"type": "default", "ttl": "1h"}}]
    ask = {"modelId": CLAUDE, "system": cached, "messages": talk("x [[tokens=2]]")}
    first, second = bedrock.converse(**ask)["usage"], bedrock.converse(**ask)["usage"]
    written = first["cacheWriteInputTokens"]
    assert written >= 100
    assert first["cacheDetails"] == [{"ttl": "1h", "inputTokens": written}]
    assert first["cacheReadInputTokens"] == 0
    assert (second["cacheReadInputTokens"], second["cacheWriteInputTokens"]) == (written, 0)
    assert first["inputTokens"] == second["inputTokens"]
    one, two = (Decimal(call["cost_usd"]) * 10**6 for call in simulator.bill()["calls"])
    rest = first["inputTokens"] * Decimal("3.3") + 2 * Decimal("16.5")
    assert one == rest + written * Decimal("6.6")
    assert two == rest + written * Decimal("0.33")


def test_cache_control_in_native_bodies_and_headers(simulator, bedrock):
    block = {"type": "text", "text": "abcd " * 100, "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [block, {"type": "text", "text": "x"}]}]
    body = json.dumps({"max_tokens": 5, "messages": messages})
    bedrock.invoke_model(modelId=CLAUDE, body=body)
    answer = bedrock.invoke_model(modelId=CLAUDE, body=body)
    usage = json.loads(answer["body"].read())["usage"]
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert usage["cache_read_input_tokens"] >= 100
    assert headers["x-amzn-bedrock-cache-read-input-token-count"] == str(usage["cache_read_input_tokens"])
    assert headers["x-amzn-bedrock-input-token-count"] == str(usage["input_tokens"])
    first, second = simulator.bill()["calls"]
    assert first["cache_write_5m_tokens"] == second["cache_read_tokens"] == usage["cache_read_input_tokens"]


def test_models_without_prompt_caching_say_so(bedrock):
    with pytest.raises(ClientError, match="did not allow prompt caching"):
        bedrock.converse(
            modelId=LLAMA, messages=talk("x"), system=[{"text": "y"}, {"cachePoint": {"type": "default"}}]
        )
