"""What a trace says of a call: names and attributes of its spans, as plain values.

Sendings follow OpenTelemetry's semantic conventions for generative AI and for Amazon Bedrock (repository
open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md and aws-bedrock.md, of which the
status is "development"); what only Tollhouse knows begins with `tollhouse.`. Everything is a name, an id
or a number: nothing that a client or a model wrote, but for the id of a model or guardrail that exists.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from proxy.call import Call, Leg
from proxy.domain.catalogue import Target
from proxy.domain.ledger import Operation, Settlement, State
from proxy.domain.tenant import Caller
from proxy.tracing.sampling import Origin
from proxy.tracing.trail import Sending, Step, Trail

Kind = Literal["server", "client", "internal"]
Attributes = dict[str, str | int | float | bool]

#: `gen_ai.operation.name` by what is called; a native body says it by its dialect
_OPERATIONS = {
    Operation.COUNT_TOKENS: "count_tokens",
    Operation.MESSAGES_COUNT_TOKENS: "count_tokens",
    Operation.APPLY_GUARDRAIL: "apply_guardrail",
}
_DIALECTS = {
    **dict.fromkeys(("cohere-embed", "titan-embed", "nova-embed"), "embeddings"),
    **dict.fromkeys(("nova-canvas", "titan-image", "stability"), "generate_content"),
    **dict.fromkeys(
        ("llama", "deepseek", "titan-text", "mistral-text", "anthropic-text", "cohere-command-text", "ai21-j2"),
        "text_completion",
    ),
}  # fmt: skip
_CACHE = b"x-tollhouse-cache"


@dataclass(slots=True, kw_only=True)
class Span:
    """Times are unix nanoseconds."""

    name: str
    kind: Kind = "internal"
    began: int
    ended: int
    attributes: Attributes
    #: `error.type`, "" for none
    error: str = ""
    #: names and times of what happened meanwhile
    events: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Trace:
    """The spans of one call: `root`, and those that are its children."""

    origin: Origin
    root: Span
    children: list[Span] = field(default_factory=list)


def trace_of(trail: Trail, address: Callable[[str], tuple[str, int]]) -> Trace:
    """`address` is host and port of Bedrock in a region."""
    epoch = time.time_ns() - int(time.monotonic() * 1e9)
    trace = Trace(trail.origin, _root(trail, epoch))
    trace.children += [_step(step, epoch) for step in trail.steps]
    trace.children += [_sending(trail, sending, address, epoch) for sending in trail.sendings]
    trace.children.sort(key=_began)
    return trace


def _began(span: Span) -> int:
    return span.began


def _at(epoch: int, monotonic: float) -> int:
    return epoch + int(monotonic * 1e9)


def _root(trail: Trail, epoch: int) -> Span:
    call, ending = trail.call, trail.ending
    refusal = trail.refusal or (ending.refusal if ending is not None else None)
    outcome, error = "LEFT", trail.failure
    if ending is not None:
        outcome, error = ending.settlement.state.name, error or _cut(ending.settlement)
    elif trail.given:
        outcome = State.HIT.name
    elif refusal is not None:
        outcome = "REFUSED"
    elif error:
        outcome = "FAILED"
    told: Attributes = {
        "tollhouse.call.id": str(trail.call_id),
        "tollhouse.operation": trail.operation.label,
        "tollhouse.outcome": outcome,
        **_who(trail.caller),
        **(_what(call) if call is not None else {}),
        **_money(trail),
    }
    if trail.model is not None:
        told.setdefault("tollhouse.model", trail.model)
    if refusal is not None:
        error = refusal.reason
        told["tollhouse.refusal.reason"] = refusal.reason
    if trail.sink.gone:
        told["tollhouse.client.left"] = True
    began, ended = _at(epoch, trail.began), _at(epoch, trail.ended)
    return Span(
        name=trail.operation.label, kind="server", began=began, ended=ended, attributes=told, error=error
    )


def _who(caller: Caller | None) -> Attributes:
    if caller is None:
        return {}
    told: Attributes = {"tollhouse.tenant": caller.tenant_slug, "tollhouse.key.id": str(caller.key)}
    if caller.project_slug is not None:
        told["tollhouse.project"] = caller.project_slug
    return told


def _what(call: Call) -> Attributes:
    told: Attributes = {"tollhouse.model": call.legs[0].target.model, "tollhouse.stream": call.stream}
    for name, value in call.headers:
        if name == _CACHE:
            told["tollhouse.cache.result"] = value.decode("latin-1")
    return told


def _money(trail: Trail) -> Attributes:
    """What all its sendings cost, and what the last of them could have."""
    if not trail.sendings:
        return {}
    told: Attributes = {"tollhouse.cost.nanodollars": sum(_charged(sending) for sending in trail.sendings)}
    last = trail.sendings[-1].attempt
    if last is not None:
        told["tollhouse.ceiling.nanodollars"] = last.ceiling
    return told


def _charged(sending: Sending) -> int:
    """Nano-dollars. A sending whose end nobody saw stays charged its ceiling until it is resolved."""
    settlement, attempt = sending.settlement, sending.attempt
    if settlement is None or settlement.state is State.CEILING:
        return 0 if attempt is None else attempt.ceiling
    return settlement.cost


def _cut(settlement: Settlement) -> str:
    """Why it is charged its ceiling, "" where it is not."""
    return settlement.why.name.lower() if settlement.state is State.CEILING else ""


def _step(step: Step, epoch: int) -> Span:
    told: Attributes = {}
    if step.result:
        told[f"tollhouse.{step.name}.result"] = step.result
    if step.attempt is not None:
        told["tollhouse.attempt.id"] = str(step.attempt.attempt)
        told["tollhouse.ceiling.nanodollars"] = step.attempt.ceiling
    return Span(name=step.name, began=_at(epoch, step.began), ended=_at(epoch, step.ended), attributes=told)


def _sending(trail: Trail, sending: Sending, address: Callable[[str], tuple[str, int]], epoch: int) -> Span:
    call, target, settlement = trail.call, sending.target, sending.settlement
    leg = next((leg for leg in call.legs if leg.target is target), None) if call is not None else None
    operation = _operation(sending.attempt.operation if sending.attempt else trail.operation, call)
    host, port = address(target.region)
    told: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "aws.bedrock",
        "gen_ai.request.model": target.model_id,
        "server.address": host,
        "server.port": port,
        "cloud.region": target.region,
        **(_asked(call, leg) if call is not None and leg is not None else {}),
    }
    if sending.attempt is not None:
        told["tollhouse.attempt.id"] = str(sending.attempt.attempt)
        told["tollhouse.ceiling.nanodollars"] = sending.attempt.ceiling
    error, events = sending.error or "abandoned", []
    if settlement is not None:
        error = sending.error or _cut(settlement)
        told |= _answered(settlement, target)
    if sending.first_byte:
        events.append(("first_byte", _at(epoch, sending.first_byte)))
        if call is not None and call.stream and leg is not None:
            told["gen_ai.response.time_to_first_chunk"] = sending.first_byte - sending.began
    began, ended = _at(epoch, sending.began), _at(epoch, sending.ended or trail.ended)
    return Span(name=f"{operation} {target.model_id}", kind="client", began=began, ended=ended,
                attributes=told, error=error, events=tuple(events))  # fmt: skip


def _operation(called: Operation, call: Call | None) -> str:
    known = _OPERATIONS.get(called)
    return known or _DIALECTS.get(call.dialect.name if call is not None else "", "chat")


def _asked(call: Call, leg: Leg) -> Attributes:
    told: Attributes = {}
    if leg.limit:
        told["gen_ai.request.max_tokens"] = leg.limit
    if call.stream:
        told["gen_ai.request.stream"] = True
    if leg.guardrail is not None:
        told["aws.bedrock.guardrail.id"] = leg.guardrail
    return told


def _answered(settlement: Settlement, target: Target) -> Attributes:
    told: Attributes = {"tollhouse.outcome": settlement.state.name}
    if settlement.status:
        told["http.response.status_code"] = settlement.status
    if settlement.upstream_request_id:
        told["aws.request_id"] = settlement.upstream_request_id
    if settlement.state is not State.POST:
        return told
    usage = settlement.usage
    whole = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    told["gen_ai.response.model"] = target.model
    told["gen_ai.usage.input_tokens"] = whole  # by the convention, what was cached is in it
    told["gen_ai.usage.output_tokens"] = usage.output_tokens
    if usage.cache_read_tokens:
        told["gen_ai.usage.cache_read.input_tokens"] = usage.cache_read_tokens
    if usage.cache_write_tokens:
        told["gen_ai.usage.cache_creation.input_tokens"] = usage.cache_write_tokens
    told["tollhouse.cost.nanodollars"] = settlement.cost
    return told
