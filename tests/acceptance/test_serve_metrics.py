"""The metrics of `tollhouse serve`: every worker's, on a port of their own, also with the admin apart."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.stack import LLAMA, Proxy, free_port, running


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return str(response.read().decode())


def value(metrics: str, name: str) -> float:
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith((name + "{", name + " "))
    )


def children(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").iterdir():
            for child in (task / "children").read_text().split():
                found.append(int(child))
                todo.append(int(child))
    return found


def test_two_workers_add_up_and_the_admin_has_one_process_of_its_own(
    app_database_url: str, redis_url: str, simulator: Any, tmp_path: Path
) -> None:
    metrics_port, admin_port = free_port(), free_port()
    settings = {
        "TOLLHOUSE_WORKERS": "2",
        "TOLLHOUSE_METRICS_PORT": str(metrics_port),
        "TOLLHOUSE_ADMIN_PORT": str(admin_port),
    }
    proxy = Proxy(app_database_url, redis_url, simulator.url, tmp_path / "state", settings=settings)
    with running(proxy):
        desk = Proxy("", "", "", tmp_path / "desk", port=admin_port, log=proxy.log)
        desk.await_ready()
        assert proxy.request("GET", "/admin/v1/tenants")[0] == 404, "the inference port has no desk"
        tenant = desk.tenant()
        issued = desk.admin("POST", "/keys", {"tenant": tenant, "name": "k"}, expect=201)
        token = issued["bearer_token"]
        deadline = time.monotonic() + 5
        while proxy.request("GET", "/v1/models", key=token)[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        for number in range(20):
            body = {"prompt": f"{number} hello", "max_gen_len": 16}
            assert proxy.request("POST", f"/model/{LLAMA}/invoke", body, key=token)[0] == 200
        deadline = time.monotonic() + 5  # a worker brings its counts a few times a second
        while value(metrics := scrape(metrics_port), "tollhouse_calls_total") < 20:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # would more come, it would be too many
        metrics = scrape(metrics_port)
        assert value(metrics, "tollhouse_calls_total") == 20
        assert value(metrics, "tollhouse_admit_seconds_count") == 20
        assert value(metrics, "tollhouse_governance_seconds_count") == 20
        # one granian with two workers, and one for the desk with one
        assert len(children(proxy.processes[0].pid)) == 4
