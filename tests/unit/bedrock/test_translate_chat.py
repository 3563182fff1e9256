"""Chat Completions said in Converse, and Converse's answers said in OpenAI's words."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bedrock import dialects
from proxy.bedrock.eventstream import BrokenStream, event_frame, exception_frame
from proxy.bedrock.translate.chat import chat_over_converse
from proxy.domain.ledger import Operation
from proxy.domain.usage import Usage
from proxy.errors import Invalid, UnboundedCost
from tests.unit.bedrock.support import model

LLAMA = model("llama")
PNG = "data:image/png;base64,aGVsbG8="
USER = {"role": "user", "content": "Hi"}
FUNCTION = {"name": "f", "description": "does f", "parameters": {"type": "object", "properties": {}}}


def translated(**body):
    return chat_over_converse({"model": "llama-405b", "messages": [USER]} | body, {})


def said(**body):
    return translated(**body).body


def test_messages_take_turns_and_system_stands_apart():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    body = said(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "And kind."}]},
            {"role": "user", "content": "one", "name": "ann"},
            {"role": "user", "content": [{"type": "text", "text": "two"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "audio": None},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "tool", "tool_call_id": "c2", "content": ""},
            {"role": "user", "content": "three"},
        ]
    )
    assert body["system"] == [{"text": "Be brief."}, {"text": "And kind."}]
    assert body["messages"] == [
        {"role": "user", "content": [{"text": "one"}, {"text": "two"}]},
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "c1", "name": "f", "input": {"a": 1}}}]},
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "c1", "content": [{"text": "42"}]}},
                {"toolResult": {"toolUseId": "c2", "content": []}},
                {"text": "three"},
            ],
        },
    ]


def test_images_documents_and_cache_points():
    parts = [
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
        {"type": "image_url", "image_url": "data:image/jpeg;base64,aGVs\nbG8="},
        {
            "type": "file",
            "file": {"filename": "a/b.pdf", "file_data": "data:application/pdf;base64,aGVsbG8="},
        },
        {"type": "text", "text": "long", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]
    [message] = said(messages=[{"role": "user", "content": parts}])["messages"]
    assert message["content"] == [
        {"image": {"format": "png", "source": {"bytes": "aGVsbG8="}}},
        {"image": {"format": "jpeg", "source": {"bytes": "aGVsbG8="}}},
        {"document": {"format": "pdf", "name": "a b pdf", "source": {"bytes": "aGVsbG8="}}},
        {"text": "long"},
        {"cachePoint": {"type": "default", "ttl": "1h"}},
    ]


def test_limits_sampling_tier_and_format():
    body = said(
        max_tokens=5, max_completion_tokens=9, temperature=0, top_p=0.5, stop="x", service_tier="flex",
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        seed=1, user="u", n=1, frequency_penalty=0, stream_options=None, parallel_tool_calls=True,
    )  # fmt: skip
    assert body["inferenceConfig"] == {"maxTokens": 9, "temperature": 0, "topP": 0.5, "stopSequences": ["x"]}
    assert body["serviceTier"] == {"type": "flex"}
    schema = {"name": "n", "schema": '{"type":"object"}'}
    assert body["outputConfig"] == {
        "textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}
    }
    assert body.keys() == {"messages", "inferenceConfig", "serviceTier", "outputConfig"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", {}),
        ("required", {"toolChoice": {"any": {}}}),
        ({"type": "function", "function": {"name": "f"}}, {"toolChoice": {"tool": {"name": "f"}}}),
    ],
)
def test_tools_and_their_choice(choice, expected):
    body = said(tools=[{"type": "function", "function": FUNCTION}], tool_choice=choice)
    spec = {"name": "f", "description": "does f", "inputSchema": {"json": FUNCTION["parameters"]}}
    assert body["toolConfig"] == {"tools": [{"toolSpec": spec}], **expected}


def test_no_tool_leaves_the_tools_only_where_the_talk_used_one():
    tools = [{"type": "function", "function": FUNCTION}]
    assert "toolConfig" not in said(tools=tools, tool_choice="none")
    talk = [
        USER,
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": ""}}]},
    ]
    assert said(messages=talk, tools=tools, tool_choice="none")["toolConfig"].keys() == {"tools"}


def test_headers_become_fields():
    headers = {
        "x-amzn-bedrock-guardrailidentifier": "gr1",
        "x-amzn-bedrock-guardrailversion": "2",
        "x-amzn-bedrock-trace": "ENABLED",
        "x-amzn-bedrock-service-tier": "priority",
        "x-amzn-bedrock-performanceconfig-latency": "optimized",
        "x-amzn-bedrock-request-metadata": '{"team":"blue"}',
        "authorization": "Bearer secret",
    }
    spoken = chat_over_converse({"model": "m", "messages": [USER]}, headers)
    assert spoken.body["guardrailConfig"] == {
        "guardrailIdentifier": "gr1", "guardrailVersion": "2", "trace": "enabled",
    }  # fmt: skip
    assert spoken.body["serviceTier"] == {"type": "priority"}
    assert spoken.body["performanceConfig"] == {"latency": "optimized"}
    assert spoken.headers == {"accept": "application/json"}
    bound = spoken.dialect.bound(spoken.body, spoken.raw, LLAMA, spoken.headers)
    assert bound.guardrail and bound.metadata == (("team", "blue"),)
    assert (bound.tier, bound.latency) == ("priority", "optimized")


@pytest.mark.parametrize(
    "change",
    [
        {"messages": "hi"},
        {"messages": [{"role": "function", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "odd": 1}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/bmp;base64,aGk="}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,a"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}]}], "stop": 3},
        {"n": 2}, {"logit_bias": {"1": 1}}, {"store": True}, {"functions": []}, {"max_tokens": "5"}, {"stream": 1},
        {"tools": [{"type": "code_interpreter"}]}, {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "some"},
        {"response_format": {"type": "grammar"}},
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused(change):
    with pytest.raises(Invalid):
        translated(**change)


def test_the_bound_is_that_of_the_converse_body():
    spoken = translated(max_tokens=50, stream=True)
    bound = spoken.dialect.bound(spoken.body, spoken.raw, LLAMA, spoken.headers)
    plain = dialects.CONVERSE.bound(spoken.body, spoken.raw, LLAMA, {})
    assert (bound.output_limit, bound.input_tokens, bound.stream) == (50, plain.input_tokens, True)
    assert spoken.operation is Operation.CONVERSE_STREAM
    without = translated()
    limited = without.dialect.with_output_limit(without.body, without.raw, 7)
    assert json.loads(limited)["inferenceConfig"] == {"maxTokens": 7}
    with pytest.raises(UnboundedCost):
        late = translated(
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"ttl": "9h"}}]}
            ]
        )
        late.dialect.bound(late.body, late.raw, LLAMA, {})


USAGE = {
    "inputTokens": 3,
    "outputTokens": 2,
    "totalTokens": 9,
    "cacheReadInputTokens": 4,
    "cacheWriteInputTokens": 0,
}


def answered(content, stop="end_turn", **more):
    spoken = translated()
    body = {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": stop, **more}
    raw = json.dumps(body).encode()
    return json.loads(spoken.dialect.answer(raw)), spoken.dialect.usage({}, raw)


def test_a_whole_answer():
    told, usage = answered([{"text": "a"}, {"text": "b"}], usage=USAGE, serviceTier={"type": "flex"})
    assert (
        told["model"] == "llama-405b"
        and told["object"] == "chat.completion"
        and told["service_tier"] == "flex"
    )
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "ab", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert told["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
    }  # fmt: skip
    assert usage == Usage(input_tokens=3, output_tokens=2, cache_read_tokens=4)


def test_tool_calls_and_thoughts_in_a_whole_answer():
    content = [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
        {"toolUse": {"toolUseId": "t1", "name": "f", "input": {"a": [1]}}},
    ]
    told, _ = answered(content, "tool_use")
    [choice] = told["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None and choice["message"]["reasoning_content"] == "hm"
    [call] = choice["message"]["tool_calls"]
    assert call == {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}}


@pytest.mark.parametrize(
    ("stop", "finish"),
    [("max_tokens", "length"), ("stop_sequence", "stop"), ("guardrail_intervened", "content_filter"),
     ("content_filtered", "content_filter"), ("malformed_model_output", "stop"), (None, "stop"), ([], "stop")],
)  # fmt: skip
def test_finish_reasons(stop, finish):
    assert answered([{"text": "a"}], stop)[0]["choices"][0]["finish_reason"] == finish


def test_what_is_no_answer_stays_as_it_is():
    dialect = translated().dialect
    for raw in (b"oops", b"[]", b'{"output":{}}'):
        assert dialect.answer(raw) == raw and dialect.usage({}, raw) is None


def frames(*events):
    return b"".join(event_frame(name, json.dumps(data).encode()) for name, data in events)


METADATA = ("metadata", {"usage": USAGE, "metrics": {"latencyMs": 1}})
TEXT = (
    ("messageStart", {"role": "assistant"}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hel"}}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "lo"}}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    ("messageStop", {"stopReason": "end_turn"}),
    METADATA,
)
TOOLS = (
    ("messageStart", {"role": "assistant"}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "hm"}}}),
    ("contentBlockStart", {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": "a", "name": "f"}}}),
    ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolUse": {"input": '{"x":'}}}),
    ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolUse": {"input": "1}"}}}),
    ("contentBlockStop", {"contentBlockIndex": 1}),
    ("contentBlockStart", {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "b", "name": "g"}}}),
    ("contentBlockStop", {"contentBlockIndex": 2}),
    ("messageStop", {"stopReason": "tool_use"}),
    METADATA,
)


def pieces(data, cuts):
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def read(sse):
    return [json.loads(d) if d != "[DONE]" else d for d in (e[6:] for e in sse.decode().split("\n\n")[:-1])]


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 5000), max_size=12), usage=st.booleans())
def test_a_stream_in_any_pieces(cuts, usage):
    meter = translated(stream=True, stream_options={"include_usage": usage}).dialect.meter()
    passed = b"".join(meter.feed(piece) for piece in pieces(frames(*TEXT), cuts))
    meter.finish()
    assert meter.ended and meter.usage == Usage(input_tokens=3, output_tokens=2, cache_read_tokens=4)
    before, after = read(passed), read(meter.held())
    assert "".join(c["choices"][0]["delta"]["content"] for c in before) == "Hello"
    assert all(c["choices"][0]["finish_reason"] is None for c in before)
    assert after[0]["choices"][0]["finish_reason"] == "stop" and after[-1] == "[DONE]"
    assert len(after) == (3 if usage else 2)
    if usage:
        assert after[1]["choices"] == [] and after[1]["usage"]["total_tokens"] == 9
    assert all((c.get("usage") is None) and ("usage" in c) is usage for c in before)


def test_streamed_tool_calls_are_numbered_and_never_empty():
    meter = translated(stream=True).dialect.meter()
    before = read(meter.feed(frames(*TOOLS)))
    assert before[1]["choices"][0]["delta"] == {"reasoning_content": "hm"}
    calls: dict[int, dict[str, Any]] = {}
    for chunk in before:
        for part in chunk["choices"][0]["delta"].get("tool_calls", []):
            call = calls.setdefault(part["index"], {"arguments": ""})
            call["arguments"] += part["function"].get("arguments", "")
            call |= {k: v for k, v in (*part.items(), *part["function"].items()) if k in {"id", "name"}}
    assert calls == {
        0: {"arguments": '{"x":1}', "id": "a", "name": "f"},
        1: {"arguments": "{}", "id": "b", "name": "g"},
    }
    assert read(meter.held())[0]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_exception_frame_ends_the_stream_as_an_error():
    meter = translated(stream=True).dialect.meter()
    broken = exception_frame("throttlingException", "slow down, 123456789012")
    meter.feed(frames(*TEXT[:2]) + broken)
    assert meter.ended and meter.failure == "throttlingException" and meter.usage is None
    [error] = read(meter.held())
    assert error["error"]["code"] == "throttlingException" and "123456789012" not in error["error"]["message"]


def test_a_stream_that_ends_early_is_no_end():
    meter = translated(stream=True).dialect.meter()
    whole = frames(*TEXT)
    meter.feed(whole[:-5])
    assert not meter.ended
    with pytest.raises(BrokenStream):
        meter.finish()


def test_headers_speak_of_the_route_that_was_called():
    upstream = {
        "content-type": "application/vnd.amazon.eventstream",
        "x-amzn-bedrock-service-tier": "flex",
        "x-amzn-requestid": "r",
    }
    heads = translated(stream=True).dialect.heads(upstream)
    assert heads == {"content-type": "text/event-stream; charset=utf-8", "x-amzn-requestid": "r"}
    assert translated().dialect.heads(upstream)["content-type"] == "application/json"
