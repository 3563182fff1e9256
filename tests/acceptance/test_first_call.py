"""Stock boto3 does all four operations through governance; the ledger equals the bill."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.stack import CLAUDE, LLAMA, Proxy, get_json, nano


def bodies(model: str) -> dict[str, Any]:
    if model == LLAMA:
        return {
            "prompt": "Say hello to the toll keeper.",
            "max_gen_len": 64,
            "temperature": 0.2,
            "top_p": 0.9,
        }
    return {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "Say hello to the toll keeper."}],
    }


def four_operations(client: Any, model: str) -> None:
    body = json.dumps(bodies(model))
    answer = client.invoke_model(modelId=model, body=body)
    assert json.loads(answer["body"].read())
    chunks = [
        e["chunk"]["bytes"]
        for e in client.invoke_model_with_response_stream(modelId=model, body=body)["body"]
    ]
    assert b"amazon-bedrock-invocationMetrics" in chunks[-1]
    messages = [{"role": "user", "content": [{"text": "Say hello to the toll keeper."}]}]
    config = {"maxTokens": 64}
    answer = client.converse(modelId=model, messages=messages, inferenceConfig=config)
    assert answer["usage"]["outputTokens"] > 0
    events = list(client.converse_stream(modelId=model, messages=messages, inferenceConfig=config)["stream"])
    assert "metadata" in events[-1]


@pytest.mark.parametrize("model", [LLAMA, CLAUDE])
def test_four_operations_with_stock_boto3(stack: Proxy, simulator: Any, model: str) -> None:
    key = stack.key()
    four_operations(stack.boto3(key), model)

    items = stack.settled_calls(tenant=key.tenant)
    assert sorted(i["operation"] for i in items) == [
        "Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream",
    ]  # fmt: skip
    assert {i["outcome"] for i in items} == {"POST"}
    assert all(i["model"] == model and nano(i["cost_usd"]) <= nano(i["ceiling_usd"]) for i in items)
    assert_ledger_equals_bill(stack, simulator, key.tenant)


def assert_ledger_equals_bill(stack: Proxy, simulator: Any, tenant: str) -> None:
    bill = {c["request_id"]: c for c in get_json(f"{simulator.url}/_bill")["calls"]}
    ledger = {
        i["upstream_request_id"]: i for i in stack.settled_calls(tenant=tenant) if i["upstream_request_id"]
    }
    assert bill.keys() == ledger.keys()
    for request_id, billed in bill.items():
        item = ledger[request_id]
        assert nano(item["cost_usd"]) == nano(billed["cost_usd"]), (item, billed)
        assert item["usage"]["input_tokens"] == billed["input_tokens"]
        assert item["usage"]["output_tokens"] == billed["output_tokens"]


def test_curl_with_a_bearer_key(stack: Proxy, simulator: Any) -> None:
    key = stack.key()
    status, headers, body = stack.request(
        "POST", f"/model/{LLAMA}/invoke", bodies(LLAMA), key=key.bearer_token
    )
    assert status == 200, body
    assert body["generation_token_count"] > 0
    assert headers["x-tollhouse-call-id"]
    [item] = stack.settled_calls(tenant=key.tenant)
    assert item["id"] == headers["x-tollhouse-call-id"]
    assert nano(item["cost_usd"]) == nano(headers["x-tollhouse-cost"])
    assert_ledger_equals_bill(stack, simulator, key.tenant)
