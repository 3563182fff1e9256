"""Bad input gets a clear error in the dialect of its route; nothing is spent, nothing is written."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.stack import CLAUDE, LLAMA, Key, Proxy

INVOKE = f"/model/{LLAMA}/invoke"
GOOD = {"prompt": "hello", "max_gen_len": 16}
CLAUDE_GOOD: dict[str, Any] = {
    "anthropic_version": "bedrock-2023-05-31",
    "max_tokens": 16,
    "messages": [{"role": "user", "content": "hello"}],
}


@pytest.fixture
def key(stack: Proxy) -> Key:
    return stack.key()


def refused(
    stack: Proxy, simulator: Any, key: Key, path: str, body: Any, status: int, kind: str, **options: Any
) -> str:
    """The refusal's message, after checking that nothing happened."""
    got, headers, answer = stack.request(
        "POST", path, body, key=options.pop("token", key.bearer_token), **options
    )
    assert (got, headers.get("x-amzn-errortype")) == (status, kind), answer
    assert headers["content-type"].startswith("application/json")
    assert headers["x-amzn-requestid"]
    assert stack.calls(tenant=key.tenant) == []
    assert simulator.requests() == []
    message: str = answer["message"]
    assert message
    assert "Traceback" not in message
    return message


def test_no_key_and_wrong_keys_are_told_apart_by_nothing_but_being_missing(
    stack: Proxy, simulator: Any, key: Key
) -> None:
    auth = "UnrecognizedClientException"
    missing = refused(stack, simulator, key, INVOKE, GOOD, 403, auth, token=None)
    assert "No key" in missing
    texts = {
        refused(stack, simulator, key, INVOKE, GOOD, 403, auth, token=token)
        for token in (
            "nonsense",
            key.bearer_token[:-1] + ("y" if key.bearer_token[-1] == "x" else "x"),
            key.bearer_token[:-5],
            "' OR '1'='1",
            "x" * 6000,
        )
    }
    assert len(texts) == 1


def test_a_disabled_key_and_a_suspended_tenant_get_the_true_reason(
    stack: Proxy, simulator: Any, key: Key
) -> None:
    stack.admin("POST", f"/keys/{key.id}/disable", {})
    _until_refused(stack, key)
    assert "disabled" in refused(stack, simulator, key, INVOKE, GOOD, 403, "UnrecognizedClientException")
    stack.admin("POST", f"/keys/{key.id}/enable", {})
    stack.await_key(key)
    etag = stack.request("GET", f"/admin/v1/tenants/{key.tenant}")[1]["etag"]
    stack.admin("PATCH", f"/tenants/{key.tenant}", {"status": "suspended"}, headers={"If-Match": etag})
    _until_refused(stack, key)
    assert "suspended" in refused(stack, simulator, key, INVOKE, GOOD, 403, "AccessDeniedException")


def _until_refused(stack: Proxy, key: Key) -> None:
    import time

    for _ in range(100):
        if stack.request("GET", "/v1/models", key=key.bearer_token)[0] != 200:
            return
        time.sleep(0.02)
    raise AssertionError("still accepted after 2 s")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/model/meta.llama3-1-405b-instruct-v10/invoke", GOOD, "did you mean meta.llama3-1-405b-instruct-v1:0"),
        ("/model/nobody.knows-v1:0/invoke", GOOD, "model"),
        (INVOKE, b"{", "JSON"),
        (INVOKE, b"[]", ""),
        (INVOKE, b"", ""),
        (INVOKE, b'{"prompt": "x", "max_gen_len": NaN}', ""),
        (INVOKE, b'{"prompt": "x", "max_gen_len": 1, "max_gen_len": 2000}', ""),
        (INVOKE, b"[" * 100_000, ""),
        (INVOKE, b"\xef\xbb\xbf{}", ""),
        (INVOKE, '{"prompt": "x"}'.encode("utf-16"), ""),
        (INVOKE, {"prompt": "x", "max_gen_len": 2049}, "max_gen_len"),
        (INVOKE, {"prompt": "x", "max_gen_len": 0}, "max_gen_len"),
        (INVOKE, {"prompt": "x", "max_gen_len": -1}, "max_gen_len"),
        (INVOKE, {"prompt": "x", "max_gen_len": 1.5}, "max_gen_len"),
        (INVOKE, {"prompt": "x", "max_gen_len": "10"}, "max_gen_len"),
        (INVOKE, {"prompt": "x", "max_gen_len": True}, "max_gen_len"),
        (INVOKE, {"prompt": "x", "temperature": 1.5}, "temperature"),
        (INVOKE, {"prompt": "x", "top_p": -0.1}, "top_p"),
        (INVOKE, {"max_gen_len": 10}, "prompt"),
        (INVOKE, {"prompt": "x", "best_of": 50}, "best_of"),
        (f"/model/{CLAUDE}/invoke", {**CLAUDE_GOOD, "max_tokens": None}, "max_tokens"),
        (f"/model/{CLAUDE}/converse", {"messages": [{"role": "user", "content": [{"unknown": {}}]}]}, ""),
        (f"/model/{CLAUDE}/converse", {"messages": [{"role": "user", "content": [{"text": "x"}]}], "inferenceConfig": {"maxTokens": 0}}, "maxTokens"),
    ],
)  # fmt: skip
def test_broken_and_unbounded_requests(
    stack: Proxy, simulator: Any, key: Key, path: str, body: Any, words: str
) -> None:
    assert words in refused(stack, simulator, key, path, body, 400, "ValidationException")


def test_a_body_of_one_byte_too_many(stack: Proxy, simulator: Any, key: Key) -> None:
    body = b'{"prompt": "' + b"x" * (25_000_000 + 1 - 14) + b'"}'
    assert len(body) == 25_000_001
    message = refused(stack, simulator, key, INVOKE, body, 413, "ValidationException")
    assert "25000000" in message


@pytest.mark.parametrize(
    "path", ["/nowhere", "/model/x", f"//model/{LLAMA}/invoke", f"/model/{LLAMA}/invoke/"]
)
def test_an_unknown_path(stack: Proxy, simulator: Any, key: Key, path: str) -> None:
    refused(stack, simulator, key, path, GOOD, 404, "UnknownOperationException")


@pytest.mark.parametrize(
    "path", ["/async-invoke", f"/model/{LLAMA}/invoke-with-bidirectional-stream", "/model-invocation-job"]
)
def test_what_cannot_be_governed_says_why(stack: Proxy, simulator: Any, key: Key, path: str) -> None:
    assert "not served" in refused(stack, simulator, key, path, GOOD, 403, "AccessDeniedException")


def test_compressed_bodies_are_refused(stack: Proxy, simulator: Any, key: Key) -> None:
    import gzip

    refused(stack, simulator, key, INVOKE, gzip.compress(b"{}"), 400, "ValidationException",
            headers={"Content-Encoding": "gzip"})  # fmt: skip


def test_the_other_dialects_tell_it_in_their_own_words(stack: Proxy) -> None:
    status, _, body = stack.request("POST", "/openai/v1/chat/completions", {}, key=None)
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    status, _, body = stack.request("POST", "/anthropic/v1/messages", {}, key=None)
    assert (status, body["type"], body["error"]["type"]) == (401, "error", "authentication_error")
