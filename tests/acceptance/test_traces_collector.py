"""Traces: nobody's call depends on the collector, and without one nothing of it is there."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import collecting
from tests.support.stack import Proxy, free_port
from tests.support.traced import INVOKE, PARENT, ask, body


def metric(port: int, result: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    start = f'tollhouse_trace_spans_total{{result="{result}"}}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


@pytest.fixture
def alone(
    module_database_url: str, session_redis_url: str, simulator: Any, tmp_path: Path
) -> Iterator[Proxy]:
    """Not started: one worker that traces every call, once it knows where to."""
    settings = {"TOLLHOUSE_TRACE_SAMPLE": "1", "TOLLHOUSE_METRICS_PORT": str(free_port())}
    proxy = Proxy(module_database_url, session_redis_url, simulator.url, tmp_path / "state", settings)
    yield proxy
    proxy.kill()


def test_a_share_of_nothing_traces_what_clients_ask_for(alone: Proxy) -> None:
    with collecting() as collector:
        alone.settings |= {"TOLLHOUSE_OTLP_ENDPOINT": collector.url, "TOLLHOUSE_TRACE_SAMPLE": "0"}
        alone.start()
        key = alone.key()
        for number in range(5):
            assert ask(alone, key, INVOKE, body(f"quiet {number}"))[0] == 200
        asked = {"traceparent": f"00-{PARENT[0]}-{PARENT[1]}-01"}
        stranger = alone.request("POST", INVOKE, body("who"), key="nobody", headers=asked)[1]
        _, headers, _ = ask(alone, key, INVOKE, body("asked for"), **asked)
        collector.trace(headers["x-tollhouse-call-id"])
        alone.stop()
        assert collector.calls == [headers["x-tollhouse-call-id"]]
        assert stranger["x-tollhouse-call-id"] not in collector.calls, "who proves nothing asks for nothing"


def test_what_waits_is_sent_when_the_proxy_leaves(alone: Proxy) -> None:
    with collecting() as collector:
        alone.settings |= {"TOLLHOUSE_OTLP_ENDPOINT": f"{collector.url}/", "TOLLHOUSE_LEAVE_SECONDS": "0"}
        alone.start()
        key = alone.key()
        ids = {ask(alone, key, INVOKE, body(f"last {n}"))[1]["x-tollhouse-call-id"] for n in range(8)}
        alone.stop()
        assert ids <= set(collector.calls)


@pytest.mark.parametrize("trouble", ["away", "slow", "failing"])
def test_a_collector_in_trouble_is_nobodys_trouble(alone: Proxy, trouble: str) -> None:
    with collecting() as collector:
        collector.delay, collector.status = {"slow": (30.0, 200), "failing": (0.0, 500)}.get(
            trouble, (0.0, 200)
        )
        url = f"http://127.0.0.1:{free_port()}" if trouble == "away" else collector.url
        alone.settings |= {"TOLLHOUSE_OTLP_ENDPOINT": url, "TOLLHOUSE_LEAVE_SECONDS": "0"}
        alone.start()
        key = alone.key()
        for number in range(40):
            assert ask(alone, key, INVOKE, body(f"{trouble} {number}"))[0] == 200
        assert {row["outcome"] for row in alone.settled_calls(tenant=key.tenant)} == {"POST"}
        port = int(alone.settings["TOLLHOUSE_METRICS_PORT"])
        deadline = time.monotonic() + 15
        while not metric(port, "export_failed") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert metric(port, "export_failed") > 0 and metric(port, "exported") == 0
        began = time.monotonic()
        alone.stop()
        assert time.monotonic() - began < 10, "leaving waits three seconds at most"
        assert alone.log is not None
        said = [line for line in alone.log.read_text().splitlines() if "opentelemetry" in line]
        assert len(said) <= 2, said


def test_no_endpoint_no_opentelemetry(alone: Proxy) -> None:
    alone.start()
    key = alone.key()
    asked = {"traceparent": f"00-{PARENT[0]}-{PARENT[1]}-01"}
    assert ask(alone, key, INVOKE, body("untraced"), **asked)[0] == 200
    maps = [path.read_text() for path in Path("/proc").glob("[0-9]*/maps") if _child_of(path, alone)]
    assert maps and not any("google/_upb" in text for text in maps)
    assert metric(int(alone.settings["TOLLHOUSE_METRICS_PORT"]), "exported") == 0


def _child_of(maps: Path, proxy: Proxy) -> bool:
    try:
        parent = (maps.parent / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return False
    return int(parent) == proxy.processes[0].pid
