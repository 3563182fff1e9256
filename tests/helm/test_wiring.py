"""What refers to something in the chart finds it: selectors, ports, names, mounts, hooks, graces."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from proxy.settings import Settings, load
from tests.helm.chart import (
    SHAPES,
    Chart,
    Document,
    Refused,
    container,
    environment,
    labels,
    notes,
    render,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("helm_tool")

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")


def matches(selector: dict[str, str], of: dict[str, str]) -> bool:
    return selector.items() <= of.items()


def pod_labels(chart: Chart) -> dict[str, dict[str, str]]:
    return {name: labels(template) for name, template in chart.templates()}


def selectors(chart: Chart) -> list[tuple[str, dict[str, str]]]:
    found = []
    for document in chart.documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            found.append((name, spec["selector"]))
        elif document["kind"] in {"Deployment", "PodDisruptionBudget"}:
            found.append((name, spec["selector"]["matchLabels"]))
        elif document["kind"] == "NetworkPolicy":
            found.append((name, spec["podSelector"]["matchLabels"]))
    for name, pod in chart.pods():
        found += [
            (name, spread["labelSelector"]["matchLabels"])
            for spread in pod.get("topologySpreadConstraints", [])
        ]
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_every_selector_finds_one_kind_of_pod(shape: str) -> None:
    chart = render(shape=shape)
    pods = pod_labels(chart)
    for name, selector in selectors(chart):
        found = {pod for pod, has in pods.items() if matches(selector, has)}
        assert len(found) == 1, f"{name} selects {found}"
    for deployment in chart.kind("Deployment"):
        own = f"Deployment/{deployment['metadata']['name']}"
        assert matches(deployment["spec"]["selector"]["matchLabels"], pods[own])


def test_two_releases_in_one_namespace_do_not_meet() -> None:
    one, two = render(release="one"), render(release="two")
    for name, selector in selectors(one):
        assert not any(matches(selector, has) for has in pod_labels(two).values()), name
    names = [{(d["kind"], d["metadata"]["name"]) for d in chart.documents} for chart in (one, two)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_monitors_find_the_metrics_services_and_pods(shape: str) -> None:
    chart = render(
        {"monitoring": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}}, shape=shape
    )
    monitor = chart.find("ServiceMonitor")["spec"]
    found = {
        s["metadata"]["name"]
        for s in chart.kind("Service")
        if matches(monitor["selector"]["matchLabels"], labels(s))
    }
    assert {name.rsplit("-", 2)[1] for name in found} == {"proxy", "worker"}
    by_name = {
        s["metadata"]["name"]: {port["name"] for port in s["spec"]["ports"]} for s in chart.kind("Service")
    }
    assert all({e["port"] for e in monitor["endpoints"]} <= by_name[name] for name in found)
    pods = chart.find("PodMonitor")["spec"]["selector"]
    [expression] = pods["matchExpressions"]
    chosen = [
        name for name, has in pod_labels(chart).items()
        if matches(pods["matchLabels"], has) and has[expression["key"]] in expression["values"]
    ]  # fmt: skip
    assert sorted(name.split("/")[0] for name in chosen) == ["Deployment", "Deployment"]


@pytest.mark.parametrize("shape", SHAPES)
def test_named_ports_exist(shape: str) -> None:
    chart = render(shape=shape)
    ports = {labels(t)["app.kubernetes.io/component"]: {p["name"] for c in t["spec"]["containers"] for p in c.get("ports", [])}
             for _, t in chart.templates()}  # fmt: skip
    for service in chart.kind("Service"):
        component = service["spec"]["selector"]["app.kubernetes.io/component"]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports[component]
    for policy in chart.kind("NetworkPolicy"):
        component = policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        asked = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert {port for port in asked if isinstance(port, str)} <= ports[component]
    for _, pod in chart.pods():
        for c in pod["containers"]:
            named = {port["name"] for port in c.get("ports", [])}
            probes = [c[probe] for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe in c]
            assert {probe["httpGet"]["port"] for probe in probes} <= named


@pytest.mark.parametrize("shape", SHAPES)
def test_volumes_are_mounted_and_mounts_have_volumes(shape: str) -> None:
    for name, pod in render(shape=shape).pods():
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = {mount["name"] for c in pod["containers"] for mount in c.get("volumeMounts", [])}
        assert volumes == mounts, name


@pytest.mark.parametrize(
    "release", ["demo", "x", "with.dot", "a-release-name-of-the-greatest-length-helm-takes-1234"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_valid(shape: str, release: str) -> None:
    chart = render(shape=shape, release=release)
    seen = set()
    for document in chart.documents:
        name, kind = document["metadata"]["name"], document["kind"]
        assert (kind, name) not in seen
        seen.add((kind, name))
        pattern, length = (SUBDOMAIN, 253) if kind in {"ConfigMap", "PrometheusRule"} else (LABEL, 63)
        assert pattern.fullmatch(name), f"{kind} {name}"
        assert len(name) <= length, f"{kind} {name}"
        assert document["metadata"].get("namespace") == "toll", f"{kind} {name}"
        for value in labels(document).values():
            assert LABEL_VALUE.fullmatch(value), f"{kind} {name}: {value}"
    for _, pod in chart.pods():
        for c in pod["containers"]:
            assert all(len(port["name"]) <= 15 for port in c.get("ports", []))


def test_references_between_objects() -> None:
    chart = render(shape="full")
    services = {s["metadata"]["name"]: s for s in chart.kind("Service")}
    ingress = chart.find("Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert ingress["port"]["name"] in {port["name"] for port in services[ingress["name"]]["spec"]["ports"]}
    route = chart.find("HTTPRoute")["spec"]["rules"][0]["backendRefs"][0]
    assert route["port"] in {port["port"] for port in services[route["name"]]["spec"]["ports"]}
    target = chart.find("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", chart.proxy["metadata"]["name"])
    account = chart.find("ServiceAccount")["metadata"]["name"]
    assert {d["spec"]["template"]["spec"]["serviceAccountName"] for d in chart.kind("Deployment")} == {
        account
    }
    configmaps = {d["metadata"]["name"]: d for d in chart.kind("ConfigMap")}
    [policies] = [v for v in chart.proxy["spec"]["template"]["spec"]["volumes"] if v["name"] == "policies"]
    mounted = configmaps[policies["configMap"]["name"]]["data"]
    assert {item["key"] for item in policies["configMap"]["items"]} == set(mounted)


# ---- time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, {"config": {"call_seconds": 7200}}, {"config": {"call_seconds": 60}}])
def test_a_pod_may_take_longer_to_end_than_the_longest_call(values: dict[str, Any]) -> None:
    proxy = render(values).proxy
    pod = proxy["spec"]["template"]["spec"]
    settings = _settings(proxy)
    pause = container(proxy)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert settings.call_seconds < settings.shutdown_seconds
    assert pause + settings.shutdown_seconds < pod["terminationGracePeriodSeconds"]


def test_the_default_grace_follows_the_default_of_the_setting() -> None:
    assert _settings(render().proxy).call_seconds == Settings().call_seconds == 3600


def test_load_balancers_wait_for_the_longest_call() -> None:
    longest = _settings(render(shape="full").proxy).call_seconds
    chart = render({"ingress": {"controller": "nginx"}}, shape="full")
    nginx = notes(chart.find("Ingress"))
    assert int(nginx["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > longest
    assert nginx["nginx.ingress.kubernetes.io/proxy-next-upstream"] == "off", "a retried POST is paid twice"
    alb = notes(render(shape="full").find("Ingress"))
    assert (
        f"idle_timeout.timeout_seconds={longest + 60}"
        == alb["alb.ingress.kubernetes.io/load-balancer-attributes"]
    )
    assert alb["alb.ingress.kubernetes.io/scheme"] == "internal"
    timeouts = chart.find("HTTPRoute")["spec"]["rules"][0]["timeouts"]
    assert {int(value.removesuffix("s")) for value in timeouts.values()} == {longest + 60}


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({"ingress": {"controller": "alb"}, "config": {"call_seconds": 600}}, 675),
        ({"ingress": {"controller": "nginx"}}, 75),
        ({"ingress": {"controller": "nginx"}, "config": {"head_seconds": 20}}, 20),
        ({"ingress": {"controller": ""}}, Settings().head_seconds),
        ({"ingress": {"enabled": False, "controller": "alb"}}, Settings().head_seconds),
    ],
)
def test_pods_keep_connections_longer_than_the_load_balancer(values: dict[str, Any], seconds: int) -> None:
    """Who closes first is never the pod: a POST that meets a closing connection is answered 502."""
    assert _settings(render(values, shape="full").proxy).head_seconds == seconds


def test_the_pod_leaves_the_services_before_it_refuses_connections() -> None:
    for kube, pause in (
        ("1.29", {"exec": {"command": ["sleep", "15"]}}),
        ("1.30", {"sleep": {"seconds": 15}}),
    ):
        assert container(render(kube=kube).proxy)["lifecycle"]["preStop"] == pause


def test_pods_are_replaced_without_a_gap() -> None:
    assert render().proxy["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


# ---- what the proxy is told ------------------------------------------------------------------------------------


def _settings(deployment: Document) -> Settings:
    told = environment(container(deployment))
    return load({name: value for name, value in told.items() if isinstance(value, str)})


def test_ports_and_folders_agree_with_the_settings() -> None:
    for shape in SHAPES:
        proxy = render(shape=shape).proxy
        settings, c = _settings(proxy), container(proxy)
        ports = {port["name"]: port["containerPort"] for port in c["ports"]}
        assert ports == {
            "http": settings.port,
            "admin": settings.admin_port,
            "metrics": settings.metrics_port,
        }
        mounts = {mount["name"]: mount["mountPath"] for mount in c["volumeMounts"]}
        assert mounts["state"] == settings.state_dir
        [state] = [v for v in proxy["spec"]["template"]["spec"]["volumes"] if v["name"] == "state"]
        assert set(state) == {"name", "emptyDir"}, "the flight recorder is on a local file system"
        assert "medium" not in state["emptyDir"]
        assert mounts.get("policies", "") == settings.policies_dir
        assert settings.host in {"0.0.0.0", "::"}


def test_the_share_of_limits_without_redis_is_that_of_the_most_replicas() -> None:
    assert _settings(render().proxy).replicas == 3
    assert _settings(render(shape="full").proxy).replicas == 40


def test_the_autoscaler_owns_the_number_of_replicas() -> None:
    assert "replicas" not in render(shape="full").proxy["spec"]
    metrics = render(shape="full").find("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metrics[1]["pods"]["metric"]["name"] == "tollhouse_calls_in_flight"


def test_tls_is_spoken_and_probed() -> None:
    proxy = render(shape="full").proxy
    settings, c = _settings(proxy), container(proxy)
    assert settings.tls_certificate.startswith("/etc/tollhouse/tls/")
    probes = [c[probe]["httpGet"]["scheme"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert probes == ["HTTPS"] * 3


def test_admin_can_share_the_port() -> None:
    chart = render({"admin": {"separatePort": False}})
    assert _settings(chart.proxy).admin_port == 0
    assert not [s for s in chart.kind("Service") if s["metadata"]["name"].endswith("-admin")]


def test_no_route_leads_to_the_admin_port() -> None:
    chart = render(shape="full")
    for kind in ("Ingress", "HTTPRoute"):
        assert "admin" not in yaml.safe_dump(chart.find(kind)["spec"])


# ---- hooks and changes -----------------------------------------------------------------------------------------


def test_migrations_run_before_the_pods_change() -> None:
    chart = render({"secrets": {"databaseUrl": {"value": "x"}}})
    job, secret = chart.find("Job"), chart.find("Secret", "-migrate")
    assert notes(job)["helm.sh/hook"] == notes(secret)["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert int(notes(secret)["helm.sh/hook-weight"]) < int(notes(job)["helm.sh/hook-weight"])
    reference = environment(container(job))["TOLLHOUSE_DATABASE_URL"]["secretKeyRef"]
    assert reference["name"] == secret["metadata"]["name"]
    assert "serviceAccountName" not in job["spec"]["template"]["spec"], (
        "it does not exist before the first install"
    )
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def _pods(chart: Chart) -> Any:
    return chart.proxy["spec"]["template"]


def test_changed_policies_roll_the_pods_unless_they_are_hot() -> None:
    def files(text: str, reload: str) -> dict[str, Any]:
        return {"policies": {"files": {"plans/default.yaml": text}, "reload": reload}}

    assert _pods(render(files("a", "restart"))) != _pods(render(files("b", "restart")))
    assert _pods(render(files("a", "hot"))) == _pods(render(files("b", "hot")))


def test_upgrade_changes_what_is_meant_and_nothing_else() -> None:
    old = {(d["kind"], d["metadata"]["name"]): d for d in render({"image": {"tag": "1.0.0"}}).documents}
    new = {(d["kind"], d["metadata"]["name"]): d for d in render({"image": {"tag": "1.1.0"}}).documents}
    assert old.keys() == new.keys()
    for key, document in old.items():
        before, after = yaml.safe_dump(document), yaml.safe_dump(new[key])
        assert before.replace("1.0.0", "1.1.0") == after, key
        if key[0] in {"Deployment", "PodDisruptionBudget"}:
            assert document["spec"]["selector"] == new[key]["spec"]["selector"], "selectors cannot be changed"


def test_the_trial_secret_is_refused_nowhere_but_told() -> None:
    with pytest.raises(Refused):
        render({"existingSecret": "", "secrets": {"databaseUrl": {"value": "x"}}})
