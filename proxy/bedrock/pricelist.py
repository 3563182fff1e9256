"""AWS's Price List API (boto3 `pricing`): Bedrock's products of some Regions, read into `Listed` lines.

Sources: the usage types and units as public parsers measured them (three service codes, two units):

    AmazonBedrock                  per 1K tokens   USE1-Llama3-1-405B-output-tokens-batch
    AmazonBedrockFoundationModels  per 1M tokens   USE1-MP:USE1_CacheWrite1hInputTokenCount_Global-Units
    AmazonBedrockService           per 1K tokens   USE1-Claude4Sonnet-output-tokens-cross-region-global

UNSURE: no AWS page documents the grammar of usage types. A line that is not understood as a whole is
left out and counted, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from proxy.bedrock.credentials import aws_session
from proxy.domain.pricelist import Listed, rate_of
from proxy.errors import ConfigurationError

#: service code to the number of tokens its prices are for
SERVICES = {"AmazonBedrock": "1K", "AmazonBedrockFoundationModels": "1M", "AmazonBedrockService": "1K"}
#: the API itself is in a few Regions only
_REGION = "us-east-1"
_PLAIN = re.compile(
    r"[A-Z]+\d?-(?P<model>.+?)-(?P<mantle>mantle-)?"
    r"(?P<kind>cache-read|cache-write-1h|cache-write|input|output)(?:-input)?-tokens?(?:-count)?(?P<rest>(?:-[a-z0-9]+)*)"
)
_MARKETPLACE = re.compile(r"[A-Z]+\d?-MP:[A-Z]+\d?_(?P<what>\w+)-Units")
_WORD = re.compile(
    r"million|batch|cachewrite1h|cachewrite|cacheread|input|output|tokencount|tokens|global|standard|flex|"
    r"priority|latencyoptimized"
)
_KINDS = {
    "input": "input", "output": "output", "cache-read": "cache_read", "cache-write": "cache_write_5m",
    "cache-write-1h": "cache_write_1h", "cacheread": "cache_read", "cachewrite": "cache_write_5m",
    "cachewrite1h": "cache_write_1h",
}  # fmt: skip
_TIERS = ("batch", "flex", "priority")
_REST = re.compile(r"-(batch|flex|priority|standard|latency-optimized|cross-region-global|global)")


class PriceList:
    """Pages through `get_products`. `endpoint_url` overrides AWS's address."""

    def __init__(self, *, endpoint_url: str | None = None, session: boto3.Session | None = None) -> None:
        self._endpoint_url = endpoint_url
        self._session = session

    def read(self, regions: Iterable[str]) -> tuple[list[Listed], dict[str, str]]:
        """The lines that are understood, and usage type to reason for those that are not. Raises
        `ConfigurationError` when the API does not answer.
        """
        session = self._session or aws_session()
        given: dict[str, str] = {}
        if self._endpoint_url is not None:
            given["endpoint_url"] = self._endpoint_url
            if session.get_credentials() is None:
                given |= {"aws_access_key_id": "AKIDDUMMY", "aws_secret_access_key": "dummy"}
        config = Config(
            connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 4, "mode": "standard"}
        )
        lines: list[Listed] = []
        skipped: dict[str, str] = {}
        try:
            client: Any = session.client("pricing", region_name=_REGION, config=config, **given)  # type: ignore[call-overload]
            for region in regions:
                for service in SERVICES:
                    for product in _products(client, service, region):
                        line = read_product(product, service)
                        if isinstance(line, Listed):
                            lines.append(line)
                        else:
                            skipped[line[0]] = line[1]
        except (BotoCoreError, ClientError) as error:
            raise ConfigurationError(f"AWS's price list cannot be read: {error}") from None
        return lines, skipped


def _products(client: Any, service: str, region: str) -> Iterator[Mapping[str, Any]]:
    pages = client.get_paginator("get_products").paginate(
        ServiceCode=service, FormatVersion="aws_v1",
        Filters=[{"Type": "TERM_MATCH", "Field": "regionCode", "Value": region}],
    )  # fmt: skip
    for page in pages:
        for item in page["PriceList"]:
            yield json.loads(item, parse_float=Decimal)


def read_product(product: Mapping[str, Any], service: str) -> Listed | tuple[str, str]:
    """One product as a line, or its usage type and why it is none."""
    attributes = (product.get("product") or {}).get("attributes") or {}
    usage = str(attributes.get("usagetype", ""))
    place = _place(usage, attributes)
    if isinstance(place, str):
        return usage, place
    dimensions = [
        dimension
        for term in ((product.get("terms") or {}).get("OnDemand") or {}).values()
        for dimension in (term.get("priceDimensions") or {}).values()
    ]
    if len(dimensions) != 1:
        return usage, f"it has {len(dimensions)} prices"
    try:
        amount = Decimal(str(dimensions[0]["pricePerUnit"]["USD"]))
    except (KeyError, InvalidOperation):
        return usage, "it has no price in USD"
    texts = (str(dimensions[0].get("description", "")), usage)
    rate = rate_of(amount, str(dimensions[0].get("unit", "")), *texts, usually=SERVICES[service])
    if isinstance(rate, str):
        return usage, rate
    return Listed(region=str(attributes.get("regionCode", "")), rate=rate, usage=usage, **place)


def _place(usage: str, attributes: Mapping[str, Any]) -> dict[str, Any] | str:
    plain = _PLAIN.fullmatch(usage)
    if plain is not None:
        if plain["mantle"]:
            return "it is the price of another endpoint"
        words = _REST.findall(plain["rest"])
        if _REST.sub("", plain["rest"]):
            return f"{plain['rest']!r} is not understood"
        name = str(attributes.get("model") or attributes.get("titanModel") or plain["model"])
        return {"name": name, "kind": _KINDS[plain["kind"]], **_terms(words)}
    marketplace = _MARKETPLACE.fullmatch(usage)
    if marketplace is None:
        return "it is no price of tokens"
    squeezed = marketplace["what"].replace("_", "").lower()
    words = _WORD.findall(squeezed)
    kinds = [word for word in words if word in _KINDS]
    if _WORD.sub("", squeezed) or not kinds or ("tokens" not in squeezed and "tokencount" not in squeezed):
        return f"{marketplace['what']!r} is not understood"
    return {"name": str(attributes.get("servicename", "")), "kind": _KINDS[kinds[0]], **_terms(words)}


def _terms(words: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        if word in _TIERS:
            found["tier"] = word
        elif "global" in word:
            found["prefix"] = "global"
        elif word.startswith("latency"):
            found["latency"] = "optimized"
    return found
