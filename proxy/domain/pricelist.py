"""AWS's price list against the price book: what changed, and what must not be taken over unnoticed.

The list names units in several places (the unit, the description, the usage type, the service), and a
price per thousand read as one per million is wrong a thousandfold. So all that speak must agree, and a
change of more than `JUMP` either way, or a price that is new, needs an explicit yes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from proxy.domain.rates import NANO, Price, PriceKey, PriceVersion, Rates, usd

#: a factor that no real change of a price reaches, and every wrong unit does
JUMP = 5
_THOUSAND = re.compile(r"\b1k\b|\b1,?000\b|\bthousand\b|\bper k\b", re.IGNORECASE)
_MILLION = re.compile(r"\b1m\b|\b1,?000,?000\b|\bmillion\b|\bmtok\b|million(?=[A-Z_])", re.IGNORECASE)
_WORDS = re.compile(r"[a-z]+|[0-9]+")
_EDITION = re.compile(r"\(.*?\)|\bamazon bedrock edition\b|\bamazon bedrock\b", re.IGNORECASE)
_VERSION = re.compile(r"-v\d+(:\d+)?$|-\d+:\d+$|:\d+$")
_DATE = re.compile(r"-20\d{6}\b")
#: words of ids that names leave out, and the other way round
_SILENT = frozenset({"instruct", "amazon", "meta", "anthropic", "mistral", "ai", "v1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of AWS's list, understood. `rate` is nano-dollars per million tokens."""

    #: AWS's name of the model
    name: str
    region: str
    #: member of `Rates`
    kind: str
    rate: int
    prefix: str | None = None
    tier: str | None = None
    latency: str = "standard"
    #: AWS's usage type
    usage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One rate that AWS lists otherwise than the book. Rates are nano-dollars per million."""

    key: PriceKey
    tier: str | None
    kind: str
    before: int | None
    after: int
    usage: str = ""

    @property
    def doubtful(self) -> str | None:
        """Why it needs an explicit yes, None when it is an ordinary change."""
        if not self.before or not self.after:
            return None if self.before == self.after else "there is nothing to compare it with"
        if self.after > self.before * JUMP or self.before > self.after * JUMP:
            return f"it changes by more than {JUMP} times: a wrong unit?"
        return None

    def __str__(self) -> str:
        name = f"{self.key.prefix}.{self.key.model}" if self.key.prefix else self.key.model
        what = " ".join(w for w in (self.kind, self.tier, self.key.latency) if w and w != "standard")
        before = "none" if self.before is None else usd(self.before)
        return f"{name} {self.key.region} {what}: {before} -> {usd(self.after)} USD per million"


def rate_of(amount: Decimal, unit: str, *told: str, usually: str) -> int | str:
    """Nano-dollars per million tokens, or why the unit is not certain. `told` are the other texts that may
    name it; `usually` is what the service's lists are in (`1K` or `1M`), which holds where none does: a
    jump shows it when that is wrong.
    """
    said = {size for text in (unit, *told) for size in _sizes(text)}
    if said and said != {usually}:
        named = " and ".join(sorted(said))
        return f"the unit is named as {named}, and the service's list is usually per {usually}"
    per_million = amount * (1000 if usually == "1K" else 1) * NANO
    if per_million != per_million.to_integral_value():
        return "the price has more decimals than the book keeps"
    return int(per_million)


def _sizes(text: str) -> set[str]:
    found = set()
    if _MILLION.search(text):
        found.add("1M")
    if _THOUSAND.search(_MILLION.sub(" ", text)):
        found.add("1K")
    return found


class Names:
    """Base models by what AWS's list calls them, which is not their id."""

    def __init__(self, models: Mapping[str, str], given: Mapping[str, str]) -> None:
        """`models`: id to display name. `given`: AWS's name to id, for those that differ by more."""
        self._given = {_key(name): model for name, model in given.items()}
        self._known: dict[str, set[str]] = {}
        for model, name in models.items():
            short = _DATE.sub("", _VERSION.sub("", model.partition(".")[2] or model))
            for word in (model, short, name):
                self._known.setdefault(_key(word), set()).add(model)

    def find(self, name: str) -> str | None:
        """The one model that is meant; None when there is none, or more than one."""
        key = _key(name)
        if key in self._given:
            return self._given[key]
        found = self._known.get(key, set())
        return next(iter(found)) if len(found) == 1 else None


def _key(name: str) -> str:
    """Words in any order, without those that one side leaves out: `Claude4Sonnet` is `Claude Sonnet 4`."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _EDITION.sub(" ", name)).lower()
    words = [word for word in _WORDS.findall(split.replace("v1", " ")) if word not in _SILENT]
    return " ".join(sorted(words))


@dataclass(slots=True)
class Comparison:
    """The list laid beside the book."""

    changes: list[Change] = field(default_factory=list)
    #: AWS's names that no model of ours has
    unknown: set[str] = field(default_factory=set)
    same: int = 0


def compare(listed: Iterable[Listed], versions: Iterable[PriceVersion], names: Names) -> Comparison:
    """What AWS lists otherwise than the newest prices of the book. Two lines of the list for one rate
    that differ are both left out, since neither can be believed.
    """
    book = newest(versions)
    found = Comparison()
    seen: dict[tuple[PriceKey, str | None, str], Listed | None] = {}
    for line in listed:
        model = names.find(line.name)
        if model is None:
            found.unknown.add(line.name)
            continue
        place = (PriceKey(model, line.prefix, line.region, line.latency), line.tier, line.kind)
        known = seen.setdefault(place, line)
        if known is not None and known.rate != line.rate:
            seen[place] = None
    for (key, tier, kind), believed in sorted(seen.items(), key=lambda item: repr(item[0])):
        if believed is None:
            continue
        line = believed
        price = book.get(key) or book.get(key._replace(region="*"))
        rates = price.rates if price is not None and tier is None else None
        rates = price.tiers.get(tier) if price is not None and tier is not None else rates
        before = getattr(rates, kind) if rates is not None else None
        if before == line.rate:
            found.same += 1
        else:
            found.changes.append(
                Change(key=key, tier=tier, kind=kind, before=before, after=line.rate, usage=line.usage)
            )
    return found


def newest(versions: Iterable[PriceVersion]) -> dict[PriceKey, Price]:
    """Every price of the book once all its versions are in force."""
    book: dict[PriceKey, Price] = {}
    for version in sorted(versions, key=lambda version: version.effective_from):
        book.update(version.prices)
    return book


def changed_prices(changes: Iterable[Change], versions: Iterable[PriceVersion]) -> dict[PriceKey, Price]:
    """The whole prices of every place that changes; what AWS lists is no longer in doubt there."""
    book = newest(versions)
    made: dict[PriceKey, Price] = {}
    for change in changes:
        key = change.key
        price = made.get(key) or book.get(key) or book.get(key._replace(region="*")) or Price(rates=Rates())
        if change.tier is None:
            price = replace(
                price, rates=replace(price.rates, **{change.kind: change.after}), reserve=None, doubt=None
            )
        else:
            tier = replace(price.tiers.get(change.tier, Rates()), **{change.kind: change.after})
            price = replace(price, tiers={**price.tiers, change.tier: tier})
        made[key] = price
    return made
