"""The chart's tools: real helm, API schemas, Prometheus. What cannot be had is skipped with its reason."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helm.chart import REPOSITORY, TOOLS

Validate = Callable[[list[dict[str, Any]], tuple[str, ...]], list[str]]


def _tool(name: str) -> Path:
    """Where the tools are, with `name` among them."""
    done = subprocess.run(
        [str(REPOSITORY / "helm" / "tools.sh"), name],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"NOT CHECKED: {done.stderr.strip() or done.stdout.strip()}")
    return TOOLS


@pytest.fixture(scope="session")
def helm_tool() -> Path:
    """helm and kubectl are in its bin/."""
    return _tool("helm")


@pytest.fixture(scope="session")
def prometheus_tool() -> Path:
    """prometheus and promtool are in its bin/."""
    return _tool("prometheus")


@pytest.fixture(scope="session")
def validate() -> Validate:
    """Complaints of the API schemas of these Kubernetes versions about these objects."""
    home = _tool("schemas")

    def run(documents: list[dict[str, Any]], versions: tuple[str, ...]) -> list[str]:
        done = subprocess.run(
            [str(home / "venv" / "bin" / "python"), str(Path(__file__).parent / "validate.py")],
            input=json.dumps({"versions": versions, "documents": documents}),
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        complaints: list[str] = json.loads(done.stdout)
        return complaints

    return run
