"""A call that generates, asked as CountTokens."""

from __future__ import annotations

import base64

import orjson
import pytest

from proxy import policyfile
from proxy.bedrock.wires import BedrockWires
from proxy.domain.ledger import Operation

SONNET, LLAMA = "anthropic.claude-sonnet-4-20250514-v1:0", "meta.llama3-1-8b-instruct-v1:0"
WIRES = BedrockWires(first_byte=1, idle=1)


@pytest.fixture(scope="module")
def models():
    book = policyfile.load()
    return {name: book.resolve(name).model for name in (SONNET, LLAMA)}


def asked(models, operation, body, headers=None):
    spoken = WIRES.counting(operation, models[SONNET], body, orjson.dumps(body), headers or {})
    assert spoken is not None
    assert orjson.loads(spoken.raw) == spoken.body
    assert spoken.operation is Operation.COUNT_TOKENS
    return spoken.body["input"]


@pytest.mark.parametrize("operation", [Operation.CONVERSE, Operation.CONVERSE_STREAM])
def test_converse_is_asked_with_what_of_it_is_input(models, operation):
    body = {
        "messages": [{"role": "user", "content": [{"text": "hi"}]}], "system": [{"text": "be brief"}],
        "toolConfig": {"tools": []}, "additionalModelRequestFields": {"thinking": {"type": "disabled"}},
        "inferenceConfig": {"maxTokens": 5}, "requestMetadata": {"a": "b"}, "serviceTier": {"type": "flex"},
    }  # fmt: skip
    assert asked(models, operation, body) == {
        "converse": {name: body[name] for name in ("messages", "system", "toolConfig", "additionalModelRequestFields")}
    }  # fmt: skip


def test_a_native_body_is_asked_as_it_is(models):
    body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 5, "messages": []}
    blob = asked(models, Operation.INVOKE_MODEL, body)["invokeModel"]["body"]
    assert base64.b64decode(blob) == orjson.dumps(body)


def test_the_messages_route_is_asked_in_a_native_body(models):
    body = {"model": SONNET, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    native = orjson.loads(base64.b64decode(asked(models, Operation.MESSAGES, body)["invokeModel"]["body"]))
    assert native["messages"] == body["messages"]
    assert native["anthropic_version"] == "bedrock-2023-05-31"
    assert "model" not in native


@pytest.mark.parametrize(
    "operation", [Operation.RESPONSES, Operation.APPLY_GUARDRAIL, Operation.COUNT_TOKENS]
)
def test_other_operations_are_not_asked(models, operation):
    assert WIRES.counting(operation, models[SONNET], {}, b"{}", {}) is None


def test_a_model_without_counting_is_never_asked(models):
    assert WIRES.counting(Operation.CONVERSE, models[LLAMA], {"messages": []}, b"{}", {}) is None


@pytest.mark.parametrize(
    ("answer", "count"),
    [(b'{"inputTokens":7}', 7), (b'{"inputTokens":0}', 0), (b'{"inputTokens":-1}', None), (b"{}", None),
     (b'{"inputTokens":"7"}', None), (b'{"inputTokens":true}', None), (b"<html>", None)],
)  # fmt: skip
def test_a_count_is_a_whole_number(answer, count):
    assert WIRES.counted(answer) == count
