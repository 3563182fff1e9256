"""The words of the price book: rates, prices, where and from when they apply.

Money is integer nano-dollars (1e-9 USD). A *rate* is integer nano-dollars per **million units**, so a
list price with up to nine decimals per million tokens is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

MILLION = 1_000_000
NANO = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Nano-dollars per million units of each kind. None: this kind has no price of its own."""

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    #: generated images (or images given to an embedding model)
    image: int | None = None
    #: billed guardrail text units, summed over policies, at the dearest policy's rate
    guardrail_unit: int | None = None

    def over(self, base: Rates) -> Rates:
        """These rates where they are given, those of `base` elsewhere."""
        return Rates(
            **{f: mine if (mine := getattr(self, f)) is not None else getattr(base, f) for f in KINDS}
        )


KINDS = tuple(f.name for f in fields(Rates))


@dataclass(frozen=True, slots=True)
class LongContext:
    """Rates of a whole request whose input (cache reads and writes included) is `over` tokens."""

    over: int
    rates: Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Everything that decides the price of a model in one place."""

    rates: Rates
    tiers: Mapping[str, Rates] = field(default_factory=dict)
    long_context: tuple[LongContext, ...] = ()
    #: rates of generated images by variant (size and quality); `rates.image` is their dearest
    images: Mapping[str, int] = field(default_factory=dict)
    #: every unit priced apiece, nano-dollars per million of them, by the price file's names
    units: Mapping[str, int] = field(default_factory=dict)
    #: what is not certain about the listed rates, in words
    doubt: str | None = None
    #: a price whose rates a reservation must use too while the listed ones are in doubt
    reserve: Price | None = None
    #: why this price cannot bound a call, None when it can
    unbounded: str | None = None

    @property
    def bounded(self) -> bool:
        """True when a call at this price can have a ceiling."""
        priced = self.rates.image is not None or (
            self.rates.input is not None and self.rates.output is not None
        )
        return priced and self.unbounded is None


class PriceKey(NamedTuple):
    """Where a price applies. `prefix` is None in-region; `region` may be `*`."""

    model: str
    prefix: str | None = None
    region: str = "*"
    latency: str = "standard"
    endpoint: str = "runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceVersion:
    """Prices from one date on. A later version may name only what changed."""

    id: str
    #: unix seconds
    effective_from: int
    prices: Mapping[PriceKey, Price]
    #: nano-dollars per million units of each guardrail policy, by `GuardrailUsage` member
    guardrails: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPrice:
    """What is paid by the hour or minute, used or not. `rates` are nano-dollars by what is counted."""

    kind: str
    #: model id, or the version of a custom model unit
    subject: str
    terms: tuple[tuple[str, str], ...]
    rates: Mapping[str, int]


class PricedRates(NamedTuple):
    """Rates in force, with the version they come from."""

    version: str
    rates: Rates
    long_context: tuple[LongContext, ...]


def nanos(total: int) -> int:
    """Units x rate summed, to whole nano-dollars, rounded up."""
    return -(-total // MILLION)


def usd(amount: int) -> str:
    """Nano-dollars as an exact decimal string without trailing zeros."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, rest = divmod(amount, NANO)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


def usd_exact(total: int) -> str:
    """Units x rate as exact USD: fifteen decimals at most."""
    whole, rest = divmod(total, MILLION * NANO)
    return f"{whole}.{rest:015d}".rstrip("0").rstrip(".")
