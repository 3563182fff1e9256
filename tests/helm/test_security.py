"""Pod Security `restricted`, no token, no secret where it can be read: on every pod the chart makes."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml

from tests.helm.chart import SHAPES, Document, notes, render

pytestmark = pytest.mark.usefixtures("helm_tool")

#: the volume kinds that `restricted` allows
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def restricted(pod: Document) -> list[str]:
    """What the Pod Security Standard `restricted` would find in a pod's spec."""
    found = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
    security = pod.get("securityContext", {})
    if security.get("sysctls"):
        found.append("sysctls are set")
    found += [
        f"volume {volume['name']} is no allowed kind"
        for volume in pod.get("volumes", [])
        if not VOLUMES & set(volume)
    ]
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in pod.get(kind, []):
            found += [f"{container['name']}: {what}" for what in _container(container, security)]
    return found


def _container(container: Document, pod: Document) -> list[str]:
    own = container.get("securityContext", {})
    both = pod | own
    found = []
    if own.get("privileged"):
        found.append("privileged")
    if own.get("allowPrivilegeEscalation") is not False:
        found.append("may escalate privileges")
    if own.get("capabilities", {}).get("drop") != ["ALL"]:
        found.append("keeps capabilities")
    if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
        found.append("adds capabilities")
    if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
        found.append("may run as root")
    if both.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        found.append("has no seccomp profile")
    if (
        own.get("procMount", "Default") != "Default"
        or both.get("seLinuxOptions")
        or both.get("windowsOptions")
    ):
        found.append("has options of its own")
    if any("hostPort" in port for port in container.get("ports", [])):
        found.append("takes a port of the node")
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_restricted(shape: str) -> None:
    pods = dict(render(shape=shape).pods())
    assert len(pods) == 4  # proxy, worker, migration, test
    assert {name: restricted(pod) for name, pod in pods.items() if restricted(pod)} == {}


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, "volume host"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "root"),
        ({"securityContext": {"runAsNonRoot": True}}, "seccomp"),
    ],
)
def test_the_check_would_see_it(harm: dict[str, Any], told: str) -> None:
    pod = dict(render().proxy["spec"]["template"]["spec"]) | harm
    assert any(told in finding for finding in restricted(pod))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pod_is_closed(shape: str) -> None:
    for name, pod in render(shape=shape).pods():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert set(container["resources"]) == {"requests", "limits"}, name
            assert "memory" in container["resources"]["limits"], name
            assert "cpu" not in container["resources"]["limits"], name


@pytest.mark.parametrize("shape", SHAPES)
def test_the_service_account_mounts_nothing(shape: str) -> None:
    assert render(shape=shape).find("ServiceAccount")["automountServiceAccountToken"] is False


def test_the_role_is_on_the_service_account() -> None:
    account = render(shape="minimal").find("ServiceAccount")
    assert notes(account)["eks.amazonaws.com/role-arn"] == "arn:aws:iam::123456789012:role/tollhouse-bedrock"


TRACED: dict[str, Any] = {
    "config": {"otlp_endpoint": "http://collector.monitoring:4318", "trace_sample": 0.05}
}
CANARIES = {
    name: {"value": f"canary-{name}-7f3a"}
    for name in (
        "databaseUrl",
        "migrationDatabaseUrl",
        "redisUrl",
        "masterKey",
        "previousMasterKey",
        "adminKey",
        "otlpHeaders",
    )
}


def test_values_of_secrets_are_in_secrets_only() -> None:
    chart = render({"secrets": CANARIES})
    rest = yaml.safe_dump_all([d for d in chart.documents if d["kind"] != "Secret"])
    for canary in CANARIES.values():
        assert canary["value"] not in rest
        assert base64.b64encode(canary["value"].encode()).decode() not in rest
    held = {
        base64.b64decode(value).decode()
        for secret in chart.kind("Secret")
        for value in secret["data"].values()
    }
    assert held == {canary["value"] for canary in CANARIES.values()}


def test_the_owner_of_the_tables_is_known_to_the_migration_only() -> None:
    chart = render({"secrets": CANARIES})
    kept = chart.find("Secret", "-secrets")["data"]
    assert "migration-database-url" not in kept
    for name, pod in render().pods():
        names = {e["name"] for container in pod["containers"] for e in container.get("env", [])}
        assert ("TOLLHOUSE_MIGRATION_DATABASE_URL" in names) == name.startswith("Job/"), name
        assert ("TOLLHOUSE_ADMIN_KEY" in names) <= name.startswith("Deployment/"), name


def test_the_headers_for_the_collector_are_known_to_the_proxy_only_and_only_with_a_collector() -> None:
    values: dict[str, Any]
    for values, knows in (({}, 0), (TRACED, 1)):
        chart = render({**values, "secrets": CANARIES})
        found = [name for name, pod in chart.pods() for container in pod["containers"]
                 if "TOLLHOUSE_OTLP_HEADERS" in {e["name"] for e in container.get("env", [])}]  # fmt: skip
        assert len(found) == knows
        assert all(name.startswith("Deployment/") and not name.endswith("-worker") for name in found)


@pytest.mark.parametrize("shape", SHAPES)
def test_secrets_come_by_reference(shape: str) -> None:
    secret = {
        "DATABASE_URL",
        "MIGRATION_DATABASE_URL",
        "REDIS_URL",
        "MASTER_KEY",
        "PREVIOUS_MASTER_KEY",
        "ADMIN_KEY",
        "OTLP_HEADERS",
    }
    seen = set()
    for name, pod in render(shape=shape).pods():
        for container in pod["containers"]:
            for variable in container.get("env", []):
                short = variable["name"].removeprefix("TOLLHOUSE_")
                if short in secret or variable["name"].startswith("AWS_SECRET"):
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}, (name, variable)
                    seen.add(short)
    assert seen == secret - (set() if shape == "full" else {"OTLP_HEADERS"})


def test_no_secret_object_without_values() -> None:
    assert render().kind("Secret") == []


@pytest.mark.parametrize("shape", SHAPES)
def test_network_policies_close_what_is_not_needed(shape: str) -> None:
    for policy in render(shape=shape).kind("NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"]["ingress"]:
            ports = {port["port"] for port in rule["ports"]}
            if ports & {"metrics", "admin"}:
                assert rule["from"], f"{policy['metadata']['name']}: {ports} is open to everyone"
        for rule in policy["spec"]["egress"]:
            assert rule["ports"], "egress to every port"
            for peer in rule.get("to", []):
                block = peer.get("ipBlock", {})
                if block.get("cidr") == "0.0.0.0/0":
                    assert "169.254.169.254/32" in block["except"]


def test_a_collector_opens_its_port_for_the_proxy() -> None:
    def ports(values: dict[str, Any]) -> dict[str, list[Any]]:
        return {p["metadata"]["name"].rsplit("-", 1)[1]: [r for r in p["spec"]["egress"] if {"port": 4318, "protocol": "TCP"} in r["ports"]]
                for p in render(values).kind("NetworkPolicy")}  # fmt: skip

    somewhere = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert ports({}) == {"proxy": [], "worker": []}
    [rule] = ports(TRACED)["proxy"]
    assert "to" not in rule and ports(TRACED)["worker"] == []
    [rule] = ports({**TRACED, "networkPolicy": {"collectorTo": somewhere}})["proxy"]
    assert rule["to"] == somewhere


def test_pod_identity_opens_its_agent_only_when_it_is_used() -> None:
    agent = "169.254.170.23/32"
    assert agent not in yaml.safe_dump_all(render().documents)
    assert agent in yaml.safe_dump_all(render({"aws": {"podIdentity": True}}).documents)
