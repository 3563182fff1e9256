"""Reports as files: CSV that no spreadsheet runs, and FOCUS 1.0."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from proxy.domain import focus
from proxy.domain.catalogue import Model
from proxy.web.schemas import usd

#: a spreadsheet takes a cell that begins so for a formula
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
#: what a FOCUS export is grouped by: one row per charge
FOCUS_GROUPS = ("tenant", "project", "key", "model", "target", "tags", "day")
_OWN = (
    *("x_KeyId", "x_Requests", "x_InputTokens", "x_OutputTokens", "x_CacheReadTokens"),
    *("x_CacheWriteTokens", "x_UpstreamCost"),
)
FOCUS_COLUMNS = (*(column.name for column in focus.COLUMNS), *_OWN)
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """RFC 4180. Text that a spreadsheet would run is quoted by an apostrophe."""
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in columns])
    return sheet.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA) and not _number(value):
        return f"'{value}"
    return "" if value is None else value


def _number(text: str) -> bool:
    whole, _, part = text.removeprefix("-").partition(".")
    return whole.isascii() and whole.isdigit() and (part == "" or (part.isascii() and part.isdigit()))


def focus_rows(
    usage: Iterable[Mapping[str, Any]],
    zones: Mapping[str, str],
    models: Mapping[str, Model],
) -> Iterable[dict[str, str]]:
    """Usage grouped by `FOCUS_GROUPS` as rows of FOCUS. The tenant is the billing account, its project the
    sub account; list, contracted, effective and billed cost are what the tenant is charged.
    """
    for row in usage:
        yield _charge(row, ZoneInfo(zones.get(row["tenant"], "UTC")), models.get(row["model"]))


def _charge(row: Mapping[str, Any], zone: ZoneInfo, model: Model | None) -> dict[str, str]:
    day = dt.date.fromisoformat(row["day"])
    cost = usd(row["cost"])
    tokens = sum(row[name] for name in _TOKENS)
    quantity, unit = (tokens, "Tokens") if tokens else (row["attempts"], "Requests")
    price = _decimal(Decimal(row["cost"]).scaleb(-9) / quantity)
    counted = f"{quantity}.0"
    region, _, place = row["target"].partition("/")
    first = day.replace(day=1)
    return dict.fromkeys(FOCUS_COLUMNS, "") | {
        "BilledCost": cost, "EffectiveCost": cost, "ListCost": cost, "ContractedCost": cost,
        "BillingAccountId": row["tenant"], "BillingAccountName": row["tenant"], "BillingCurrency": "USD",
        "BillingPeriodStart": _moment(first, zone), "BillingPeriodEnd": _moment(_next_month(first), zone),
        "ChargePeriodStart": _moment(day, zone), "ChargePeriodEnd": _moment(day + dt.timedelta(days=1), zone),
        "ChargeCategory": "Usage", "ChargeFrequency": "Usage-Based",
        "ChargeDescription": f"{row['model'] or 'unknown model'} on {row['target'] or 'unknown target'}",
        "ConsumedQuantity": counted, "ConsumedUnit": unit,
        "PricingQuantity": counted, "PricingUnit": unit, "PricingCategory": "Standard",
        "ListUnitPrice": price, "ContractedUnitPrice": price,
        "InvoiceIssuerName": "Tollhouse", "ProviderName": "AWS",
        "PublisherName": model.provider if model else "AWS",
        "RegionId": region, "RegionName": region,
        "ResourceId": place, "ResourceName": model.name if model else row["model"], "ResourceType": "Model",
        "ServiceCategory": "AI and Machine Learning", "ServiceName": "Amazon Bedrock",
        "SkuId": row["model"] or "unknown", "SkuPriceId": row["target"] or "unknown",
        "SubAccountId": row["project"], "SubAccountName": row["project"],
        "Tags": json.dumps(tags_of(row["tags"])) if row["tags"] else "",
        "x_KeyId": row["key"], "x_Requests": str(row["attempts"]), "x_UpstreamCost": usd(row["upstream_cost"]),
        "x_InputTokens": str(row["input_tokens"]), "x_OutputTokens": str(row["output_tokens"]),
        "x_CacheReadTokens": str(row["cache_read_tokens"]),
        "x_CacheWriteTokens": str(row["cache_write_tokens"]),
    }  # fmt: skip


def tags_of(text: str) -> dict[str, str]:
    """`team=search&stage=prod`, as the ledger keeps the request metadata of a call."""
    pairs = (pair.partition("=") for pair in text.split("&") if pair)
    return {name: value for name, _, value in pairs}


def _moment(day: dt.date, zone: ZoneInfo) -> str:
    return f"{dt.datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _next_month(first: dt.date) -> dt.date:
    return (first + dt.timedelta(days=32)).replace(day=1)


def _decimal(value: Decimal) -> str:
    """With a point always: readers take a column of whole numbers for integers, a type FOCUS does not have."""
    whole, _, part = f"{value:.18f}".partition(".")
    return f"{whole}.{part.rstrip('0') or '0'}"
