"""Promise 2: every call has its ledger row before its first byte goes upstream, whatever dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import LLAMA, Proxy, get_json, nano, running


def prompt(number: int) -> dict[str, Any]:
    return {"prompt": f"{number:04d} [[tokens=30]] hello", "max_gen_len": 64}


@pytest.fixture
def proxy(app_database_url: str, redis_url: str, simulator: Any, tmp_path: Path) -> Iterator[Proxy]:
    with running(Proxy(app_database_url, redis_url, simulator.url, tmp_path / "state")) as started:
        yield started


def bill_of(simulator: Any) -> dict[str, Any]:
    return {c["request_id"]: c for c in get_json(f"{simulator.url}/_bill")["calls"]}


def test_the_row_is_open_while_the_call_runs(proxy: Proxy, simulator: Any) -> None:
    key = proxy.key()
    simulator.hold(hold=True)
    caller = threading.Thread(
        target=proxy.request,
        args=("POST", f"/model/{LLAMA}/invoke", prompt(1)),
        kwargs={"key": key.bearer_token},
    )
    caller.start()
    while simulator.waiting() < 1:
        time.sleep(0.01)
    [item] = proxy.calls(tenant=key.tenant)
    simulator.hold(hold=False)
    caller.join()
    assert (item["outcome"], item["cost_usd"]) == ("OPEN", None)
    assert nano(item["ceiling_usd"]) > 0
    assert [i["outcome"] for i in proxy.settled_calls(tenant=key.tenant)] == ["POST"]


def test_a_killed_proxy_leaves_a_row_for_every_request_and_recovers_before_it_is_ready(
    proxy: Proxy, simulator: Any
) -> None:
    key = proxy.key()
    budget = proxy.budget(f"tenant:{key.tenant}", "5.00")["id"]
    paths = (f"/model/{LLAMA}/invoke", f"/model/{LLAMA}/invoke-with-response-stream")
    stop = threading.Event()

    def caller(number: int) -> None:
        count = 0
        while not stop.is_set():
            try:
                proxy.request(
                    "POST", paths[count % 2], prompt(number * 1_000_000 + count), key=key.bearer_token
                )
            except OSError:
                time.sleep(0.02)
            except Exception:  # a connection cut in the middle of an answer
                time.sleep(0.02)
            count += 1

    with ThreadPoolExecutor(12) as pool:
        callers = [pool.submit(caller, n) for n in range(12)]
        for _ in range(3):
            time.sleep(0.7)
            proxy.kill()
            proxy.start()
            assert all(i["outcome"] != "OPEN" or _fresh(i) for i in proxy.calls(tenant=key.tenant))
        time.sleep(0.3)
        stop.set()
        for c in callers:
            c.result()

    items = proxy.settled_calls(tenant=key.tenant)
    assert {i["outcome"] for i in items} <= {"POST", "VOID", "CEILING"}
    bill = bill_of(simulator)
    by_attempt = {i["attempt"]: i for i in items}
    stamped = {c["metadata"]["tollhouse-attempt"]: c for c in bill.values()}
    assert stamped.keys() <= by_attempt.keys(), "a request reached Bedrock without a row"
    assert len(stamped) == len(bill), "a row was sent twice"
    for attempt, billed in stamped.items():
        item = by_attempt[attempt]
        assert nano(item["cost_usd"]) >= nano(billed["cost_usd"]), (item, billed)
        if item["outcome"] == "POST":
            assert nano(item["cost_usd"]) == nano(billed["cost_usd"])
        else:
            assert item["outcome"] == "CEILING"
    read = proxy.admin("GET", f"/budgets/{budget}")
    assert nano(read["reserved_usd"]) == 0
    assert nano(read["settled_usd"]) == sum(nano(i["cost_usd"]) for i in items)


def _fresh(item: dict[str, Any]) -> bool:
    """Admitted after the restart: within the last second."""
    from datetime import UTC, datetime

    admitted = datetime.fromisoformat(item["admitted_at"])
    return (datetime.now(UTC) - admitted).total_seconds() < 3


def test_a_killed_worker_process_is_recovered_by_its_successor(proxy: Proxy, simulator: Any) -> None:
    key = proxy.key()
    simulator.hold(hold=True)
    caller = threading.Thread(target=_ignore, args=(proxy, key.bearer_token))
    caller.start()
    while simulator.waiting() < 1:
        time.sleep(0.01)
    main = proxy.processes[0].pid
    worker = int(Path(f"/proc/{main}/task/{main}/children").read_text().split()[0])
    os.kill(worker, signal.SIGKILL)
    simulator.hold(hold=False)
    caller.join()
    proxy.await_ready()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        items = proxy.calls(tenant=key.tenant)
        if all(i["outcome"] != "OPEN" for i in items):
            break
        time.sleep(0.1)
    assert [i["outcome"] for i in items] == ["CEILING"]


def _ignore(proxy: Proxy, token: str) -> None:
    try:
        proxy.request("POST", f"/model/{LLAMA}/invoke", prompt(1), key=token)
    except Exception:  # the connection dies with the worker
        return


def test_sigterm_lets_running_calls_end(proxy: Proxy, simulator: Any) -> None:
    key = proxy.key()
    simulator.hold(hold=True)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(proxy.request, "POST", f"/model/{LLAMA}/invoke", prompt(1), key=key.bearer_token)
        while simulator.waiting() < 1:
            time.sleep(0.01)
        proxy.processes[0].terminate()
        time.sleep(0.3)
        simulator.hold(hold=False)
        assert answer.result()[0] == 200
    assert proxy.processes[0].wait(15) == 0
    proxy.processes.clear()
    proxy.start()
    assert [i["outcome"] for i in proxy.calls(tenant=key.tenant)] == ["POST"]
