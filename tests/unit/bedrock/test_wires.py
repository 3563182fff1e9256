"""Which words serve a request, which path it goes to, and what goes along."""

import json

import pytest

from proxy.bedrock import dialects
from proxy.bedrock.wires import BedrockWires
from proxy.domain.catalogue import Route, Target
from proxy.domain.guardrails import guardrail_route
from proxy.domain.ledger import Operation
from proxy.domain.request import Bound
from proxy.errors import Invalid, UnknownModel
from proxy.ports import Dialect
from tests.unit.bedrock.support import USER, model

WIRES = BedrockWires(first_byte=60, idle=60)
O = Operation  # noqa: E741 - the table below is read by columns
ARN = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abc"
CHAT = {"model": "alias", "messages": USER, "max_tokens": 9}


def route(family, *, kind="on_demand", model_id="vendor.m-v1:0", **facts):
    served = model(family, **facts)
    target = Target(model=served.id, model_id=model_id, region="us-east-1", kind=kind)
    return Route(name="alias", model=served, targets=(target,))


def speak(operation, to, body, headers=None):
    return WIRES.speak(operation, to, body, json.dumps(body).encode(), headers or {})


@pytest.mark.parametrize(
    ("operation", "to", "body", "serving", "dialect"),
    [
        (O.INVOKE_MODEL, route("llama"), {"prompt": "x"}, O.INVOKE_MODEL, "llama"),
        (O.CONVERSE_STREAM, route("llama"), {"messages": []}, O.CONVERSE_STREAM, "converse"),
        (O.CHAT_COMPLETIONS, route("openai", openai=True), CHAT, O.CHAT_COMPLETIONS, "chat_completions"),
        (O.CHAT_COMPLETIONS, route("openai-compatible", openai=True), CHAT, O.CHAT_COMPLETIONS, "chat_completions"),
        (O.CHAT_COMPLETIONS, route("openai-compatible"), CHAT, O.CONVERSE, "chat_over_converse"),
        (O.CHAT_COMPLETIONS, route("openai", openai=True, kind="imported"), CHAT, O.CONVERSE, "chat_over_converse"),
        (O.CHAT_COMPLETIONS, route("anthropic", openai=True), CHAT | {"stream": True}, O.CONVERSE_STREAM, "chat_over_converse"),
        (O.RESPONSES, route("openai", openai=True), {"model": "alias", "input": "x"}, O.RESPONSES, "responses"),
        (O.MESSAGES, route("anthropic", openai=True), CHAT, O.MESSAGES, "messages"),
        (O.COUNT_TOKENS, route("anthropic", count_tokens=True), {"input": {}}, O.COUNT_TOKENS, "count_tokens"),
        (O.MESSAGES_COUNT_TOKENS, route("anthropic", count_tokens=True), CHAT, O.COUNT_TOKENS, "count_messages"),
        (O.APPLY_GUARDRAIL, guardrail_route("gr", "1", "us-east-1"), {}, O.APPLY_GUARDRAIL, "guardrail"),
    ],
)  # fmt: skip
def test_the_words_that_serve_a_request(operation, to, body, serving, dialect):
    spoken = speak(operation, to, body)
    assert (spoken.operation, spoken.dialect.name) == (serving, dialect)
    if serving is operation:
        assert spoken.body is body and json.loads(spoken.raw) == body


@pytest.mark.parametrize(
    ("operation", "to"),
    [
        (O.CHAT_COMPLETIONS, route("titan-embed", modality="embedding")),
        (O.CHAT_COMPLETIONS, route("nova-canvas", modality="image")),
        (O.CHAT_COMPLETIONS, route("nova-sonic")),
        (O.RESPONSES, route("llama")),
        (O.RESPONSES, route("anthropic", openai=True)),
        (O.RESPONSES, route("openai", openai=True, kind="provisioned", model_id=ARN)),
        (O.MESSAGES, route("llama")),
        (O.MESSAGES, route("anthropic")),
        (O.MESSAGES, route("anthropic", openai=True, kind="provisioned", model_id=ARN)),
        (O.COUNT_TOKENS, route("llama")),
        (O.MESSAGES_COUNT_TOKENS, route("anthropic")),
    ],
)
def test_a_model_that_is_not_on_a_route_says_so(operation, to):
    with pytest.raises((Invalid, UnknownModel)) as refusal:
        speak(operation, to, CHAT)
    assert len(str(refusal.value)) > 30


