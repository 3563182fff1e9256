"""FOCUS, the FinOps Open Cost and Usage Specification, version 1.0: its columns, and a check of them.

`COLUMNS` are the 43 columns of version 1.0 with what the specification demands of their values. A
data set may add columns of its own whose names begin with `x_`. `violations` reads a data set as it is
exchanged, every value a string and an absent one empty.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

VERSION = "1.0"
_CURRENCY = re.compile(r"[A-Z]{3}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(E[+-]?[0-9]+)?")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_COSTS = ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost")
_CATEGORIES = ("Usage", "Purchase", "Tax", "Credit", "Adjustment")
_SERVICES = (
    *("AI and Machine Learning", "Analytics", "Business Applications", "Compute", "Databases"),
    *("Developer Tools", "Multicloud", "Identity", "Integration", "Internet of Things"),
    *("Management and Governance", "Media", "Migration", "Mobile", "Networking", "Security", "Storage"),
    *("Web", "Other"),
)


@dataclass(frozen=True, slots=True)
class Column:
    """`null` says whether a value may be absent; `values` are all that are allowed, () for any."""

    name: str
    kind: str
    null: bool = True
    values: Sequence[str] = ()


def _text(*names: str, null: bool = True) -> tuple[Column, ...]:
    return tuple(Column(name, "string", null) for name in names)


COLUMNS: tuple[Column, ...] = (
    *_text("AvailabilityZone"),
    *(Column(name, "decimal", null=False) for name in _COSTS),
    *_text("BillingAccountId", null=False),
    *_text("BillingAccountName"),
    Column("BillingCurrency", "currency", null=False),
    *(Column(name, "moment", null=False) for name in ("BillingPeriodStart", "BillingPeriodEnd")),
    *(Column(name, "moment", null=False) for name in ("ChargePeriodStart", "ChargePeriodEnd")),
    Column("ChargeCategory", "string", null=False, values=_CATEGORIES),
    Column("ChargeClass", "string", values=("Correction",)),
    *_text("ChargeDescription"),
    Column("ChargeFrequency", "string", null=False, values=("One-Time", "Recurring", "Usage-Based")),
    Column("CommitmentDiscountCategory", "string", values=("Spend", "Usage")),
    *_text("CommitmentDiscountId", "CommitmentDiscountName", "CommitmentDiscountType"),
    Column("CommitmentDiscountStatus", "string", values=("Used", "Unused")),
    *(
        Column(name, "decimal")
        for name in ("ConsumedQuantity", "ContractedUnitPrice", "ListUnitPrice", "PricingQuantity")
    ),
    *_text("ConsumedUnit", "PricingUnit"),
    *_text("InvoiceIssuerName", "ProviderName", "PublisherName", "ServiceName", null=False),
    Column("PricingCategory", "string", values=("Standard", "Dynamic", "Committed", "Other")),
    *_text("RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType", "SkuId", "SkuPriceId"),
    Column("ServiceCategory", "string", null=False, values=_SERVICES),
    *_text("SubAccountId", "SubAccountName"),
    Column("Tags", "map"),
)
#: values that a row of regular usage or a purchase must have
_OF_USAGE = ("PricingQuantity", "PricingUnit", "PricingCategory", "ListUnitPrice", "ContractedUnitPrice")
_OF_USAGE_TOO = ("ConsumedQuantity", "ConsumedUnit", "SkuId", "SkuPriceId")


def violations(header: Sequence[str], rows: Iterable[Mapping[str, str]], most: int = 100) -> list[str]:
    """What is wrong with a data set, at most so many lines; empty when it conforms."""
    found = [f"the column {c.name} is missing" for c in COLUMNS if c.name not in header]
    known = {column.name for column in COLUMNS}
    found += [
        f"{name} is no column of FOCUS {VERSION}; columns of one's own begin with x_"
        for name in header
        if name not in known and not name.startswith("x_")
    ]
    if len(set(header)) != len(header):
        found.append("a column stands twice")
    if found:
        return found[:most]
    for number, row in enumerate(rows, 1):
        found += [f"row {number}: {problem}" for problem in _row(row)]
        if len(found) >= most:
            break
    return found[:most]


def _row(row: Mapping[str, str]) -> Iterable[str]:
    good = True
    for column in COLUMNS:
        problem = _value(column, row[column.name])
        if problem is not None:
            good = False
            yield f"{column.name} {problem}"
    if good:
        yield from _together(row)


def _value(column: Column, value: str) -> str | None:
    if value == "":
        return None if column.null else "must not be null"
    if column.values and value not in column.values:
        return f"{value!r} is none of {', '.join(column.values)}"
    return _KINDS[column.kind](value)


def _decimal(value: str) -> str | None:
    return None if _NUMBER.fullmatch(value) else f"{value!r} is no number in the numeric format"


def _moment(value: str) -> str | None:
    return None if _MOMENT.fullmatch(value) else f"{value!r} is no UTC time such as 2026-11-01T00:00:00Z"


def _map(value: str) -> str | None:
    try:
        made = json.loads(value)
    except ValueError:
        return "is no JSON"
    simple = isinstance(made, dict) and not any(isinstance(item, (dict, list)) for item in made.values())
    return None if simple else "is no JSON object of simple values"


_KINDS: Mapping[str, Callable[[str], str | None]] = {
    "string": lambda value: None if value.strip() == value else "has spaces around it",
    "decimal": _decimal,
    "moment": _moment,
    "currency": lambda value: None if _CURRENCY.fullmatch(value) else f"{value!r} is no ISO 4217 code",
    "map": _map,
}


def _together(row: Mapping[str, str]) -> Iterable[str]:
    """Rules about several columns at once."""
    for name in ("BillingPeriod", "ChargePeriod"):
        if dt.datetime.fromisoformat(row[f"{name}Start"]) >= dt.datetime.fromisoformat(row[f"{name}End"]):
            yield f"{name}Start is not before {name}End"
    if (
        row["BillingPeriodStart"] > row["ChargePeriodStart"]
        or row["ChargePeriodEnd"] > row["BillingPeriodEnd"]
    ):
        yield "the charge period is outside of the billing period"
    for quantity, unit in (("ConsumedQuantity", "ConsumedUnit"), ("PricingQuantity", "PricingUnit")):
        if bool(row[quantity]) != bool(row[unit]):
            yield f"{quantity} and {unit} must be there together"
    if row["CommitmentDiscountId"] == "" and row["CommitmentDiscountStatus"] != "":
        yield "CommitmentDiscountStatus without CommitmentDiscountId"
    if row["ChargeClass"] == "Correction":
        return
    if row["ChargeCategory"] in {"Usage", "Purchase"}:
        wanted = _OF_USAGE + (_OF_USAGE_TOO if row["ChargeCategory"] == "Usage" else ())
        missing = [name for name in wanted if row[name] == ""]
        if missing:
            yield f"a charge of this kind needs {', '.join(missing)}"
            return
        for price, cost in (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost")):
            product = Decimal(row[price]) * Decimal(row["PricingQuantity"])
            if abs(product - Decimal(row[cost])) > Decimal("0.000001"):
                yield f"{price} x PricingQuantity is {product}, but {cost} is {row[cost]}"
    elif row["ChargeCategory"] == "Tax" and row["ListUnitPrice"] != "":
        yield "a tax has no ListUnitPrice"
