import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.dialects import (
    CHAT_COMPLETIONS,
    CONVERSE,
    FAMILIES,
    MESSAGES,
    RESPONSES,
    native,
    parse,
)
from proxy.errors import Invalid, TollhouseError, UnboundedCost
from tests.unit.bedrock.support import (
    BLOCKS,
    CLAUDE,
    LLAMA_405B,
    USER,
    bound,
    captured,
    limited,
    model,
)


def test_betas_may_come_as_a_header_on_the_messages_route():
    body = {"model": "x", "messages": USER, "max_tokens": 1}
    assert bound(MESSAGES, body, CLAUDE, {"anthropic-beta": "effort-2025-11-24, pdfs-2024-09-25"})
    for headers in (
        {"anthropic-beta": "context-1m-2025-08-07"},
        {"anthropic-beta": "code-execution-2025-08-25"},
    ):
        with pytest.raises(UnboundedCost):
            bound(MESSAGES, body, CLAUDE, headers)


def test_chat_streams_are_asked_for_their_usage():
    body = {"model": "a", "messages": USER, "stream": True}
    raw = json.dumps(body).encode()
    assert bound(CHAT_COMPLETIONS, body).stream
    forced = CHAT_COMPLETIONS.prepared(parse(raw), raw)
    assert json.loads(forced) == body | {"stream_options": {"include_usage": True}}
    for there in ({"include_usage": False}, {}, None):
        given = json.dumps(body | {"stream_options": there}).encode()
        assert (
            json.loads(CHAT_COMPLETIONS.prepared(parse(given), given))["stream_options"]["include_usage"]
            is True
        )
    asked = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
    assert CHAT_COMPLETIONS.prepared(parse(asked), asked) is asked
    whole = json.dumps({"model": "a", "messages": USER, "stream": False}).encode()
    assert CHAT_COMPLETIONS.prepared(parse(whole), whole) is whole


def test_changes_add_up_whatever_needs_a_rewrite():
    body = {"model": "a", "messages": USER, "stream": True, "max_tokens": None, "stream_options": {}}
    raw = json.dumps(body).encode()
    parsed = parse(raw)
    changed = CHAT_COMPLETIONS.prepared(parsed, raw)
    changed = CHAT_COMPLETIONS.with_output_limit(parsed, changed, 7)
    changed = CHAT_COMPLETIONS.with_model(parsed, changed, "openai.gpt-oss-120b-1:0")
    assert parse(changed) == body | {
        "stream_options": {"include_usage": True}, "max_completion_tokens": 7, "model": "openai.gpt-oss-120b-1:0",
    }  # fmt: skip


def test_lowering_a_limit_keeps_what_was_forced_before():
    body = {"model": "a", "messages": USER, "stream": True, "max_tokens": 100}
    raw = json.dumps(body).encode()
    changed = CHAT_COMPLETIONS.with_output_limit(parse(raw), CHAT_COMPLETIONS.prepared(parse(raw), raw), 7)
    assert parse(changed) == body | {"stream_options": {"include_usage": True}, "max_tokens": 7}
    body = {"messages": BLOCKS, "inferenceConfig": {"maxTokens": 100}}
    raw = json.dumps(body).encode()
    stamped = json.dumps(body | {"requestMetadata": {"a": "b"}}).encode()
    assert parse(CONVERSE.with_output_limit(parse(raw), stamped, 7)) == {
        "messages": BLOCKS, "inferenceConfig": {"maxTokens": 7}, "requestMetadata": {"a": "b"},
    }  # fmt: skip