@pytest.mark.parametrize(
    ("operation", "model_id", "path"),
    [
        (O.INVOKE_MODEL, "us.x-v1:0", "/model/us.x-v1%3A0/invoke"),
        (O.CONVERSE, ARN, "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aprovisioned-model%2Fabc/converse"),
        (O.COUNT_TOKENS, "x", "/model/x/count-tokens"),
        (O.CHAT_COMPLETIONS, "x", "/openai/v1/chat/completions"),
        (O.RESPONSES, "x", "/openai/v1/responses"),
        (O.MESSAGES, "x", "/anthropic/v1/messages"),
        (O.APPLY_GUARDRAIL, "gr1:DRAFT", "/guardrail/gr1/version/DRAFT/apply"),
        (O.APPLY_GUARDRAIL, "arn:a:b::1:guardrail/g:7", "/guardrail/arn%3Aa%3Ab%3A%3A1%3Aguardrail%2Fg/version/7/apply"),
    ],
)  # fmt: skip
def test_paths(operation, model_id, path):
    assert sent(operation, {}, model_id=model_id).path == path


def sent(operation, headers, model_id="x"):
    target = Target(model="m", model_id=model_id, region="us-east-1")
    bound = Bound(input_tokens=1, output_limit=1)
    return WIRES.request(operation, target, b'{"messages":[]}', headers, bound, {"tollhouse-attempt": "a"})


def test_headers_that_go_along():
    received = {
        "authorization": "Bearer th_x", "x-api-key": "th_x", "cookie": "c", "user-agent": "u", "accept": "a",
        "anthropic-version": "2026-10-21", "anthropic-beta": "effort-2025-11-24", "x-amzn-bedrock-trace": "ENABLED",
    }  # fmt: skip
    messages = sent(O.MESSAGES, received).headers
    assert messages["anthropic-version"] == "2026-10-21" and messages["anthropic-beta"] == "effort-2025-11-24"
    assert json.loads(messages["x-amzn-bedrock-request-metadata"]) == {"tollhouse-attempt": "a"}
    assert sent(O.MESSAGES, {}).headers["anthropic-version"] == "2023-06-01"
    for operation in set(Operation) - {O.MESSAGES_COUNT_TOKENS}:  # never sent under its own name
        went = sent(operation, received, model_id="gr:1").headers
        assert not went.keys() & {"authorization", "x-api-key", "cookie", "user-agent"}
        assert ("anthropic-version" in went) is (operation is O.MESSAGES)


def test_broken_streams_are_told_in_the_words_of_the_route():
    assert b"event: error" in WIRES.breaker(O.MESSAGES)("cut")
    assert WIRES.breaker(O.CHAT_COMPLETIONS)("cut").startswith(b'data: {"error"')
    assert b"modelStreamErrorException" in WIRES.breaker(O.CONVERSE_STREAM)("cut")


def test_messages_are_counted_as_a_native_body():
    import base64

    body = CHAT | {"stream": True, "system": "s", "anthropic_beta": ["effort-2025-11-24"]}
    to = route("anthropic", count_tokens=True)
    spoken = speak(O.MESSAGES_COUNT_TOKENS, to, body, {"anthropic-beta": "token-counting-2024-11-01"})
    native = json.loads(base64.b64decode(spoken.body["input"]["invokeModel"]["body"]))
    assert native == {
        "messages": USER, "max_tokens": 9, "system": "s", "anthropic_version": "bedrock-2023-05-31",
        "anthropic_beta": ["effort-2025-11-24", "token-counting-2024-11-01"],
    }  # fmt: skip
    assert spoken.dialect.answer(b'{"inputTokens":7}') == b'{"input_tokens":7}'
    assert spoken.dialect.usage({}, b'{"inputTokens":7}') is not None
    assert spoken.dialect.usage({}, b"{}") is None
    with pytest.raises(Invalid):
        speak(O.MESSAGES_COUNT_TOKENS, to, body, {"anthropic-beta": "fast-mode-2026-02-01"})


def test_only_translations_change_an_answer():
    everyone: list[Dialect] = [*dialects.FAMILIES.values(), dialects.CONVERSE, dialects.CHAT_COMPLETIONS]
    for dialect in everyone:
        headers = {"content-type": "x", "x-amzn-bedrock-service-tier": "flex"}
        assert dialect.answer(b"raw") == b"raw" and dialect.heads(headers) == headers
