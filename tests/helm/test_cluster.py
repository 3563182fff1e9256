"""helm's own install, upgrade, rollback and uninstall against a stand-in for a Kubernetes API.

The releases are kept in a real Postgres (helm's `sql` driver), since helm writes its Secrets in a binary form that the
stand-in does not read. What a real cluster would refuse about an object is for the schemas in test_render.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helm.chart import CHART, TOOLS, VALUES, Document, container
from tests.helm.kubeapi import Api, serving

NAMESPACE = "toll"


class Helm:
    def __init__(self, api: Api, store: str, home: Path) -> None:
        kubeconfig = home / "kubeconfig"
        cluster = {"name": "stub", "cluster": {"server": api.url}}
        context = {"name": "stub", "context": {"cluster": "stub", "user": "nobody", "namespace": NAMESPACE}}
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1", "kind": "Config", "current-context": "stub", "clusters": [cluster],
                    "contexts": [context], "users": [{"name": "nobody", "user": {}}],
                }
            )
        )  # fmt: skip
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig),
            "HELM_DRIVER": "sql", "HELM_DRIVER_SQL_CONNECTION_STRING": store,
        }  # fmt: skip

    def __call__(self, *arguments: str, values: Document | None = None) -> str:
        done = subprocess.run(
            [str(TOOLS / "bin" / "helm"), *arguments, "--namespace", NAMESPACE],
            input=json.dumps(values or {}), capture_output=True, text=True, timeout=30, env=self._environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def apply(self, verb: str, release: str, values: Document, *more: str) -> None:
        self(
            verb, release, str(CHART), *more, "--values", "-", "--disable-openapi-validation", "--server-side=false",
            values=values,
        )  # fmt: skip


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as running:
        yield running


@pytest.fixture
def helm(api: Api, empty_database_url: str, helm_tool: Path, tmp_path: Path) -> Helm:
    del helm_tool
    store = empty_database_url.replace("postgresql+asyncpg://", "postgresql://") + "?sslmode=disable"
    return Helm(api, store, tmp_path)


@pytest.mark.parametrize("shape", ["default", "full"])
def test_install_upgrade_roll_back_uninstall(shape: str, helm: Helm, api: Api) -> None:
    more = () if shape == "default" else ("--values", str(VALUES / "full.yaml"))
    helm.apply("install", "bank", {}, *more)
    [migration] = [w for w in api.writes if w.startswith("POST Job/")]
    [proxy] = [name for kind, name in api.objects if kind == "Deployment" and not name.endswith("worker")]
    assert api.writes.index(migration) < api.writes.index(f"POST Deployment/{proxy}")
    tag = container(api.find("Deployment", proxy))["image"]

    installed, before = dict(api.objects), len(api.writes)
    new = {"image": {"tag": "0.2.0", "digest": ""}, "proxy": {"workers": 3}}
    helm.apply("upgrade", "bank", new, *more)
    written = api.writes[before:]
    assert written.index(migration) < written.index(f"PATCH Deployment/{proxy}"), written
    assert container(api.find("Deployment", proxy))["image"].endswith(":0.2.0")
    assert api.objects.keys() == installed.keys(), "an upgrade removes and adds nothing"
    assert {w.split()[0] for w in written if "/tollhouse" not in w and "Job/" not in w} <= {"PATCH"}

    before = len(api.writes)
    helm("rollback", "bank", "1", "--server-side=false")
    assert container(api.find("Deployment", proxy))["image"] == tag
    assert not [w for w in api.writes[before:] if "Job/" in w], "the schema stays at the newer version"
    history = json.loads(helm("history", "bank", "--output", "json"))
    assert [entry["status"] for entry in history] == ["superseded", "superseded", "deployed"]

    helm("uninstall", "bank")
    assert {kind for kind, _ in api.objects} <= {"Job"}, "the migration's Job and its log stay"


def test_the_stand_in_refuses_what_a_server_refuses(helm: Helm, api: Api) -> None:
    """Else the test above would prove nothing of selectors."""
    helm.apply("install", "bank", {})
    with pytest.raises(AssertionError, match="immutable"):
        helm.apply("upgrade", "bank", {"nameOverride": "other", "fullnameOverride": "bank-tollhouse"})
