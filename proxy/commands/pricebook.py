"""What `tollhouse prices update`, `tollhouse prices explain` and `tollhouse models` do."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from proxy import policyfile, settings
from proxy.adminclient import Access, show
from proxy.domain.discovery import Lifecycle
from proxy.domain.pricelist import Change, Names, changed_prices, compare
from proxy.domain.pricing import Priced
from proxy.domain.rates import KINDS, MILLION, NANO, Price, PriceKey, Rates, usd
from proxy.domain.usage import Usage
from proxy.errors import ConfigurationError, Refusal, UnknownModel
from proxy.policyfile import PolicySet
from proxy.policyfile.prices import TOKENS
from proxy.policyfile.repricing import recorded_place
from proxy.pricefile import flow

_WARN_SECONDS = 180 * 86_400.0
_TIERS = ("default", "flex", "priority", "ultrafast")


# ---- update ----------------------------------------------------------------------------------


def update(options: argparse.Namespace) -> int:
    from proxy.bedrock.pricelist import PriceList  # noqa: PLC0415 (boto3 is slow to import)

    loaded = settings.load()
    folder = policyfile.directory(options.policies or loaded.policies_dir)
    policies = policyfile.load(folder, region=loaded.aws_region)
    listed, skipped = PriceList(endpoint_url=options.endpoint_url).read(
        options.region or policies.regions_used
    )
    given = dict(pair.partition("=")[::2] for pair in options.name)
    if unknown := sorted(set(given.values()) - policies.models.keys()):
        raise ConfigurationError(f"there is no model {unknown[0]!r}")
    names = Names({model.id: model.name for model in policies.models.values()}, given)
    found = compare(listed, policies.prices.versions, names)
    for change in found.changes:
        print(f"{change}{f'   [{change.doubtful}]' if change.doubtful else ''}")
    print(f"{len(listed)} prices read: {found.same} as in the book, {len(found.changes)} otherwise; "
          f"{len(skipped)} lines left out, {len(found.unknown)} names of no model here")  # fmt: skip
    for usage, why in sorted(skipped.items())[:10]:
        print(f"  left out: {usage}: {why}")
    for name in sorted(found.unknown)[:10]:
        print(f"  no model: {name}")
    refused = [c for c in found.changes if c.doubtful and not _accepted(c.key.model, options.accept)]
    if options.check or not found.changes:
        return 1 if found.changes else 0
    if refused:
        print(f"nothing is written: {len(refused)} doubtful changes; look at them and name their models "
              "with --accept", file=sys.stderr)  # fmt: skip
        return 1
    print(f"written: {write_version(folder, policies, found.changes, _instant(options.effective_from))}")
    return 0


def _accepted(model: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


def _instant(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--effective-from: {text!r} is no time") from None
    if at.tzinfo is None:
        raise ConfigurationError("--effective-from: say the zone, such as 2026-11-23T00:00:00Z")
    return at.astimezone(UTC)


def write_version(folder: Path, policies: PolicySet, changes: Iterable[Change], at: datetime) -> Path:
    """A version of the price book with the places that change. Raises `ConfigurationError` when the
    policies with it would not be good; then nothing is left behind.
    """
    path = folder / "prices" / f"{at.date().isoformat()}.yaml"
    number = 2
    while path.exists():
        path, number = path.with_name(f"{at.date().isoformat()}-{number}.yaml"), number + 1
    path.write_text(version_text(changed_prices(changes, policies.prices.versions), at), encoding="utf-8")
    problems = policyfile.check(folder)
    if problems:
        path.unlink()
        raise ConfigurationError(f"the new version is not good: {problems[0]}")
    return path


def version_text(prices: Mapping[PriceKey, Price], at: datetime) -> str:
    """The text of a price file with these prices and nothing else. Equal ones of several Regions share a
    line.
    """
    regions: dict[tuple[str, str], list[str]] = {}
    for key, price in prices.items():
        entry = flow(_entry(key, price))
        regions.setdefault((key.model, entry), []).append(key.region)
    lines = [
        "# From AWS's price list by `tollhouse prices update`: only the places whose prices changed.",
        f'effective_from: "{at.isoformat().replace("+00:00", "Z")}"',
        "sources:",
        '  aws: "AWS Price List API"',
        "prices:",
    ]
    last = ""
    for (model, entry), where in sorted(regions.items()):
        if model != last:
            lines.append(f"  {model}:")
        last = model
        named = "" if where == ["*"] else f"regions: {flow(sorted(set(where) - {'*'}))}, "
        lines.append(f"    - {{{named}{entry[1:]}")
    return "\n".join(lines) + "\n"


def _entry(key: PriceKey, price: Price) -> dict[str, Any]:
    line: dict[str, Any] = {}
    if key.prefix:
        line["profile"] = key.prefix
    if key.endpoint != "runtime":
        line["endpoint"] = key.endpoint
    if key.latency != "standard":
        line["latency"] = key.latency
    line |= _rates(price.rates)
    if price.units:
        line["units"] = {name: _apiece(rate) for name, rate in price.units.items()}
    if price.tiers:
        line["tiers"] = {name: _rates(rates) for name, rates in sorted(price.tiers.items())}
    if price.long_context:
        line["long_context"] = [{"over": step.over, **_rates(step.rates)} for step in price.long_context]
    if price.unbounded:
        line["unbounded"] = price.unbounded
    return line | {"source": "aws"}


def _rates(rates: Rates) -> dict[str, str]:
    return {kind: usd(rate) for kind in TOKENS if (rate := getattr(rates, kind)) is not None}


def _apiece(rate: int) -> str:
    """Nano-dollars per million pieces as USD apiece."""
    return format((Decimal(rate) / (MILLION * NANO)).normalize(), "f")


# ---- explain ---------------------------------------------------------------------------------


def explain(options: argparse.Namespace) -> int:
    status, call = Access.find().get(f"/admin/v1/calls/{options.attempt}")
    if status != 200:
        return show((status, call))
    loaded = settings.load()
    policies = policyfile.load(loaded.policies_dir, region=loaded.aws_region)
    print("\n".join(explained(call, policies)))
    return 0


def explained(call: Mapping[str, Any], policies: PolicySet) -> list[str]:
    """What one sending cost and why, from the ledger's item and the price book. Raises `UnknownModel`
    when the book does not know its target.
    """
    why = f" ({call['why'].lower()})" if call.get("why") else ""
    head = [
        f"attempt {call['attempt']} of call {call['id']}: {call['operation']} to {call['target']}",
        f"admitted {call['admitted_at']}, {call['outcome']}{why}, ceiling {call['ceiling_usd']} USD",
    ]
    tail = [
        f"{e['kind'].lower():<15}{e['amount_usd']} USD ({e['why'].lower()})"
        for e in call.get("entries") or []
    ]
    if call["outcome"] != "POST":
        return [*head, f"charged {call['cost_usd'] or 0} USD: only a POST is charged by its tokens", *tail]
    at = datetime.fromisoformat(call["admitted_at"]).timestamp()
    priced = _priced(call, policies)
    charged = int(Decimal(call["cost_usd"]) * NANO)
    used = _usage(call["usage"])
    possible = list(product(priced.image_variants(at) or (None,), ("standard", "optimized"), _TIERS))
    for variant, latency, tier in possible:
        usage = replace(used, image_variant=variant)
        if priced.cost(usage, tier, latency, at)[0] == charged:
            return [*head, *priced.explain(usage, tier, latency, at), *tail]
    variant, latency, tier = possible[0]
    rest = charged - priced.cost(replace(used, guardrail_units=0), tier, latency, at)[0]
    usage = replace(used, image_variant=variant, guardrail_units=0)
    lines = priced.explain(usage, tier, latency, at)
    if used.guardrail_units and rest > 0:
        what = f"{used.guardrail_units:,} units, each at the rate of its policy = {usd(rest)} USD"
        return [*head, *lines, f"{'guardrails':<15}{what}", f"{'charged':<15}{call['cost_usd']} USD", *tail]
    over = f"{call['cost_usd']} USD: {usd(rest)} USD more than its units cost by this book"
    why = f"(another price book than version {call['price_version']})"
    return [*head, *lines, f"{'charged':<15}{over} {why}", *tail]


def _priced(call: Mapping[str, Any], policies: PolicySet) -> Priced:
    place = recorded_place(policies, call["model"], call["target"])
    if place is None:
        raise UnknownModel(f"the policies here do not know {call['model']!r} at {call['target']!r}")
    return policies.priced(*place)


def _usage(used: Mapping[str, int]) -> Usage:
    """Of the ledger's item, which leaves open: the tier, the latency and the size of images as served."""
    return Usage(
        input_tokens=used["input_tokens"], output_tokens=used["output_tokens"],
        cache_read_tokens=used["cache_read_tokens"], cache_write_5m_tokens=used["cache_write_5m_tokens"],
        cache_write_1h_tokens=used["cache_write_1h_tokens"], images=used["images"],
        guardrail_units=used["guardrail_units"],
    )  # fmt: skip


