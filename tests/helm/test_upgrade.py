"""The values of every released chart go on with this one, and what may not change has not."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.helm.chart import SHAPES, Chart, render
from tests.helm.released.record import FOLDER, identity

pytestmark = pytest.mark.usefixtures("helm_tool")

RELEASED = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def lost(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of an earlier identity is gone or different. More ports, objects and secrets are no loss."""
    found = []
    for name, facts in before.items():
        if name not in now:
            found.append(f"{name} is gone")
            continue
        for fact, value in facts.items():
            here = now[name][fact]
            same = set(value) <= set(here) if isinstance(value, list) else value == here
            if not same:
                found.append(f"{name}: {fact} was {value}, is {here}")
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("version", RELEASED)
def test_an_upgrade_changes_nothing_that_cannot_change(version: str, shape: str) -> None:
    values = RELEASED[version]["values"] if shape == "default" else {}
    assert lost(RELEASED[version]["identity"][shape], identity(render(values, shape=shape))) == []


def test_there_is_a_release_to_compare_with() -> None:
    assert RELEASED
    for record in RELEASED.values():
        assert record["identity"].keys() == set(SHAPES)
        for facts in record["identity"].values():
            kinds = {name.split("/")[0] for name in facts}
            assert {"Deployment", "Service", "Job", "ServiceAccount"} <= kinds


def test_each_kind_of_loss_is_seen() -> None:
    chart = render(shape="full")
    before = identity(chart)
    assert lost(before, before) == []

    def after(change: Any) -> list[str]:
        documents = copy.deepcopy(chart.documents)
        change(documents)
        return lost(before, identity(Chart(documents)))

    def first(documents: list[Any], kind: str) -> Any:
        return next(d for d in documents if d["kind"] == kind)

    assert after(lambda ds: first(ds, "Deployment")["spec"]["selector"]["matchLabels"].update(tier="web"))
    assert after(lambda ds: first(ds, "Service")["metadata"].update(name="other"))
    assert after(lambda ds: first(ds, "Service")["spec"]["ports"][0].update(port=1))
    assert after(lambda ds: ds.remove(first(ds, "ServiceAccount")))
    assert after(
        lambda ds: [e["valueFrom"]["secretKeyRef"].update(key="x")
                    for e in first(ds, "Job")["spec"]["template"]["spec"]["containers"][0]["env"]
                    if "secretKeyRef" in e.get("valueFrom", {})]
    )  # fmt: skip
