"""The metrics of `tollhouse serve`: every worker's, on a port of their own, also with the admin apart."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.stack import LLAMA, Key, Proxy, free_port, running


def scrape(port: int, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as response:
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
        proxy.await_key(Key(issued["id"], token, "", "", tenant))
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


def two_workers(app_database_url: str, redis_url: str, simulator: Any, root: Path, **settings: str) -> Proxy:
    (root / "metrics").mkdir()
    given = {
        "TOLLHOUSE_WORKERS": "2", "TOLLHOUSE_METRICS_PORT": str(free_port()),
        "PROMETHEUS_MULTIPROC_DIR": str(root / "metrics"), **settings,
    }  # fmt: skip
    return Proxy(app_database_url, redis_url, simulator.url, root / "state", settings=given)


def call_until(proxy: Proxy, sign: str) -> str:
    """Calls until a scraper of OpenMetrics sees this; what it sees then."""
    key, told = proxy.key(), ""
    for number in range(100):
        body = {"prompt": f"{number} hello", "max_gen_len": 16}
        path = f"/model/{LLAMA}/invoke"
        assert proxy.request("POST", path, body, key=key.bearer_token)[0] == 200
        time.sleep(0.15)  # for the flush
        told = scrape(int(proxy.settings["TOLLHOUSE_METRICS_PORT"]), "application/openmetrics-text")
        if sign in told:
            return told
    raise AssertionError(told)


def await_files(metrics: Path, number: int, without: Path | None = None) -> list[Path]:
    """So many files of exemplars, and that one no longer among them."""
    deadline = time.monotonic() + 15
    while True:
        files = sorted(metrics.glob("exemplar_*"))
        if len(files) == number and without not in files:
            return files
        assert time.monotonic() < deadline, files
        time.sleep(0.05)


def test_exemplars_go_with_the_worker_that_kept_them(
    app_database_url: str, redis_url: str, simulator: Any, tmp_path: Path
) -> None:
    metrics = tmp_path / "metrics"
    proxy = two_workers(app_database_url, redis_url, simulator, tmp_path)
    with running(proxy):
        await_files(metrics, 2)
        call_until(proxy, ' # {call_id="')
        goes = next(path for path in await_files(metrics, 2) if b"governance" in path.read_bytes())
        os.kill(int(goes.stem.partition("_")[2]), signal.SIGKILL)
        await_files(metrics, 2, without=goes)  # another worker has come
        assert value(scrape(int(proxy.settings["TOLLHOUSE_METRICS_PORT"])), "tollhouse_calls_total") >= 1
        proxy.await_ready()
        call_until(proxy, ' # {call_id="')


def test_a_server_that_is_told_so_names_no_calls(
    app_database_url: str, redis_url: str, simulator: Any, tmp_path: Path
) -> None:
    proxy = two_workers(app_database_url, redis_url, simulator, tmp_path, TOLLHOUSE_EXEMPLARS="false")
    with running(proxy):
        told = call_until(proxy, 'tollhouse_upstream_seconds_bucket{le="3600.0"')
    assert "call_id" not in told
    assert not list((tmp_path / "metrics").glob("exemplar_*"))
