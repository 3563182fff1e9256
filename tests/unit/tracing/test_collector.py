"""The collector as an operator names it; what cannot be is refused, without repeating a secret."""

from __future__ import annotations

import sys

import pytest

from proxy.errors import ConfigurationError
from proxy.server import check
from proxy.settings import Settings, load
from proxy.tracing.collector import check as reachable
from proxy.tracing.collector import collector


def test_no_endpoint_no_collector():
    assert collector("") is None


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://otlp.example.com/otlp", "https://otlp.example.com/otlp/v1/traces"),
        ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_base_address_leads_to_the_traces(endpoint, url):
    named = collector(endpoint)
    assert named is not None and named.url == url


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4318", "grpc://collector:4317", "http://", "http://user:pass@collector:4318", "http://c:0",
        "http://collector:port", "http://collector:99999", "http://c:4318?token=x", "http://c:4318/#x", "http://c\n",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_is_refused(endpoint):
    with pytest.raises(ConfigurationError, match="TOLLHOUSE_OTLP_ENDPOINT must be"):
        collector(endpoint)


def test_headers_are_pairs():
    named = collector("http://c:4318", "Authorization=Bearer%20a%2Cb, x-scope=one,,")
    assert named is not None and named.headers == {"authorization": "Bearer a,b", "x-scope": "one"}
    assert "Bearer" not in repr(named)


@pytest.mark.parametrize(
    "headers",
    ["s3cret", "=s3cret", "a b=s3cret", "x=", "ok=1,x=s3cret%0d%0ahost:y", "x=s3cret%20", "x=%C3%A9"],
)
def test_headers_that_cannot_be_are_refused_without_repeating_them(headers):
    with pytest.raises(ConfigurationError, match=r"pair \d is not") as refused:
        collector("http://c:4318", headers)
    assert "s3cret" not in str(refused.value)


def test_headers_without_a_collector_are_a_mistake():
    with pytest.raises(ConfigurationError, match="without TOLLHOUSE_OTLP_ENDPOINT"):
        collector("", "x=y")


def test_a_collector_needs_the_extra(monkeypatch):
    reachable("http://c:4318", "")
    for missing in ("opentelemetry.exporter.otlp.proto", "opentelemetry.exporter.otlp.proto.http"):
        monkeypatch.setitem(sys.modules, missing, None)
    reachable("", "")
    with pytest.raises(ConfigurationError, match=r"tollhouse\[otel\]"):
        reachable("http://c:4318", "")


def test_serving_checks_it_first():
    settings = Settings(
        database_url="postgresql://x", redis_url="redis://x", master_key="x", otlp_endpoint="ftp://x"
    )
    with pytest.raises(ConfigurationError, match="TOLLHOUSE_OTLP_ENDPOINT"):
        check(settings)


@pytest.mark.parametrize(("text", "share"), [("0", 0.0), ("0.25", 0.25), ("1", 1.0), ("1e-3", 0.001)])
def test_a_share_is_a_number_from_0_to_1(text, share):
    assert load({"TOLLHOUSE_TRACE_SAMPLE": text}).trace_sample == share


@pytest.mark.parametrize("text", ["-0.1", "1.01", "5%", "nan", "inf", "all", ""])
def test_another_share_is_refused_by_name(text):
    with pytest.raises(ConfigurationError, match="TOLLHOUSE_TRACE_SAMPLE"):
        load({"TOLLHOUSE_TRACE_SAMPLE": text})
