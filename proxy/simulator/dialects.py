"""The wire dialects: what a request asks and how an answer is framed on each kind of route."""
# ruff: noqa: ARG002 - one signature for every dialect

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from proxy.simulator import errors, eventstream
from proxy.simulator.catalog import Model
from proxy.simulator.errors import Refusal, invalid
from proxy.simulator.families import FAMILIES
from proxy.simulator.families.base import Ask, Family, Json, Reply
from proxy.simulator.families.openai import OpenAIChat
from proxy.simulator.prices import Usage

EVENT_STREAM = "application/vnd.amazon.eventstream"
TIERS = {"default", "priority", "flex", "reserved"}
LATENCIES = {"standard", "optimized"}


@dataclass(slots=True)
class Wishes:
    """Settings of a call that travel in headers on some routes and in the body on others."""

    tier: str | None = None
    latency: str | None = None
    guardrail: str | None = None
    guardrail_trace: bool = False
    metadata: Any = None


@dataclass(slots=True)
class Outcome:
    """What an answer reports besides its text. ``usage`` None: the report is left out."""

    usage: Usage | None
    tier: str | None
    latency: str | None
    latency_ms: int
    first_byte_ms: int
    guardrail: Json | None = None
    guardrail_trace: bool = False
    #: True when the request had cache checkpoints, so cache counts are reported even if zero.
    cached: bool = False


def _choice(value: Any, allowed: set[str], where: str) -> str | None:
    if value is None:
        return None
    if value not in allowed:
        raise invalid(f"Value {value!r} at {where} failed to satisfy constraint: one of {sorted(allowed)}")
    return str(value)


class Dialect:
    """One route's language."""

    stream_type: ClassVar[str] = EVENT_STREAM
    #: Place of the frame that carries the usage, from the end of a stream.
    usage_at: ClassVar[int] = -1
    #: False on routes whose errors have no ``x-amzn-ErrorType`` of the modelled exceptions' form.
    bedrock_errors: ClassVar[bool] = True
    #: True where token counts travel in headers.
    count_headers: str = "none"

    def read(self, body: Json, model: Model) -> Ask:
        raise NotImplementedError

    def wishes(self, headers: Mapping[str, str], body: Json) -> Wishes:
        """Settings from ``X-Amzn-Bedrock-*`` headers."""
        return Wishes(
            tier=_choice(headers.get("x-amzn-bedrock-service-tier"), TIERS, "serviceTier"),
            latency=_choice(headers.get("x-amzn-bedrock-performanceconfig-latency"), LATENCIES, "latency"),
            guardrail=headers.get("x-amzn-bedrock-guardrailidentifier"),
            guardrail_trace=headers.get("x-amzn-bedrock-trace", "").startswith("ENABLED"),
            metadata=headers.get("x-amzn-bedrock-request-metadata"),
        )

    def whole(self, ask: Ask, reply: Reply, outcome: Outcome) -> Json:
        raise NotImplementedError

    def frames(self, ask: Ask, reply: Reply, outcome: Outcome) -> list[bytes]:
        raise NotImplementedError

    def exception_frame(self, member: str, message: str) -> bytes:
        """How an error looks once a stream has begun."""
        members: Json = {"message": message}
        if member == "modelStreamErrorException":
            members |= {"originalStatusCode": 500, "originalMessage": message}
        return eventstream.exception(member, orjson.dumps(members))

    def error(self, refusal: Refusal, request_id: str) -> Json:
        return errors.bedrock_body(refusal)


