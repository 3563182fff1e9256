"""The price book: what an attempt may cost at most, and what it did cost.

Per call the products units x rate are summed exactly and rounded up once, to nano-dollars. Pure
arithmetic: time comes in as unix seconds, nothing here reads a clock.

A price is found by base model, profile prefix, Region and endpoint; a price that names the Region beats
the one for every Region, and one of the runtime endpoint beats one of the other endpoint. Versions are
effective-dated: each holds from its date and overrides only the prices it names. The first version also
holds before its date, so that a clock that is behind cannot refuse every call.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from proxy.domain.catalogue import Model, Target
from proxy.domain.guardrails import GUARDRAIL, NO_TOKENS, GuardrailRates, text_units
from proxy.domain.rates import (
    KINDS,
    MILLION,
    Price,
    PricedRates,
    PriceKey,
    PriceVersion,
    Rates,
    nanos,
    usd,
    usd_exact,
)  # fmt: skip
from proxy.domain.request import Bound
from proxy.domain.usage import Usage
from proxy.errors import UnboundedCost, UnknownModel

#: most images Bedrock takes in one request (Converse)
IMAGES_PER_REQUEST = 20
#: context of the 1M beta that models with a long-context price at their own context size offer
EXTENDED_CONTEXT = 1_000_000
#: `reserved` is paid by commitment and overflows to standard, whose rates are used for it
_STANDARD_TIERS = frozenset({"default", "standard", "reserved", ""})
#: tiers that no online request is served in
_OFFLINE_TIERS = frozenset({"batch"})
#: most price look-ups remembered; Regions can come from clients, so the memory is bounded
_REMEMBERED = 10_000


class _Row(NamedTuple):
    """Rates with every gap filled, in the order of `KINDS`; used to charge."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    image: int
    guardrail_unit: int


def _row(rates: Rates) -> _Row:
    """Fill the gaps so that a reported unit is never free by accident: cached input without its own
    rate costs what input costs, and a longer cache lifetime at least what the shorter one does.
    """
    tokens = rates.input or 0
    write = tokens if rates.cache_write_5m is None else rates.cache_write_5m
    return _Row(
        tokens,
        rates.output or 0,
        tokens if rates.cache_read is None else rates.cache_read,
        write,
        write if rates.cache_write_1h is None else rates.cache_write_1h,
        rates.image or 0,
        rates.guardrail_unit or 0,
    )


def _dearest(rows: Iterable[_Row]) -> _Row:
    return _Row(*(max(kind) for kind in zip(*rows, strict=True)))


class _Plan:
    """One version's prices of one place, ready to multiply."""

    __slots__ = (
        *("version", "price", "standard", "tiers", "optimized", "long", "images", "reserve", "guardrails"),
    )

    def __init__(self, version: PriceVersion, price: Price, optimized: Price | None) -> None:
        self.version = version.id
        self.guardrails = GuardrailRates(version.guardrails)
        units = Rates(guardrail_unit=self.guardrails.unit)
        self.price = price
        base = price.rates.over(units)
        self.standard = _row(base)
        self.tiers = {name: _row(rates.over(base)) for name, rates in price.tiers.items()}
        self.optimized = None if optimized is None else _row(optimized.rates.over(base))
        steps = sorted(price.long_context, key=lambda step: step.over)
        self.long = tuple((step.over, _row(step.rates.over(base))) for step in steps)
        self.images = price.images
        self.reserve = None if price.reserve is None else _Plan(version, price.reserve, None)

    def charged(self, total_input: int, tier: str, latency: str) -> _Row:
        """The rates of a finished call: latency-optimized, else tier and length (the dearer of both)."""
        if latency == "optimized" and self.optimized is not None:
            return self.optimized
        row = self.tiers.get(tier, self.standard)
        for over, long in self.long:
            if total_input > over:
                row = long if row is self.standard else _dearest((row, long))
        return row

    def candidates(self, tier: str, latency: str, crossed: int, where: str) -> list[_Row]:
        """Every set of rates a call may end up with. Raises `UnboundedCost`."""
        rows = [self.standard]
        if tier == "auto":
            rows += [row for name, row in self.tiers.items() if name not in _OFFLINE_TIERS]
        elif tier not in _STANDARD_TIERS:
            if tier not in self.tiers or tier in _OFFLINE_TIERS:
                raise UnboundedCost(f"{where} has no price for the service tier {tier[:40]!r}")
            rows.append(self.tiers[tier])
        if latency == "optimized":
            if self.optimized is None:
                raise UnboundedCost(f"{where} has no price for latency-optimized inference")
            rows.append(self.optimized)
        elif latency != "standard":
            raise UnboundedCost(f"there is no price for the latency mode {latency[:40]!r}")
        rows += [row for _, row in self.long[:crossed]]
        if self.reserve is not None:
            rows += [self.reserve.standard, *(row for _, row in self.reserve.long[:crossed])]
        return rows


