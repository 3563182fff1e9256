"""What one call may learn of, or get from, another: the cache, calls under way, idempotency keys."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any
from uuid import uuid4

import pytest

from proxy.domain.fingerprint import fingerprint
from proxy.domain.ledger import Operation
from proxy.domain.policy import CachePolicy
from proxy.settings import Settings
from tests.security.raw import INVOKE, STREAM
from tests.support.stack import CLAUDE, Key, Proxy

CONVERSE = f"/model/{CLAUDE}/converse"


def ask(stack: Proxy, key: Key, body: Any, path: str = INVOKE, **headers: str) -> tuple[int, str, Any]:
    """Status, what the cache said, the answer."""
    status, told, answer = stack.request("POST", path, body, key=key.bearer_token, headers=headers)
    return status, told.get("x-tollhouse-cache", ""), answer


PAIRS = {
    "ligature": ("\ufb01ne", "fine"), "kelvin": ("\u212a", "K"), "composed": ("\u00e9", "e\u0301"), "case": ("A", "a"),
    "full width": ("\uff21", "A"), "zero width": ("a\u200bb", "ab"), "space": ("a b", "a  b"), "end": ("a", "a\n"),
    "separator": ("a\u2028b", "a\nb"), "right to left": ("\u202eab", "ab"), "digits": ("\u0661", "1"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_what_looks_alike_is_not_alike(stack: Proxy, simulator: Any, key: Key, name: str) -> None:
    one, other = ({"prompt": f"{name} {text}", "max_gen_len": 16} for text in PAIRS[name])
    assert ask(stack, key, one)[:2] == (200, "miss")
    assert ask(stack, key, other)[:2] == (200, "miss")
    assert ask(stack, key, one)[:2] == (200, "hit")
    assert len(simulator.requests()) == 2


BASE: dict[str, Any] = {
    "messages": [{"role": "user", "content": [{"text": "x"}]}], "system": [{"text": "s"}],
    "inferenceConfig": {"maxTokens": 16, "temperature": 0.5, "topP": 0.9, "stopSequences": ["a", "b"]},
}  # fmt: skip


def _with(**more: Any) -> dict[str, Any]:
    return BASE | {"inferenceConfig": BASE["inferenceConfig"] | more}


CHANGED: dict[str, dict[str, Any]] = {
    "system": BASE | {"system": [{"text": "t"}]}, "no system": {k: v for k, v in BASE.items() if k != "system"},
    "limit": _with(maxTokens=17), "temperature": _with(temperature=0.50001), "topP": _with(topP=0.91),
    "stop": _with(stopSequences=["a"]), "order of stops": _with(stopSequences=["b", "a"]),
    "role": BASE | {"messages": [*BASE["messages"], {"role": "assistant", "content": [{"text": "y"}]}]},
    "trace": BASE | {"additionalModelResponseFieldPaths": ["/stop_sequence"]},
    "family field": BASE | {"additionalModelRequestFields": {"top_k": 5}},
}  # fmt: skip


def test_every_field_that_may_change_an_answer_is_in_the_key(stack: Proxy, simulator: Any, key: Key) -> None:
    assert ask(stack, key, BASE, CONVERSE)[1] == "miss"
    for name, body in CHANGED.items():
        assert ask(stack, key, body, CONVERSE)[1] == "miss", name
    assert ask(stack, key, BASE, f"/model/{CLAUDE}/converse-stream")[1] == "miss"
    assert ask(stack, key, BASE, "/model/anthropic.claude-3-sonnet-20240229-v1:0/converse")[1] == "miss"
    assert ask(stack, key, BASE | {"requestMetadata": {"team": "x"}}, CONVERSE)[1] == "hit"
    assert ask(stack, key, dict(reversed(BASE.items())), CONVERSE)[1] == "hit"
    tools = {
        "toolConfig": {"tools": [{"toolSpec": {"name": "t", "inputSchema": {"json": {"type": "object"}}}}]}
    }
    assert ask(stack, key, BASE | tools, CONVERSE)[1] == "bypass"


def test_the_key_has_the_tenant_and_the_policy_in_it() -> None:
    base: dict[str, Any] = {
        "tenant": uuid4(), "policy_version": "1", "operation": Operation.CONVERSE, "model": "m", "targets": ["t"],
        "limit": 1, "body": {"a": 1}, "raw": b'{"a": 1}', "headers": {},
    }  # fmt: skip
    changes: list[dict[str, Any]] = [
        {"tenant": uuid4()}, {"policy_version": "2"}, {"operation": Operation.CONVERSE_STREAM}, {"model": "n"},
        {"targets": ["u"]}, {"targets": ["t", "t"]}, {"limit": 2}, {"body": {"a": 2}, "raw": b'{"a": 2}'},
        {"body": {"a": 1.0}, "raw": b'{"a": 1.0}'}, {"model": "mt", "targets": [""]}, {"model": "m1"},
        {"headers": {"x-amzn-bedrock-guardrailidentifier": "g"}}, {"headers": {"anthropic-beta": "x"}},
    ]  # fmt: skip
    prints = [fingerprint(**base), *(fingerprint(**base | change) for change in changes)]
    assert len(set(prints)) == len(prints)
    assert all(len(one) == 32 for one in prints)


def test_no_answer_crosses_tenants(stack: Proxy, simulator: Any) -> None:
    one, other = stack.key(), stack.key()
    body = {"prompt": secrets.token_hex(8), "max_gen_len": 16}
    for path in (INVOKE, STREAM):
        assert [ask(stack, key, body, path)[1] for key in (one, one, other, other)] == [
            "miss",
            "hit",
            "miss",
            "hit",
        ]


def test_calls_under_way_are_joined_within_a_tenant_only(stack: Proxy, simulator: Any) -> None:
    one, other = stack.key(), stack.key()
    friend = stack.key(one.tenant)
    body = {"prompt": secrets.token_hex(8), "max_gen_len": 16}
    simulator.hold(hold=True)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, stack, key, body) for key in (one, one, friend, other, other)]
        deadline = time.monotonic() + 10
        while simulator.waiting() < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        assert simulator.waiting() == 2
        simulator.hold(hold=False)
        assert {future.result(20)[0] for future in asked} == {200}
    assert len(simulator.requests()) == 2
    for tenant, number in ((one.tenant, 3), (other.tenant, 2)):
        outcomes = sorted(call["outcome"] for call in stack.settled_calls(tenant=tenant))
        assert outcomes == ["HIT"] * (number - 1) + ["POST"]


def test_a_follower_of_a_failed_leader_gets_its_own_answer(stack: Proxy, simulator: Any, key: Key) -> None:
    """The first sending is refused by Bedrock; who waited for it asks for itself."""
    body = {
        "prompt": f"{secrets.token_hex(8)} [[fault=error:ModelErrorException:1]] [[delay_ms=300]]",
        "max_gen_len": 16,
    }
    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(
            future.result(30)[0] for future in [pool.submit(ask, stack, key, body) for _ in range(4)]
        )
    assert statuses[:3] == [200] * 3
    assert statuses[3] in (200, 424)


def test_an_idempotency_key_is_one_request_of_one_tenant(stack: Proxy, simulator: Any) -> None:
    one, other = stack.key(), stack.key()
    token = {"Idempotency-Key": secrets.token_hex(8)}
    body, changed = ({"prompt": text, "max_gen_len": 16} for text in ("a", "b"))
    first = ask(stack, one, body, **token)
    assert first[0] == 200
    assert ask(stack, one, body, **token)[2] == first[2]
    assert len(simulator.requests()) == 1
    status, _, answer = ask(stack, one, changed, **token)
    assert status in (400, 409, 422), answer
    assert ask(stack, other, changed, **token)[0] == 200  # another tenant's keys are its own
    for wrong in ("x" * 300, "x" * 256):
        status, _, answer = ask(stack, one, body, **{"Idempotency-Key": wrong})
        assert status == 400, answer


def test_an_idempotency_key_in_use_is_joined_and_never_sent_twice(
    stack: Proxy, simulator: Any, key: Key
) -> None:
    token = {"Idempotency-Key": secrets.token_hex(8)}
    body = {"prompt": "running", "max_gen_len": 16}
    simulator.hold(hold=True)
    found: list[tuple[int, str, Any]] = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(stack, key, body, **token))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while simulator.waiting() < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    assert simulator.waiting() == 1
    status, _, answer = ask(stack, key, body | {"prompt": "other"}, **token)
    assert status in (400, 409, 422), answer
    simulator.hold(hold=False)
    for thread in threads:
        thread.join(20)
    assert {status for status, _, _ in found} <= {200, 409}
    assert len(simulator.requests()) == 1


def test_there_is_no_semantic_cache_to_collide_in() -> None:
    """Exact match is the only kind: no setting and no policy field makes it another."""
    names = {field.name for kind in (CachePolicy, Settings) for field in fields(kind)}
    assert not [name for name in names if "semantic" in name or "similar" in name or "embedding" in name]
