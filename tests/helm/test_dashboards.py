"""The dashboards are what the generator writes, well formed, and every query answers on a running service under load."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest

from helm.dashboards import all_dashboards, rendered, series, shipped
from helm.look import page
from helm.panels import COLUMNS, Dashboard, Panel, Query, dashboard
from proxy import tls
from tests.helm.chart import CHART, REPOSITORY, labels, notes, render
from tests.helm.localpod import free_port
from tests.helm.prometheus import Prometheus, plain_text, scraping
from tests.support.stack import CLAUDE, LLAMA, Key, Proxy

FILES = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
EACH = [(name, panel) for name, board in FILES.items() for panel in board["panels"]]
TITLES = [f"{name}: {panel['title']}" for name, panel in EACH]
#: models of their own, since a target that fails too often is left alone for a while
CAPACITY = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/llama31405b0"
THROTTLED, CUT = "meta.llama3-1-70b-instruct-v1:0", "meta.llama3-1-8b-instruct-v1:0"
#: Grafana's own names of units that the dashboards use
UNITS = {"short", "bytes", "reqps", "s", "d", "currencyUSD", "percentunit"}


# ---- what is in the files --------------------------------------------------------------------------------------


def test_the_files_are_what_the_generator_writes() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "helm" / "dashboards.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_all_five_are_there() -> None:
    assert set(FILES) == {"overview", "tenants", "capacity", "money", "cache"}
    assert len({board["uid"] for board in FILES.values()}) == len(FILES)


@pytest.mark.parametrize(("name", "panel"), EACH, ids=TITLES)
def test_a_panel_says_what_it_shows(name: str, panel: dict[str, Any]) -> None:
    assert panel["description"].endswith((".", ")")), panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    known = {variable["name"] for variable in FILES[name]["templating"]["list"]} | {"__rate_interval"}
    for target in panel["targets"]:
        assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= known
        assert 'namespace=~"$namespace"' in target["expr"], "every query is of one installation"
        assert set(re.findall(r"\btollhouse_\w+", target["expr"])) <= series()
        assert "nanodollars" not in target["expr"] or "/ 1e9" in target["expr"] or _is_ratio(panel)
    for link in panel.get("links", []):
        runbook = link["url"].removeprefix("RUNBOOKS/")
        assert (REPOSITORY / "docs" / "runbooks" / runbook).is_file()


def _is_ratio(panel: dict[str, Any]) -> bool:
    return panel["fieldConfig"]["defaults"]["unit"] in {"percentunit", "s"}


@pytest.mark.parametrize(("name", "panel"), EACH, ids=TITLES)
def test_a_panel_of_latencies_shows_single_calls_once(name: str, panel: dict[str, Any]) -> None:
    del name
    marked = [target for target in panel["targets"] if target.get("exemplar")]
    latencies = any("_bucket{" in target["expr"] for target in panel["targets"])
    assert len(marked) == (1 if latencies else 0)


@pytest.mark.parametrize("name", FILES)
def test_the_layout_has_no_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in FILES[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= COLUMNS
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in FILES[name]["panels"]]
    assert ids == list(range(1, len(ids) + 1))


def test_the_links_between_dashboards_lead_somewhere() -> None:
    uids = {board["uid"] for board in FILES.values()}
    for board in FILES.values():
        assert {link["url"].removeprefix("/d/") for link in board["links"]} == uids - {board["uid"]}


def test_a_panel_whose_metrics_nobody_counts_is_left_out() -> None:
    kept, lacking = shipped({"tollhouse_calls_total"})
    assert kept
    assert all(panel.metrics == {"tollhouse_calls_total"} for spec in kept for panel in spec.panels)
    assert "tollhouse_tokens_total" in lacking


def test_all_panels_are_shipped_once_their_metrics_exist() -> None:
    every = {name for spec in all_dashboards() for panel in spec.panels for name in panel.metrics}
    kept, lacking = shipped(every)
    assert not lacking
    assert [len(spec.panels) for spec in kept] == [len(spec.panels) for spec in all_dashboards()]


def test_a_row_is_filled_before_the_next_begins() -> None:
    panels = tuple(Panel(title=str(n), about=".", queries=(Query(expr="up"),), width=8) for n in range(4))
    made = dashboard(Dashboard(uid="x", title="x", about="x", panels=panels))
    assert [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in made["panels"]] == [
        (0, 0),
        (8, 0),
        (16, 0),
        (0, 8),
    ]


def test_the_chart_hands_them_to_the_sidecar(helm_tool: Path) -> None:
    del helm_tool
    chart = render(
        {"monitoring": {"dashboards": {"enabled": True}, "runbooksUrl": "https://docs.example.org/r"}}
    )
    found = [d for d in chart.kind("ConfigMap") if labels(d).get("grafana_dashboard") == "1"]
    files, _ = rendered()
    assert len(found) == len(files) == len(FILES)
    for configmap in found:
        assert notes(configmap)["grafana_folder"] == "Tollhouse"
        [(name, text)] = configmap["data"].items()
        assert text.strip() == files[name].replace("RUNBOOKS/", "https://docs.example.org/r/").strip()
        assert json.loads(text)["uid"].startswith("tollhouse-")


# ---- on a running service --------------------------------------------------------------------------------------


@pytest.fixture
def service(
    database_url: str, redis_url: str, simulator: Any, tmp_path: Path, prometheus_tool: Path
) -> Iterator[tuple[Proxy, list[Prometheus]]]:
    """Proxy, worker, a replica that speaks TLS, and two that scrape all of them: in OpenMetrics, as Prometheus
    prefers, and in the plain text format.
    """
    ports = {"proxy": free_port(), "worker": free_port(), "tls": free_port()}
    settings = {
        "TOLLHOUSE_METRICS_PORT": str(ports["proxy"]), "TOLLHOUSE_WORKERS": "2",
        "TOLLHOUSE_BEDROCK_CONTROL_ENDPOINT_URL": simulator.url,
    }  # fmt: skip
    proxy = Proxy(database_url, redis_url, simulator.url, tmp_path / "state", settings=settings)
    targets = {job: [f"127.0.0.1:{port}"] for job, port in ports.items()}
    with ExitStack() as stack:
        stack.callback(proxy.kill)
        proxy.start()
        proxy.start("worker", wait=False, TOLLHOUSE_METRICS_PORT=str(ports["worker"]))
        proxy.start(wait=False, **speaking_tls(tmp_path, ports["tls"]))
        plain = {job: [stack.enter_context(plain_text(to))] for job, [to] in targets.items()}
        both = [
            stack.enter_context(scraping(prometheus_tool, targets, tmp_path / "openmetrics")),
            stack.enter_context(scraping(prometheus_tool, plain, tmp_path / "plain")),
        ]
        for prometheus in both:
            prometheus.await_targets(3)
        yield proxy, both


def speaking_tls(folder: Path, metrics_port: int) -> dict[str, str]:
    made = tls.init(folder / "tls")
    return {
        "TOLLHOUSE_PORT": str(free_port()), "TOLLHOUSE_METRICS_PORT": str(metrics_port), "TOLLHOUSE_WORKERS": "1",
        "TOLLHOUSE_STATE_DIR": str(folder / "tls-state"), "TOLLHOUSE_TLS_CERTIFICATE": str(made.certificate),
        "TOLLHOUSE_TLS_KEY": str(made.key),
    }  # fmt: skip


@pytest.mark.timeout(240)
def test_every_panel_answers(service: tuple[Proxy, list[Prometheus]]) -> None:
    proxy, both = service
    with traffic(proxy) as tenant:
        for prometheus in both:
            await_everything(prometheus)
        problems = [
            f"{name} / {panel['title']}: {problem}"
            for prometheus in both
            for chosen in ({"tenant": ".*", "model": ".*"}, {"tenant": tenant, "model": LLAMA})
            for name, panel in EACH
            for target in panel["targets"]
            for problem in examine(prometheus, panel, target, {"namespace": ".*", **chosen})
        ]
        drawings = [fromstring(page(board, both[0].url, 60)) for board in FILES.values()]
    assert not problems, "\n".join(problems)
    for board, drawing in zip(FILES.values(), drawings, strict=True):
        words = {element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
        assert {panel["title"] for panel in board["panels"]} <= words
        assert "none" not in words, f"a panel of {board['title']} is drawn without a figure"
    definitions = {
        variable["definition"]
        for board in FILES.values()
        for variable in board["templating"]["list"]
        if variable["type"] == "query" and variable["name"] != "namespace"
    }
    for prometheus in both:
        for definition in definitions:
            assert label_values(prometheus, definition), definition
    # what a family is called tells the formats apart
    assert ["tollhouse_calls" in prometheus.api("metadata") for prometheus in both] == [True, False]


def await_everything(prometheus: Prometheus) -> None:
    """Until every kind of call has been scraped for a while."""
    await_series(prometheus, "deriv(tollhouse_budget_settled_nanodollars[1h]) > 0")
    await_series(prometheus, 'tollhouse_calls_total{outcome="CEILING"} > 0')
    await_series(
        prometheus, f'rate(tollhouse_provisioned_tokens_total{{target="us-east-1/{CAPACITY}"}}[20s]) > 0'
    )
    await_series(prometheus, "min(tollhouse_certificate_not_after_seconds) - time() > 390 * 86400")
    await_series(prometheus, "rate(tollhouse_authentication_failures_total[20s]) > 0")
    await_series(prometheus, f'tollhouse_provisioned_units{{target="us-east-1/{CAPACITY}"}} > 0')
    await_series(prometheus, "count_over_time(tollhouse_calls_in_flight[20s]) >= 15")


def examine(
    prometheus: Prometheus, panel: dict[str, Any], target: dict[str, Any], variables: dict[str, str]
) -> Iterator[str]:
    answer = prometheus.panel(target, variables)
    if not answer.series:
        yield f"no data with {variables}: {target['expr']}"
    if answer.seconds > 1.0:
        yield f"took {answer.seconds:.2f} s: {target['expr']}"
    wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    if answer.series and "or on() vector(0)" not in target["expr"]:
        for found in answer.series:
            if not wanted <= set(found["metric"]):
                yield f"legend {target['legendFormat']} of {panel['title']} lacks {wanted - set(found['metric'])}"


def label_values(prometheus: Prometheus, definition: str) -> list[str]:
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", definition)
    assert found
    values: list[str] = prometheus.api(f"label/{found[2]}/values", **{"match[]": found[1]})
    return values


def await_series(prometheus: Prometheus, query: str, seconds: float = 60.0) -> None:
    stop = threading.Event()
    for _ in range(int(seconds / 0.25)):
        if prometheus.api("query", query=query)["result"]:
            return
        stop.wait(0.25)
    raise AssertionError(f"nothing for {query}")


class traffic:
    """Calls of every kind, again and again until the end: answered, streamed, refused, throttled, cut."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._stop = threading.Event()
        self._problems: list[BaseException] = []
        self._key, self._poor = proxy.key(), proxy.key()
        self._buyer = proxy.key(proxy.tenant(overrides={"arns_allowed": [CAPACITY]}))
        self._await_capacity()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._run, args=(act,)) for act in self._acts()]

    def _await_capacity(self) -> None:
        """Until the control plane has said what the ARN runs."""
        deadline = time.monotonic() + 20
        path, body = f"/model/{CAPACITY.replace('/', '%2F')}/invoke", {"prompt": "hello", "max_gen_len": 8}
        while True:
            status, _, answer = self._proxy.request("POST", path, body, key=self._buyer.bearer_token)
            if status == 200:
                return
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)

    def __enter__(self) -> str:
        self._proxy.budget(f"tenant:{self._key.tenant}", "100")
        self._proxy.budget(f"tenant:{self._poor.tenant}", "0.000001")
        self._proxy.admin(
            "POST",
            "/limits",
            {"scope": f"tenant:{self._key.tenant}", "requests_per_minute": 10, "mode": "observe"},
        )
        for thread in self._threads:
            thread.start()
        return self._key.tenant

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not self._problems, self._problems

    def _run(self, act: Callable[[], None]) -> None:
        try:
            while not self._stop.wait(0.2):
                act()
        except BaseException as error:
            self._problems.append(error)

    def _acts(self) -> list[Callable[[], None]]:
        return [
            lambda: self._call(self._key, LLAMA, "The same again."),  # from the cache
            lambda: self._call(self._key, LLAMA, "Say hello."),
            lambda: self._call(self._key, LLAMA, "Say hello.", stream=True),
            lambda: self._call(self._key, CLAUDE, "Say hello.", stream=True),
            lambda: self._call(self._key, THROTTLED, "[[fault=throttle]]", expect=503),
            lambda: self._call(self._key, CUT, "[[fault=close:2]]", stream=True, cut=True),
            lambda: self._call(self._poor, LLAMA, "Say hello.", expect=400),
            lambda: self._call(self._buyer, CAPACITY.replace("/", "%2F"), "Say hello."),
            self._nobody,
        ]

    def _nobody(self) -> None:
        body = {"prompt": "Say hello.", "max_gen_len": 8}
        status, _, _ = self._proxy.request("POST", f"/model/{LLAMA}/invoke", body, key="th_live_nobody")
        assert status == 403

    def _call(
        self, key: Key, model: str, prompt: str, *, stream: bool = False, cut: bool = False, expect: int = 200
    ) -> None:
        if "again" not in prompt:
            prompt = f"{prompt} {next(self._numbers)}"
        body: dict[str, Any] = {"prompt": prompt, "max_gen_len": 32}
        if model == CLAUDE:
            message = {"role": "user", "content": prompt}
            body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 32, "messages": [message]}
        verb = "invoke-with-response-stream" if stream else "invoke"
        try:
            status, _, answer = self._proxy.request(
                "POST", f"/model/{model}/{verb}", body, key=key.bearer_token
            )
        except OSError:
            assert cut
            return
        assert status == expect or (cut and status == 503), (status, answer)
