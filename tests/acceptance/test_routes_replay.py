"""A mixed replay: every family over every operation and route that serves it, and every name that can be
called. Two parties who share no arithmetic, the ledger and the simulator's bill, agree to the nano-dollar.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proxy import policyfile
from proxy.bedrock.dialects import FAMILIES
from proxy.domain.catalogue import Model
from tests.support.stack import Key, Proxy, get_json, nano

POLICIES = policyfile.load(Path(__file__).parents[2] / "policies", region="us-east-1")
TEXT = "Say hello to the toll keeper. [[tokens=20]]"
TALK = [{"role": "user", "content": TEXT}]
BLOCKS = [{"role": "user", "content": [{"text": TEXT}]}]
CONVERSE = {"messages": BLOCKS, "inferenceConfig": {"maxTokens": 64}}
#: a native body of each family
NATIVE: dict[str, dict[str, Any]] = {
    "llama": {"prompt": TEXT, "max_gen_len": 64},
    "anthropic": {"anthropic_version": "bedrock-2023-05-31", "messages": TALK, "max_tokens": 64},
    "anthropic-text": {"prompt": f"\n\nHuman: {TEXT}\n\nAssistant:", "max_tokens_to_sample": 64},
    "nova": {"messages": BLOCKS, "inferenceConfig": {"maxTokens": 64}},
    "titan-text": {"inputText": TEXT, "textGenerationConfig": {"maxTokenCount": 64}},
    "mistral": {"messages": TALK, "max_tokens": 64},
    "mistral-text": {"prompt": f"<s>[INST] {TEXT} [/INST]", "max_tokens": 64},
    "cohere-command": {"message": TEXT, "max_tokens": 64},
    "cohere-command-text": {"prompt": TEXT, "max_tokens": 64},
    "jamba": {"messages": TALK, "max_tokens": 64, "n": 2},
    "deepseek": {"prompt": TEXT, "max_tokens": 64},
    "openai": {"messages": TALK, "max_completion_tokens": 64},
    "openai-compatible": {"messages": TALK, "max_tokens": 64},
    "titan-embed": {"inputText": TEXT},
    "cohere-embed": {"texts": [TEXT, "Ho"], "input_type": "search_query"},
    "nova-canvas": {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "a cat"}},
    "titan-image": {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "a cat"}},
    "stability": {"prompt": "a cat"},
}
#: priced and bounded here, but the simulator has no such models
NOT_SIMULATED = {"ai21-j2", "nova-embed"}
NOT_SIMULATED_MODELS = {"amazon.titan-embed-image-v1"}

Sending = tuple[str, dict[str, Any]]


def chats(model: Model) -> bool:
    return FAMILIES[model.family].generates and model.modality.endswith("text")


def sendings(name: str, model: Model) -> Iterator[Sending]:
    """(path, body) of one call on every operation and route that serves the model."""
    native = NATIVE[model.family]
    yield f"/model/{name}/invoke", native
    if model.streaming:
        yield f"/model/{name}/invoke-with-response-stream", native
    if not chats(model):
        return
    yield f"/model/{name}/converse", CONVERSE
    streams = (False, True) if model.streaming else (False,)
    if model.streaming:
        yield f"/model/{name}/converse-stream", CONVERSE
    for stream in streams:
        more = {"stream": True} if stream else {}
        yield "/openai/v1/chat/completions", {"model": name, "messages": TALK, "max_tokens": 64} | more
        if model.openai and model.family == "openai":
            yield "/openai/v1/responses", {"model": name, "input": TEXT, "max_output_tokens": 64} | more
        if model.openai and model.family == "anthropic":
            yield "/anthropic/v1/messages", {"model": name, "messages": TALK, "max_tokens": 64} | more
    if model.count_tokens:
        yield f"/model/{name}/count-tokens", {"input": {"converse": {"messages": BLOCKS}}}
        yield "/v1/messages/count_tokens", {"model": name, "messages": TALK}


def one_of_each_family() -> dict[str, str]:
    """Family -> a name of one of its models; of Claude one that can be counted."""
    found: dict[str, str] = {}
    for name in POLICIES.ids:
        model = POLICIES.resolve(name).model
        if model.family in FAMILIES and (model.family not in found or model.count_tokens):
            found[model.family] = name
    return found


def fresh(proxy: Proxy) -> Key:
    return proxy.key(proxy.tenant(overrides={"cache": {"enabled": False}}))


def replay(proxy: Proxy, key: Key, calls: Iterable[Sending]) -> dict[str, Sending]:
    """By call id. Every one of them must be served."""

    def send(sending: Sending) -> tuple[str, Sending]:
        path, body = sending
        status, headers, answer = proxy.request("POST", path, json.dumps(body).encode(), key=key.bearer_token)
        assert status == 200, (path, status, answer)
        return headers["x-tollhouse-call-id"], sending

    with ThreadPoolExecutor(8) as pool:
        return dict(pool.map(send, calls))


def agree(proxy: Proxy, simulator: Any, key: Key, sent: dict[str, Sending]) -> list[dict[str, Any]]:
    """Every call has one row, every billed one its amount; both sides add up to the same total."""
    bill = {c["request_id"]: c for c in get_json(f"{simulator.url}/_bill")["calls"]}
    items = proxy.settled_calls(key=key.id)
    assert {item["id"] for item in items} == sent.keys()
    assert {item["outcome"] for item in items} == {"POST"}
    wrong = []
    for item in items:
        billed = bill.pop(item["upstream_request_id"], None)
        cost = nano(item["cost_usd"])
        owed = (
            0 if billed is None and item["kind"] == "probe" else nano(billed["cost_usd"]) if billed else None
        )
        if cost != owed or cost > nano(item["ceiling_usd"]):
            wrong.append((sent[item["id"]][0], sent[item["id"]][1].get("model"), cost, owed, item["usage"]))
    assert not wrong and not bill, wrong
    return items


def test_every_family_over_every_operation_and_route(stack: Proxy, simulator: Any) -> None:
    families = one_of_each_family()
    assert families.keys() == NATIVE.keys() | NOT_SIMULATED
    calls = [
        sending
        for family, name in families.items()
        if family not in NOT_SIMULATED
        for sending in sendings(name, POLICIES.resolve(name).model)
    ]
    key = fresh(stack)
    items = agree(stack, simulator, key, replay(stack, key, calls))
    assert len(items) == len(calls) > 70
    assert len({(item["model"], item["operation"]) for item in items}) >= len(calls) - 40


@pytest.mark.slow
def test_every_name_that_can_be_called(stack: Proxy, simulator: Any) -> None:
    runtime = {
        (key.model, key.prefix)
        for version in POLICIES.prices.versions
        for key in version.prices
        if key.endpoint == "runtime"
    }
    calls = []
    for name in POLICIES.ids:
        route = POLICIES.resolve(name)
        model, simulated = route.model, (route.model.id, route.targets[0].prefix) in runtime
        if simulated and model.family in NATIVE and model.id not in NOT_SIMULATED_MODELS:
            how, body = ("converse", CONVERSE) if chats(model) else ("invoke", NATIVE[model.family])
            calls.append((f"/model/{name}/{how}", body))
    key = fresh(stack)
    assert len(calls) > 200
    agree(stack, simulator, key, replay(stack, key, calls))
