"""Routes with other vendors' words: passed through where Bedrock serves them, translated where it does not.

The ledger equals the simulator's bill on each, whole and streamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.stack import CLAUDE, LLAMA, Key, Proxy, get_json, nano

NOVA = "amazon.nova-micro-v1:0"
GPT = "openai.gpt-oss-20b-1:0"
QWEN = "qwen.qwen3-32b-v1:0"
MISTRAL = "mistral.mistral-large-2402-v1:0"
HELLO = [{"role": "user", "content": "Say hello to the toll keeper. [[tokens=30]]"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
#: a transparent pixel
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def key(stack: Proxy) -> Key:
    """A tenant of the test's own, so that no answer comes from another test's."""
    return stack.key()


def post(proxy: Proxy, key: Key, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
    return proxy.request("POST", path, body, key=key.bearer_token, headers=headers)


def events(proxy: Proxy, key: Key, path: str, body: Any, **headers: str) -> Iterator[tuple[str, Any]]:
    """Name and data of every server-sent event; data is decoded where it is JSON."""
    headers = {"Authorization": f"Bearer {key.bearer_token}", **headers}
    with httpx.stream("POST", proxy.url + path, json=body, headers=headers, timeout=60) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in response.iter_lines():
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                data = line[5:].strip()
                yield name, data if data == "[DONE]" else json.loads(data)


def the_bill_is_the_ledger(proxy: Proxy, simulator: Any, key: Key, calls: int) -> list[dict[str, Any]]:
    """Both sides of the last `calls` calls of the key, which are all that the simulator saw."""
    bill = {c["request_id"]: c for c in get_json(f"{simulator.url}/_bill")["calls"]}
    items = proxy.settled_calls(key=key.id)[:calls]
    assert len(items) == len(bill) == calls, (len(bill), items)
    for item in items:
        billed = bill[item["upstream_request_id"]]
        assert item["outcome"] == "POST"
        assert nano(item["cost_usd"]) == nano(billed["cost_usd"]), (item, billed)
        assert nano(item["cost_usd"]) <= nano(item["ceiling_usd"])
    return items


@pytest.mark.parametrize("path", ["/openai/v1/chat/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("model", [GPT, QWEN, LLAMA, CLAUDE, NOVA, MISTRAL])
def test_every_chat_model_answers_in_openai_words(
    stack: Proxy, simulator: Any, key: Key, path: str, model: str
) -> None:
    body = {"model": model, "messages": HELLO, "max_tokens": 64, "temperature": 0.5}
    status, headers, answer = post(stack, key, path, body)
    assert status == 200, answer
    [choice] = answer["choices"]
    assert answer["object"] == "chat.completion" and answer["id"]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 30
    assert headers["content-type"].startswith("application/json")
    [item] = the_bill_is_the_ledger(stack, simulator, key, 1)
    assert item["operation"] == "ChatCompletions" and item["model"] == model
    assert nano(item["cost_usd"]) == nano(headers["x-tollhouse-cost"])
    assert item["usage"]["input_tokens"] == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("model", [GPT, LLAMA, CLAUDE])
def test_chat_streams_end_with_their_settlement(
    stack: Proxy, simulator: Any, key: Key, model: str, usage: bool
) -> None:
    body = {"model": model, "messages": HELLO, "max_tokens": 64, "stream": True}
    if usage:
        body["stream_options"] = {"include_usage": True}
    seen = [data for _, data in events(stack, key, "/v1/chat/completions", body)]
    assert seen[-1] == "[DONE]"
    chunks = seen[:-1]
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert len(text.split()) == 30
    finished = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert finished[-1] == "stop" and not any(finished[:-1])
    reported = [c["usage"] for c in chunks if c.get("usage")]
    assert len(reported) == (1 if usage else 0)
    assert all(c["choices"] for c in chunks) is not usage
    [item] = the_bill_is_the_ledger(stack, simulator, key, 1)
    assert item["operation"] == "ChatCompletions"
    if usage:
        assert reported[0]["completion_tokens"] == item["usage"]["output_tokens"] == 30
        assert reported[0]["prompt_tokens"] == item["usage"]["input_tokens"]


@pytest.mark.parametrize("model", [GPT, CLAUDE, LLAMA])
def test_tools_go_out_and_come_back(stack: Proxy, simulator: Any, key: Key, model: str) -> None:
    body: dict[str, Any] = {
        "model": model, "messages": HELLO, "max_tokens": 64, "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }  # fmt: skip
    _, _, answer = post(stack, key, "/v1/chat/completions", body)
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city"}

    parts: dict[str, str] = {"arguments": ""}
    for _, chunk in events(stack, key, "/v1/chat/completions", body | {"stream": True}):
        for delta in [] if chunk == "[DONE]" else chunk["choices"][0]["delta"].get("tool_calls") or []:
            assert delta["index"] == 0
            parts["arguments"] += delta["function"].get("arguments") or ""
            parts |= {k: v for k, v in delta.items() if k == "id" and v}
            parts |= {k: v for k, v in delta["function"].items() if k == "name" and v}
    assert parts["name"] == "weather" and parts["id"] and json.loads(parts["arguments"])

    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    talk = [{"role": "system", "content": "Be short."}, *HELLO, choice["message"], result]
    body = {"model": model, "messages": talk, "tools": TOOLS, "max_tokens": 64}
    status, _, answer = post(stack, key, "/v1/chat/completions", body)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"]
    the_bill_is_the_ledger(stack, simulator, key, 3)


def test_images_reach_a_model_that_is_served_through_converse(stack: Proxy, simulator: Any, key: Key) -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    body = {"model": CLAUDE, "messages": [{"role": "user", "content": content}], "max_tokens": 32}
    status, _, answer = post(stack, key, "/v1/chat/completions", body)
    assert status == 200, answer
    [item] = the_bill_is_the_ledger(stack, simulator, key, 1)
    assert item["usage"]["input_tokens"] > 1000


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"n": 2}, "n is not supported"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 1.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "json_schema"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"temperature": 1.7}, "temperature"),
        ({"surprise": 1}, "surprise"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]}, "data URL"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "input_audio"),
    ],
)  # fmt: skip
def test_what_converse_cannot_say_is_refused(
    stack: Proxy, simulator: Any, key: Key, change: dict[str, Any], word: str
) -> None:
    body = {"model": LLAMA, "messages": HELLO, "max_tokens": 32} | change
    status, _, answer = post(stack, key, "/v1/chat/completions", body)
    assert status == 400, answer
    assert word in answer["error"]["message"]
    assert stack.calls(key=key.id) == [] and get_json(f"{simulator.url}/_bill")["count"] == 0


def test_errors_and_broken_streams_are_told_in_openai_words(stack: Proxy, simulator: Any, key: Key) -> None:
    throttled = [{"role": "user", "content": "[[fault=throttle]] hello"}]
    status, headers, answer = post(
        stack, key, "/v1/chat/completions", {"model": LLAMA, "messages": throttled, "max_tokens": 32}
    )
    assert status == 503 and answer["error"]["code"] == "upstream_unavailable"
    assert headers["retry-after"]

    for fault in ("exception:throttlingException:3", "truncate:3", "reset:3"):
        talk = [{"role": "user", "content": f"[[fault={fault}]] hello"}]
        body = {"model": LLAMA, "messages": talk, "max_tokens": 64, "stream": True}
        last = list(events(stack, key, "/v1/chat/completions", body))[-1][1]
        assert "message" in last["error"], fault
    outcomes = [item["outcome"] for item in stack.settled_calls(key=key.id)]
    assert outcomes == ["CEILING", "CEILING", "CEILING", "VOID"]


def test_responses_are_stateless(stack: Proxy, simulator: Any, key: Key) -> None:
    body = {"model": GPT, "input": "Say hello. [[tokens=20]]", "max_output_tokens": 64}
    for path in ("/openai/v1/responses", "/v1/responses"):
        status, _, answer = post(stack, key, path, body, **{"Cache-Control": "no-store, no-cache"})
        assert status == 200 and answer["output"][0]["content"][0]["text"], answer
    named = [n for n, _ in events(stack, key, "/v1/responses", body | {"stream": True})]
    assert named[0] == "response.created" and named[-1] == "response.completed"
    the_bill_is_the_ledger(stack, simulator, key, 3)
    for reach in (
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"prompt": {"id": "pmpt_1"}},
    ):
        status, _, answer = post(stack, key, "/v1/responses", body | reach)
        assert status == 400 and answer["error"]["code"] == "unbounded_cost", reach
    status, _, answer = post(stack, key, "/v1/responses", body | {"model": LLAMA})
    assert status == 400 and "/chat/completions" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/anthropic/v1/messages", "/v1/messages"])
def test_messages_pass_through(stack: Proxy, simulator: Any, key: Key, path: str) -> None:
    body = {"model": CLAUDE, "messages": HELLO, "max_tokens": 64}
    status, _, answer = stack.request(
        "POST",
        path,
        body,
        key=None,
        headers={"x-api-key": key.bearer_token, "anthropic-version": "2023-06-01"},
    )
    assert status == 200 and answer["content"][0]["text"], answer
    named = [n for n, _ in events(stack, key, path, body | {"stream": True})]
    assert named[0] == "message_start" and named[-1] == "message_stop"
    the_bill_is_the_ledger(stack, simulator, key, 2)
    status, _, answer = post(stack, key, path, body | {"model": LLAMA})
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    assert "Claude" in answer["error"]["message"]


def test_models_that_a_key_may_call_are_listed(stack: Proxy, key: Key) -> None:
    for root in ("/openai/v1", "/v1"):
        status, _, answer = stack.request("GET", f"{root}/models", key=key.bearer_token)
        assert status == 200 and answer["object"] == "list"
        ids = {m["id"] for m in answer["data"]}
        assert {LLAMA, CLAUDE, GPT} <= ids
        for name in (LLAMA, LLAMA.replace(":", "%3A")):
            status, _, answer = stack.request("GET", f"{root}/models/{name}", key=key.bearer_token)
            assert status == 200 and answer["id"] == LLAMA and answer["object"] == "model"
        status, _, answer = stack.request("GET", f"{root}/models/no.such-model", key=key.bearer_token)
        assert status == 404 and answer["error"]["code"] == "model_not_found"
        status, _, answer = stack.request("GET", f"{root}/models/{LLAMA}", key="wrong")
        assert status == 401


def test_an_alias_is_served_under_its_own_name(stack: Proxy, simulator: Any, key: Key) -> None:
    body = {"model": "llama-405b", "messages": HELLO, "max_tokens": 64}
    status, _, answer = post(stack, key, "/v1/chat/completions", body)
    assert status == 200 and answer["model"] == "llama-405b", answer
    [item] = the_bill_is_the_ledger(stack, simulator, key, 1)
    assert item["model"] == LLAMA and item["target"].endswith(f"/us.{LLAMA}")


def test_a_short_budget_lowers_the_limit_of_a_translated_call(stack: Proxy, simulator: Any, key: Key) -> None:
    """The limit that is lowered is that of the body that is sent."""
    stack.budget(f"key:{key.id}", "0.006", on_short="clamp")
    talk = [{"role": "user", "content": "Count the coins. [[tokens=3000]]"}]
    body = {"model": LLAMA, "messages": talk, "max_tokens": 4000}
    status, _, answer = post(stack, key, "/v1/chat/completions", body)
    assert status == 200, answer
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] < 2500
    the_bill_is_the_ledger(stack, simulator, key, 1)


def test_identical_translated_calls_are_paid_once(stack: Proxy, simulator: Any, key: Key) -> None:
    body = {"model": LLAMA, "messages": HELLO, "max_tokens": 64, "stream": True}
    first, again = (list(events(stack, key, "/v1/chat/completions", body)) for _ in range(2))
    assert first == again and first[-1][1] == "[DONE]"
    asking = body | {"stream_options": {"include_usage": True}}
    assert any(c["usage"] for _, c in events(stack, key, "/v1/chat/completions", asking) if c != "[DONE]")
    outcomes = [item["outcome"] for item in stack.settled_calls(key=key.id)]
    assert sorted(outcomes) == ["HIT", "POST", "POST"]
