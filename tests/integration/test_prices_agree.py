"""The simulator's price table and the price book were made apart; wherever both know a price, it is the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import policyfile
from proxy.domain.catalogue import Model, Target
from proxy.domain.pricing import Priced
from proxy.domain.usage import Usage
from proxy.errors import UnboundedCost, UnknownModel
from proxy.policyfile.routes import split_prefix
from proxy.simulator.config import PRICES
from proxy.simulator.prices import Price, Rates, load

POLICIES, TABLE = policyfile.load(), load(PRICES)
NOW = 1_795_000_000.0
_NAMES = (("input", "input"), ("output", "output"), ("cache_read", "cache_read"),
          ("cache_write_5m", "cache_write"), ("cache_write_1h", "cache_write_1h"))  # fmt: skip
_MEMBERS = {kind: f"{kind}_tokens" for kind, _ in _NAMES}
REGIONS = sorted(
    {key.region for v in POLICIES.prices.versions for key in v.prices if key.region != "*"} | {"us-east-1"}
)


def places() -> Iterator[tuple[str, str, Model, Priced, Price]]:
    """Every name and Region that the simulator serves and the book can bound."""
    for name in TABLE:
        prefix, base = split_prefix(name)
        model = POLICIES.models.get(base)
        for region in REGIONS if model is not None else ():
            theirs = TABLE.find(name, region)
            if theirs is None or model is None:
                continue
            target = Target(model=base, model_id=name, region=region, prefix=prefix)
            try:
                ours = POLICIES.priced(model, target)
                ours.rates(NOW)
            except (UnknownModel, UnboundedCost):
                continue
            yield name, region, model, ours, theirs


def nanos(rate: Decimal) -> int:
    whole = rate * 10**9
    assert whole == whole.to_integral_value()
    return int(whole)


def differences(ours: Any, theirs: Rates, what: str) -> list[str]:
    return [
        f"{what} {mine}: {getattr(ours, mine)} in the book, {nanos(getattr(theirs, other))} in the simulator"
        for mine, other in _NAMES
        if getattr(ours, mine) != nanos(getattr(theirs, other))
    ]


def test_both_know_most_of_each_other_s_names():
    both = {name for name, *_ in places()}
    assert len(both) > 250
    assert set(TABLE) - both - {name for name in TABLE if split_prefix(name)[1] not in POLICIES.models} <= {
        name for name in TABLE if not _bounded(name)
    }


def _bounded(name: str) -> bool:
    prefix, base = split_prefix(name)
    prices = [
        p
        for v in POLICIES.prices.versions
        for k, p in v.prices.items()
        if (k.model, k.prefix) == (base, prefix)
    ]
    return any(price.bounded for price in prices)


def test_standard_rates_agree_everywhere():
    found = []
    for name, region, _, ours, theirs in places():
        found += differences(ours.rates(NOW).rates, theirs.standard, f"{name} {region}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("tier", ["flex", "priority"])
def test_tiers_agree_everywhere(tier):
    found, seen = [], 0
    for name, region, _, ours, theirs in places():
        if tier not in theirs.tiers:
            continue
        seen += 1
        found += differences(ours.rates(NOW, tier).rates, theirs.tiers[tier], f"{name} {region} {tier}")
    assert seen > 20
    assert not found, "\n".join(found)


def test_latency_optimized_rates_agree():
    found, seen = [], 0
    for name, region, _, ours, theirs in places():
        if theirs.optimized is None:
            continue
        seen += 1
        rates = ours.rates(NOW, latency="optimized").rates
        found += differences(rates, theirs.optimized, f"{name} {region} optimized")
    assert seen >= 4
    assert not found, "\n".join(found)


def long_rates(ours: Priced, over: int) -> SimpleNamespace:
    """What a million tokens of each kind cost in a request that is just over the threshold."""
    base = Usage(input_tokens=over + 1)
    charged = {
        kind: ours.cost(replace(base, **{member: getattr(base, member) + 10**6}), "default", "standard", NOW)[
            0
        ]
        - ours.cost(base, "default", "standard", NOW)[0]
        for kind, member in _MEMBERS.items()
    }
    return SimpleNamespace(**charged)


def test_long_context_rates_agree():
    found, seen = [], 0
    for name, region, _, ours, theirs in places():
        mine = {step.over for step in ours.rates(NOW).long_context}
        if mine != {over for over, _ in theirs.long}:
            found.append(f"{name} {region}: thresholds {sorted(mine)}, {theirs.long}")
            continue
        seen += len(mine)
        for over, rates in theirs.long:
            found += differences(long_rates(ours, over), rates, f"{name} {region} over {over}")
    assert seen > 5
    assert not found, "\n".join(found)


def test_images_agree():
    found, seen = [], 0
    for name, region, _, ours, theirs in places():
        image = ours.rates(NOW).rates.image
        if not image or not theirs.images:
            continue
        seen += 1
        dearest = max(Decimal(record["image"]) for record in theirs.images)
        if image != dearest * 10**15:
            found.append(f"{name} {region}: {image}, {dearest}")
    assert seen > 5
    assert not found, "\n".join(found)


def test_guardrail_units_agree():
    for version in POLICIES.prices.versions:
        for name, usd in TABLE.guardrail_units.items():
            assert version.guardrails[name] == usd * 10**15, name
