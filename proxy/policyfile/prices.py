"""`prices/<date>.yaml`: one effective-dated version of the price book per file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from proxy.domain.catalogue import Model
from proxy.domain.rates import MILLION, CapacityPrice, LongContext, Price, PriceKey, PriceVersion, Rates
from proxy.policyfile.schema import Reader
from proxy.policyfile.strict import Node, Scalar, Table

#: geographies of cross-region profiles (AWS, "Supported Regions and models for inference profiles")
PREFIXES = ("us", "eu", "apac", "global", "us-gov", "au", "jp", "in", "ca")
TOKENS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_TIERS = ("batch", "flex", "priority", "ultrafast")
_WHERE = ("profile", "regions", "endpoint", "latency", "variant")
_REMARKS = ("reserve_as", "unbounded", "doubt", "source")
_UNITS = (
    *(
        "output_image",
        "input_image",
        "input_video_second",
        "input_audio_second",
        "output_video_second",
        "query",
    ),
    *(
        "input_audio_token",
        "output_audio_token",
        "input_image_token",
        "speech_input_million",
        "speech_output_million",
    ),
)
_CAPACITY = {
    "provisioned": ("model", ("region", "commitment"), ("model_unit_hour",)),
    "reserved": ("model", ("routing", "commitment"), ("input_1k_tpm_hour", "output_1k_tpm_hour")),
    "custom_model_units": ("version", ("window_minutes",), ("minute", "storage_month")),
}


def read_prices(
    node: Node, reader: Reader, version: str, models: Mapping[str, Model]
) -> tuple[PriceVersion, tuple[CapacityPrice, ...]] | None:
    """The version in a file named `<version>.yaml`, with its capacity prices."""
    known = ("effective_from", "note", "sources", "guardrails", "prices", "capacity")
    items = reader.table(node, known, ("effective_from", "prices")).items
    start = _instant(items.get("effective_from"), reader)
    for _, about in reader.entries(items.get("sources")):
        reader.text(about)
    reader.text(items.get("note"), 4000)
    sources = items.get("sources")
    book = _Prices(reader, models, sources.items if isinstance(sources, Table) else ())
    for key, value in reader.entries(items.get("prices")):
        book.model(key, value)
    guardrails = {
        key.value: rate
        for key, value in reader.entries(items.get("guardrails"))
        if (rate := reader.rate(value, MILLION)) is not None
    }
    capacity = _capacity(items.get("capacity"), reader)
    prices = book.finished()
    if start is None:
        return None
    return PriceVersion(id=version, effective_from=start, prices=prices, guardrails=guardrails), capacity


def _instant(node: Node | None, reader: Reader) -> int | None:
    word = reader.text(node, 40)
    if word is None or node is None:
        return None
    try:
        at = datetime.fromisoformat(word)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        reader.fail(node, f'{word!r} is no time with a zone, such as "2026-11-23T00:00:00Z"')
        return None
    return int(at.astimezone(UTC).timestamp())


class _Prices:
    """Collects the prices of one file; entries of one place that differ in variant become one price."""

    def __init__(self, reader: Reader, models: Mapping[str, Model], sources: Iterable[str]) -> None:
        self._reader = reader
        self._models = models
        self._sources = tuple(sources)
        self._prices: dict[PriceKey, Price] = {}
        self._reserve: dict[PriceKey, tuple[str, Node]] = {}
        self._seen: dict[tuple[PriceKey, str], int] = {}

    def model(self, key: Scalar, node: Node) -> None:
        if key.value not in self._models:
            hint = self._reader.hint(key.value, self._models)
            self._reader.fail(key, f"the model {key.value[:100]} is in no file of models/{hint}")
            return
        rows = self._reader.rows(node)
        if not rows:
            self._reader.fail(key, f"no price is given for {key.value}")
        for row in rows:
            self._entry(key.value, row)

    def _entry(self, model: str, node: Node) -> None:
        reader = self._reader
        before = reader.failures
        items = reader.table(node, (*_WHERE, *TOKENS, "units", "tiers", "long_context", *_REMARKS)).items
        variant = reader.text(items.get("variant"), 60)
        price = self._price(self._models[model], items, variant)
        endpoint = reader.choice(items.get("endpoint"), ("runtime", "mantle")) or "runtime"
        latency = reader.choice(items.get("latency"), ("standard", "optimized")) or "standard"
        prefix = reader.choice(items.get("profile"), PREFIXES)
        regions = reader.many(items.get("regions"), reader.region) or ("*",)
        if reader.failures > before:
            return  # where it applies may be misread, and then all that follows would be noise
        for region in regions:
            key = PriceKey(model, prefix, region, latency, endpoint)
            if (first := self._seen.setdefault((key, variant or ""), node.line)) != node.line:
                reader.fail(node, f"this place has a price already, on line {first}")
            known = self._prices.get(key)
            self._prices[key] = price if known is None else _merged(known, price)
            if (source := items.get("reserve_as")) is not None and reader.choice(source, PREFIXES):
                self._reserve[key] = (str(source.value) if isinstance(source, Scalar) else "", source)

    def _price(self, model: Model, items: Mapping[str, Node], variant: str | None) -> Price:
        reader = self._reader
        units = self._units(items.get("units"))
        image = units.get("output_image")
        if image is None and model.modality == "embedding":
            image = units.get("input_image")
        self._remarks(items)
        tiers = {}
        for key, value in reader.entries(items.get("tiers")):
            if reader.choice(key, _TIERS):
                tiers[key.value] = self._rates(reader.table(value, TOKENS).items)
        steps = []
        for row in reader.rows(items.get("long_context")):
            step = reader.table(row, ("over", *TOKENS), ("over",)).items
            steps.append(LongContext(reader.integer(step.get("over"), 1) or 0, self._rates(step)))
        return Price(
            rates=replace(self._rates(items), image=image),
            tiers=tiers,
            long_context=tuple(sorted(steps, key=lambda step: step.over)),
            images={variant or "": image} if image is not None else {},
            units=units,
            unbounded=reader.text(items.get("unbounded"), 200),
            doubt=reader.text(items.get("doubt"), 200),
        )

    def _remarks(self, items: Mapping[str, Node]) -> None:
        if "source" in items:
            self._reader.choice(items["source"], self._sources)

    def _units(self, node: Node | None) -> dict[str, int]:
        found = {}
        for key, value in self._reader.entries(node):
            if self._reader.choice(key, _UNITS) and (rate := self._reader.rate(value, MILLION)) is not None:
                found[key.value] = rate
        return found

    def _rates(self, items: Mapping[str, Node]) -> Rates:
        return Rates(**{kind: self._reader.rate(items.get(kind)) for kind in TOKENS})

    def finished(self) -> dict[PriceKey, Price]:
        for key, (prefix, node) in self._reserve.items():
            source = self._prices.get(key._replace(prefix=prefix, region="*"))
            if source is None:
                self._reader.fail(node, f"{key.model} has no price for the profile {prefix} to reserve with")
            else:
                self._prices[key] = replace(self._prices[key], reserve=source)
        return self._prices


def _merged(one: Price, other: Price) -> Price:
    """Two variants of one place. The dearest holds when the variant is not known."""
    dearest = max(one.rates.image or 0, other.rates.image or 0)
    rates = replace(one.rates.over(other.rates), image=dearest or None)
    units = {name: max(one.units.get(name, 0), rate) for name, rate in other.units.items()}
    return replace(one, rates=rates, images={**one.images, **other.images}, units={**one.units, **units})


def _capacity(node: Node | None, reader: Reader) -> tuple[CapacityPrice, ...]:
    found = []
    top = Table(1, 1) if node is None else reader.table(node, _CAPACITY)
    for kind, (subject, terms, counted) in _CAPACITY.items():
        for row in reader.rows(top.items.get(kind)):
            items = reader.table(row, (subject, *terms, *counted), (subject, *counted)).items
            rates = {name: rate for name in counted if (rate := reader.rate(items.get(name))) is not None}
            said = tuple((name, reader.text(items[name], 60) or "") for name in terms if name in items)
            named = reader.text(items.get(subject), 200) or ""
            found.append(CapacityPrice(kind=kind, subject=named, terms=said, rates=rates))
    return tuple(found)
