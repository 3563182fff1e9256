"""The rendered containers run for real: migrate, serve and work with exactly the chart's command and environment."""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import APPLICATION, OWNER
from tests.helm.chart import CHART, REPOSITORY, notes, render
from tests.helm.localpod import mount, read_only_root
from tests.helm.release import ADMIN_KEY, Release
from tests.support.stack import LLAMA

pytestmark = [pytest.mark.usefixtures("helm_tool"), pytest.mark.timeout(120)]


def policies() -> dict[str, str]:
    """The repository's policies as the values of the chart."""
    folder = REPOSITORY / "policies"
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob("*/*.yaml"))}


@pytest.fixture
def release(
    empty_database_url: str,
    as_role: Callable[[str, str], str],
    redis_url: str,
    simulator: Any,
    tmp_path: Path,
) -> Iterator[Release]:
    """Installed as helm would: migrated by the Job, then proxy and worker."""
    values = {
        "aws": {"endpointUrl": simulator.url},
        "config": {"call_seconds": 60},
        "proxy": {"settleSeconds": 5, "preStopSeconds": 1},
        "policies": {"files": policies(), "reload": "hot"},
    }
    held = {
        "database-url": as_role(empty_database_url, APPLICATION),
        "migration-database-url": as_role(empty_database_url, OWNER),
        "redis-url": redis_url,
        "master-key": base64.b64encode(secrets.token_bytes(32)).decode(),
        "admin-key": ADMIN_KEY,
    }
    release = Release(render(values), held, tmp_path)
    try:
        release.start()
        yield release
    finally:
        release.stop()


def test_from_install_to_the_end_of_a_pod(release: Release, simulator: Any) -> None:
    proxy, key = release.proxy, release.key()
    assert [proxy.probe(name) for name in ("startupProbe", "livenessProbe", "readinessProbe")] == [200] * 3
    assert release.worker.probe("livenessProbe") == 200
    helm_test(release)
    assert_nothing_else_was_written(release)

    client = release.clients().boto3(key)
    body = json.dumps({"prompt": "Say hello.", "max_gen_len": 32})
    assert json.loads(client.invoke_model(modelId=LLAMA, body=body)["body"].read())["generation"]

    # A long stream is under way when the pod is told to end: it is finished, settled, and only then the process goes.
    simulator.hold(hold=True)
    ended: list[bytes] = []
    stream = threading.Thread(target=lambda: ended.extend(read_stream(client, body)))
    stream.start()
    await_true(lambda: simulator.waiting() == 1)
    proxy.terminate()
    time.sleep(1.0)
    assert proxy.process is not None
    assert proxy.process.poll() is None, "it left a running call behind"
    simulator.hold(hold=False)
    stream.join(20)
    assert b"amazon-bedrock-invocationMetrics" in ended[-1]
    assert proxy.process.wait(20) == 0
    assert not list((proxy.root / "state").glob("*.flight")), "the flight recorder has nothing left to tell"


def read_stream(client: Any, body: str) -> list[bytes]:
    answer = client.invoke_model_with_response_stream(modelId=LLAMA, body=body)
    return [event["chunk"]["bytes"] for event in answer["body"]]


def await_true(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def helm_test(release: Release) -> None:
    """The chart's test pod, with the processes in the place of the Services."""
    pod = release.chart.find("Pod")
    assert notes(pod)["helm.sh/hook"] == "test"
    only = pod["spec"]["containers"][0]
    assert only["command"] == ["python", "-c"]
    script, *addresses = only["args"]
    assert script.strip() == (CHART / "files" / "smoke.py").read_text().strip()
    local = {
        "http://demo-tollhouse.toll:80": release.proxy.ports["http"],
        "http://demo-tollhouse-proxy-metrics.toll:9464": release.proxy.ports["metrics"],
        "http://demo-tollhouse-worker-metrics.toll:9464": release.worker.ports["metrics"],
    }
    asked = [f"http://127.0.0.1:{local[address]}" for address in addresses]
    done = subprocess.run(
        [sys.executable, "-c", script, *asked], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = subprocess.run(
        [sys.executable, "-c", script, asked[0], asked[2], asked[1]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert wrong.returncode == 1, "it would pass for the wrong metrics"


def assert_nothing_else_was_written(release: Release) -> None:
    """Only the mounted volumes hold files; the rest of the file system may be read-only."""
    there = {path.name for path in release.proxy.root.iterdir()}
    assert there == {"log", "state", "tmp", "policies"}
    assert list((release.proxy.root / "state").glob("*.flight"))


def test_the_root_was_read_only() -> None:
    if not read_only_root():
        pytest.skip(
            "NOT CHECKED: this machine refuses mount namespaces, so the root file system was writable"
        )


def test_metrics_and_admin_are_not_on_the_clients_port(release: Release) -> None:
    def status(port: int, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path, headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        return connection.getresponse().status

    ports = release.proxy.ports
    release.key()  # waits for the admin port
    assert status(ports["admin"], "/admin/v1/tenants") == 200
    assert status(ports["http"], "/admin/v1/tenants") in {403, 404}
    assert status(ports["http"], "/metrics") in {403, 404}


def test_a_changed_configmap_is_taken_over_by_running_pods(release: Release) -> None:
    if not re.search(r"\bfollow", (REPOSITORY / "proxy" / "app.py").read_text()):
        pytest.skip(
            "NOT CHECKED: the proxy reads its policies at start only, so policies.reload: hot does nothing"
        )
    clients, key = release.clients(), release.key()
    body = {"prompt": "Say hello.", "max_gen_len": 32}

    def status() -> int:
        return clients.request("POST", f"/model/{LLAMA}/invoke", body, key=key.bearer_token)[0]

    assert status() == 200
    [volume] = [v for v in release.proxy.pod["volumes"] if v["name"] == "policies"]
    configmap = dict(release.configmaps[volume["configMap"]["name"]])
    plan = configmap["plans__default.yaml"]
    configmap["plans__default.yaml"] = f'{plan}\nmodels_denied: ["meta.*"]\n'
    mount(release.proxy.root / "policies", volume["configMap"]["items"], configmap)
    await_true(lambda: status() == 403, 30)


def test_a_configmap_is_swapped_as_a_whole(tmp_path: Path) -> None:
    """The layout that the proxy reads in a pod: every file changes in one rename."""
    items = [{"key": "plans__default.yaml", "path": "plans/default.yaml"}]
    mount(tmp_path, items, {"plans__default.yaml": "one"})
    mount(tmp_path, items, {"plans__default.yaml": "two"})
    assert (tmp_path / "plans" / "default.yaml").read_text() == "two"
    assert (tmp_path / "plans").readlink() == Path("..data/plans")


def test_policies_pass_through_the_chart_unchanged(tmp_path: Path) -> None:
    """Every byte of the repository's policies reaches the pod, and the proxy finds no error in them."""
    from proxy import policyfile

    chart = render({"policies": {"files": policies()}})
    [configmap] = [d for d in chart.kind("ConfigMap") if d["metadata"]["name"].endswith("-policies")]
    [volume] = [v for v in chart.proxy["spec"]["template"]["spec"]["volumes"] if v["name"] == "policies"]
    mount(tmp_path, volume["configMap"]["items"], configmap["data"])
    for path, text in policies().items():
        assert (tmp_path / path).read_text() == text, path
    assert policyfile.check(tmp_path) == []
    assert len(yaml.safe_dump(configmap)) < 1_000_000, "a ConfigMap holds a mebibyte"
