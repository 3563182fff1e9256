"""A budget that is short: calls are counted, clamped or refused for good, and what is left gets used."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.acceptance.test_budget_never_overspent import usd
from tests.support.stack import LLAMA, Key, Proxy, get_json, nano

SONNET = "anthropic.claude-sonnet-4-20250514-v1:0"
#: its prices, nano-dollars a token
INPUT, OUTPUT = 3_000, 15_000
TEXT = "toll keeper at the gate "


def llama(words: int = 64, wanted: int = 64) -> dict[str, Any]:
    return {"prompt": f"[[tokens={wanted}]] go", "max_gen_len": words}


def claude(text: str, limit: int, wanted: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": [{"text": f"[[tokens={wanted}]] {text}"}]}],
        "inferenceConfig": {"maxTokens": limit},
    }


def ceilings(stack: Proxy, model: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The ledger's row of such a call when no budget is short."""
    key = stack.key()
    status, _, answer = stack.request("POST", f"/model/{model}/{path}", body, key=key.bearer_token)
    assert status == 200, answer
    [item] = stack.settled_calls(tenant=key.tenant)
    return item


def clamping(stack: Proxy, key: Key, limit: int, least: int) -> str:
    """A budget that clamps, but to no fewer than `least` output tokens."""
    made = stack.budget(f"tenant:{key.tenant}", usd(limit), on_short="clamp", floor_output_tokens=least)
    return str(made["id"])


def counts_sent(simulator: Any) -> int:
    seen = get_json(f"{simulator.url}/_requests")["requests"]
    return sum(1 for one in seen if one["path"].endswith("/count-tokens"))


def test_a_clamped_answer_is_as_long_as_the_budget_affords(stack: Proxy) -> None:
    full = nano(ceilings(stack, LLAMA, "invoke", llama())["ceiling_usd"])
    empty = nano(ceilings(stack, LLAMA, "invoke", llama(words=1))["ceiling_usd"])
    per_token = (full - empty) // 63
    key = stack.key()
    budget = stack.budget(f"tenant:{key.tenant}", usd(full - 20 * per_token), on_short="clamp")["id"]
    status, headers, body = stack.request("POST", f"/model/{LLAMA}/invoke", llama(), key=key.bearer_token)
    assert status == 200, body
    assert headers["x-tollhouse-clamped"] == "44"
    assert (body["generation_token_count"], body["stop_reason"]) == (44, "length")
    [item] = stack.settled_calls(tenant=key.tenant)
    assert nano(item["ceiling_usd"]) == full - 20 * per_token
    assert nano(stack.admin("GET", f"/budgets/{budget}")["reserved_usd"]) == 0


def test_no_answer_is_clamped_below_the_floor(stack: Proxy) -> None:
    full = nano(ceilings(stack, LLAMA, "invoke", llama())["ceiling_usd"])
    empty = nano(ceilings(stack, LLAMA, "invoke", llama(words=1))["ceiling_usd"])
    per_token = (full - empty) // 63
    floor = empty + 31 * per_token
    key = stack.key()
    clamping(stack, key, floor - 1, least=32)
    status, headers, body = stack.request("POST", f"/model/{LLAMA}/invoke", llama(), key=key.bearer_token)
    assert (status, headers["x-amzn-errortype"]) == (400, "ServiceQuotaExceededException")
    assert headers["x-should-retry"] == "false"
    assert "is spent" in body["message"]
    assert f"may cost up to {float(floor / 1e9):.9f}".rstrip("0") in body["message"], "the floor's ceiling"
    assert stack.calls(tenant=key.tenant) == []

    other = stack.key()
    clamping(stack, other, floor, least=32)
    status, headers, body = stack.request("POST", f"/model/{LLAMA}/invoke", llama(), key=other.bearer_token)
    assert (status, headers["x-tollhouse-clamped"], body["generation_token_count"]) == (200, "32", 32)


