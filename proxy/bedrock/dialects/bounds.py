"""Counting what a body may cost at most: text, tools, limits, and what its headers add.

Every tokenizer in use on Bedrock is byte-complete: it never makes more tokens than its input has
UTF-8 bytes, after the Unicode normalisation (at most NFKC) that some apply first. So bytes bound
tokens, whatever the text. What the service adds around the text (chat templates, hidden prompts) is
covered by an `Allowance`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.domain.request import CacheTtl
from proxy.errors import Invalid, UnboundedCost

#: AWS models limits as 32-bit integers
LIMIT_MAX = 2**31 - 1
CHOICES_MAX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Tokens that a family's template may add beyond the text of a request.

    Round figures above the largest published one; where nothing is published the default holds
    (unsure: only Anthropic publishes its tool prompts, up to 804 tokens with computer use on top).
    """

    request: int = 256
    message: int = 16
    tools: int = 1024
    tool: int = 64


def text_bound(text: str) -> int:
    """Tokens that a text can be at most: the larger of its UTF-8 bytes and those of its NFKC form."""
    if text.isascii():
        return len(text)
    plain = len(text.encode())
    if unicodedata.is_normalized("NFKC", text):
        return plain
    return max(plain, len(unicodedata.normalize("NFKC", text).encode()))


def json_bound(value: Any) -> int:
    """Tokens that a JSON value can be at most in a prompt, as ASCII JSON indented by four spaces.

    Templates print tool schemas anywhere between compact and indented; escapes of non-ASCII text
    take up to twelve bytes a character.
    """
    indented = orjson.dumps(value, option=orjson.OPT_INDENT_2)
    if not indented.isascii():
        return max(len(json.dumps(value, indent=4)), text_bound(indented.decode()))
    # indenting by four instead of two at most doubles what indentation added
    return 2 * len(indented) - len(orjson.dumps(value))


class Tally:
    """Running sum of one body. Not shared, not kept."""

    __slots__ = ("allowance", "arns", "cache_ttl", "images", "tokens", "tools", "whole_context")

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self.tokens = allowance.request
        self.whole_context = False
        self.cache_ttl: CacheTtl | None = None
        self.arns: list[str] = []
        self.tools = False
        self.images = 0

    def text(self, value: Any, where: str) -> None:
        if type(value) is not str:
            raise Invalid(f"{where} must be a string.")
        self.tokens += len(value) if value.isascii() else text_bound(value)

    def document(self, value: Any) -> None:
        self.tokens += json_bound(value)

    def message(self) -> None:
        self.tokens += self.allowance.message

    def tool_list(self, tools: list[Any]) -> None:
        self.tools = True
        self.tokens += self.allowance.tools + self.allowance.tool * len(tools) + json_bound(tools)

    def context(self) -> None:
        """Images, documents and the like: they may fill whatever the model can read."""
        self.whole_context = True

    def cache(self, ttl: Any) -> None:
        if ttl is None or ttl == "5m":
            self.cache_ttl = self.cache_ttl or "5m"
        elif ttl == "1h":
            self.cache_ttl = "1h"
        else:
            raise UnboundedCost(f"Prompt-cache lifetime {str(ttl)[:20]!r} has no known price.")

    def total(self, context_tokens: int) -> int:
        return max(self.tokens, context_tokens) if self.whole_context else self.tokens


