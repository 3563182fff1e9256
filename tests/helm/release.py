"""A release of the chart as processes of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helm.chart import Chart
from tests.helm.localpod import LocalPod
from tests.support.stack import Key, Proxy

ADMIN_KEY = "an-admin-key-of-the-chart-tests-0123456789"
#: what EKS injects for IRSA; here plain credentials, since no STS answers
AWS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "upstream-secret"}


class Release:
    """The chart's workloads on this machine."""

    def __init__(self, chart: Chart, held: dict[str, str], root: Path) -> None:
        self.chart = chart
        self.configmaps = {d["metadata"]["name"]: d["data"] for d in chart.kind("ConfigMap")}
        self.held = held
        self._root = root
        self.migration = self._pod(chart.find("Job"), "migration")
        self.proxy = self._pod(chart.proxy, "proxy")
        self.worker = self._pod(chart.worker, "worker")

    def _pod(self, workload: dict[str, Any], name: str) -> LocalPod:
        injected = {} if name == "migration" else AWS
        return LocalPod(workload, {"tollhouse": self.held}, self._root / name, self.configmaps, injected)

    def start(self) -> None:
        """The migration, then both workloads; returns when they have started."""
        assert self.migration.run() == 0, self.migration.log.read_text()
        for pod in (self.proxy, self.worker):
            pod.start()
        for pod in (self.proxy, self.worker):
            pod.await_started()

    def admin(self) -> Proxy:
        """A client of the admin port."""
        client = Proxy("", "", "", self._root / "client", admin_key=ADMIN_KEY, port=self.proxy.ports["admin"])
        return client

    def clients(self) -> Proxy:
        """A client of the inference port."""
        return Proxy("", "", "", self._root / "client", admin_key=ADMIN_KEY, port=self.proxy.ports["http"])

    def key(self) -> Key:
        admin = self.admin()
        admin.log = self.proxy.log
        admin.await_ready()
        tenant = admin.tenant()
        k = admin.admin("POST", "/keys", {"tenant": tenant, "name": "test"}, expect=201)
        key = Key(k["id"], k["bearer_token"], k["aws_access_key_id"], k["aws_secret_access_key"], tenant)
        self.clients().await_key(key)
        return key

    def stop(self) -> None:
        for pod in (self.proxy, self.worker, self.migration):
            pod.kill()
