"""Reading what an answer says it used, without believing more than it says.

A figure that is not a whole number from 0 to `COUNT_MAX` makes the whole report void: the caller
then knows nothing and charges the ceiling. Sources: Bedrock's user guide on prompt caching (the
input count excludes what the cache read and wrote) and the response headers of InvokeModel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from proxy.domain.usage import Usage

#: no call has as many tokens; larger figures are nonsense
COUNT_MAX = 10**9
TRACE = b'"amazon-bedrock-trace"'

_HEADER = "x-amzn-bedrock-{}-token-count"
INPUT, OUTPUT = _HEADER.format("input"), _HEADER.format("output")
CACHE_READ, CACHE_WRITE = _HEADER.format("cache-read-input"), _HEADER.format("cache-write-input")


class Served(NamedTuple):
    """Tier and latency that an answer says it was served with, None where it says nothing."""

    tier: str | None = None
    latency: str | None = None


UNSAID = Served()


class NonsenseError(ValueError):
    """A reported figure cannot be a count."""


def count(value: Any) -> int:
    """A count as reported in JSON. Raises `NonsenseError`."""
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise NonsenseError
    return value


def optional(report: Mapping[str, Any], name: str) -> int:
    """A count that may be missing or null, which is 0. Raises `NonsenseError`."""
    value = report.get(name)
    return 0 if value is None else count(value)


def from_headers(headers: Mapping[str, str], *, output: bool) -> Usage | None:
    """The token-count headers, None when they are missing or no counts. `output`: must be told."""
    get = headers.get
    read, written = get(INPUT), get(OUTPUT)
    if read is None or (output and written is None):
        return None
    try:
        return Usage(
            input_tokens=_digits(read),
            output_tokens=_digits(written),
            cache_read_tokens=_digits(get(CACHE_READ)),
            cache_write_5m_tokens=_digits(get(CACHE_WRITE)),
        )
    except NonsenseError:
        return None


def _digits(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise NonsenseError
    return count(int(text))


def answer_of(body: bytes) -> dict[str, Any] | None:
    """A whole answer as an object, None when it is none."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return answer if type(answer) is dict else None


def combined(reported: Usage | None, written: Usage | None) -> Usage | None:
    """Headers decide the counts; the body splits cache writes by lifetime and counts images."""
    if reported is None or written is None:
        return reported or written
    writes = reported.cache_write_tokens
    hour = min(written.cache_write_1h_tokens, writes)
    return dataclasses.replace(
        reported,
        images=written.images,
        cache_write_1h_tokens=hour,
        cache_write_5m_tokens=writes - hour,
    )


def served_of(headers: Mapping[str, str]) -> Served:
    return Served(
        headers.get("x-amzn-bedrock-service-tier"), headers.get("x-amzn-bedrock-performanceconfig-latency")
    )


def converse_served(answer: Mapping[str, Any]) -> Served:
    """`serviceTier.type` and `performanceConfig.latency` of a Converse answer or metadata event."""
    return Served(_text(answer.get("serviceTier"), "type"), _text(answer.get("performanceConfig"), "latency"))


def _text(value: Any, name: str) -> str | None:
    text = value.get(name) if type(value) is dict else None
    return text if type(text) is str else None


def body_tier(answer: Mapping[str, Any]) -> str | None:
    """`service_tier` of an OpenAI answer, None where it is missing or only repeats `auto`."""
    tier = answer.get("service_tier")
    return tier if type(tier) is str and tier != "auto" else None


def converse_usage(answer: Mapping[str, Any]) -> Usage | None:
    """`usage` of a Converse answer or metadata event; `totalTokens` is never used."""
    report = answer.get("usage")
    if type(report) is not dict:
        return None
    try:
        writes = optional(report, "cacheWriteInputTokens")
        hour = _hour_writes(report.get("cacheDetails"), writes)
        usage = Usage(
            input_tokens=count(report.get("inputTokens")),
            output_tokens=count(report.get("outputTokens")),
            cache_read_tokens=optional(report, "cacheReadInputTokens"),
            cache_write_5m_tokens=writes - hour,
            cache_write_1h_tokens=hour,
        )
    except NonsenseError:
        return None
    return with_guardrail(usage, answer)


def _hour_writes(details: Any, writes: int) -> int:
    """Tokens of `writes` that were written to live for an hour."""
    if type(details) is not list:
        return 0
    hour = sum(
        optional(detail, "inputTokens")
        for detail in details
        if type(detail) is dict and detail.get("ttl") == "1h"
    )
    if hour > writes:
        raise NonsenseError
    return hour


def metrics_usage(metrics: Any) -> Usage | None:
    """`amazon-bedrock-invocationMetrics` of a stream's last chunk."""
    if type(metrics) is not dict:
        return None
    try:
        return Usage(
            input_tokens=count(metrics.get("inputTokenCount")),
            output_tokens=count(metrics.get("outputTokenCount")),
            cache_read_tokens=optional(metrics, "cacheReadInputTokenCount"),
            cache_write_5m_tokens=optional(metrics, "cacheWriteInputTokenCount"),
        )
    except NonsenseError:
        return None


def openai_usage(report: Any) -> Usage | None:
    """Usage in OpenAI's words, of Chat Completions and of Responses.

    There the input count includes what the cache read and wrote.
    """
    if type(report) is not dict:
        return None
    chat = "prompt_tokens" in report
    details = report.get("prompt_tokens_details" if chat else "input_tokens_details")
    details = details if type(details) is dict else {}
    try:
        total = count(report.get("prompt_tokens" if chat else "input_tokens"))
        read, write = optional(details, "cached_tokens"), optional(details, "cache_write_tokens")
        return Usage(
            input_tokens=count(total - read - write),
            output_tokens=count(report.get("completion_tokens" if chat else "output_tokens")),
            cache_read_tokens=read,
            cache_write_5m_tokens=write,
        )
    except NonsenseError:
        return None


def with_guardrail(usage: Usage | None, answer: Mapping[str, Any]) -> Usage | None:
    """Adds the text units that guardrail traces report, by policy."""
    if usage is None:
        return None
    trace = answer.get("trace") or answer.get("amazon-bedrock-trace")
    units = _traced(trace.get("guardrail")) if type(trace) is dict else {}
    return guarded(usage, units) if units else usage


def guarded(usage: Usage, units: Mapping[str, int]) -> Usage:
    return dataclasses.replace(usage, guardrail=tuple(units.items()), guardrail_units=sum(units.values()))


def _traced(guardrail: Any) -> dict[str, int]:
    """Sum of the billed units of all assessments in a guardrail trace."""
    if type(guardrail) is not dict:
        return {}
    assessments: list[Any] = []
    for key in ("inputAssessment", "outputAssessments"):
        by_guardrail = guardrail.get(key)
        for value in by_guardrail.values() if type(by_guardrail) is dict else ():
            assessments += value if type(value) is list else [value]
    total: dict[str, int] = {}
    for assessment in assessments:
        metrics = assessment.get("invocationMetrics") if type(assessment) is dict else None
        for name, value in policy_units(metrics.get("usage") if type(metrics) is dict else None).items():
            total[name] = total.get(name, 0) + value
    return total


def policy_units(usage: Any) -> dict[str, int]:
    """The billed units of a `GuardrailUsage`; what is no count is left out."""
    return {
        name: value
        for name, value in (usage.items() if type(usage) is dict else ())
        if name.endswith("Units") and "Free" not in name and type(value) is int and 0 <= value <= COUNT_MAX
    }
