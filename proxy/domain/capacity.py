"""Capacity that is paid by the hour: what was bought in a time, and what it was used for. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.domain.discovery import Capacity
from proxy.domain.rates import CapacityPrice

HOUR = 3600
#: the price file's word where the control plane names no commitment
_UNCOMMITTED = "NoCommitment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One provisioned throughput in a time. Hours of a throughput count once, unit hours per model unit."""

    capacity: Capacity
    hours: int
    unit_hours: int
    #: what AWS bills for them, nano-dollars; None where the price book has no price
    paid: int | None
    #: hours in which at least one call was served
    used_hours: int
    calls: int
    #: what tenants were charged for those calls, nano-dollars
    charged: int


def used(
    capacity: Capacity,
    calls: Iterable[tuple[float, int]],
    prices: Iterable[CapacityPrice],
    since: int,
    until: int,
) -> Use:
    """`calls` are (unix seconds of admission, nano-dollars charged) of every call it served."""
    begun = max(since, capacity.since)
    hours = max(-(-(until - begun) // HOUR), 0)  # an hour that has begun is paid
    seen = [(int(at // HOUR), charged) for at, charged in calls]
    rate = model_unit_hour(capacity, prices)
    unit_hours = hours * capacity.units
    return Use(
        capacity=capacity, hours=hours, unit_hours=unit_hours, paid=None if rate is None else rate * unit_hours,
        used_hours=len({hour for hour, _ in seen}), calls=len(seen), charged=sum(charged for _, charged in seen),
    )  # fmt: skip


def model_unit_hour(capacity: Capacity, prices: Iterable[CapacityPrice]) -> int | None:
    """Nano-dollars of one model unit for an hour, in the capacity's Region before elsewhere. The listed
    model may carry a context (`...-v1:0:128k`): the dearest of the model's counts.
    """
    region, wanted = capacity.arn.split(":")[3], capacity.commitment or _UNCOMMITTED
    found: dict[bool, int] = {}
    for price in prices:
        terms = dict(price.terms)
        same = price.subject == capacity.model or price.subject.startswith(f"{capacity.model}:")
        if price.kind != "provisioned" or not same or terms.get("commitment") != wanted:
            continue
        if terms.get("region", region) == region:
            here = "region" in terms
            found[here] = max(found.get(here, 0), price.rates["model_unit_hour"])
    return found.get(True, found.get(False))
