"""Every route enforces every policy, in its own dialect: a matrix made from the route table.

A route that is added to the table is in the matrix by that; a policy that a route forgets fails here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.domain.ledger import Operation
from proxy.web import routes
from proxy.web.routes import FIXED, match, wire_of
from tests.support.stack import Key, Proxy, nano, running

LLAMA = "meta.llama3-1-8b-instruct-v1:0"
CLAUDE = "anthropic.claude-3-5-haiku-20241022-v1:0"
GPT = "openai.gpt-oss-20b-1:0"
GUARD = "gr0guardrail"
TEXT = "Say hello. [[tokens=20]]"
TALK = [{"role": "user", "content": TEXT}]
CONVERSE = {"messages": [{"role": "user", "content": [{"text": TEXT}]}], "inferenceConfig": {"maxTokens": 64}}
GUARDED = {"source": "INPUT", "content": [{"text": {"text": TEXT}}]}

#: a model and a body for each operation
#: a call that is counted may fit after all; here the byte bound is what is tested
STACK_SETTINGS = {"TOLLHOUSE_COUNTS_PER_SECOND": "0"}

BODIES: dict[Operation, tuple[str, dict[str, Any]]] = {
    Operation.INVOKE_MODEL: (LLAMA, {"prompt": TEXT, "max_gen_len": 64}),
    Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM: (LLAMA, {"prompt": TEXT, "max_gen_len": 64}),
    Operation.CONVERSE: (LLAMA, CONVERSE),
    Operation.CONVERSE_STREAM: (LLAMA, CONVERSE),
    Operation.COUNT_TOKENS: (CLAUDE, {"input": {"converse": {"messages": CONVERSE["messages"]}}}),
    Operation.APPLY_GUARDRAIL: (GUARD, GUARDED),
    Operation.CHAT_COMPLETIONS: (GPT, {"model": GPT, "messages": TALK, "max_tokens": 64}),
    Operation.RESPONSES: (GPT, {"model": GPT, "input": TEXT, "max_output_tokens": 64}),
    Operation.MESSAGES: (CLAUDE, {"model": CLAUDE, "messages": TALK, "max_tokens": 64}),
    Operation.MESSAGES_COUNT_TOKENS: (CLAUDE, {"model": CLAUDE, "messages": TALK}),
}
FREE = {Operation.COUNT_TOKENS, Operation.MESSAGES_COUNT_TOKENS}
#: the same request of a model that must be translated
TRANSLATED = "translated"


@dataclass(frozen=True)
class Way:
    """One route with a request that it serves."""

    path: str
    operation: Operation
    model: str
    body: dict[str, Any]

    @property
    def wire(self) -> str:
        return wire_of(self.path.encode())

    def with_model(self, model: str) -> Way:
        if "model" in self.body:
            return Way(self.path, self.operation, model, self.body | {"model": model})
        return Way(self.path.replace(self.model, model), self.operation, model, self.body)


def ways() -> Iterator[Any]:
    paths = [path.decode() for path in FIXED]
    paths += [f"/model/{{}}/{suffix.decode()}" for suffix in routes._NATIVE]
    paths.append(f"/guardrail/{GUARD}/version/1/apply")
    for path in paths:
        operation = match("POST", path.format("x").encode()).operation
        model, body = BODIES[operation]
        yield pytest.param(Way(path.format(model), operation, model, body), id=path.strip("/"))
        if operation is Operation.CHAT_COMPLETIONS:
            again = Way(path, operation, LLAMA, body | {"model": LLAMA})
            yield pytest.param(again, id=f"{path.strip('/')}-{TRANSLATED}")


WAYS = list(ways())
every_route = pytest.mark.parametrize("way", WAYS)


def test_the_table_is_complete() -> None:
    assert {param.values[0].operation for param in WAYS} == set(Operation)


@pytest.fixture(scope="module")
def module_stack(
    module_database_url: str,
    session_redis_url: str,
    simulator_server: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """A proxy that does not wait long for held budgets."""
    state = tmp_path_factory.mktemp("proxy") / "state"
    settings = {"TOLLHOUSE_HELD_WAIT_MS": "20"}
    proxy = Proxy(module_database_url, session_redis_url, simulator_server.url, state, settings)
    with running(proxy) as started:
        yield started


Made = Callable[[str], Key]


@pytest.fixture(scope="module")
def made(module_stack: Proxy) -> Made:
    """Keys by policy, made once for all routes. Identical requests of one key must not be answered from
    what is kept, so the cache is off.
    """
    keys: dict[str, Key] = {}
    plain = {"arns_allowed": [GUARD], "cache": {"enabled": False}}

    def make(name: str) -> Key:
        if name not in keys:
            key = module_stack.key(module_stack.tenant(overrides=plain | OVERRIDES.get(name, {})))
            SPOILED.get(name, _nothing)(module_stack, key)
            keys[name] = key
        return keys[name]

    return make


OVERRIDES: dict[str, dict[str, Any]] = {
    "narrow": {"models_allowed": ["amazon.titan-*"], "arns_allowed": []},
    "small": {"max_body_bytes": 64},
}


def _spend_tokens(proxy: Proxy, key: Key) -> None:
    """One call that leaves hours of debt."""
    proxy.admin("POST", "/limits", {"scope": f"key:{key.id}", "tokens_per_minute": 1})
    _until_refused(proxy, key, 429)


def _until_refused(proxy: Proxy, key: Key, status: int) -> None:
    """Limits and states reach the proxy within a second."""
    for _ in range(300):
        way = WAYS[0].values[0]
        if proxy.request("POST", way.path, way.body, key=key.bearer_token)[0] == status:
            return
        time.sleep(0.02)
    raise AssertionError(f"never refused with {status}")


def _one_at_a_time(proxy: Proxy, key: Key) -> None:
    proxy.admin("POST", "/limits", {"scope": f"key:{key.id}", "concurrency": 1})
    time.sleep(1.2)


def _disable(proxy: Proxy, key: Key) -> None:
    proxy.admin("POST", f"/keys/{key.id}/disable")
    _until_refused(proxy, key, 401)


def _suspend(proxy: Proxy, key: Key) -> None:
    path = f"/admin/v1/tenants/{key.tenant}"
    _, headers, _ = proxy.request("GET", path)
    assert (
        proxy.request("PATCH", path, {"status": "suspended"}, headers={"If-Match": headers["etag"]})[0] == 200
    )
    _until_refused(proxy, key, 403)


def _empty(proxy: Proxy, key: Key) -> None:
    proxy.budget(f"key:{key.id}", "0.000000001")


def _nothing(proxy: Proxy, key: Key) -> None:
    """It stays good."""


SPOILED: dict[str, Callable[[Proxy, Key], None]] = {
    "disabled": _disable,
    "suspended": _suspend,
    "broke": _empty,
    "throttled": _spend_tokens,
    "alone": _one_at_a_time,
}


def refused(
    proxy: Proxy, way: Way, token: str | None, statuses: tuple[int, int, int], bedrock: str
) -> tuple[dict[str, str], str]:
    """The refusal in the dialect of the route: statuses of (bedrock, openai, anthropic). Returns its
    headers and its sentence.
    """
    status, headers, answer = proxy.request("POST", way.path, way.body, key=token)
    place = ("bedrock", "openai", "anthropic").index(way.wire)
    assert status == statuses[place], (status, answer)
    assert headers["content-type"] == "application/json"
    assert headers["x-amzn-requestid"] and headers["x-tollhouse-call-id"]
    if way.wire == "bedrock":
        assert headers["x-amzn-errortype"] == bedrock
        assert list(answer) == ["message"]
        return headers, str(answer["message"])
    assert "x-amzn-errortype" not in headers
    if way.wire == "anthropic":
        assert answer["type"] == "error" and answer["error"]["type"]
    else:
        assert answer["error"].keys() == {"message", "type", "param", "code"}
    return headers, str(answer["error"]["message"])


@every_route
def test_served(stack: Proxy, made: Made, way: Way) -> None:
    """The requests of the matrix are good ones: what is refused below is refused for its policy."""
    status, headers, answer = stack.request("POST", way.path, way.body, key=made("good").bearer_token)
    assert status == 200, answer
    assert headers["x-tollhouse-call-id"]


@every_route
@pytest.mark.parametrize("token", [None, "th_live_wrong", "not a key"])
def test_no_key_and_wrong_keys(stack: Proxy, way: Way, token: str | None) -> None:
    refused(stack, way, token, (403, 401, 401), "UnrecognizedClientException")


@every_route
def test_disabled_key(stack: Proxy, made: Made, way: Way) -> None:
    token = made("disabled").bearer_token
    _, text = refused(stack, way, token, (403, 401, 401), "UnrecognizedClientException")
    assert "disabled" in text


@every_route
def test_suspended_tenant(stack: Proxy, made: Made, way: Way) -> None:
    token = made("suspended").bearer_token
    _, text = refused(stack, way, token, (403, 403, 403), "AccessDeniedException")
    assert "suspended" in text


@every_route
def test_model_or_guardrail_not_allowed(stack: Proxy, made: Made, way: Way) -> None:
    token = made("narrow").bearer_token
    _, text = refused(stack, way, token, (403, 403, 403), "AccessDeniedException")
    assert way.model in text


@every_route
def test_unknown_model(stack: Proxy, made: Made, way: Way) -> None:
    if way.operation is Operation.APPLY_GUARDRAIL:
        pytest.skip("a guardrail that is not on the list is not allowed")
    unknown, token = way.with_model("meta.no-such-model-v1:0"), made("good").bearer_token
    _, text = refused(stack, unknown, token, (400, 404, 404), "ValidationException")
    assert "no-such-model" in text


@every_route
def test_unbounded(stack: Proxy, made: Made, way: Way) -> None:
    strange = Way(way.path, way.operation, way.model, way.body | {"multiply_the_cost": 9})
    token = made("good").bearer_token
    refused(stack, strange, token, (400, 400, 400), "ValidationException")


@every_route
@pytest.mark.parametrize("raw", [b"", b"[]", b'{"a":1', b'{"a":1,"a":2}'])
def test_broken_bodies(stack: Proxy, made: Made, way: Way, raw: bytes) -> None:
    broken = Way(way.path, way.operation, way.model, raw)  # type: ignore[arg-type]
    refused(stack, broken, made("good").bearer_token, (400, 400, 400), "ValidationException")


@every_route
def test_too_large_body(stack: Proxy, made: Made, way: Way) -> None:
    padded = json.dumps(way.body).encode() + b" " * 100
    large = Way(way.path, way.operation, way.model, padded)  # type: ignore[arg-type]
    refused(stack, large, made("small").bearer_token, (413, 413, 413), "ValidationException")


@every_route
def test_rate_limit(stack: Proxy, made: Made, way: Way) -> None:
    token = made("throttled").bearer_token
    headers, text = refused(stack, way, token, (429, 429, 429), "ThrottlingException")
    assert "tokens" in text and int(headers["retry-after"]) >= 1 and int(headers["x-amz-retry-after"]) >= 1


@pytest.fixture
def occupied(stack: Proxy, simulator: Any) -> Iterator[Callable[[Key], None]]:
    """Starts a call of a key that does not end before the test does."""
    threads = []

    def occupy(key: Key) -> None:
        simulator.hold(hold=True)
        path, body = f"/model/{LLAMA}/invoke", {"prompt": TEXT, "max_gen_len": 64}
        thread = threading.Thread(
            target=stack.request, args=("POST", path, body), kwargs={"key": key.bearer_token}
        )
        thread.start()
        threads.append(thread)
        deadline = time.monotonic() + 10
        while simulator.waiting() < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    yield occupy
    simulator.hold(hold=False)
    for thread in threads:
        thread.join()


@every_route
def test_concurrency(stack: Proxy, made: Made, occupied: Callable[[Key], None], way: Way) -> None:
    key = made("alone")
    occupied(key)
    headers, text = refused(stack, way, key.bearer_token, (429, 429, 429), "ThrottlingException")
    assert "concurrent" in text and headers["retry-after"]


@every_route
def test_spent_budget(stack: Proxy, made: Made, way: Way) -> None:
    token = made("broke").bearer_token
    if way.operation in FREE:
        assert stack.request("POST", way.path, way.body, key=token)[0] == 200
        return
    headers, text = refused(stack, way, token, (400, 402, 402), "ServiceQuotaExceededException")
    assert "is spent" in text and headers["x-should-retry"] == "false" and "retry-after" not in headers


@every_route
def test_held_budget(stack: Proxy, made: Made, occupied: Callable[[Key], None], way: Way) -> None:
    """There is room for either of two calls, not for both."""
    if way.operation in FREE:
        pytest.skip("free calls hold nothing")
    good = made("good")
    needs = [_least(stack, way, _ceiling(stack, good, way)), _ceiling(stack, good, _native())]
    key = _with_budget(stack, max(needs))
    occupied(key)
    headers, text = refused(stack, way, key.bearer_token, (429, 429, 429), "ThrottlingException")
    assert "held" in text and headers["retry-after"] == "1" and headers["x-amz-retry-after"] == "1000"


def _native() -> Way:
    model, body = BODIES[Operation.INVOKE_MODEL]
    return Way(f"/model/{model}/invoke", Operation.INVOKE_MODEL, model, body)


def _with_budget(proxy: Proxy, nano_usd: int) -> Key:
    key = proxy.key(proxy.tenant(overrides={"arns_allowed": [GUARD], "cache": {"enabled": False}}))
    proxy.budget(f"key:{key.id}", f"{nano_usd / 1e9:.9f}")
    return key


def _least(proxy: Proxy, way: Way, ceiling: int) -> int:
    """Nano-dollars that such a call holds where its byte bound does not fit: some have their input counted then."""
    key = _with_budget(proxy, ceiling - 1)
    status, headers, _ = proxy.request("POST", way.path, way.body, key=key.bearer_token)
    if status != 200:
        return ceiling
    mine = [i for i in proxy.calls(key=key.id) if i["id"] == headers["x-tollhouse-call-id"]]
    [item] = [i for i in mine if i["kind"] == "call"]
    return nano(item["ceiling_usd"])


def _ceiling(proxy: Proxy, key: Key, way: Way) -> int:
    """Nano-dollars that such a call holds."""
    _, headers, _ = proxy.request("POST", way.path, way.body, key=key.bearer_token)
    [item] = [i for i in proxy.calls(key=key.id) if i["id"] == headers["x-tollhouse-call-id"]]
    return nano(item["ceiling_usd"])