def test_an_answer_of_a_budget_that_is_not_short_is_left_alone(stack: Proxy) -> None:
    key = stack.key()
    stack.budget(f"tenant:{key.tenant}", "1.00", on_short="clamp")
    status, headers, _ = stack.request("POST", f"/model/{LLAMA}/invoke", llama(), key=key.bearer_token)
    assert status == 200
    assert "x-tollhouse-clamped" not in headers


def test_a_spent_budget_says_no_at_once_to_what_cannot_fit_and_to_nothing_else(stack: Proxy) -> None:
    large, small = llama(words=512), llama(words=8, wanted=8)
    ceiling = nano(ceilings(stack, LLAMA, "invoke", small)["ceiling_usd"])
    key = stack.key(stack.tenant(overrides={"cache": {"enabled": False}}))
    budget = stack.budget(f"tenant:{key.tenant}", usd(ceiling))["id"]

    def ask(body: dict[str, Any]) -> int:
        return int(stack.request("POST", f"/model/{LLAMA}/invoke", body, key=key.bearer_token)[0])

    with ThreadPoolExecutor(8) as many:
        assert set(many.map(ask, [large] * 40)) == {400}
    assert (ask(large), ask(small)) == (400, 200)
    assert ask(large) == 400
    stack.admin("PATCH", f"/budgets/{budget}", {"limit_usd": "1.00"}, headers={"If-Match": "*"})
    time.sleep(0.05)
    assert ask(large) == 200
    assert {i["outcome"] for i in stack.settled_calls(tenant=key.tenant)} == {"POST"}


@pytest.mark.parametrize("path", ["converse", "invoke"])
def test_a_call_that_only_its_byte_bound_keeps_out_is_counted(
    stack: Proxy, simulator: Any, path: str
) -> None:
    body: dict[str, Any] = claude(TEXT * 200, 64, 10)
    if path == "invoke":
        body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 64,
                "messages": [{"role": "user", "content": "[[tokens=10]] " + TEXT * 200}]}  # fmt: skip
    plain = ceilings(stack, SONNET, path, body)
    key = stack.key()
    limit = nano(plain["cost_usd"]) + 2 * (nano(plain["ceiling_usd"]) - nano(plain["cost_usd"])) // 5
    budget = stack.budget(f"tenant:{key.tenant}", usd(limit))["id"]
    status, headers, answer = stack.request("POST", f"/model/{SONNET}/{path}", body, key=key.bearer_token)
    assert status == 200, answer
    assert "x-tollhouse-clamped" not in headers
    items = {i["kind"]: i for i in stack.settled_calls(tenant=key.tenant)}
    assert items.keys() == {"call", "probe"}
    assert items["call"]["id"] == items["probe"]["id"]
    assert items["call"]["cost_usd"] == plain["cost_usd"]
    assert nano(items["call"]["cost_usd"]) < nano(items["call"]["ceiling_usd"]) <= limit
    probe = items["probe"]
    assert (probe["operation"], probe["outcome"], nano(probe["cost_usd"])) == ("CountTokens", "POST", 0)
    seen = get_json(f"{simulator.url}/_requests")["requests"]
    [asked] = [one for one in seen if one["path"].endswith("/count-tokens")]
    assert probe["upstream_request_id"] == asked["request_id"]
    assert nano(stack.admin("GET", f"/budgets/{budget}")["reserved_usd"]) == 0


def test_a_call_that_does_not_fit_when_counted_is_refused_for_good_and_counted_once(
    stack: Proxy, simulator: Any
) -> None:
    body = claude(TEXT * 201, 64, 10)
    used = ceilings(stack, SONNET, "converse", body)["usage"]["input_tokens"]
    key = stack.key()
    stack.budget(f"tenant:{key.tenant}", usd(used * INPUT + 64 * OUTPUT - 1))
    for _ in range(3):
        status, headers, answer = stack.request(
            "POST", f"/model/{SONNET}/converse", body, key=key.bearer_token
        )
        assert (status, headers["x-amzn-errortype"]) == (400, "ServiceQuotaExceededException"), answer
    assert counts_sent(simulator) == 1
    [probe] = stack.settled_calls(tenant=key.tenant)
    assert probe["kind"] == "probe"