def known_only(body: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    """Raises `UnboundedCost` for a field that is not on the list: it could multiply the cost."""
    if body.keys() <= known:
        return
    name = min(body.keys() - known)
    raise UnboundedCost(
        f"Field {name[:64]!r} of {what} is not known to this proxy, so the cost cannot be bounded."
    )


def limit_of(value: Any, where: str, largest: int = LIMIT_MAX) -> int:
    """An output limit: a whole number of at least 1. Raises `Invalid`."""
    if type(value) is not int:
        raise Invalid(f"{where} must be a whole number.")
    if not 1 <= value <= largest:
        raise Invalid(f"{where} must be between 1 and {largest}; it is {value}.")
    return value


def choices_of(value: Any, where: str) -> int:
    return limit_of(value, where, CHOICES_MAX)


def number_of(value: Any, where: str, largest: float | None = None) -> float:
    """A sampling parameter: a number from 0. Raises `Invalid`."""
    if type(value) is not float and type(value) is not int:
        raise Invalid(f"{where} must be a number.")
    if value < 0 or (largest is not None and value > largest):
        upper = "" if largest is None else f" and at most {largest:g}"
        raise Invalid(f"{where} must be at least 0{upper}; it is {value}.")
    return value


def object_of(value: Any, where: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise Invalid(f"{where} must be an object.")
    return value


def list_of(value: Any, where: str) -> list[Any]:
    if type(value) is not list:
        raise Invalid(f"{where} must be a list.")
    return value


TIERS = frozenset({"default", "priority", "flex", "reserved"})
LATENCIES = frozenset({"standard", "optimized"})

_PREFIX = "x-amzn-bedrock-"
TIER_HEADER = "x-amzn-bedrock-service-tier"
LATENCY_HEADER = "x-amzn-bedrock-performanceconfig-latency"
GUARDRAIL_HEADER = "x-amzn-bedrock-guardrailidentifier"
METADATA_HEADER = "x-amzn-bedrock-request-metadata"
_HARMLESS_HEADERS = frozenset(
    _PREFIX + name for name in ("accept", "content-type", "trace", "guardrailversion")
)


@dataclass(slots=True, kw_only=True)
class Terms:
    """What surrounds a body and decides its price: from headers, or from Converse's own fields."""

    tier: str = "default"
    latency: str = "standard"
    guardrail_id: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    arns: list[str] = field(default_factory=list)


def terms_of(headers: Mapping[str, str]) -> Terms:
    """The terms that request headers set (names in lower case).

    Raises `Invalid` for values Bedrock does not have and `UnboundedCost` for Bedrock headers that
    are not known here, since they would be forwarded.
    """
    terms = Terms()
    for name, value in headers.items():
        if not name.startswith(_PREFIX) or name in _HARMLESS_HEADERS:
            continue
        if name == TIER_HEADER:
            terms.tier = one_of(value.lower(), TIERS, "The service tier")
        elif name == LATENCY_HEADER:
            terms.latency = one_of(value.lower(), LATENCIES, "The latency")
        elif name == GUARDRAIL_HEADER:
            guard(terms, value)
        elif name == METADATA_HEADER:
            terms.metadata = metadata_of(_metadata_header(value))
        else:
            raise UnboundedCost(f"Header {name[:80]!r} is not known to this proxy.")
    return terms


def one_of(value: Any, allowed: frozenset[str], what: str) -> str:
    if type(value) is not str or value not in allowed:
        raise Invalid(f"{what} must be one of {', '.join(sorted(allowed))}.")
    return value


def guard(terms: Terms, identifier: Any) -> None:
    if type(identifier) is not str or len(identifier) > 2048:
        raise Invalid("The guardrail identifier must be a string of at most 2048 characters.")
    if identifier:
        terms.guardrail_id = identifier
        if identifier.startswith("arn:"):
            terms.arns.append(identifier)


METADATA_PAIRS_MAX = 16
_METADATA_TEXT = re.compile(r"[a-zA-Z0-9 \t\n\r\f\v:_@$#=/+,.-]{1,256}")


def metadata_of(value: Any) -> tuple[tuple[str, str], ...]:
    """Request metadata by Bedrock's rules: at most 16 pairs of strings of at most 256 characters."""
    pairs = tuple(object_of(value, "requestMetadata").items())
    if len(pairs) > METADATA_PAIRS_MAX:
        raise Invalid(f"requestMetadata must have at most {METADATA_PAIRS_MAX} entries.")
    for key, text in pairs:
        if type(text) is not str or not metadata_text(key) or not (text == "" or metadata_text(text)):
            raise Invalid("requestMetadata must hold strings of at most 256 letters, digits and :_@$#=/+,-.")
    return pairs


def metadata_text(text: str) -> bool:
    return _METADATA_TEXT.fullmatch(text) is not None


def _metadata_header(value: str) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise Invalid("The request metadata header must be a JSON object.") from None


def stop_values(values: Any, where: str) -> None:
    """Stop sequences: a list of strings (some families take one string)."""
    for value in values if type(values) is list else (values,):
        if type(value) is not str:
            raise Invalid(f"{where} must be strings.")


def largest(values: Iterable[int | None]) -> int | None:
    """The larger wins where several fields say the same; None when none does."""
    return max((value for value in values if value is not None), default=None)
