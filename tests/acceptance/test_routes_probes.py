"""Calls that only probe: counted tokens are free, guardrails cost their text units; both have their rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.acceptance.test_routes import post, the_bill_is_the_ledger
from tests.support.stack import LLAMA, Key, Proxy, get_json, nano

TALK = [{"role": "user", "content": "Say hello to the toll keeper."}]
GUARD = "gr0guardrail"
#: the smallest Claude that CountTokens takes
COUNTED = "anthropic.claude-3-5-haiku-20241022-v1:0"


@pytest.fixture
def key(stack: Proxy) -> Key:
    return stack.key()


def guarded_key(stack: Proxy) -> Key:
    tenant = stack.tenant(overrides={"arns_allowed": [GUARD, "arn:aws:bedrock:us-east-1:*:guardrail/*"]})
    return stack.key(tenant)


def test_tokens_are_counted_for_nothing(stack: Proxy, simulator: Any, key: Key) -> None:
    client = stack.boto3(key)
    native = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": TALK}
    by_body = client.count_tokens(
        modelId=COUNTED, input={"invokeModel": {"body": json.dumps(native)}}
    )["inputTokens"]  # fmt: skip
    said = [{"role": "user", "content": [{"text": TALK[0]["content"]}]}]
    by_converse = client.count_tokens(modelId=COUNTED, input={"converse": {"messages": said}})["inputTokens"]
    assert by_body == by_converse > 5

    for path in ("/v1/messages/count_tokens", "/anthropic/v1/messages/count_tokens"):
        status, headers, answer = post(stack, key, path, {"model": COUNTED, "messages": TALK})
        assert status == 200 and answer == {"input_tokens": by_body}
        assert nano(headers["x-tollhouse-cost"]) == 0

    items = stack.settled_calls(key=key.id)
    assert [i["operation"] for i in items] == ["MessagesCountTokens"] * 2 + ["CountTokens"] * 2
    for item in items:
        assert item["outcome"] == "POST" and item["kind"] == "probe"
        assert nano(item["cost_usd"]) == nano(item["ceiling_usd"]) == 0
    assert get_json(f"{simulator.url}/_bill")["count"] == 0


def test_what_cannot_be_counted_says_so(stack: Proxy, key: Key) -> None:
    body: dict[str, Any] = {"input": {"converse": {"messages": []}}}
    status, headers, answer = post(stack, key, f"/model/{LLAMA}/count-tokens", body)
    assert status == 400 and headers["x-amzn-errortype"] == "ValidationException"
    assert "doesn't support" in answer["message"]
    status, _, answer = post(stack, key, f"/model/{COUNTED}/count-tokens", {"input": {}})
    assert status == 400
    status, _, answer = post(stack, key, "/v1/messages/count_tokens", {"model": LLAMA, "messages": TALK})
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    extras: tuple[dict[str, Any], ...] = ({"mcp_servers": []}, {"messages": None})
    for extra in extras:
        body = {"model": COUNTED, "messages": TALK} | extra
        status, _, answer = post(stack, key, "/v1/messages/count_tokens", body)
        assert status == 400, answer
    assert stack.calls(key=key.id) == []


def apply(text: str) -> dict[str, Any]:
    return {"source": "INPUT", "content": [{"text": {"text": text}}, {"text": {"text": "and more"}}]}


@pytest.mark.parametrize("identifier", [GUARD, "arn:aws:bedrock:us-east-1:123456789012:guardrail/abc"])
def test_a_guardrail_costs_its_text_units(stack: Proxy, simulator: Any, identifier: str) -> None:
    key = guarded_key(stack)
    answer = stack.boto3(key).apply_guardrail(
        guardrailIdentifier=identifier, guardrailVersion="1", **apply("x" * 2500)
    )
    assert answer["action"] == "NONE" and answer["usage"]["contentPolicyUnits"] == 3
    blocked = stack.boto3(key).apply_guardrail(
        guardrailIdentifier=identifier, guardrailVersion="DRAFT", **apply("[[guardrail=block]] ä")
    )
    assert blocked["action"] == "GUARDRAIL_INTERVENED"
    items = the_bill_is_the_ledger(stack, simulator, key, 2)
    for item, units in zip(items, (2, 6), strict=True):
        assert item["operation"] == "ApplyGuardrail" and item["kind"] == "probe"
        assert item["model"] == "guardrail" and item["target"] == f"us-east-1/{identifier}:{_version(units)}"
        assert nano(item["cost_usd"]) == units * 150_000 <= nano(item["ceiling_usd"])


def _version(units: int) -> str:
    return "DRAFT" if units == 2 else "1"


def test_guardrails_are_on_the_allow_list_and_in_the_budget(stack: Proxy, key: Key) -> None:
    path = f"/guardrail/{GUARD}/version/1/apply"
    status, headers, answer = post(stack, key, path, apply("hello"))
    assert status == 403 and headers["x-amzn-errortype"] == "AccessDeniedException"
    assert GUARD in answer["message"]
    free = guarded_key(stack)
    stack.budget(f"tenant:{free.tenant}", "0.000000001")
    status, headers, answer = post(stack, free, path, apply("hello"))
    assert status == 400 and headers["x-amzn-errortype"] == "ServiceQuotaExceededException"
    for path in (f"/guardrail/{GUARD}/version/0/apply", f"/guardrail/{GUARD}/version/x/apply"):
        assert post(stack, free, path, apply("hello"))[0] == 400
    for body in ({"source": "INPUT"}, {"source": "X", "content": []}, apply("x") | {"more": 1}):
        assert post(stack, free, f"/guardrail/{GUARD}/version/1/apply", body)[0] == 400
    assert stack.calls(key=free.id) == []


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize(
    "how", ["invoke", "invoke-with-response-stream", "converse", "converse-stream", "chat"]
)
def test_guardrails_on_a_model_are_exact_with_the_trace_and_bounded_without(
    stack: Proxy, simulator: Any, how: str, trace: bool
) -> None:
    key = guarded_key(stack)
    words = {"X-Amzn-Bedrock-GuardrailIdentifier": GUARD, "X-Amzn-Bedrock-GuardrailVersion": "1"}
    if trace:
        words["X-Amzn-Bedrock-Trace"] = "ENABLED"
    body: dict[str, Any] = {"prompt": "Say hello. [[tokens=20]]", "max_gen_len": 64}
    path = f"/model/{LLAMA}/{how}"
    if how.startswith("converse"):
        config = {"guardrailIdentifier": GUARD, "guardrailVersion": "1"}
        body = {
            "messages": [{"role": "user", "content": [{"text": "Say hello. [[tokens=20]]"}]}],
            "inferenceConfig": {"maxTokens": 64},
            "guardrailConfig": config | ({"trace": "enabled"} if trace else {}),
        }
        words = {}
    elif how == "chat":
        path = "/v1/chat/completions"
        body = {"model": LLAMA, "messages": TALK, "max_tokens": 64}
    status, _, answer = post(stack, key, path, body, **words)
    assert status == 200, answer
    [item] = stack.settled_calls(key=key.id)
    [billed] = get_json(f"{simulator.url}/_bill")["calls"]
    cost, owed = nano(item["cost_usd"]), nano(billed["cost_usd"])
    assert owed <= cost <= nano(item["ceiling_usd"]) and item["outcome"] == "POST"
    assert (cost == owed) is trace
