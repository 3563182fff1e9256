import json

import pytest

from proxy.bedrock.dialects import (
    CONVERSE,
    native,
    parse,
)
from proxy.errors import Invalid, UnboundedCost
from tests.unit.bedrock.support import (
    BLOCKS,
    CLAUDE,
    LLAMA_405B,
    SMALLEST,
    USER,
    bound,
    limited,
    model,
)


def test_s3_sources_and_guardrail_arns_are_named_for_the_allow_list():
    source = {"s3Location": {"uri": "s3://bucket/cat.png"}}
    body = {
        "messages": [{"role": "user", "content": [{"image": {"format": "png", "source": source}}]}],
        "guardrailConfig": {
            "guardrailIdentifier": "arn:aws:bedrock:us-east-1:1:guardrail/g",
            "guardrailVersion": "1",
        },
    }
    found = bound(CONVERSE, body, model("nova"))
    assert found.arns == ("arn:aws:bedrock:us-east-1:1:guardrail/g", "s3://bucket/cat.png")
    assert found.guardrail and found.guardrail_id == "arn:aws:bedrock:us-east-1:1:guardrail/g"


def test_converse_sets_its_terms_in_the_body_and_headers_may_not_contradict():
    body = {
        "messages": BLOCKS,
        "serviceTier": {"type": "flex"},
        "performanceConfig": {"latency": "optimized"},
        "requestMetadata": {"team": "blue"},
        "inferenceConfig": {"maxTokens": 5, "temperature": 0},
    }
    found = bound(CONVERSE, body, LLAMA_405B)
    assert (found.tier, found.latency, found.metadata) == ("flex", "optimized", (("team", "blue"),))
    assert found.output_limit == 5 and found.deterministic
    with pytest.raises(Invalid):
        bound(CONVERSE, body, LLAMA_405B, {"x-amzn-bedrock-service-tier": "priority"})


@pytest.mark.parametrize(
    "change",
    [
        {"promptVariables": {"a": {"text": "b"}}},
        {"messages": [{"role": "user", "content": [{"hologram": {}}]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"toolUse": {"toolUseId": "t", "name": "x", "input": {}, "type": "server_tool_use"}}
                    ],
                }
            ]
        },
        {"toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}},
        {"additionalModelRequestFields": {"max_gen_len": 5, "best_of": 9}},
        {"additionalModelRequestFields": {"prompt": "more"}},
        {"inferenceConfig": {"maxTokens": 1, "n": 5}},
        {"projectIdentifier": "p"},
    ],
)
def test_converse_refuses_what_it_cannot_bound(change):
    with pytest.raises(UnboundedCost):
        bound(CONVERSE, {"messages": BLOCKS} | change, LLAMA_405B)


def test_a_stored_prompt_is_refused():
    with pytest.raises(UnboundedCost):
        bound(CONVERSE, {}, LLAMA_405B)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": "Hi"},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": [{"text": 1}]}]},
        {"messages": [{"role": "user", "content": [{"text": "a", "image": {}}]}]},
        {"messages": [1]},
        {"system": "x"},
        {"inferenceConfig": {"maxTokens": None}},
        {"inferenceConfig": {"temperature": 2}},
        {"inferenceConfig": {"stopSequences": [1]}},
        {"requestMetadata": {str(number): "x" for number in range(17)}},
        {"requestMetadata": {"a": "x" * 257}},
        {"guardrailConfig": {"guardrailIdentifier": 5}},
        {"serviceTier": {}},
    ],
)
def test_converse_refuses_broken_bodies(change):
    with pytest.raises(Invalid):
        bound(CONVERSE, {"messages": BLOCKS} | change, LLAMA_405B)


def test_the_larger_limit_wins_and_both_are_lowered():
    body = {
        "messages": BLOCKS,
        "inferenceConfig": {"maxTokens": 5},
        "additionalModelRequestFields": {
            "thinking": {"type": "enabled", "budget_tokens": 4000},
            "max_tokens": 50,
        },
    }
    assert bound(CONVERSE, body, CLAUDE).output_limit == 4000
    lower = limited(CONVERSE, body, 40)
    assert bound(CONVERSE, lower, CLAUDE).output_limit == 40
    assert lower["additionalModelRequestFields"] == {
        "thinking": {"type": "enabled", "budget_tokens": 39}, "max_tokens": 40,
    }  # fmt: skip
    assert lower["inferenceConfig"] == {"maxTokens": 5}
    only_extra = {"messages": BLOCKS, "additionalModelRequestFields": {"max_tokens": 50}}
    assert limited(CONVERSE, only_extra, 40)["inferenceConfig"] == {"maxTokens": 40}
    choices = {"messages": BLOCKS, "additionalModelRequestFields": {"n": 3}}
    assert bound(CONVERSE, choices, model("jamba")).choices == 3


