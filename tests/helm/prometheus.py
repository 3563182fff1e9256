"""A real Prometheus on loopback, and what Grafana would ask it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.helm.localpod import free_port

SCRAPE_SECONDS = 1
#: four scrapes, as Grafana chooses, and as many again for a machine that is busy
RATE_INTERVAL = "8s"


@dataclass(frozen=True)
class Answer:
    """`series` without those that hold no number at all."""

    series: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Prometheus:
    url: str

    def api(self, path: str, **parameters: str) -> Any:
        """Raises AssertionError with what Prometheus says about a wrong query."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def panel(self, target: dict[str, Any], variables: dict[str, str]) -> Answer:
        """Ask what a panel's target asks, over the last minute."""
        query = substituted(target["expr"], variables)
        now = time.time()
        began = time.perf_counter()
        if target["instant"]:
            data = self.api("query", query=query, time=f"{now}")
        else:
            data = self.api("query_range", query=query, start=f"{now - 60}", end=f"{now}", step="1")
        took = time.perf_counter() - began
        return Answer([series for series in data["result"] if _has_number(series)], took)

    def await_targets(self, number: int, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            up = [t for t in self.api("targets")["activeTargets"] if t["health"] == "up"]
            if len(up) == number:
                return
            assert time.monotonic() < deadline, self.api("targets")["activeTargets"]
            time.sleep(0.1)


def substituted(expr: str, variables: dict[str, str]) -> str:
    """The query with Grafana's variables filled in."""
    expr = expr.replace("$__rate_interval", RATE_INTERVAL)
    filled = re.sub(r"\$(\w+)", lambda found: variables[found[1]], expr)
    assert "$" not in filled
    return filled


def _has_number(series: dict[str, Any]) -> bool:
    values = series["values"] if "values" in series else [series["value"]]
    return any(math.isfinite(float(value)) for _, value in values)


@contextmanager
def scraping(tools: Path, targets: dict[str, list[str]], root: Path, *features: str) -> Iterator[Prometheus]:
    """A Prometheus with these features that scrapes these addresses, by job, every second."""
    root.mkdir()
    written = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "5s"},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": addresses}]}
            for job, addresses in targets.items()
        ],
    }
    configuration = root / "prometheus.yaml"
    configuration.write_text(yaml.safe_dump(written))
    port = free_port()
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(tools / "bin" / "prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={root / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                *(f"--enable-feature={feature}" for feature in features),
            ],
            stdout=log,
            stderr=log,
        )
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        _await_ready(process, prometheus, root / "log")
        yield prometheus
    finally:
        process.kill()
        process.wait()


@contextmanager
def plain_text(address: str) -> Iterator[str]:
    """An address that hands on what another one serves to scrapers which know the plain text format only."""

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with urllib.request.urlopen(f"http://{address}{self.path}", timeout=10) as answer:
                    kind, body = answer.headers["Content-Type"], answer.read()
            except OSError as error:
                self.send_error(502, str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _await_ready(process: subprocess.Popen[bytes], prometheus: Prometheus, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"{prometheus.url}/-/ready", timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