class _Worst(NamedTuple):
    """Dearest rates over everything that may happen to one shape of request."""

    input: int
    output: int
    image: int
    guardrail_text: int
    guardrail_image: int


class Priced:
    """The prices of one model in one place, over time. Made by `PriceBook.priced` and reused."""

    __slots__ = (
        *("where", "upstream_free", "_model", "_starts", "_plans", "_crossings"),
        *("_context", "_full", "_cap", "_worst"),
    )

    def __init__(
        self, where: str, model: Model, plans: tuple[tuple[int, _Plan], ...], *, upstream_free: bool
    ) -> None:
        self.where = where
        #: AWS bills nothing per token here (provisioned and imported models); the cost is internal
        self.upstream_free = upstream_free
        self._starts = [start for start, _ in plans[1:]]
        self._plans = tuple(plan for _, plan in plans)
        self._model = model
        crossings = sorted({over for plan in self._plans for over, _ in plan.long})
        self._crossings = tuple(crossings)
        self._context = context = model.context_tokens if model.context_tokens > 0 else 1 << 62
        #: a threshold at or above the context is only for the beta that extends it
        extended = bool(crossings) and crossings[-1] >= context
        #: documented contexts are rounded: "128K" may be 131,072 tokens
        self._full = context if extended else -(-context * 1024 // 1000)
        self._cap = max(context, EXTENDED_CONTEXT) if extended else self._full
        self._worst: dict[tuple[int, int, str, str, str | None, int], _Worst] = {}

    def version(self, at: float) -> str:
        """Id of the price version in force at `at` (unix seconds)."""
        return self._plan(at).version

    def _plan(self, at: float) -> _Plan:
        return self._plans[bisect_right(self._starts, at)]

    def rates(self, at: float, tier: str = "default", latency: str = "standard") -> PricedRates:
        """The listed rates in force. Raises `UnboundedCost` for a tier or latency without a price."""
        plan = self._plan(at)
        plan.candidates(tier, latency, 0, self.where)
        row = plan.charged(0, tier, latency)
        listed = Rates(**dict(zip(KINDS, row, strict=True)))
        return PricedRates(plan.version, listed, plan.price.long_context)

    def ceiling(self, bound: Bound, output_tokens: int, at: float, horizon_seconds: float) -> int:
        """Worst case of one sending, nano-dollars.

        `output_tokens` is the limit of one choice after defaults. Prices are the dearest in force
        between `at` and `at + horizon_seconds`, over tier, latency, cache lifetime and context length.
        Raises `UnboundedCost` when some part of the request has no price.
        """
        tokens = bound.input_tokens
        if tokens >= self._context:
            tokens = min(max(tokens, self._full), self._cap)
        crossed = 0
        for over in self._crossings:
            if tokens > over:
                crossed += 1
        first, last = bisect_right(self._starts, at), bisect_right(self._starts, at + horizon_seconds)
        key = (first, last, bound.tier, bound.latency, bound.cache_ttl, crossed)
        worst = self._worst.get(key) or self._find_worst(key)
        total = tokens * worst.input + output_tokens * bound.choices * worst.output
        if bound.images or worst.image:
            total += self._image_part(bound, worst)
        if bound.guardrail:
            total += self._guardrail_part(bound, output_tokens, worst)
        return -(-total // MILLION)

    def _image_part(self, bound: Bound, worst: _Worst) -> int:
        if worst.image:
            if bound.images <= 0 and not worst.input:
                raise UnboundedCost(f"{self.where} is priced per image and the request does not say how many")
            return bound.images * worst.image
        if self._model.modality == "embedding":
            raise UnboundedCost(f"{self.where} has no price for images")
        return 0  # images given to a model that is priced by tokens are in its input tokens

    def _guardrail_part(self, bound: Bound, output_tokens: int, worst: _Worst) -> int:
        if not worst.guardrail_text:
            raise UnboundedCost("the price book has no price for guardrails")
        units = text_units(bound, output_tokens * bound.choices)
        return units * worst.guardrail_text + self._guarded_images(bound) * worst.guardrail_image

    def _guarded_images(self, bound: Bound) -> int:
        if "image" in self._model.modality and bound.input_tokens >= self._context:
            return max(bound.images, IMAGES_PER_REQUEST)
        return bound.images

    def image_variants(self, at: float) -> tuple[str, ...]:
        return tuple(self._plan(at).images)

    def completed(self, bound: Bound, usage: Usage, at: float) -> Usage:
        """The usage with what its answer does not tell: the size of its images, and the most that a
        guardrail without a trace can have taken, which is part of the ceiling.
        """
        if bound.guardrail and not usage.guardrail:
            usage = self._plan(at).guardrails.assumed(usage, bound, self._guarded_images(bound))
        return replace(usage, image_variant=bound.image_variant)

    def _find_worst(self, key: tuple[int, int, str, str, str | None, int]) -> _Worst:
        first, last, tier, latency, ttl, crossed = key
        rows: list[_Row] = []
        text = image = 0
        for plan in self._plans[first : last + 1]:
            self._check(plan, ttl)
            passed = sum(1 for over, _ in plan.long if over in self._crossings[:crossed])
            rows += plan.candidates(tier, latency, passed, self.where)
            text, image = max(text, plan.guardrails.text), max(image, plan.guardrails.image)
        row = _dearest(rows)
        tokens = max(row.input, row.cache_read)
        unasked = self._model.family != "anthropic"  # other families may write their cache by themselves
        if unasked or ttl is not None:
            tokens = max(tokens, row.cache_write_5m)
        if ttl == "1h":
            tokens = max(tokens, row.cache_write_1h)
        worst = self._worst[key] = _Worst(tokens, row.output, row.image, text, image)
        return worst

    def _check(self, plan: _Plan, ttl: str | None) -> None:
        """Refuse what the price book cannot bound. Raises `UnboundedCost`."""
        price = plan.price
        if price.unbounded:
            raise UnboundedCost(f"{self.where} cannot be bounded: {price.unbounded}")
        rates = price.rates
        if not price.bounded:
            raise UnboundedCost(f"{self.where} has no price per token")
        if ttl == "1h" and rates.cache_write_1h is None:
            raise UnboundedCost(f"{self.where} has no price for prompt cache writes that live one hour")
        if ttl is not None and rates.cache_read is None and rates.cache_write_5m is None:
            raise UnboundedCost(f"{self.where} has no prices for prompt caching; remove the cache points")

    def cost(
        self,
        usage: Usage,
        tier_served: str,
        latency_served: str,
        at_sent: float,
        image_variant: str | None = None,
    ) -> tuple[int, str]:
        """What the reported usage costs, in nano-dollars, and the price version that says so.

        Tier and latency are those Bedrock echoed; `image_variant` one of the price's variants, None
        for the dearest. Never raises: a unit without a price of its own costs what its nearest does.
        """
        plan = self._plan(at_sent)
        given, out, read = usage.input_tokens, usage.output_tokens, usage.cache_read_tokens
        write, write_1h = usage.cache_write_5m_tokens, usage.cache_write_1h_tokens
        images, units = usage.images, usage.guardrail_units
        if (given | out | read | write | write_1h | images | units) < 0:
            given, out, read = max(given, 0), max(out, 0), max(read, 0)
            write, write_1h, images, units = max(write, 0), max(write_1h, 0), max(images, 0), max(units, 0)
        row = plan.charged(given + read + write + write_1h, tier_served, latency_served)
        total = given * row.input + out * row.output
        if read or write or write_1h:
            total += read * row.cache_read + write * row.cache_write_5m + write_1h * row.cache_write_1h
        if images:
            total += images * plan.images.get(image_variant or usage.image_variant or "dearest", row.image)
        if units:
            total += plan.guardrails.charge(usage)
        return -(-total // MILLION), plan.version

    def explain(self, usage: Usage, tier_served: str, latency_served: str, at_sent: float) -> list[str]:
        """The arithmetic of `cost`, one line per kind of unit, then the exact and the rounded sum."""
        plan = self._plan(at_sent)
        total_input = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        row = plan.charged(total_input, tier_served, latency_served)
        row = row._replace(image=plan.images.get(usage.image_variant or "dearest", row.image))
        lines = [f"{self.where}, prices of {plan.version}, tier {tier_served}, latency {latency_served}"]
        tokens = (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens)
        rest = (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens, usage.images, usage.guardrail_units)
        total = 0
        for kind, count, rate in zip(KINDS, tokens + rest, row, strict=True):
            if count > 0:
                total += count * rate
                cost = f"{usd(rate)} USD per million = {usd_exact(count * rate)} USD"
                lines.append(f"{kind:<15}{count:>14,} x {cost}")
        if any(total_input > over for over, _ in plan.long):
            lines.append(f"long-context rates: {total_input:,} input tokens")
        lines.append(f"{'sum':<15}{usd_exact(total)} USD, rounded up to {usd(nanos(total))} USD")
        return lines


class PriceBook:
    """All versions. Immutable but for a bounded memory of what was asked for."""

    def __init__(self, versions: Iterable[PriceVersion]) -> None:
        self.versions = tuple(sorted(versions, key=lambda version: version.effective_from))
        self._tables: list[dict[PriceKey, Price]] = []
        for version in self.versions:
            self._tables.append({**(self._tables[-1] if self._tables else {}), **version.prices})
        self._guardrails: list[Mapping[str, int]] = []
        for version in self.versions:
            self._guardrails.append(
                {**(self._guardrails[-1] if self._guardrails else {}), **version.guardrails}
            )
        self._priced: dict[tuple[str, str, str | None, str, Rates | None], Priced] = {}

    def _find(self, table: int, model: str, prefix: str | None, region: str) -> Price | None:
        prices = self._tables[table]
        for endpoint in ("runtime", "mantle"):
            for place in (region, "*"):
                if (price := prices.get(PriceKey(model, prefix, place, "standard", endpoint))) is not None:
                    return price
        return None

    def _find_optimized(self, table: int, model: str, prefix: str | None, region: str) -> Price | None:
        """Latency-optimized prices are listed where the service offers it; elsewhere the dearest of the
        model's holds, because Bedrock, not we, decides whether it serves it there.
        """
        prices = self._tables[table]
        for place in (region, "*"):
            if (price := prices.get(PriceKey(model, prefix, place, "optimized"))) is not None:
                return price
        others = [p.rates for key, p in prices.items() if key.model == model and key.latency == "optimized"]
        if not others:
            return None
        row = _dearest(_row(rates) for rates in others)
        return Price(rates=Rates(input=row.input, output=row.output))

    def knows(self, model: str, prefix: str | None = None, region: str = "*") -> bool:
        """True when some version has a price for the model there."""
        return any(self._find(i, model, prefix, region) is not None for i in range(len(self.versions)))

    def priced(self, model: Model, target: Target) -> Priced:
        """The prices of a target. Raises `UnknownModel` when the book has none for it."""
        key = (model.id, target.region, target.prefix, target.kind, target.rates)
        found = self._priced.get(key)
        if found is None:
            if len(self._priced) >= _REMEMBERED:
                self._priced.clear()
            found = self._priced[key] = self._price(model, target)
        return found

    def _price(self, model: Model, target: Target) -> Priced:
        name = f"{target.prefix}.{model.id}" if target.prefix else model.id
        where, place = f"{name} in {target.region}", (model.id, target.prefix, target.region)
        plans = []
        for i, version in enumerate(self.versions):
            price = NO_TOKENS if model.id == GUARDRAIL else target.rates and Price(rates=target.rates)
            price = price or self._find(i, *place)
            if price is not None:
                fast = None if target.rates else self._find_optimized(i, *place)
                merged = PriceVersion(
                    id=version.id,
                    effective_from=version.effective_from,
                    prices={},
                    guardrails=self._guardrails[i],
                )
                plans.append((version.effective_from, _Plan(merged, price, fast)))
        if not plans:
            raise UnknownModel(f"{where} has no price in the price book, so its cost cannot be controlled")
        return Priced(where, model, tuple(plans), upstream_free=target.kind in {"provisioned", "imported"})

    def guardrail_cost(self, units: Mapping[str, int], at: float) -> int:
        """Exact nano-dollars of guardrail units by policy (names of `GuardrailUsage` members)."""
        starts = [version.effective_from for version in self.versions[1:]]
        rates = self._guardrails[bisect_right(starts, at)] if self._guardrails else {}
        dearest = max(rates.values(), default=0)
        return nanos(sum(max(count, 0) * rates.get(name, dearest) for name, count in units.items()))
