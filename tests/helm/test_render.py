"""The chart renders in every shape, what it renders is valid, and what cannot work is refused before it is applied."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import yaml

from helm import schema
from proxy.policyfile.loading import KINDS
from proxy.settings import Settings, load
from tests.helm.chart import (
    CHART,
    GATEWAY,
    MONITORING,
    REPOSITORY,
    SHAPES,
    VALUES,
    VERSIONS,
    Refused,
    container,
    environment,
    helm,
    render,
)  # fmt: skip
from tests.helm.conftest import Validate

pytestmark = pytest.mark.usefixtures("helm_tool")

#: custom resources, whose schemas come with their operators
CUSTOM = {
    "ServiceMonitor": MONITORING,
    "PodMonitor": MONITORING,
    "PrometheusRule": MONITORING,
    "HTTPRoute": GATEWAY,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_lint(shape: str) -> None:
    files = () if shape == "default" else ("--values", str(VALUES / f"{shape}.yaml"))
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *files)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_object_is_valid(shape: str, validate: Validate) -> None:
    for version in VERSIONS:
        documents = render(shape=shape, kube=version).documents
        for document in documents:
            if document["kind"] in CUSTOM:
                assert document["apiVersion"] == CUSTOM[document["kind"]]
        known = [d for d in documents if d["kind"] not in CUSTOM]
        assert known
        assert validate(known, (version,)) == []


def test_the_validator_sees_a_wrong_field(validate: Validate) -> None:
    documents = [d for d in render().documents if d["kind"] == "Deployment"]
    documents[0]["spec"]["replica"] = 3
    assert any("replica" in complaint for complaint in validate(documents, ("1.33",)))


@pytest.mark.parametrize(
    ("kinds", "shape"),
    [
        ({"Deployment": 2, "Service": 4, "ServiceAccount": 1, "Job": 1, "PodDisruptionBudget": 2, "NetworkPolicy": 2, "Pod": 1}, "default"),
        ({"HorizontalPodAutoscaler": 1, "Ingress": 1, "HTTPRoute": 1, "ServiceMonitor": 1, "PodMonitor": 1, "PrometheusRule": 1}, "full"),
    ],
)  # fmt: skip
def test_what_is_in_it(kinds: dict[str, int], shape: str) -> None:
    chart = render(shape=shape)
    assert {kind: len(chart.kind(kind)) for kind in kinds} == kinds


def test_no_database_is_bundled() -> None:
    text = yaml.safe_dump_all(render(shape="full").documents)
    assert "StatefulSet" not in text
    assert "dependencies" not in yaml.safe_load((CHART / "Chart.yaml").read_text())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"proxy": {"replica": 3}}, "replica"),
    ({"proxy": {"replicas": "three"}}, "replicas"),
    ({"proxy": {"replicas": -1}}, "replicas"),
    ({"config": {"call_second": 60}}, "call_second"),
    ({"config": {"database_url": "postgresql://x"}}, "database_url"),
    ({"config": {"master_key": "x"}}, "master_key"),
    ({"config": {"limiter_fallback": "shrug"}}, "limiter_fallback"),
    ({"config": {"shutdown_seconds": 1}}, "shutdown_seconds"),
    ({"config": {"trace_sample": 5}}, "trace_sample"),
    ({"config": {"otlp_headers": "x=y"}}, "otlp_headers"),
    ({"image": {"digest": "sha256:abc"}}, "digest"),
    ({"aws": {"roleArn": "tollhouse"}}, "roleArn"),
    ({"aws": {"region": "Frankfurt"}}, "region"),
    ({"policies": {"files": {"team.yaml": "x"}}}, "team.yaml"),
    ({"policies": {"files": {"plans/../x.yaml": "x"}}}, "plans"),
    ({"policies": {"reload": "sometimes"}}, "reload"),
    ({"monitoring": {"runbooksUrl": "https://docs.example.org/"}}, "runbooksUrl"),
    ({"secrets": {"databaseUrl": {"value": 5}}}, "databaseUrl"),
    ({"database": {"url": "x"}}, "database"),
    ({"service": {"port": 70000}}, "port"),
]


@pytest.mark.parametrize(("values", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_wrong_values_are_refused_by_the_schema(values: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused, match=re.escape(named)) as refused:
        render(values)
    assert "values don't meet the specifications" in str(refused.value)


CANNOT_WORK: list[tuple[dict[str, Any], str]] = [
    ({"proxy": {"terminationGracePeriodSeconds": 600}}, "would cut calls that are paid for; at least 3945"),
    ({"existingSecret": ""}, "secrets.databaseUrl: name a Secret"),
    ({"ingress": {"enabled": True}}, "ingress.hosts"),
    ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    ({"policies": {"existingConfigMap": "x"}}, "policies.items"),
    ({"config": {"otlp_endpoint": "http://collector"}}, "networkPolicy.collectorTo: say where"),
]


@pytest.mark.parametrize(
    ("values", "told"), CANNOT_WORK, ids=[told.split(":")[0][:30] for _, told in CANNOT_WORK]
)
def test_what_cannot_work_is_refused_with_its_reason(values: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=re.escape(told)):
        render(values)


def test_an_old_cluster_is_refused() -> None:
    with pytest.raises(Refused, match=re.escape("1.26")):
        render(kube="1.26")


def test_the_schema_is_what_the_settings_say() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "helm" / "schema.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_the_proxy_understands_every_variable(shape: str) -> None:
    chart = render(shape=shape)
    for deployment in (chart.proxy, chart.worker, chart.find("Job")):
        told = environment(container(deployment))
        plain = {name: value for name, value in told.items() if isinstance(value, str)}
        secret = {name: "x" for name, value in told.items() if isinstance(value, dict)}
        load(plain | secret)  # raises for a name or value that is not a setting's


def test_whole_numbers_stay_whole() -> None:
    assert environment(container(render(shape="full").proxy))["TOLLHOUSE_MAX_CALLS"] == "1000000"


def test_text_that_looks_like_a_template_stays_text() -> None:
    [policies] = [
        d for d in render(shape="full").kind("ConfigMap") if d["metadata"]["name"].endswith("-policies")
    ]
    assert "{{ not a template }}" in policies["data"]["plans__default.yaml"]


def test_every_kind_of_policy_file_can_be_given() -> None:
    files = {f"{kind}/own.yaml": f"{kind}: []\n" for kind in KINDS}
    chart = render({"policies": {"files": files}})
    [volume] = [
        v
        for v in chart.proxy["spec"]["template"]["spec"]["volumes"]
        if "policies" in str(v.get("configMap", {}).get("name"))
    ]
    assert {item["path"] for item in volume["configMap"]["items"]} == set(files)
    with pytest.raises(Refused):
        render({"policies": {"files": {"other/own.yaml": "x"}}})


def test_every_setting_can_be_given() -> None:
    """By `config`, by a Secret, or by the values that the chart makes it from."""
    chart = render(
        {
            "config": {name: _some(spec) for name, spec in schema.config()["properties"].items()},
            "aws": {"endpointUrl": "https://a.example.org", "controlEndpointUrl": "https://b.example.org"},
            "tls": {"existingSecret": "tls"}, "policies": {"files": {"plans/own.yaml": "plans: []"}},
            "admin": {"separatePort": True},
            "secrets": {name: {"existingSecret": "tollhouse"} for name in ("previousMasterKey", "otlpHeaders")},
        }
    )  # fmt: skip
    given = set(environment(container(chart.proxy))) | set(environment(container(chart.find("Job"))))
    names = {f.name for f in fields(Settings)}
    assert {n for n in names if f"TOLLHOUSE_{n.upper()}" not in given} == {"surface", "upstream"}


def test_a_share_stays_a_share() -> None:
    """Helm reads every number as a float."""
    values = {"config": {"trace_sample": 0.05, "max_calls": 1000000}}
    given = environment(container(render(values).proxy))
    assert (given["TOLLHOUSE_TRACE_SAMPLE"], given["TOLLHOUSE_MAX_CALLS"]) == ("0.05", "1000000")


def _some(spec: dict[str, Any]) -> Any:
    if "enum" in spec:
        return spec["enum"][0]
    return {"integer": 7, "number": 0.5, "boolean": True, "string": "x"}[spec["type"]]