# ---- models ----------------------------------------------------------------------------------


def models(options: argparse.Namespace) -> int:
    loaded = settings.load()
    policies = policyfile.load(loaded.policies_dir, region=loaded.aws_region)
    lifecycles: Mapping[str, Lifecycle] = {}
    if options.aws:
        from proxy.bedrock.control import ControlPlane  # noqa: PLC0415 (boto3 is slow to import)

        plane = ControlPlane(endpoint_url=loaded.bedrock_control_endpoint_url or None)
        lifecycles = asyncio.run(plane.look(policies.regions_used)).lifecycles
    for line in listing(policies, options.pattern, lifecycles, time.time()):
        print(line)
    return 0


def listing(
    policies: PolicySet, pattern: str, lifecycles: Mapping[str, Lifecycle], now: float
) -> Iterable[str]:
    """One line per name that may be called: its Region, USD per million tokens, and what ends when."""
    yield f"{'MODEL':<58}{'REGION':<16}{'INPUT':>9}{'OUTPUT':>9}  NOTES"
    for name in policies.ids:
        if not fnmatchcase(name, pattern):
            continue
        try:
            route = policies.resolve(name)
            rates = policies.priced(route.model, route.targets[0]).rates(now).rates
        except Refusal:
            continue
        ends = route.model.end_of_life
        written = Lifecycle(model=name, end_at=_day(ends)) if ends else None
        known = lifecycles.get(route.model.id) or written
        notes = [known.warning(now, _WARN_SECONDS)] if known is not None else []
        if len(route.targets) > 1 or route.fallbacks:
            notes.append(f"{route.policy} of {len(route.targets)} targets, {len(route.fallbacks)} fallbacks")
        shown = {kind: usd(rate) for kind in KINDS if (rate := getattr(rates, kind))}
        prices = f"{shown.get('input', '-'):>9}{shown.get('output', shown.get('image', '-')):>9}"
        yield f"{name:<58}{route.targets[0].region:<16}{prices}  {'; '.join(filter(None, notes))}".rstrip()


def _day(text: str) -> int:
    return int(datetime.fromisoformat(f"{text[:10]}T00:00:00+00:00").timestamp())
