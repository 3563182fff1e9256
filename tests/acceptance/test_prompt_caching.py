"""What prompt cache points would have saved, asked of a running product: against arithmetic done here, and
against the bill of the same traffic with the point where the advice puts it.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from typing import Any

import pytest

from proxy.cli import main
from tests.support.stack import LLAMA, Key, Proxy, get_json, nano

SONNET = "anthropic.claude-sonnet-4-20250514-v1:0"
#: its prices in nano-dollars a token: plain input, read from the cache, written to it for five minutes
INPUT, READ, WRITE = 3_000, 300, 3_750
RULES = "You guard a toll gate. Be brief, be kind, and never lift the bar for free. " * 160
ASKED = [f"Cart number {n}, what does it owe?" for n in range(8)]

#: sums of workers are handed over every ten seconds
pytestmark = pytest.mark.timeout(120)


def prompt(question: str, *, rules: str = RULES, point: bool = False) -> dict[str, Any]:
    system: list[dict[str, Any]] = [{"text": rules}]
    return {
        "system": [*system, {"cachePoint": {"type": "default"}}] if point else system,
        "messages": [{"role": "user", "content": [{"text": f"[[tokens=5]] {question}"}]}],
        "inferenceConfig": {"maxTokens": 32},
    }


def ask(stack: Proxy, key: Key, body: dict[str, Any], model: str = SONNET) -> None:
    status, _, answer = stack.request("POST", f"/model/{model}/converse", body, key=key.bearer_token)
    assert status == 200, answer


def advised(stack: Proxy, tenant: str, calls: int) -> list[dict[str, Any]]:
    """The advice for a tenant once it has seen so many calls."""
    deadline = time.monotonic() + 60
    while True:
        items: list[dict[str, Any]]
        items = stack.admin("GET", f"/reports/prompt-caching?tenant={tenant}")["items"]
        if sum(one["calls"] for one in items) >= calls or time.monotonic() > deadline:
            return items
        time.sleep(0.2)


def cut(size: int, tokens: int, of: int) -> int:
    """Tokens of the first `size` bytes of a body of `of` bytes: as many as their part of it."""
    return int(size * (tokens / of))


def compact(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":"), sort_keys=True))


def test_the_advice_is_what_one_works_out_by_hand(stack: Proxy) -> None:
    key, other = stack.key(), stack.key()
    for question in ASKED:
        ask(stack, key, prompt(question))
    for n, question in enumerate(ASKED):
        ask(stack, other, prompt(question, rules=f"{n} {RULES}"))
    ask(stack, other, prompt("And what of Llamas?"), model=LLAMA)

    used = [i["usage"]["input_tokens"] for i in reversed(stack.settled_calls(tenant=key.tenant))]
    bodies = [prompt(question) for question in ASKED]
    sizes = [len(json.dumps(body)) for body in bodies]
    system = compact(bodies[0]["system"])
    parts = [cut(system, tokens, size) for tokens, size in zip(used, sizes, strict=True)]
    whole = [
        cut(system + compact(body["messages"][0]), tokens, size)
        for body, tokens, size in zip(bodies, used, sizes, strict=True)
    ]
    [item] = advised(stack, key.tenant, len(ASKED))
    assert (item["model"], item["calls"], item["input_tokens"]) == (SONNET, len(ASKED), sum(used))
    assert (item["minimum_tokens"], item["cached_tokens"]) == (1024, 0)
    read, write = sum(parts[1:]), parts[0]
    assert item["best"] == item["options"][0]
    assert (item["best"]["place"], item["best"]["ttl"]) == ("system", "5m")
    assert (item["best"]["read_tokens"], item["best"]["write_tokens"]) == (read, write)
    assert nano(item["best"]["saved_usd"]) == read * (INPUT - READ) - write * (WRITE - INPUT)
    assert item["advice"] == "Place a cache point at the end of the system prompt (ttl 5m)."
    [last] = [option for option in item["options"] if option["place"] == "messages"]
    assert (last["read_tokens"], last["write_tokens"]) == (0, sum(whole))
    assert nano(last["saved_usd"]) == -sum(whole) * (WRITE - INPUT)
    assert 0.7 < float(item["repeated_share_5m"]) < 7 / 8

    sonnet, llama = sorted(advised(stack, other.tenant, len(ASKED) + 1), key=lambda one: str(one["model"]))
    assert (sonnet["model"], llama["model"]) == (SONNET, LLAMA)
    assert all(nano(option["saved_usd"]) < 0 for option in sonnet["options"])
    assert sonnet["advice"].startswith("No way of placing cache points would have saved money")
    assert (llama["best"], llama["advice"]) == (None, "This model takes no cache points.")
    assert float(sonnet["repeated_share_1h"]) == 0


def test_whoever_follows_the_advice_saves_what_it_said(stack: Proxy, simulator: Any) -> None:
    """The same traffic, once as it is and once with the point: the difference of what Bedrock bills."""
    plain, pointed = stack.key(), stack.key()
    for key, point in ((plain, False), (pointed, True)):
        for question in ASKED:
            ask(stack, key, prompt(question, rules=f"Of tenants. {RULES}", point=point))
    billed = get_json(f"{simulator.url}/_bill")["calls"]
    costs = [nano(call["cost_usd"]) for call in billed]
    half = len(ASKED)
    assert len(costs) == 2 * half
    really = sum(costs[:half]) - sum(costs[half:])
    assert really == sum(
        nano(one["cost_usd"]) * sign
        for key, sign in ((plain, 1), (pointed, -1))
        for one in stack.settled_calls(tenant=key.tenant)
    )
    [before] = advised(stack, plain.tenant, half)
    assert before["best"]["place"] == "system"
    # the advice counts tokens by bytes; and the point itself is a few bytes more of prompt
    assert nano(before["best"]["saved_usd"]) == pytest.approx(really, rel=0.02)
    [after] = advised(stack, pointed.tenant, half)
    assert after["cached_tokens"] == sum(call["cache_read_tokens"] for call in billed[half:]) > 0


def test_the_command_line_says_it_in_a_table(stack: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    key = stack.key()
    for question in ASKED[:3]:
        ask(stack, key, prompt(question))
    [item] = advised(stack, key.tenant, 3)
    monkeypatch.setenv("TOLLHOUSE_URL", stack.url)
    monkeypatch.setenv("TOLLHOUSE_ADMIN_KEY", stack.admin_key)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["reports", "prompt-caching", key.tenant]) == 0
    head, _, row = out.getvalue().splitlines()
    assert "best.saved_usd" in head and item["best"]["saved_usd"] in row and item["advice"] in row
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["reports", "prompt-caching", key.tenant, "--json"]) == 0
    assert json.loads(out.getvalue())["items"] == [item]
