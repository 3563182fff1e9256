"""Every alert fires when it should, is silent when it should be, and leads to a panel and a runbook that exist.

The rules run in the real promtool over written series; a case names what happens and what must follow.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.dashboards import OURS, series
from tests.helm.chart import CHART, REPOSITORY, render

RULES = CHART / "files" / "alerts.yaml"
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
SECTIONS = ("## Meaning", "## Impact", "## Diagnosis", "## Action")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


@dataclass(frozen=True)
class Case:
    alert: str
    what: str
    #: series -> values in promtool's notation, one a minute
    series: dict[str, str]
    at: str
    #: labels -> summary of every alert that fires; none for silence
    fires: list[tuple[dict[str, str], str]] = field(default_factory=list)


CALLS = 'tollhouse_calls_total{outcome="POST"}'
AWAY = 'tollhouse_refusals_total{reason="bank_away"}'
SPENT = 'tollhouse_refusals_total{reason="budget_spent"}'
CUT = 'tollhouse_ceilings_total{why="cut"}'
#: promtool's time begins at 0
CERTIFICATE = 'tollhouse_certificate_not_after_seconds{surface="all"'

CASES = [
    Case("TollhouseErrorBudgetFast", "2 % refused by us for an hour",
         {CALLS: "0+980x70", AWAY: "0+20x70"}, "65m", [({}, "Tollhouse itself refuses 2% of all requests")]),
    Case("TollhouseErrorBudgetFast", "half of the requests refused for the tenants' own reasons",
         {CALLS: "0+500x70", SPENT: "0+500x70"}, "65m"),
    Case("TollhouseErrorBudgetFast", "it was bad and is well again",
         {CALLS: "0+980x100", AWAY: "0+20x60 1200x40"}, "75m"),
    Case("TollhouseErrorBudgetSlow", "0.8 % refused by us for half a day",
         {CALLS: "0+992x800", AWAY: "0+8x800"}, "720m", [({}, "Tollhouse itself has refused 0.8% of all requests for hours")]),
    Case("TollhouseErrorBudgetSlow", "0.05 %: within the budget", {CALLS: "0+9995x800", AWAY: "0+5x800"}, "720m"),
    Case("TollhouseErrorBudgetSlow", "no traffic at all", {CALLS: "5+0x800"}, "720m"),

    Case("TollhouseInvariantBroken", "one account differs",
         {'tollhouse_invariant_violations{invariant="I2", instance="a"}': "0 0 1", 'tollhouse_invariant_violations{invariant="I1", instance="a"}': "0 0 0"},
         "2m", [({"invariant": "I2"}, "Invariant I2 of the ledger is broken in 1 places")]),
    Case("TollhouseInvariantBroken", "all hold", {'tollhouse_invariant_violations{invariant="I2"}': "0x5"}, "3m"),
    Case("TollhouseInvariantsUnchecked", "the month became too long to read",
         {'tollhouse_invariants_checked_seconds{instance="a"}': "0x180", 'tollhouse_invariants_checked_seconds{instance="b"}': "600x180"},
         "90m", [({}, "The invariants of the ledger have not been checked to the end for 1h 20m 0s")]),
    Case("TollhouseInvariantsUnchecked", "one of two workers comes to the end",
         {'tollhouse_invariants_checked_seconds{instance="a"}': "0x180", 'tollhouse_invariants_checked_seconds{instance="b"}': "0+60x180"}, "90m"),
    Case("TollhouseOverrun", "one call cost more than its ceiling",
         {'tollhouse_overrun_nanodollars_total{instance="a"}': "0 0 1500", 'tollhouse_overrun_nanodollars_total{instance="b"}': "0x5"},
         "2m", [({}, "A call cost more than its ceiling (1.5k nano-dollars in all)")]),
    Case("TollhouseOverrun", "none did", {"tollhouse_overrun_nanodollars_total": "0x5"}, "4m"),
    Case("TollhouseUnexplainedCeilings", "1 % of the calls are cut",
         {CALLS: "0+99x100", 'tollhouse_calls_total{outcome="CEILING"}': "0+1x100", CUT: "0+1x100"},
         "80m", [({}, "1% of the calls of the last hour were charged their ceiling")]),
    Case("TollhouseUnexplainedCeilings", "a lost process explains them",
         {CALLS: "0+99x100", 'tollhouse_ceilings_total{why="recovered"}': "0+1x100"}, "80m"),
    Case("TollhouseUnexplainedCeilings", "few, and rare", {CALLS: "0+1000x100", CUT: "0+1x100"}, "80m"),
    Case("TollhouseSettlementsWaiting", "they wait for good",
         {'tollhouse_settlements_waiting{instance="a"}': "3x20", 'tollhouse_settlements_waiting{instance="b"}': "0x20"},
         "15m", [({}, "3 settlements wait for the bank")]),
    Case("TollhouseSettlementsWaiting", "they come and go", {"tollhouse_settlements_waiting": "3 0 2 0 5 0 1 0 3 0 2 0 5 0 1 0 1"}, "15m"),
    Case("TollhouseSweeperBehind", "a lost pod's attempts stay open",
         {"tollhouse_open_attempts": "40x300", 'tollhouse_calls_in_flight{instance="a"}': "10x300"},
         "160m", [({}, "30 attempts are open that no proxy runs")]),
    Case("TollhouseSweeperBehind", "swept in time", {"tollhouse_open_attempts": "40x100 10x300", "tollhouse_calls_in_flight": "10x400"}, "160m"),

    Case("TollhouseDown", "nothing is scraped", {"up": "0x10"}, "5m", [({}, "No Tollhouse proxy is scraped")]),
    Case("TollhouseDown", "one replica is", {"tollhouse_calls_in_flight": "0x10"}, "5m"),
    Case("TollhouseBankAway", "calls are refused for it", {AWAY: "0+60x10"}, "5m",
         [({}, "Postgres does not answer in time; 1 calls/s are refused")]),
    Case("TollhouseBankAway", "it was away an hour ago", {AWAY: "60x60"}, "50m"),
    Case("TollhouseRecoveryNeeded", "nobody has accepted the new primary",
         {'tollhouse_refusals_total{reason="recovery_needed"}': "0+120x10"}, "5m",
         [({}, "Postgres failed over; 2 calls/s are refused until somebody has looked")]),
    Case("TollhouseRecoveryNeeded", "accepted", {'tollhouse_refusals_total{reason="recovery_needed"}': "0 240 480x20"}, "10m"),
    Case("TollhouseWorkerAway", "proxies serve, nobody sweeps", {"tollhouse_calls_in_flight": "1x30"}, "20m",
         [({}, "No worker does the background work")]),
    Case("TollhouseWorkerAway", "one worker is there",
         {"tollhouse_calls_in_flight": "1x30", 'tollhouse_invariant_violations{invariant="I1"}': "0x30"}, "20m"),
    Case("TollhouseLimiterNotRedis", "two of three replicas have lost Redis",
         {'tollhouse_limiter_mode{mode="local", instance="a"}': "1x10", 'tollhouse_limiter_mode{mode="local", instance="b"}': "1x10",
          'tollhouse_limiter_mode{mode="redis", instance="c"}': "1x10"},
         "7m", [({"mode": "local"}, "2 replicas limit rates without Redis (mode local)")]),
    Case("TollhouseLimiterNotRedis", "a failover of a minute",
         {'tollhouse_limiter_mode{mode="local"}': "0 0 1 0 0 0 0 0", 'tollhouse_limiter_mode{mode="redis"}': "1 1 0 1 1 1 1 1"}, "7m"),
    Case("TollhouseDirectoryStale", "one replica refuses for it",
         {'tollhouse_refusals_total{reason="directory_stale", instance="a", tenant="t"}': "0+120x10",
          'tollhouse_refusals_total{reason="budget_spent", instance="b", tenant="t"}': "0+120x10"},
         "5m", [({"instance": "a"}, "a has not read the keys in time and refuses 2 calls/s for it")]),
    Case("TollhouseDirectoryStale", "it did so an hour ago", {'tollhouse_refusals_total{reason="directory_stale", instance="a"}': "7x60"}, "50m"),
    Case("TollhousePartitionsShort", "nobody makes them", {'tollhouse_partition_days_ahead{instance="worker"}': "44x100", 'tollhouse_partition_days_ahead{instance="proxy"}': "0x100"},
         "90m", [({}, "The ledger has partitions for 44 days only")]),
    Case("TollhouseTargetLeftAlone", "one replica has left it alone for long",
         {'tollhouse_target_state{target="us-west-2", instance="a"}': "2x30", 'tollhouse_target_state{target="us-west-2", instance="b"}': "0x30",
          'tollhouse_target_state{target="us-east-2", instance="a"}': "1x30"},
         "25m", [({"target": "us-west-2"}, "us-west-2 has failed so often that it is left alone")]),
    Case("TollhouseTargetLeftAlone", "for five minutes", {'tollhouse_target_state{target="us-west-2"}': "0x5 2x5 0x40"}, "25m"),
    Case("TollhousePoliciesNotInForce", "an error in a changed file",
         {'tollhouse_policy_problems{instance="a"}': "0 2x20", 'tollhouse_policy_problems{instance="b"}': "0x20"},
         "10m", [({}, "Changed policy files have 2 errors and are not in force")]),
    Case("TollhousePoliciesNotInForce", "mended", {"tollhouse_policy_problems": "0 2 2 0x20"}, "10m"),
    Case("TollhouseKeysEnd", "two keys in use end within a week",
         {'tollhouse_keys_expiring{within="7d"}': "2x100", 'tollhouse_keys_expiring{within="1d"}': "1x100"},
         "70m", [({}, "2 keys in use end within a week")]),
    Case("TollhouseKeysEnd", "within a month only",
         {'tollhouse_keys_expiring{within="7d"}': "0x100", 'tollhouse_keys_expiring{within="30d"}': "3x100"}, "70m"),
    Case("TollhouseCertificateEndsSoon", "one pod serves an old one", {f'{CERTIFICATE}, instance="a"}}': "1728000x100", f'{CERTIFICATE}, instance="b"}}': "9999999x100"},
         "70m", [({}, "The certificate that Tollhouse serves ends in 19d 22h 50m 0s")]),
    Case("TollhouseCertificateEndsSoon", "renewed in time", {f"{CERTIFICATE}}}": "1728000x30 9999999x100"}, "70m"),
    Case("TollhouseCertificateEndsSoon", "pods that speak no TLS", {"tollhouse_calls_in_flight": "1x100"}, "70m"),
    Case("TollhouseCertificateEnds", "nobody has renewed it", {f"{CERTIFICATE}}}": "90000x100"},
         "20m", [({}, "The certificate that Tollhouse serves ends in 1d 0h 40m 0s")]),
    Case("TollhouseCertificateEnds", "three days are left", {f"{CERTIFICATE}}}": "260000x100"}, "10m"),
    Case("TollhouseModelEnds", "one that is called ends in three weeks",
         {'tollhouse_model_end_of_life_seconds{model="old", instance="a"}': "1814400x100", 'tollhouse_model_end_of_life_seconds{model="unused", instance="a"}': "1814400x100",
          'tollhouse_calls_total{model="old"}': "0+5x100", 'tollhouse_calls_total{model="unused"}': "7x100"},
         "80m", [({"model": "old"}, "AWS ends old in 20d 22h 40m 0s, and it is still called")]),
    Case("TollhouseModelEnds", "in half a year",
         {'tollhouse_model_end_of_life_seconds{model="old"}': "15000000x100", 'tollhouse_calls_total{model="old"}': "0+5x100"}, "80m"),
    Case("TollhousePartitionsShort", "months ahead", {"tollhouse_partition_days_ahead": "100x100"}, "90m"),
]  # fmt: skip


def _expected(case: Case) -> list[dict[str, Any]]:
    rule = ALERTS[case.alert]
    return [
        {
            "exp_labels": rule["labels"] | labels,
            "exp_annotations": rule["annotations"] | {"summary": summary},
        }
        for labels, summary in case.fires
    ]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.alert}: {case.what}" for case in CASES])
def test_case(case: Case, prometheus_tool: Path, tmp_path: Path) -> None:
    written = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "alert_rule_test": [
                    {"eval_time": case.at, "alertname": case.alert, "exp_alerts": _expected(case)}
                ],
            }
        ],
    }
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump(written))
    done = subprocess.run(
        [str(prometheus_tool / "bin" / "promtool"), "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_of_each_kind() -> None:
    assert {case.alert for case in CASES if case.fires} == set(ALERTS)
    assert {case.alert for case in CASES if not case.fires} == set(ALERTS)


def test_the_rules_are_well_formed(prometheus_tool: Path) -> None:
    promtool = str(prometheus_tool / "bin" / "promtool")
    done = subprocess.run(
        [promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_severity_and_words(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert "{{" not in rule["annotations"]["description"]


@pytest.mark.parametrize("alert", ALERTS)
def test_the_runbook_exists_and_says_what_to_do(alert: str) -> None:
    name = ALERTS[alert]["annotations"]["runbook_url"].removeprefix("RUNBOOKS/")
    text = (RUNBOOKS / name).read_text()
    places = [text.index(section) for section in SECTIONS]
    assert places == sorted(places)
    assert alert in text
    assert "```" in text[places[2] : places[3]], "diagnosis has commands"


def test_every_runbook_has_an_alert() -> None:
    named = {rule["annotations"]["runbook_url"].removeprefix("RUNBOOKS/") for rule in ALERTS.values()}
    assert {path.name for path in RUNBOOKS.glob("*.md")} - {"README.md"} == named


@pytest.mark.parametrize("alert", ALERTS)
def test_the_panel_shows_what_the_alert_watches(alert: str) -> None:
    rule = ALERTS[alert]
    uid, _, panel = rule["annotations"]["dashboard_url"].removeprefix("GRAFANA/d/").partition("?viewPanel=")
    dashboard = json.loads((CHART / "dashboards" / f"{uid.removeprefix('tollhouse-')}.json").read_text())
    [shown] = [p for p in dashboard["panels"] if p["id"] == int(panel)]
    watched = set(re.findall(r"\btollhouse_\w+", _recorded(rule["expr"])))
    seen = set(re.findall(r"\btollhouse_\w+", " ".join(target["expr"] for target in shown["targets"])))
    assert watched & seen, f"{shown['title']} shows {seen}, not {watched}"


def _recorded(expr: str) -> str:
    """The expression with recording rules written out."""
    for rule in rules():
        if "record" in rule:
            expr = expr.replace(rule["record"], rule["expr"])
    return expr


def test_every_metric_exists() -> None:
    named = {name for rule in rules() for name in re.findall(r"\btollhouse_\w+", rule["expr"])}
    assert named <= series()


def test_reasons_and_whys_are_the_proxys_own() -> None:
    """A renamed reason would silence an alert."""
    text = RULES.read_text()
    reasons = {word for found in re.findall(r'reason=~?"([^"]+)"', text) for word in found.split("|")}
    assert set(OURS.split("|")) <= reasons <= _reasons()
    from proxy.domain.ledger import Why

    whys = {word for found in re.findall(r'why=~"([^"]+)"', text) for word in found.split("|")}
    assert whys <= {why.name.lower() for why in Why}


def _reasons() -> set[str]:
    """Every reason of a refusal that stands in the proxy's source."""
    found = set()
    for path in (REPOSITORY / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.keyword)
                and node.arg == "reason"
                and isinstance(node.value, ast.Constant)
            ):
                found.add(str(node.value.value))
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                found |= {
                    str(node.value.value) for name in node.targets if getattr(name, "id", "") == "reason"
                }
    return found


def test_the_chart_fills_in_the_addresses(helm_tool: Path) -> None:
    del helm_tool
    spec = render(shape="full").find("PrometheusRule")["spec"]
    text = json.dumps(spec)
    assert "RUNBOOKS" not in text
    assert "GRAFANA" not in text
    assert "https://docs.example.org/tollhouse/runbooks/overrun.md" in text
    assert "https://grafana.example.org/d/tollhouse-money?viewPanel=2" in text
    assert "{{ $labels.invariant }}" in text
    assert len(spec["groups"]) == len(yaml.safe_load(RULES.read_text())["groups"])
