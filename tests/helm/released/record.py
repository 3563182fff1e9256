"""What may not change from one version of the chart to the next, and the record of it for every released one.

python -m tests.helm.released.record      record the chart's present version, once, when it is released
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helm.chart import CHART, SHAPES, Chart, container, labels, render

FOLDER = Path(__file__).parent


def identity(chart: Chart) -> dict[str, Any]:
    """By object: what Kubernetes refuses to change, and what others know the release by."""
    found: dict[str, Any] = {}
    for document in chart.documents:
        name, spec = f"{document['kind']}/{document['metadata']['name']}", document.get("spec", {})
        match document["kind"]:
            case "Deployment":
                found[name] = {
                    "selector": spec["selector"]["matchLabels"],
                    "ports": {p["name"] for p in container(document)["ports"]},
                    "secrets": _secrets(container(document)),
                }
            case "Service":
                found[name] = {
                    "selector": spec["selector"], "type": spec.get("type"),
                    "ports": {f"{p['name']} {p['port']}" for p in spec["ports"]},
                }  # fmt: skip
            case "Job":
                found[name] = {"secrets": _secrets(container(document))}
            case "ServiceAccount" | "Secret" | "Ingress" | "HTTPRoute":
                found[name] = {"component": labels(document).get("app.kubernetes.io/component")}
    plain: dict[str, Any] = json.loads(json.dumps(found, default=sorted, sort_keys=True))
    return plain


def _secrets(of: dict[str, Any]) -> set[str]:
    """`VARIABLE = Secret/key` of every one that is read."""
    references = {e["name"]: e.get("valueFrom", {}).get("secretKeyRef") for e in of["env"]}
    return {f"{name} = {ref['name']}/{ref['key']}" for name, ref in references.items() if ref}


def main() -> int:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    target = FOLDER / f"{version}.json"
    if target.exists():
        print(f"{version} is released: what it is known by stays", file=sys.stderr)
        return 1
    record = {
        "values": yaml.safe_load((CHART / "values.yaml").read_text()),
        "identity": {shape: identity(render(shape=shape)) for shape in SHAPES},
    }
    target.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
