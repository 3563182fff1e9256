"""A recorded cost explained, and priced again when the book for its time has changed.

The ledger keeps what was used and which version priced it, not the tier and latency that Bedrock echoed,
nor the size of images. They are found again: those under which the recorded usage costs what was recorded.
A cost that none of them explains (guardrail units by policy) is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from proxy.domain.catalogue import Model, Target
from proxy.domain.guardrails import GUARDRAIL, guardrail_route
from proxy.domain.pricing import PriceBook, Priced
from proxy.domain.usage import Usage
from proxy.errors import Refusal
from proxy.policyfile.backtest import recorded_target
from proxy.policyfile.policyset import PolicySet

#: in the order in which they are tried
_TIERS = ("default", "priority", "flex", "batch", "reserved")
_LATENCIES = ("standard", "optimized")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """A resolved attempt. `cost` is what it was charged for its usage, corrections not counted."""

    model: str
    #: `region/id`
    target: str
    usage: Usage
    cost: int
    #: id of the version that priced it
    version: str
    #: unix seconds of its sending, as near as the ledger has it
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """`lines` is the arithmetic of what it costs by the book of today; `cost` its sum."""

    tier: str
    latency: str
    version: str
    cost: int
    upstream_free: bool
    lines: tuple[str, ...]


def explain(policies: PolicySet, paid: Paid) -> Explained | None:
    """None when the model has no price any more, or no tier explains the recorded cost."""
    place = recorded_place(policies, paid.model, paid.target)
    if place is None:
        return None
    model, target = place
    try:
        today = policies.priced(model, target)
    except Refusal:
        return None
    for usage, tier, latency in _served(policies.prices, model, target, paid):
        cost, version = today.cost(usage, tier, latency, paid.at)
        lines = tuple(today.explain(usage, tier, latency, paid.at))
        return Explained(
            tier=tier,
            latency=latency,
            version=version,
            cost=cost,
            upstream_free=today.upstream_free,
            lines=lines,
        )
    return None


def recorded_place(policies: PolicySet, base: str, label: str) -> tuple[Model, Target] | None:
    """The model and the target that the ledger calls so; None when the policies do not know them any more."""
    region, _, name = label.partition("/")
    if base == GUARDRAIL:
        identifier, _, version = name.rpartition(":")
        route = guardrail_route(identifier, version, region)
        return route.model, route.targets[0]
    target = recorded_target(policies, region, name)
    model = policies.models.get(base)
    if target is None or model is None or target.model != model.id:
        return None
    return model, target


def _served(book: PriceBook, model: Model, target: Target, paid: Paid) -> Iterator[tuple[Usage, str, str]]:
    """Usages with a size of image, tiers and latencies that give the recorded cost under the version that
    was recorded.
    """
    then = _as_recorded(book, model, target, paid)
    if then is None:
        return
    for variant, latency, tier in product(then.image_variants(paid.at) or (None,), _LATENCIES, _TIERS):
        usage = replace(paid.usage, image_variant=variant)
        if then.cost(usage, tier, latency, paid.at)[0] == paid.cost:
            yield usage, tier, latency


def _as_recorded(book: PriceBook, model: Model, target: Target, paid: Paid) -> Priced | None:
    """The prices as the book was when it was charged: without versions that now stand between."""
    used = next((version for version in book.versions if version.id == paid.version), None)
    if used is None:
        return None
    earlier = [version for version in book.versions if version.effective_from <= used.effective_from]
    try:
        return PriceBook(earlier).priced(model, target)
    except Refusal:
        return None
