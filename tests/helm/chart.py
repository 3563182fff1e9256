"""Renders the chart with the real helm and finds things in what comes out."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "tollhouse"
TOOLS = Path(os.environ.get("TOLLHOUSE_CHART_TOOLS", str(REPOSITORY / ".cache" / "helm")))
VALUES = Path(__file__).parent / "values"
MONITORING = "monitoring.coreos.com/v1"
GATEWAY = "gateway.networking.k8s.io/v1"
#: oldest and newest that the chart names and the schemas know, and two between
VERSIONS = ("1.27", "1.30", "1.33", "1.37")
#: every shape of the chart that the checks run over
SHAPES = ("default", "minimal", "full")


class Refused(Exception):
    """helm said no; the message is its own."""


def helm(*arguments: str, stdin: str | None = None) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(TOOLS),
        "HELM_CACHE_HOME": str(TOOLS / "cache"),
        "HELM_CONFIG_HOME": str(TOOLS / "config"),
        "HELM_DATA_HOME": str(TOOLS / "data"),
    }
    done = subprocess.run(
        [str(TOOLS / "bin" / "helm"), *arguments],
        input=stdin, capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(
    values: Document | None = None, *, shape: str = "default", kube: str = "1.33", release: str = "demo"
) -> Chart:
    """The chart's objects for one of SHAPES with `values` on top. Raises `Refused`."""
    return Chart(parse(rendered(json.dumps(values or {}), shape, kube, release)))


@functools.cache
def rendered(values: str, shape: str, kube: str, release: str) -> str:
    files = () if shape == "default" else ("--values", str(VALUES / f"{shape}.yaml"))
    return helm(
        "template", release, str(CHART), "--namespace", "toll", "--kube-version", kube, *files, "--values", "-",
        stdin=values,
    )  # fmt: skip


def parse(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


@dataclass(frozen=True)
class Chart:
    documents: list[Document]

    def find(self, kind: str, name: str = "") -> Document:
        """The one object of this kind (whose name ends so)."""
        found = [d for d in self.kind(kind) if d["metadata"]["name"].endswith(name)]
        if len(found) > 1:  # a name may end another's
            found = sorted(found, key=lambda d: len(d["metadata"]["name"]))[:1] if name else found
        assert len(found) == 1, f"{kind} {name}: {[d['metadata']['name'] for d in found]}"
        return found[0]

    def kind(self, kind: str) -> list[Document]:
        return [d for d in self.documents if d["kind"] == kind]

    @property
    def proxy(self) -> Document:
        return self._deployment("proxy")

    @property
    def worker(self) -> Document:
        return self._deployment("worker")

    def _deployment(self, component: str) -> Document:
        found = [d for d in self.kind("Deployment") if labels(d)["app.kubernetes.io/component"] == component]
        assert len(found) == 1
        return found[0]

    def pods(self) -> Iterator[tuple[str, Document]]:
        """(whose, pod spec) of everything that becomes a pod."""
        for document in self.documents:
            name = f"{document['kind']}/{document['metadata']['name']}"
            if document["kind"] in {"Deployment", "Job", "StatefulSet", "DaemonSet"}:
                yield name, document["spec"]["template"]["spec"]
            elif document["kind"] == "Pod":
                yield name, document["spec"]

    def templates(self) -> Iterator[tuple[str, Document]]:
        """(whose, object with metadata and spec) of everything that becomes a pod."""
        for document in self.documents:
            name = f"{document['kind']}/{document['metadata']['name']}"
            if document["kind"] in {"Deployment", "Job"}:
                yield name, document["spec"]["template"]
            elif document["kind"] == "Pod":
                yield name, document


def labels(document: Document) -> dict[str, str]:
    found: dict[str, str] = document["metadata"].get("labels") or {}
    return found


def notes(document: Document) -> dict[str, str]:
    found: dict[str, str] = document["metadata"].get("annotations") or {}
    return found


def container(deployment: Document) -> Document:
    """The only container of a Deployment or Job."""
    containers: list[Document] = deployment["spec"]["template"]["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


def environment(of: Document) -> dict[str, Any]:
    """name -> value, or the reference, of a container."""
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in of["env"]}


def merged(one: Document, other: Document) -> Document:
    """`other` over `one`, mapping by mapping."""
    out = dict(one)
    for key, value in other.items():
        out[key] = (
            merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
        )
    return out
