"""Where traces go, as an operator names it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from proxy.errors import ConfigurationError

#: where OTLP/HTTP takes traces, below the base address (OpenTelemetry protocol exporter specification)
_PATH = "/v1/traces"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class Collector:
    """The full address that traces are posted to, and the headers that they are posted with."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def collector(endpoint: str, headers: str = "") -> Collector | None:
    """`endpoint` is the base address of OTLP/HTTP, such as http://collector:4318; None when it is empty.
    `headers` are `name=value` pairs with commas, values percent-encoded (as OTEL_EXPORTER_OTLP_HEADERS).
    Raises `ConfigurationError`, which does not repeat what is secret.
    """
    if not endpoint:
        if headers:
            raise ConfigurationError("TOLLHOUSE_OTLP_HEADERS means nothing without TOLLHOUSE_OTLP_ENDPOINT")
        return None
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in endpoint or "?" in endpoint or "#" in endpoint or not endpoint.isprintable():
        raise ConfigurationError(
            "TOLLHOUSE_OTLP_ENDPOINT must be an http or https address of OTLP/HTTP without user, query and "
            "fragment, such as http://collector:4318; credentials go into TOLLHOUSE_OTLP_HEADERS"
        )
    base = endpoint.rstrip("/").removesuffix(_PATH)
    return Collector(base + _PATH, _headers(headers))


def check(endpoint: str, headers: str) -> None:
    """What a server makes sure of before it starts. Raises `ConfigurationError`."""
    if collector(endpoint, headers) is not None and not _installed():
        raise ConfigurationError("TOLLHOUSE_OTLP_ENDPOINT needs OpenTelemetry: pip install 'tollhouse[otel]'")


def _installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def _headers(text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for number, pair in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        name, equals, value = pair.partition("=")
        name, value = name.strip(), unquote(value.strip())
        if not equals or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ConfigurationError(
                f"TOLLHOUSE_OTLP_HEADERS: pair {number} is not `name=value` with a percent-encoded value"
            )
        headers[name.lower()] = value
    return headers
