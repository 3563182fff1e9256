"""Promise 1: a hard budget is never overspent, under any concurrency, and no refusal is false."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.stack import CLAUDE, LLAMA, Key, Proxy, get_json, nano

PROMPT = {"prompt": "000 Say hello to the toll keeper", "max_gen_len": 64}
CALLERS = 500
PLACES = 100


def ceiling_of(stack: Proxy, key: Key) -> int:
    """What one such call reserves, from a call that was made, in nano-dollars."""
    status, headers, body = stack.request("POST", f"/model/{LLAMA}/invoke", PROMPT, key=key.bearer_token)
    assert status == 200, body
    [item] = [i for i in stack.settled_calls(tenant=key.tenant) if i["id"] == headers["x-tollhouse-call-id"]]
    return nano(item["ceiling_usd"])


def usd(nano_dollars: int) -> str:
    return f"{nano_dollars // 10**9}.{nano_dollars % 10**9:09d}"


def storm(
    stack: Proxy, key: Key, callers: int, path: str = f"/model/{LLAMA}/invoke"
) -> list[tuple[int, dict[str, str], Any]]:
    """All callers at once, each on a connection of its own; distinct prompts."""
    start = threading.Barrier(callers)

    def one(number: int) -> tuple[int, dict[str, str], Any]:
        body = {**PROMPT, "prompt": f"{number:03d} Say hello to the toll keeper"}
        start.wait()
        return stack.request("POST", path, body, key=key.bearer_token)

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(one, range(callers)))


def budgets_of(stack: Proxy, key: Key, project: str, limit: str, levels: int) -> list[str]:
    scopes = [f"key:{key.id}", f"project:{key.tenant}/{project}", f"tenant:{key.tenant}"][:levels]
    return [stack.budget(scope, limit)["id"] for scope in scopes]


@pytest.mark.parametrize("levels", [1, 3])
def test_a_budget_for_one_hundred_calls_admits_exactly_one_hundred(
    stack: Proxy, simulator: Any, levels: int
) -> None:
    tenant = stack.tenant()
    stack.admin("POST", f"/tenants/{tenant}/projects", {"id": "search", "name": "Search"}, expect=201)
    probe = stack.key(tenant)
    ceiling = ceiling_of(stack, probe)
    for _ in range(2):
        key = stack.key(project="search", tenant=_tenant_with_project(stack))
        ids = budgets_of(stack, key, "search", usd(PLACES * ceiling), levels)
        before = len(get_json(f"{simulator.url}/_bill")["calls"])
        simulator.hold(hold=True)
        released = threading.Thread(target=_release_when_decided, args=(stack, simulator, key))
        released.start()
        answers = storm(stack, key, CALLERS)
        released.join()

        statuses = [status for status, _, _ in answers]
        assert statuses.count(200) == PLACES, sorted(set(statuses))
        assert statuses.count(429) == CALLERS - PLACES
        for status, headers, body in answers:
            if status == 429:
                assert headers["x-amzn-errortype"] == "ThrottlingException"
                assert headers["retry-after"] == "1"
                assert headers["x-amz-retry-after"] == "1000"
                assert "held by running calls" in body["message"]
        assert len(get_json(f"{simulator.url}/_bill")["calls"]) - before == PLACES
        stack.settled_calls(tenant=key.tenant)
        for budget in ids:
            read = stack.admin("GET", f"/budgets/{budget}")
            assert nano(read["reserved_usd"]) == 0
            assert nano(read["settled_usd"]) <= PLACES * ceiling


def _tenant_with_project(stack: Proxy) -> str:
    tenant = stack.tenant()
    stack.admin("POST", f"/tenants/{tenant}/projects", {"id": "search", "name": "Search"}, expect=201)
    return tenant


def _release_when_decided(stack: Proxy, simulator: Any, key: Key) -> None:
    """Let the answers go once every other caller has been refused."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        refused = stack.admin("GET", f"/refusals?tenant={key.tenant}&group_by=reason")["items"]
        if sum(i["count"] for i in refused) >= CALLERS - PLACES and simulator.waiting() >= PLACES:
            break
        time.sleep(0.1)
    simulator.hold(hold=False)


