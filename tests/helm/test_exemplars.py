"""A Prometheus that keeps exemplars finds, in each bucket and counter, calls of the ledger that belong into it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from proxy import telemetry
from tests.helm.chart import CHART
from tests.helm.localpod import free_port
from tests.helm.prometheus import Prometheus, scraping, substituted
from tests.support.stack import LLAMA, Key, Proxy

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PLAIN = "text/plain;version=0.0.4"
NEWER = f"{OPENMETRICS};escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;q=0.3,{PLAIN};q=0.2,*/*;q=0.1"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6"
#: what Prometheus asks for: 2.42, 3, and 3 where protobuf comes first
ASKED = (f"{OPENMETRICS},{PLAIN};q=0.5,*/*;q=0.1", NEWER, f"{PROTOBUF},{NEWER}")
#: models of their own, since a target that fails too often is left alone for a while
THROTTLED, CUT = "meta.llama3-1-70b-instruct-v1:0", "meta.llama3-1-8b-instruct-v1:0"
HISTOGRAMS = {
    "tollhouse_governance_seconds": telemetry._FAST,
    "tollhouse_admit_seconds": telemetry._FAST,
    "tollhouse_settle_seconds": telemetry._FAST,
    "tollhouse_upstream_seconds": telemetry._SLOW,
    "tollhouse_first_byte_seconds": telemetry._SLOW,
}
COUNTERS = ("tollhouse_upstream_errors_total", "tollhouse_ceilings_total", "tollhouse_refusals_total")
#: (dashboard, target) of everything that shows exemplars
SHOWN = [
    (path.stem, target)
    for path in sorted((CHART / "dashboards").glob("*.json"))
    for panel in json.loads(path.read_text())["panels"]
    for target in panel["targets"]
    if target.get("exemplar")
]
#: gauges that move between two scrapes with nothing happening
AGES = ("tollhouse_directory_age_seconds",)


@pytest.fixture
def service(
    database_url: str, redis_url: str, simulator: Any, tmp_path: Path, prometheus_tool: Path
) -> Iterator[tuple[Proxy, Prometheus]]:
    """A proxy of two workers, and the Prometheus that scrapes it."""
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    settings = {
        "TOLLHOUSE_WORKERS": "2", "TOLLHOUSE_METRICS_PORT": str(free_port()),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }  # fmt: skip
    proxy = Proxy(database_url, redis_url, simulator.url, tmp_path / "state", settings=settings)
    targets = {"proxy": [f"127.0.0.1:{settings['TOLLHOUSE_METRICS_PORT']}"]}
    try:
        proxy.start()
        with scraping(prometheus_tool, targets, tmp_path / "prometheus", "exemplar-storage") as prometheus:
            prometheus.await_targets(1)
            yield proxy, prometheus
    finally:
        proxy.kill()


def call(proxy: Proxy, key: Key, model: str, prompt: str, *, stream: bool = False) -> None:
    verb = "invoke-with-response-stream" if stream else "invoke"
    body = {"prompt": prompt, "max_gen_len": 32}
    status, _, answer = proxy.request("POST", f"/model/{model}/{verb}", body, key=key.bearer_token)
    assert status == (503 if model == THROTTLED else 200), (status, answer)


def await_both_workers(proxy: Proxy, key: Key) -> None:
    """Call until each of the workers has named a call."""
    for number in range(100):
        files = list(Path(proxy.settings["PROMETHEUS_MULTIPROC_DIR"]).glob("exemplar_*"))
        if len(files) == 2 and all(b"governance" in path.read_bytes() for path in files):
            return
        call(proxy, key, LLAMA, f"{number} and another")
        time.sleep(0.1)
    raise AssertionError("one worker got no call")


def scraped(proxy: Proxy, accept: str) -> str:
    address = f"http://127.0.0.1:{proxy.settings['TOLLHOUSE_METRICS_PORT']}/metrics"
    request = urllib.request.Request(address, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def exemplars(prometheus: Prometheus, series: str) -> list[tuple[dict[str, str], str, float]]:
    """(labels of the series, call, value) of every exemplar of the last minutes."""
    now = time.time()
    found = prometheus.api("query_exemplars", query=series, start=f"{now - 300}", end=f"{now + 5}")
    out = []
    for one in found:
        for exemplar in one["exemplars"]:
            assert set(exemplar["labels"]) == {"call_id"}
            assert now - 300 < exemplar["timestamp"] <= now
            out.append((one["seriesLabels"], exemplar["labels"]["call_id"], float(exemplar["value"])))
    return out


def awaited(prometheus: Prometheus, series: str, enough: Callable[[set[str]], bool]) -> None:
    """Until `enough` of the calls that the series names."""
    for _ in range(100):
        if enough({call for _, call, _ in exemplars(prometheus, series)}):
            return
        time.sleep(0.2)
    raise AssertionError(f"{series}: {exemplars(prometheus, series)}")


@pytest.mark.timeout(120)
def test_every_exemplar_is_a_call_of_the_ledger_that_belongs_into_its_bucket(
    service: tuple[Proxy, Prometheus],
) -> None:
    proxy, prometheus = service
    key = proxy.key()
    for number in range(4):
        call(proxy, key, LLAMA, f"{number} hello")
        call(proxy, key, LLAMA, f"{number} stream", stream=True)
        call(proxy, key, LLAMA, f"{number} [[delay_ms=150]]")
        time.sleep(0.5)  # not all in one scrape
    await_both_workers(proxy, key)
    call(proxy, key, THROTTLED, "[[fault=throttle]]")
    call(proxy, key, CUT, "[[fault=close:2]]", stream=True)
    body = {"prompt": "hello"}
    assert proxy.request("POST", "/model/nobodys/invoke", body, key=key.bearer_token)[0] == 400
    ledger: dict[str, dict[str, Any]] = {item["id"]: item for item in proxy.settled_calls()}
    for name in HISTOGRAMS:
        awaited(prometheus, f"{name}_bucket", lambda calls: len(calls) >= 3)
    for name in COUNTERS:
        awaited(prometheus, name, bool)

    for name, bounds in HISTOGRAMS.items():
        below = dict(zip((*bounds, float("inf")), (0.0, *bounds), strict=True))
        for labels, call_id, value in exemplars(prometheus, f"{name}_bucket"):
            le = float(labels["le"])
            assert below[le] < value <= le, (labels, value)
            found = ledger[call_id]
            if name == "tollhouse_upstream_seconds":
                assert value == found["latency_ms"] / 1000
                assert labels["model"] == found["model"]
            elif name == "tollhouse_first_byte_seconds":
                assert value >= found["first_byte_ms"] / 1000
    for name, target in SHOWN:
        query = substituted(target["expr"], {"namespace": ".*", "model": ".*"})
        assert exemplars(prometheus, query), f"{name} shows no call"
    throttled, cut = ({i for i, item in ledger.items() if item["model"] == m} for m in (THROTTLED, CUT))
    assert {one for _, one, _ in exemplars(prometheus, "tollhouse_upstream_errors_total")} == throttled
    assert {one for _, one, _ in exemplars(prometheus, "tollhouse_refusals_total")} == throttled
    [(labels, ceiling, step)] = exemplars(prometheus, "tollhouse_ceilings_total")
    assert (labels["why"], {ceiling}, step) == ("cut", cut, 1)


@pytest.mark.timeout(60)
def test_the_plain_text_has_none_and_says_the_same(service: tuple[Proxy, Prometheus]) -> None:
    proxy, prometheus = service
    key = proxy.key()
    for number in range(4):
        call(proxy, key, LLAMA, f"{number} hello")
    awaited(prometheus, "tollhouse_settle_seconds_bucket", bool)
    for asked in ASKED:
        assert scraped(proxy, asked).endswith("# EOF\n")
    open_metrics, plain = scraped(proxy, OPENMETRICS), scraped(proxy, PLAIN)
    marked = [line for line in open_metrics.splitlines() if " # {" in line]
    assert any(line.startswith("tollhouse_governance_seconds_bucket") for line in marked)
    assert "call_id" not in plain
    said = {line.partition(" # {")[0] for line in open_metrics.splitlines() if not line.startswith("#")}
    said_plainly = {line for line in plain.splitlines() if not line.startswith("#")}
    assert not {line for line in said ^ said_plainly if not line.startswith(AGES)}
    families = {family.name: family for family in text_string_to_metric_families(open_metrics)}
    assert families["tollhouse_calls"].type == "counter"
    for sample in (sample for family in families.values() for sample in family.samples):
        assert not sample.name.endswith("_created")
        if sample.exemplar:
            assert sum(len(name + said) for name, said in sample.exemplar.labels.items()) <= 128