class Native(Dialect):
    """InvokeModel and InvokeModelWithResponseStream in one family's native bodies."""

    def __init__(self, family: Family, *, stream: bool) -> None:
        self._family = family
        self._stream = stream
        self.count_headers = family.count_headers

    def read(self, body: Json, model: Model) -> Ask:
        if self._stream and not self._family.chats:
            raise invalid("The model is unsupported for streaming.")
        if isinstance(self._family, OpenAIChat):
            if body.get("stream") not in {None, self._stream}:
                raise invalid("The stream field must match the operation.")
            ask = self._family.read(body, model)
            ask.extra["include_usage"] = True
            return ask
        return self._family.read(body, model)

    def whole(self, ask: Ask, reply: Reply, outcome: Outcome) -> Json:
        answer = self._family.whole(ask, reply, outcome.usage)
        answer.update(self._guardrail(outcome))
        return answer

    def _guardrail(self, outcome: Outcome) -> Json:
        if outcome.guardrail is None:
            return {}
        added: Json = {"amazon-bedrock-guardrailAction": outcome.guardrail["action"]}
        if outcome.guardrail_trace:
            added["amazon-bedrock-trace"] = {"guardrail": outcome.guardrail["trace"]}
        return added

    def frames(self, ask: Ask, reply: Reply, outcome: Outcome) -> list[bytes]:
        events = self._family.events(ask, reply, outcome.usage)
        if outcome.usage is not None:
            events[-1]["amazon-bedrock-invocationMetrics"] = invocation_metrics(outcome, outcome.usage)
        events[-1].update(self._guardrail(outcome))
        padding = reply.seed
        return [
            eventstream.chunk(orjson.dumps(event), (padding >> (place % 48)) % 62)
            for place, event in enumerate(events)
        ]


def invocation_metrics(outcome: Outcome, usage: Usage) -> Json:
    metrics = {
        "inputTokenCount": usage.input,
        "outputTokenCount": usage.output,
        "invocationLatency": outcome.latency_ms,
        "firstByteLatency": outcome.first_byte_ms,
    }
    written = usage.cache_write + usage.cache_write_1h
    if outcome.cached or usage.cache_read or written:
        metrics["cacheReadInputTokenCount"] = usage.cache_read
        metrics["cacheWriteInputTokenCount"] = written
    return metrics


class Messages(Dialect):
    """``/anthropic/v1/messages``: Claude's native body with the model inside, SSE streams."""

    stream_type = "text/event-stream; charset=utf-8"
    usage_at = -2
    bedrock_errors = False

    def read(self, body: Json, model: Model) -> Ask:
        if model.family != "claude":
            raise invalid("This API does not support the model that you provided.")
        return FAMILIES["claude"].read(body, model)

    def whole(self, ask: Ask, reply: Reply, outcome: Outcome) -> Json:
        return FAMILIES["claude"].whole(ask, reply, outcome.usage)

    def frames(self, ask: Ask, reply: Reply, outcome: Outcome) -> list[bytes]:
        return [
            b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
            for event in FAMILIES["claude"].events(ask, reply, outcome.usage)
        ]

    def exception_frame(self, member: str, message: str) -> bytes:
        kind = "overloaded_error" if member.startswith("throttling") else "api_error"
        body = orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
        return b"event: error\ndata: %b\n\n" % body

    def error(self, refusal: Refusal, request_id: str) -> Json:
        return errors.anthropic_body(refusal, request_id)


class Chat(Dialect):
    """``/openai/v1/chat/completions`` with SSE streams."""

    stream_type = "text/event-stream; charset=utf-8"
    usage_at = -2
    bedrock_errors = False

    def read(self, body: Json, model: Model) -> Ask:
        if not FAMILIES[model.family].chats:
            raise invalid("This API does not support the model that you provided.")
        return FAMILIES["openai"].read(body, model)

    def wishes(self, headers: Mapping[str, str], body: Json) -> Wishes:
        wishes = super().wishes(headers, body)
        if body.get("service_tier") not in {None, "auto"}:
            wishes.tier = _choice(body["service_tier"], TIERS, "service_tier")
        return wishes

    def _tiered(self, answer: Json, outcome: Outcome) -> Json:
        if outcome.tier is not None:
            answer["service_tier"] = outcome.tier
        return answer

    def whole(self, ask: Ask, reply: Reply, outcome: Outcome) -> Json:
        return self._tiered(FAMILIES["openai"].whole(ask, reply, outcome.usage), outcome)

    def frames(self, ask: Ask, reply: Reply, outcome: Outcome) -> list[bytes]:
        events = FAMILIES["openai"].events(ask, reply, outcome.usage)
        frames = [b"data: %b\n\n" % orjson.dumps(self._tiered(event, outcome)) for event in events]
        return [*frames, b"data: [DONE]\n\n"]

    def exception_frame(self, member: str, message: str) -> bytes:
        return b"data: %b\n\n" % orjson.dumps(
            {"error": {"message": message, "type": "server_error", "code": member}}
        )

    def error(self, refusal: Refusal, request_id: str) -> Json:
        return errors.openai_body(refusal)
