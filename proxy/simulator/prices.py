"""The simulator's own price table and its own arithmetic.

``prices.json`` holds one record a line: USD per million tokens (``in``, ``out``, ``read``, ``write``,
``write_1h``), ``tiers`` and ``long`` with their own rates, ``image``, ``query`` and ``units`` in USD a
piece. They are facts about public list prices, kept apart from the proxy's price book on purpose.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

NANO = 1_000_000_000
_ZERO = Decimal(0)
_NAMES = ("in", "out", "read", "write", "write_1h")
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per million tokens. A cache rate that is not listed is the input rate."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal


@dataclass(slots=True)
class Usage:
    """What one call consumed. ``input`` excludes cached tokens, as Bedrock reports it."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    images: int = 0
    queries: int = 0

    @property
    def prompt(self) -> int:
        return self.input + self.cache_read + self.cache_write + self.cache_write_1h


def _rates(record: Record, base: Record | None = None) -> Rates:
    """What is not listed in the record is as in ``base``; what neither lists follows from what is."""
    given = {
        name: Decimal(listed[name]) for listed in (base or {}, record) for name in _NAMES if name in listed
    }
    tokens_in = given.get("in", _ZERO)
    write = given.get("write", tokens_in)
    return Rates(
        tokens_in, given.get("out", _ZERO), given.get("read", tokens_in), write, given.get("write_1h", write)
    )


class Price:
    """The prices of one model in one Region."""

    def __init__(self, records: list[Record]) -> None:
        self.record: Record = next(
            (record for record in records if record["kind"] == "on_demand"), records[0]
        )
        self.caches = "read" in self.record
        self.standard = _rates(self.record)
        tiers: Mapping[str, Record] = self.record.get("tiers", {})
        self.tiers = {name: _rates(rates, self.record) for name, rates in tiers.items()}
        fast = next((record for record in records if record["kind"] == "latency_optimized"), None)
        self.optimized = _rates(fast, self.record) if fast else None
        long: list[Record] = self.record.get("long", [])
        self.long = sorted(
            ((int(step["over"]), _rates(step, self.record)) for step in long), key=lambda s: -s[0]
        )
        self.images = [record for record in records if "image" in record]
        self.query = Decimal(self.record.get("query", 0))

    def rates(self, usage: Usage, tier: str, latency: str) -> Rates:
        """Rates in force: latency-optimized, else the tier's, else by prompt length for the whole request."""
        if latency == "optimized" and self.optimized is not None:
            return self.optimized
        if tier in self.tiers:
            return self.tiers[tier]
        for over, rates in self.long:
            if usage.prompt > over:
                return rates
        return self.standard

    def image(self, width: int, height: int, quality: str) -> Decimal:
        """USD of one generated image; a record without a variant is the price of all sizes."""
        size = "up to 1024x1024" if width <= 1024 and height <= 1024 else "up to 2048x2048"
        for record in self.images:
            if record.get("variant") == {"size": size, "quality": quality}:
                return Decimal(record["image"])
        plain = [Decimal(record["image"]) for record in self.images if "variant" not in record]
        return plain[0] if plain else max((Decimal(record["image"]) for record in self.images), default=_ZERO)


class Prices:
    """All prices, found by the model name as it was called and the Region it was called in."""

    def __init__(self, records: list[Record]) -> None:
        self._records: dict[str, list[Record]] = {}
        for record in records:
            self._records.setdefault(record["id"], []).append(record)
        guardrail = self._records.pop("guardrail", [{}])[0]
        self.guardrail_units = {name: Decimal(usd) for name, usd in guardrail.get("units", {}).items()}
        self._found: dict[tuple[str, str], Price] = {}

    def __iter__(self) -> Any:
        return iter(self._records)

    def find(self, model: str, region: str) -> Price | None:
        """A record that names the Region beats the one for all Regions. None: no such model here."""
        key = (model, region)
        if key not in self._found:
            here = [record for record in self._records.get(model, ()) if record["region"] == region]
            everywhere = [record for record in self._records.get(model, ()) if record["region"] == "*"]
            kinds = {record["kind"] for record in here}
            records = here + [record for record in everywhere if record["kind"] not in kinds]
            if not any(record["kind"] in {"on_demand", "on_demand_image"} for record in records):
                return None
            self._found[key] = Price(records)
        return self._found[key]


def load(path: Path) -> Prices:
    records: list[Record] = json.loads(path.read_text())
    return Prices(records)


def cost_nanos(usage: Usage, rates: Rates | None, extra_usd: Decimal = _ZERO) -> int:
    """Integer nano-dollars: the exact sum, rounded up once. ``rates`` None: tokens cost nothing."""
    total = extra_usd * NANO
    if rates is not None:
        per_million = (
            usage.input * rates.input
            + usage.output * rates.output
            + usage.cache_read * rates.cache_read
            + usage.cache_write * rates.cache_write
            + usage.cache_write_1h * rates.cache_write_1h
        )
        total += per_million * 1000
    return int(total.to_integral_value(ROUND_CEILING))


def usd(nanos: int) -> str:
    """A decimal string with nine decimals."""
    return f"{nanos // NANO}.{nanos % NANO:09d}"