def test_committed_money_never_passes_the_limit_at_any_instant(stack: Proxy, simulator: Any) -> None:
    """Streams and whole bodies mixed, no barrier, a watcher that reads the bank's row all the while."""
    key = stack.key()
    limit = 40 * ceiling_of(stack, stack.key(key.tenant))
    budget = stack.budget(f"tenant:{key.tenant}", usd(limit))["id"]
    done = threading.Event()
    worst: list[int] = []

    def watch() -> None:
        while not done.is_set():
            read = stack.admin("GET", f"/budgets/{budget}")
            worst.append(nano(read["settled_usd"]) + nano(read["reserved_usd"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    paths = (f"/model/{LLAMA}/invoke", f"/model/{LLAMA}/invoke-with-response-stream")

    def caller(number: int) -> list[tuple[int, dict[str, str], Any]]:
        out = []
        for i in range(15):
            body = {**PROMPT, "prompt": f"{number:03d} {i:02d}y hello to the toll keeper"}
            out.append(stack.request("POST", paths[(number + i) % 2], body, key=key.bearer_token))
        return out

    with ThreadPoolExecutor(24) as pool:
        answers = [a for part in pool.map(caller, range(24)) for a in part]
    done.set()
    watcher.join()

    assert max(worst) <= limit
    statuses = {status for status, _, _ in answers}
    assert statuses <= {200, 400, 429}, statuses
    assert 200 in statuses
    assert 400 in statuses, "the budget was spent in the end"
    _every_refusal_was_true(answers, limit)
    settled = nano(stack.admin("GET", f"/budgets/{budget}")["settled_usd"])
    stack.settled_calls(tenant=key.tenant)
    bill = get_json(f"{simulator.url}/_bill")["calls"]
    ours = {i["upstream_request_id"] for i in stack.calls(tenant=key.tenant) if i["outcome"] == "POST"}
    assert sum(nano(c["cost_usd"]) for c in bill if c["request_id"] in ours) - settled < 64 * 2400 * 2
    assert settled <= limit


def _every_refusal_was_true(answers: list[tuple[int, dict[str, str], Any]], limit: int) -> None:
    """The numbers in each message say that the call did not fit when it was refused."""
    import re

    shape = re.compile(
        r"settled ([\d.]+), held by running calls ([\d.]+), limit ([\d.]+) USD.*cost up to ([\d.]+)"
    )
    for status, headers, body in answers:
        if status == 200:
            continue
        found = shape.search(body["message"])
        assert found, body
        settled, held, said, need = (nano(n) for n in found.groups())
        assert said == limit
        assert settled + held + need > limit
        if status == 400:
            assert headers["x-amzn-errortype"] == "ServiceQuotaExceededException"
            assert headers["x-should-retry"] == "false"
            assert "retry-after" not in headers
            assert settled + need > limit


def test_a_spent_budget_is_told_in_every_dialect_and_retried_by_nobody(stack: Proxy) -> None:
    key = stack.key()
    stack.budget(f"tenant:{key.tenant}", "0.000001")
    status, headers, body = stack.request(
        "POST", f"/model/{LLAMA}/converse", _converse(), key=key.bearer_token
    )
    assert (status, headers["x-amzn-errortype"]) == (400, "ServiceQuotaExceededException")
    assert "is spent" in body["message"]
    client = stack.boto3(key, retries={"total_max_attempts": 4, "mode": "standard"})
    with pytest.raises(client.exceptions.ServiceQuotaExceededException, match="is spent"):
        client.converse(modelId=LLAMA, messages=_converse()["messages"])
    refused = _refusals(stack, key, 2)
    assert refused == {"budget_spent": 2}
    assert stack.calls(tenant=key.tenant) == []


def _refusals(stack: Proxy, key: Key, expected: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _ in range(60):
        items = stack.admin("GET", f"/refusals?tenant={key.tenant}&group_by=reason")["items"]
        counts = {i["reason"]: i["count"] for i in items}
        if sum(counts.values()) >= expected:
            break
        time.sleep(0.1)
    return counts


_numbers = itertools.count()


def _converse() -> dict[str, Any]:
    """A prompt that was never sent before: an identical one would be answered from the cache."""
    return {
        "messages": [{"role": "user", "content": [{"text": f"hello {next(_numbers)}"}]}],
        "inferenceConfig": {"maxTokens": 64},
    }


def test_models_filter_counts_only_its_models(stack: Proxy) -> None:
    key = stack.key()
    stack.budget(f"tenant:{key.tenant}", "0.000001", models=[CLAUDE])
    assert stack.request("POST", f"/model/{LLAMA}/converse", _converse(), key=key.bearer_token)[0] == 200
    assert stack.request("POST", f"/model/{CLAUDE}/converse", _converse(), key=key.bearer_token)[0] == 400


def test_a_lowered_limit_holds_at_once_and_a_top_up_frees_at_once(stack: Proxy) -> None:
    key = stack.key()
    budget = stack.budget(f"tenant:{key.tenant}", "1.00")
    path = f"/model/{LLAMA}/converse"
    assert stack.request("POST", path, _converse(), key=key.bearer_token)[0] == 200
    etag = stack.request("GET", f"/admin/v1/budgets/{budget['id']}")[1]["etag"]
    stack.admin("PATCH", f"/budgets/{budget['id']}", {"limit_usd": "0.000000001"}, headers={"If-Match": etag})
    assert stack.request("POST", path, _converse(), key=key.bearer_token)[0] == 400
    stack.admin(
        "POST",
        f"/budgets/{budget['id']}/adjustments",
        {"amount_usd": "1.00", "until": None, "reason": "test"},
    )
    assert stack.request("POST", path, _converse(), key=key.bearer_token)[0] == 200


def test_a_client_that_leaves_mid_stream_pays_what_bedrock_bills(stack: Proxy, simulator: Any) -> None:
    key = stack.key()
    budget = stack.budget(f"tenant:{key.tenant}", "1.00")["id"]
    body = json.dumps({"prompt": "[[tokens=60]] go", "max_gen_len": 64})
    for number in range(6):
        connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=10)
        connection.request(
            "POST", f"/model/{LLAMA}/invoke-with-response-stream", body.replace("go", f"go {number}"),
            {"Authorization": f"Bearer {key.bearer_token}"},
        )  # fmt: skip
        response = connection.getresponse()
        response.read(1 + 200 * number)
        connection.close()
    items = stack.settled_calls(tenant=key.tenant)
    assert [i["outcome"] for i in items] == ["POST"] * 6
    bill = {c["request_id"]: c for c in get_json(f"{simulator.url}/_bill")["calls"]}
    assert all(nano(i["cost_usd"]) == nano(bill[i["upstream_request_id"]]["cost_usd"]) for i in items)
    read = stack.admin("GET", f"/budgets/{budget}")
    assert nano(read["reserved_usd"]) == 0
    assert nano(read["settled_usd"]) == sum(nano(i["cost_usd"]) for i in items)