@pytest.mark.parametrize("family", SMALLEST)
def test_converse_finds_and_lowers_the_limit_of_every_family(family):
    extra = {"messages": BLOCKS, "additionalModelRequestFields": SMALLEST[family][1]}
    assert bound(CONVERSE, extra, model(family)).output_limit == 64
    lower = limited(CONVERSE, extra, 10)
    assert lower["inferenceConfig"] == {"maxTokens": 10}
    assert bound(CONVERSE, lower, model(family)).output_limit == 10


def test_converse_injects_beside_what_is_there():
    body = {"messages": BLOCKS, "inferenceConfig": {"temperature": 0.5}}
    assert limited(CONVERSE, body, 9) == {
        "messages": BLOCKS,
        "inferenceConfig": {"temperature": 0.5, "maxTokens": 9},
    }
    raw = json.dumps({"messages": BLOCKS}).encode()
    assert CONVERSE.with_output_limit(parse(raw), raw, 9) == b'{"inferenceConfig":{"maxTokens":9},' + raw[1:]


def test_tools_count_as_indented_json_and_are_noted():
    spec = {"name": "weather", "description": "é" * 100, "inputSchema": {"json": {"type": "object"}}}
    body = {"messages": BLOCKS, "toolConfig": {"tools": [{"toolSpec": spec}]}}
    found, plain = bound(CONVERSE, body, CLAUDE), bound(CONVERSE, {"messages": BLOCKS}, CLAUDE)
    assert found.tools and not plain.tools
    assert found.input_tokens - plain.input_tokens >= len(json.dumps([{"toolSpec": spec}], indent=4))


def test_a_conversation_with_tools_is_counted_whole():
    use = {"toolUse": {"toolUseId": "t1", "name": "get", "input": {"q": "x" * 300}}}
    result = {"toolResult": {"toolUseId": "t1", "content": [{"json": ["y" * 300]}, {"text": "z" * 300}]}}
    messages = [
        {"role": "assistant", "content": [{"reasoningContent": {"reasoningText": {"text": "r" * 300}}}, use]},
        {"role": "user", "content": [result]},
    ]
    for dialect in (CONVERSE, native("nova")):
        assert 1200 < bound(dialect, {"messages": messages}, model("nova")).input_tokens < 3000


def test_cache_points_set_the_dearest_lifetime():
    point = {"cachePoint": {"type": "default"}}
    hour = {"cachePoint": {"type": "default", "ttl": "1h"}}
    content = [{"text": "Hi"}, point]
    assert bound(CONVERSE, {"messages": BLOCKS}, CLAUDE).cache_ttl is None
    assert bound(CONVERSE, {"messages": [{"role": "user", "content": content}]}, CLAUDE).cache_ttl == "5m"
    assert (
        bound(
            CONVERSE, {"messages": [{"role": "user", "content": content}], "system": [hour]}, CLAUDE
        ).cache_ttl
        == "1h"
    )
    tools = {"tools": [{"toolSpec": {"name": "x", "inputSchema": {}}}, hour]}
    assert bound(CONVERSE, {"messages": BLOCKS, "toolConfig": tools}, CLAUDE).cache_ttl == "1h"
    control = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    text = {"type": "text", "text": "Hi"} | control
    for change in (
        {"messages": [{"role": "user", "content": [text]}]},
        {"system": [text]},
        {"tools": [{"name": "x", "input_schema": {}} | control]},
        control,
    ):
        assert bound(native("anthropic"), {"messages": USER, "max_tokens": 1} | change).cache_ttl == "1h"
    with pytest.raises(UnboundedCost):
        bound(native("anthropic"), {"messages": USER, "cache_control": {"type": "ephemeral", "ttl": "1d"}})