def test_a_hopeless_call_is_not_counted_and_a_model_without_counting_never(
    stack: Proxy, simulator: Any
) -> None:
    key = stack.key()
    stack.budget(f"tenant:{key.tenant}", "0.000001")
    for model in (SONNET, LLAMA):
        status, _, _ = stack.request(
            "POST", f"/model/{model}/converse", claude(TEXT * 200, 64, 10), key=key.bearer_token
        )
        assert status == 400
    other = stack.key()
    ceiling = nano(ceilings(stack, LLAMA, "invoke", llama())["ceiling_usd"])
    stack.budget(f"tenant:{other.tenant}", usd(ceiling - 1))
    assert stack.request("POST", f"/model/{LLAMA}/invoke", llama(), key=other.bearer_token)[0] == 400
    assert counts_sent(simulator) == 0
    assert stack.calls(tenant=key.tenant) == stack.calls(tenant=other.tenant) == []


@dataclass
class Fleet:
    """Agents of one key that go on until one of them is told that the budget is spent."""

    stack: Proxy
    key: Key
    parallel: int
    body: Any
    refused: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: list[dict[str, str]] = field(default_factory=list)
    held: int = 0
    message: str = ""

    def agent(self, number: int) -> None:
        turn = 0
        while not self.refused.is_set():
            body = self.body(number, turn)
            status, headers, answer = self.stack.request(
                "POST", f"/model/{SONNET}/converse", body, key=self.key.bearer_token
            )
            with self.lock:
                if status == 200:
                    self.answers.append(headers)
                    turn += 1
                elif status == 429:
                    self.held += 1
                else:
                    assert headers["x-amzn-errortype"] == "ServiceQuotaExceededException", answer
                    self.message = answer["message"]
                    self.refused.set()
            if status == 429:
                time.sleep(0.05)

    def run(self) -> None:
        with ThreadPoolExecutor(self.parallel) as pool:
            for one in [pool.submit(self.agent, n) for n in range(self.parallel)]:
                one.result()


def test_agents_use_their_budget_up_before_the_first_final_refusal(stack: Proxy, simulator: Any) -> None:
    """100,000 tokens in, 32,000 out at most, ten at once, 25 dollars, clamp on."""
    prompt = "gate " * 100_000

    def body(number: int, turn: int) -> dict[str, Any]:
        return claude(f"{number} {turn} {prompt}", 32_000, 500 + 700 * ((number * 7 + turn * 3) % 9))

    key = stack.key()
    budget = stack.budget(f"tenant:{key.tenant}", "25.00", on_short="clamp")["id"]
    fleet = Fleet(stack, key, 10, body)
    fleet.run()

    assert "is spent" in fleet.message
    items = stack.settled_calls(tenant=key.tenant)
    calls = [i for i in items if i["kind"] == "call"]
    one_input = INPUT * max(i["usage"]["input_tokens"] for i in calls) * 1005 // 1000
    read = stack.admin("GET", f"/budgets/{budget}")
    limit, settled = nano("25.00"), nano(read["settled_usd"])
    assert settled == sum(nano(i["cost_usd"]) for i in items) <= limit
    assert limit - settled <= max(limit // 100, one_input), (fleet.message, settled, fleet.held)
    bill = get_json(f"{simulator.url}/_bill")
    assert nano(bill["total_usd"]) == settled, "0 overspent: the bill is what was settled"
    assert {i["outcome"] for i in items} == {"POST"}
    assert any("x-tollhouse-clamped" in headers for headers in fleet.answers)
