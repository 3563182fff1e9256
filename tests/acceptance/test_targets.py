"""A call goes where its route says, moves on when a target fails, and pays for every sending its own price."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from proxy import policyfile
from tests.support.stack import LLAMA, Key, Proxy, nano, running

NOVA = "amazon.nova-pro-v1:0"
SMALL = "meta.llama3-1-8b-instruct-v1:0"
CAPACITY = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/llama31405b0"
CREATING = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/notready0000"
ROUTES = f"""
routes:
  east-first:
    model: {LLAMA}
    targets: [{{profile: us, region: us-east-2}}, {{region: us-west-2}}]
  with-stand-in:
    model: {LLAMA}
    targets: [{{region: us-west-2}}]
    fallbacks: [amazon.nova-micro-v1:0, {SMALL}]
  spilling:
    model: {LLAMA}
    policy: spill
    targets: [{{region: us-west-2}}, {{arn: "{CAPACITY}", rates: {{input: "0.5", output: "0.75"}}}}]
  cheap-tier:
    model: openai.gpt-oss-120b-1:0
    targets: [{{region: us-west-2, tier: flex}}, {{region: us-west-2}}]
  fast:
    model: {NOVA}
    targets: [{{profile: us, region: us-east-1, latency: optimized}}]
  not-ready:
    model: {SMALL}
    policy: spill
    targets: [{{arn: "{CREATING}"}}, {{region: us-west-2}}]
  bought:
    model: {SMALL}
    policy: provisioned_only
    targets: [{{arn: "{CREATING}"}}, {{region: us-west-2}}]
"""
BODY = {"prompt": "hello there", "max_gen_len": 40}


@pytest.fixture(scope="module")
def black_hole() -> Iterator[str]:
    """An address that answers no connection: its backlog is full, so the kernel drops every SYN."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def proxy(
    module_database_url: str, session_redis_url: str, simulator_server: Any, black_hole: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:  # fmt: skip
    folder = tmp_path_factory.mktemp("targets")
    shutil.copytree(policyfile.directory(), folder / "policies")
    (folder / "policies" / "routes" / "own.yaml").write_text(ROUTES)
    upstream = f"us-east-2={black_hole},{simulator_server.url}"
    settings = {
        "TOLLHOUSE_POLICIES_DIR": str(folder / "policies"), "TOLLHOUSE_CONNECT_MS": "400",
        "TOLLHOUSE_BREAKER_FAULTS": "3",
    }  # fmt: skip
    state = folder / "state"
    with running(Proxy(module_database_url, session_redis_url, upstream, state, settings)) as started:
        yield started


@pytest.fixture(scope="module")
def key(proxy: Proxy) -> Key:
    return proxy.key()


@pytest.fixture
def ask(proxy: Proxy, key: Key, simulator: Any) -> Callable[..., tuple[int, dict[str, str], Any]]:
    del simulator  # it was reset

    def call(model: str, prompt: str = "", **headers: str) -> tuple[int, dict[str, str], Any]:
        body = BODY | ({"prompt": prompt} if prompt else {})
        sent = {"Cache-Control": "no-cache", **headers}
        return proxy.request("POST", f"/model/{model}/invoke", body, key=key.bearer_token, headers=sent)

    return call


def attempts(proxy: Proxy, headers: dict[str, str]) -> list[dict[str, Any]]:
    """Of one call, in the order they were sent."""
    items = [i for i in proxy.settled_calls() if i["id"] == headers["x-tollhouse-call-id"]]
    return sorted(items, key=lambda item: str(item["attempt"]))


def test_a_black_holed_region_is_left_within_the_connect_time_and_then_alone(proxy, ask, simulator):
    waits = []
    for number in range(20):
        began = time.monotonic()
        status, headers, _ = ask("east-first", f"number {number}")
        waits.append(time.monotonic() - began)
        assert (status, headers["x-tollhouse-model"]) == (200, LLAMA)
    assert [wait > 0.4 for wait in waits].count(True) == 3, "after three failures nobody waits for it"
    assert max(waits) < 2.5
    rows = [item for item in proxy.settled_calls() if item["model"] == LLAMA]
    assert len(rows) <= 24, "what is sent twice stays under a fifth"
    assert len(simulator.bill()["calls"]) == 20
    assert sum(nano(row["cost_usd"]) for row in rows) == nano(simulator.bill()["total_usd"])
    assert {row["outcome"] for row in rows if row["target"].startswith("us-east-2/")} == {"VOID"}


def test_an_error_falls_back_to_the_model_that_the_policy_names_and_says_so(proxy, ask, simulator):
    simulator.fault({"fault": "error:InternalServerException", "model": LLAMA, "times": 1})
    status, headers, answer = ask("with-stand-in")
    assert (status, headers["x-tollhouse-model"]) == (200, SMALL), answer
    first, second = attempts(proxy, headers)
    assert (first["outcome"], first["model"], second["outcome"], second["model"]) == (
        "VOID",
        LLAMA,
        "POST",
        SMALL,
    )
    assert nano(second["ceiling_usd"]) < nano(first["ceiling_usd"])
    assert nano(second["cost_usd"]) == nano(simulator.bill()["total_usd"])
    status, headers, _ = ask("with-stand-in")
    assert headers["x-tollhouse-model"] == LLAMA, "one error is not for ever"


