import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.dialects import CHAT_COMPLETIONS, CONVERSE, FAMILIES, MESSAGES, RESPONSES, native
from proxy.domain.usage import Usage
from proxy.ports import Dialect

HEADERS = {"x-amzn-bedrock-input-token-count": "11", "x-amzn-bedrock-output-token-count": "7"}
CACHE = {
    "x-amzn-bedrock-cache-read-input-token-count": "20",
    "x-amzn-bedrock-cache-write-input-token-count": "30",
}
OPENAI = {"usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}}
BODIES = {
    "llama": {
        "generation": "x",
        "prompt_token_count": 11,
        "generation_token_count": 7,
        "stop_reason": "stop",
    },
    "anthropic": {"type": "message", "usage": {"input_tokens": 11, "output_tokens": 7}},
    "nova": {"output": {}, "usage": {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18}},
    "titan-text": {"inputTextTokenCount": 11, "results": [{"tokenCount": 7, "outputText": "x"}]},
    "jamba": OPENAI,
    "openai": OPENAI,
    "openai-compatible": OPENAI,
    "cohere-command": {"text": "x", "meta": {"billed_units": {"input_tokens": 11, "output_tokens": 7}}},
}
BOTH = Usage(input_tokens=11, output_tokens=7)


def usage(dialect, headers, answer):
    return dialect.usage(headers, json.dumps(answer).encode())


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"titan-image", "nova-canvas", "stability"}))
def test_headers_are_believed_first(family):
    found = usage(native(family), HEADERS, {"usage": {"input_tokens": 99}})
    assert found is not None and found.input_tokens == 11
    assert found.output_tokens == 7


@pytest.mark.parametrize("family", BODIES)
def test_the_body_is_asked_when_headers_say_nothing(family):
    assert usage(native(family), {}, BODIES[family]) == BOTH
    assert usage(native(family), {"x-amzn-bedrock-input-token-count": "11"}, BODIES[family]) == BOTH


@pytest.mark.parametrize("family", ["mistral", "deepseek", "mistral-text", "cohere-command-text"])
def test_no_report_is_no_usage(family):
    assert usage(native(family), {}, {"choices": [{"text": "x"}]}) is None


@pytest.mark.parametrize("value", ["-1", "+1", "1.0", "", "١١", "1e3", "99999999999", " 1"])
def test_headers_that_are_no_counts_are_no_report(value):
    assert usage(native("mistral"), HEADERS | {"x-amzn-bedrock-output-token-count": value}, {}) is None


def test_embeddings_need_only_their_input():
    only = {"x-amzn-bedrock-input-token-count": "11"}
    assert usage(native("cohere-embed"), only, {"embeddings": []}) == Usage(input_tokens=11)
    assert usage(native("titan-embed"), {}, {"inputTextTokenCount": 11}) == Usage(input_tokens=11)


def test_images_are_counted():
    assert usage(native("nova-canvas"), {}, {"images": ["a", "b"]}) == Usage(images=2)
    assert usage(native("stability"), HEADERS, {"images": ["a"]}) == Usage(
        input_tokens=11, output_tokens=7, images=1
    )
    assert usage(native("stability"), {}, {"artifacts": [{}, {}, {}]}) == Usage(images=3)
    assert usage(native("titan-image"), {}, {"error": "x"}) is None


def test_cache_writes_are_split_by_the_body():
    report = {
        "input_tokens": 11, "output_tokens": 7, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    }  # fmt: skip
    expected = Usage(
        input_tokens=11,
        output_tokens=7,
        cache_read_tokens=20,
        cache_write_5m_tokens=10,
        cache_write_1h_tokens=20,
    )
    assert usage(native("anthropic"), HEADERS | CACHE, {"usage": report}) == expected
    assert usage(MESSAGES, {}, {"usage": report}) == expected
    plain = usage(native("nova"), HEADERS | CACHE, {})
    assert plain is not None and plain.cache_write_5m_tokens == 30 and plain.cache_write_1h_tokens == 0


def test_openai_input_includes_the_cache():
    details = {"cached_tokens": 1920, "cache_write_tokens": 28}
    expected = Usage(input_tokens=100, output_tokens=7, cache_read_tokens=1920, cache_write_5m_tokens=28)
    chat = {"prompt_tokens": 2048, "completion_tokens": 7, "prompt_tokens_details": details}
    assert usage(CHAT_COMPLETIONS, {}, {"usage": chat}) == expected
    response = {"input_tokens": 2048, "output_tokens": 7, "input_tokens_details": details}
    assert usage(RESPONSES, {}, {"usage": response}) == expected
    assert usage(CHAT_COMPLETIONS, {}, {"usage": chat | {"prompt_tokens": 5}}) is None


def test_converse_reports_usage_terms_and_guardrail_units():
    units = {
        "invocationMetrics": {"usage": {"topicPolicyUnits": 1, "contentPolicyUnits": 2, "wordPolicyUnits": 0}}
    }
    trace = {"guardrail": {"inputAssessment": {"g": units}, "outputAssessments": {"g": [units, units]}}}
    answer = {
        "usage": {"inputTokens": 11, "outputTokens": 7, "totalTokens": 1},
        "serviceTier": {"type": "default"},
        "performanceConfig": {"latency": "standard"},
        "trace": trace,
    }
    assert usage(CONVERSE, {}, answer) == Usage(input_tokens=11, output_tokens=7, guardrail_units=9)
    assert CONVERSE.served({}, json.dumps(answer).encode()) == ("default", "standard")
    native_answer = {"generation": "x", "amazon-bedrock-trace": trace}
    found = usage(native("llama"), HEADERS, native_answer)
    assert found is not None and found.guardrail_units == 9


def test_what_was_served_is_read_from_headers():
    headers = {
        "x-amzn-bedrock-service-tier": "default",
        "x-amzn-bedrock-performanceconfig-latency": "standard",
    }
    assert native("llama").served(headers, b"{}") == ("default", "standard")
    assert native("llama").served({}, b"{}") == (None, None)
    assert CHAT_COMPLETIONS.served({}, b'{"service_tier": "priority"}') == ("priority", None)


@pytest.mark.parametrize("value", [-1, 1.5, "7", True, None, 10**10, [], {}])
@pytest.mark.parametrize("family", BODIES)
def test_figures_that_are_no_counts_void_the_report(family, value):
    text = json.dumps(BODIES[family]).replace(": 7", f": {json.dumps(value)}")
    assert native(family).usage({}, text.encode()) is None


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "usage",
                        "meta",
                        "billed_units",
                        "results",
                        "trace",
                        "guardrail",
                        "images",
                        "prompt_tokens",
                        "input_tokens",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
    ).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from([*HEADERS, *CACHE]), st.text(max_size=4)),
)
def test_garbage_raises_nothing(body, headers):
    everyone: list[Dialect] = [*FAMILIES.values(), CONVERSE, CHAT_COMPLETIONS, RESPONSES, MESSAGES]
    for dialect in everyone:
        found = dialect.usage(headers, body)
        assert found is None or found.input_tokens >= 0
        dialect.served(headers, body)
