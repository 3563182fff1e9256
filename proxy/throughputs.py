"""What is paid by the hour, and what it serves: the metrics of provisioned throughputs.

A target is named by its label, `<region>/<ARN>`. ARNs can come from clients, so their number is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy import telemetry
from proxy.domain.usage import Usage

#: throughputs with labels of their own; the others share `other`
SHOWN_MAX = 100
#: their model units, 0 for those the control plane does not name
_units: dict[str, int] = {}


def served(target: str, usage: Usage) -> None:
    """Count the tokens of one call."""
    label = target if target in _units or len(_units) < SHOWN_MAX else "other"
    if label != "other":
        _units.setdefault(label, 0)
    read = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    telemetry.PROVISIONED_TOKENS.labels(label, "input").inc(read)
    telemetry.PROVISIONED_TOKENS.labels(label, "output").inc(usage.output_tokens)


def found(units: Mapping[str, int]) -> None:
    """What the account has in service: target -> model units. What it has no more is shown as 0."""
    for target in (*(known for known in _units if known not in units), *units):
        _units[target] = units.get(target, 0)
        telemetry.PROVISIONED_UNITS.labels(target).set(_units[target])