def test_responses_are_stateless():
    body = {"model": "a", "input": "Hi", "max_output_tokens": 9}
    for store in ({}, {"store": True}, {"store": None}):
        raw = json.dumps(body | store).encode()
        assert parse(RESPONSES.prepared(parse(raw), raw))["store"] is False
    assert bound(RESPONSES, body).output_limit == 9
    refused: list[dict[str, Any]] = [
        {"previous_response_id": "r"},
        {"conversation": "c"},
        {"prompt": {"id": "p"}},
        {"background": True},
        {"input": [{"type": "item_reference", "id": "i"}]},
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "mcp", "server_url": "http://x"}]},
        {"context_management": []},
    ]
    for change in refused:
        with pytest.raises(UnboundedCost):
            bound(RESPONSES, body | change)
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "encrypted_content": "x" * 500, "summary": []},
        {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
    ]
    assert bound(RESPONSES, body | {"input": items}).input_tokens > 500


@pytest.mark.parametrize("dialect", [CHAT_COMPLETIONS, RESPONSES, MESSAGES])
def test_routes_read_tier_and_stream_and_rename_the_model(dialect):
    body = {"model": "alias", "service_tier": "flex", "stream": True}
    body |= {"input": "Hi"} if dialect is RESPONSES else {"messages": USER}
    found = bound(dialect, body, CLAUDE)
    assert found.tier == "flex" and found.stream
    assert bound(dialect, body | {"service_tier": "auto"}, CLAUDE).tier == (
        "default" if dialect is MESSAGES else "auto"
    )
    raw = json.dumps(body).encode()
    assert json.loads(dialect.with_model(parse(raw), raw, "x.y")) == body | {"model": "x.y"}
    assert dialect.with_model(parse(raw), raw, "alias") is raw
    for change in ({"service_tier": "ultra"}, {"stream": "yes"}):
        with pytest.raises(Invalid):
            bound(dialect, body | change, CLAUDE)


def dialect_of(sample):
    path = sample["path"]
    if "/messages" in path:
        return MESSAGES, CLAUDE
    if path.endswith("/chat/completions"):
        return CHAT_COMPLETIONS, LLAMA_405B
    if path.endswith("/responses"):
        return RESPONSES, LLAMA_405B
    if "converse" in path:
        return CONVERSE, LLAMA_405B
    return (native("llama"), LLAMA_405B) if "llama" in path else (native("anthropic"), CLAUDE)


@pytest.mark.parametrize("sample", captured(), ids=lambda sample: sample["client"])
def test_what_stock_clients_send_is_bound(sample):
    dialect, served_by = dialect_of(sample)
    raw = sample["body"].encode()
    body = parse(raw)
    headers = {name.lower(): value for name, value in sample["headers"]}
    found = dialect.bound(body, raw, served_by, headers)
    assert len("Say hello in five words.") <= found.input_tokens <= 10_000
    limit = found.output_limit or 77
    assert (
        dialect.bound(
            parse(dialect.with_output_limit(body, raw, limit)), raw, served_by, headers
        ).output_limit
        == limit
    )


names = st.sampled_from(
    "prompt messages system role content text type image source user max_tokens max_gen_len inferenceConfig maxTokens "
    "tools toolConfig toolSpec input stream thinking budget_tokens cache_control ttl requestMetadata texts inputText n "
    "additionalModelRequestFields guardrailConfig serviceTier".split()
)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=8) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(names, values, max_size=5),
    st.sampled_from([*FAMILIES, "converse", "chat", "responses", "messages"]),
)
def test_garbage_raises_nothing_but_refusals(body, name):
    routes = {"converse": CONVERSE, "chat": CHAT_COMPLETIONS, "responses": RESPONSES, "messages": MESSAGES}
    dialect = routes.get(name) or native(name)
    served_by = model(name if name in FAMILIES else "anthropic")
    try:
        found = bound(dialect, body, served_by)
    except TollhouseError:
        return
    assert found.input_tokens >= 0 and found.choices >= 1 and found.images >= 0
    if found.output_limit is None:
        assert bound(dialect, limited(dialect, body, 3), served_by).output_limit == 3
    elif found.output_limit > 3 and name != "nova":
        assert bound(dialect, limited(dialect, body, 3), served_by).output_limit == 3