def test_a_stand_in_that_the_key_may_not_call_is_not_asked(proxy, simulator):
    tenant = proxy.tenant(overrides={"models_denied": ["*8b*"]})
    own = proxy.key(tenant)
    simulator.fault({"fault": "error:InternalServerException", "model": LLAMA, "times": 1})
    status, _, _ = proxy.request("POST", "/model/with-stand-in/invoke", BODY, key=own.bearer_token)
    assert status == 503
    assert [row["model"] for row in proxy.settled_calls(tenant=tenant)] == [LLAMA]


def test_a_stream_that_has_begun_is_never_sent_again(proxy, key, simulator):
    simulator.fault({"fault": "reset:1", "model": LLAMA, "times": 1})
    path = "/model/with-stand-in/invoke-with-response-stream"
    status, headers, body = proxy.request("POST", path, BODY, key=key.bearer_token)
    assert (status, headers["x-tollhouse-model"]) == (200, LLAMA)
    assert b"modelStreamErrorException" in body
    assert [row["outcome"] for row in attempts(proxy, headers)] == ["CEILING"]


def test_paid_capacity_comes_first_and_costs_the_operator_s_rate(proxy, ask, simulator):
    status, headers, answer = ask("spilling")
    assert status == 200
    [row] = attempts(proxy, headers)
    used = answer["prompt_token_count"] * 500 + answer["generation_token_count"] * 750
    assert (nano(row["cost_usd"]), nano(row["upstream_cost_usd"])) == (used, 0)
    assert nano(simulator.bill()["total_usd"]) == 0


def test_it_spills_over_when_it_is_throttled_or_not_ready(proxy, ask, simulator):
    simulator.fault({"fault": "throttle", "model": CAPACITY, "times": 1})
    status, headers, _ = ask("spilling")
    rows = attempts(proxy, headers)
    assert status == 200
    assert [(row["outcome"], row["target"]) for row in rows] == [
        ("VOID", f"us-east-1/{CAPACITY}"), ("POST", f"us-west-2/{LLAMA}"),
    ]  # fmt: skip
    assert nano(rows[1]["cost_usd"]) == nano(simulator.bill()["total_usd"])
    status, headers, _ = ask("not-ready")
    assert (status, attempts(proxy, headers)[1]["target"]) == (200, f"us-west-2/{SMALL}")


@pytest.mark.parametrize(
    "path", ["/model/cheap-tier/converse", "/model/cheap-tier/invoke", "/v1/chat/completions"]
)
def test_a_target_asks_for_its_service_tier_and_is_charged_for_the_one_served(proxy, key, simulator, path):
    content: Any = [{"text": "hello"}] if path.endswith("converse") else "hello"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    body |= {} if path.endswith("converse") else {"max_tokens": 30}
    body |= {"model": "cheap-tier"} if path.startswith("/v1") else {}
    sent = {"Cache-Control": "no-store"}
    status, headers, answer = proxy.request("POST", path, body, key=key.bearer_token, headers=sent)
    assert status == 200, answer
    [row] = attempts(proxy, headers)
    [billed] = simulator.bill()["calls"]
    assert nano(row["cost_usd"]) == nano(simulator.bill()["total_usd"])
    assert billed["service_tier"] == "flex"
    body |= (
        {"serviceTier": {"type": "priority"}} if path.endswith("converse") else {"service_tier": "priority"}
    )
    if not path.endswith("invoke"):
        _, headers, _ = proxy.request("POST", path, body, key=key.bearer_token, headers=sent)
        assert simulator.bill()["calls"][-1]["service_tier"] == "priority", (
            "what the client asks for itself stays"
        )
        assert nano(attempts(proxy, headers)[0]["cost_usd"]) == nano(
            simulator.bill()["calls"][-1]["cost_usd"]
        )


def test_latency_optimized_is_asked_for_and_its_silent_fallback_priced_as_echoed(proxy, key, simulator):
    path, body = "/model/fast/converse", {"messages": [{"role": "user", "content": [{"text": "hello"}]}]}
    rows = []
    for _ in range(2):
        sent = {"Cache-Control": "no-store"}
        _, headers, _ = proxy.request("POST", path, body, key=key.bearer_token, headers=sent)
        rows += attempts(proxy, headers)
        simulator.fault({"fault": "downgrade", "model": NOVA, "times": 1})
    billed = simulator.bill()["calls"]
    assert [call["latency"] for call in billed] == ["optimized", "standard"]
    assert [nano(row["cost_usd"]) for row in rows] == [nano(call["cost_usd"]) for call in billed]
    assert rows[0]["ceiling_usd"] == rows[1]["ceiling_usd"]


def test_a_route_of_capacity_only_never_leaves_it(proxy, ask, simulator):
    status, _, _ = ask("bought")
    assert status == 503
    assert simulator.bill()["calls"] == []


def test_the_next_try_needs_a_budget_of_its_own(proxy, simulator):
    """When it has no room for the second target, the client hears what the first one said."""
    own = proxy.key(proxy.tenant())
    proxy.budget(f"tenant:{own.tenant}", "1")
    proxy.admin("POST", "/budgets", {"scope": f"tenant:{own.tenant}", "period": "month", "limit_usd": "0.000001",
                                     "models": [SMALL]}, expect=201)  # fmt: skip
    simulator.fault({"fault": "error:InternalServerException", "model": LLAMA, "times": 1})
    status, headers, _ = proxy.request("POST", "/model/with-stand-in/invoke", BODY, key=own.bearer_token)
    assert status == 503
    assert "x-amzn-errortype" in headers
    assert [row["outcome"] for row in proxy.settled_calls(tenant=own.tenant)] == ["VOID"]
