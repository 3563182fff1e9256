"""The base of the dialects that are a model family's native body (`proxy.ports.Dialect`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import (
    Allowance,
    Tally,
    choices_of,
    known_only,
    largest,
    limit_of,
    object_of,
    terms_of,
)
from proxy.bedrock.dialects.counts import Served
from proxy.bedrock.dialects.edit import Path, at, replaced, with_field
from proxy.bedrock.dialects.meters import ChunkMeter, WireMeter
from proxy.domain.catalogue import Model
from proxy.domain.request import Bound
from proxy.domain.usage import Usage
from proxy.errors import Invalid


class NativeDialect:
    """A family's own body on InvokeModel: known fields, where limits stand, how content counts.

    Subclasses name the fields and implement `content`; everything else follows.
    """

    name: ClassVar[str]
    #: every top-level field that is known not to change how the others bound the cost
    known: ClassVar[frozenset[str]]
    #: fields that carry the prompt; refused where they would come on top of Converse's own
    prompt_fields: ClassVar[frozenset[str]] = frozenset({"prompt", "messages", "system", "images"})
    #: where an output limit may stand; the first is used when one is injected
    limits: ClassVar[tuple[Path, ...]] = ()
    #: limits of a part of the output; they count, but do not stand for the whole limit
    inner_limits: ClassVar[tuple[Path, ...]] = ()
    #: fields that multiply the answers
    choices: ClassVar[tuple[Path, ...]] = ()
    temperature: ClassVar[Path] = ("temperature",)
    allowance: ClassVar[Allowance] = Allowance()
    #: False for embeddings and images, which have no output tokens
    generates: ClassVar[bool] = True
    #: an explicit null limit means none
    null_limit: ClassVar[bool] = False
    #: where the native body echoes nothing, usage is in headers and metrics only
    meter_class: ClassVar[type[ChunkMeter]] = ChunkMeter

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:
        """Adds everything the model will read to the tally."""
        raise NotImplementedError

    def check(self, body: dict[str, Any], model: Model) -> None:
        """Refuses parameters of the wrong type, and those with which the cost has no bound."""

    def bound(
        self,
        body: dict[str, Any],
        raw: bytes,  # noqa: ARG002 - part of the protocol; dialects with opaque content use it
        model: Model,
        headers: Mapping[str, str],
    ) -> Bound:
        known_only(body, self.known, f"the {self.name} body")
        self.check(body, model)
        guard_config(body)
        terms = terms_of(headers)
        tally = Tally(self.allowance)
        self.content(body, model, tally)
        return Bound(
            input_tokens=tally.total(model.context_tokens),
            output_limit=self.limit(body, model) if self.generates else 0,
            choices=self.choice_count(body),
            cache_ttl=tally.cache_ttl,
            images=tally.images,
            guardrail=terms.guardrail_id is not None,
            guardrail_id=terms.guardrail_id,
            tier=terms.tier,
            latency=terms.latency,
            metadata=terms.metadata,
            arns=(*terms.arns, *tally.arns),
            tools=tally.tools,
            deterministic=not self.generates or at(body, self.temperature) == 0,
            stream=body.get("stream") is True,
        )

    def limit(self, body: Mapping[str, Any], model: Model) -> int | None:
        """The larger of the limits the body names for one choice."""
        allowed = model.native_max_output_tokens or 2**31 - 1
        found: list[int | None] = []
        for path in (*self.limits, *self.inner_limits):
            value = at(body, path)
            if value is not None:
                found.append(limit_of(value, ".".join(path), allowed))
            elif not self.null_limit and _is_null(body, path):
                raise Invalid(f"{'.'.join(path)} must be a whole number.")
        return largest(found)

    def choice_count(self, body: Mapping[str, Any]) -> int:
        count = 1
        for path in self.choices:
            value = at(body, path)
            if value is not None:
                count *= choices_of(value, ".".join(path))
        return count

    def extras(self, fields: dict[str, Any], model: Model, tally: Tally) -> tuple[int | None, int]:
        """Limit and choices that Converse's `additionalModelRequestFields` ask for; counts their text.

        Raises `UnboundedCost` for a field that is not one of this family's.
        """
        known_only(fields, self.known - self.prompt_fields, f"additionalModelRequestFields of {self.name}")
        self.check(fields, model)
        guard_config(fields)
        tally.document(fields)
        if fields.get("tools") is not None:
            self.tools(fields["tools"], tally)
        return (self.limit(fields, model) if self.generates else 0), self.choice_count(fields)

    def tools(self, tools: Any, tally: Tally) -> None:
        """Counts a tool list. Raises `UnboundedCost` for tools that run inside the service."""
        if type(tools) is not list:
            raise Invalid("tools must be a list.")
        tally.tool_list(tools)

    def with_output_limit(self, body: dict[str, Any], raw: bytes, limit: int) -> bytes:
        if not self.generates or not self.limits:
            return raw
        missing = all(at(body, path) is None for path in self.limits)
        if missing and not any(at(body, path) is not None for path in self.inner_limits):
            return with_field(body, raw, self.limit_path(body), limit)
        now = orjson.loads(raw)
        changed = lowered(lowered(now, self.limits, limit), self.inner_limits, limit - 1)
        if missing:
            changed = replaced(changed, self.limit_path(body), limit)
        return raw if changed is now else orjson.dumps(changed)

    def limit_path(self, body: Mapping[str, Any]) -> Path:  # noqa: ARG002
        """Where a limit is injected."""
        return self.limits[0]

    def prepared(self, body: dict[str, Any], raw: bytes) -> bytes:  # noqa: ARG002
        return raw

    def with_model(self, body: dict[str, Any], raw: bytes, model_id: str) -> bytes:  # noqa: ARG002
        return raw

    def usage(self, headers: Mapping[str, str], body: bytes) -> Usage | None:
        reported = counts.from_headers(headers, output=self.generates)
        if reported is not None and not reported.cache_write_tokens and counts.TRACE not in body:
            return reported
        answer = counts.answer_of(body)
        if answer is None:
            return reported
        written = self.body_usage(answer)
        combined = counts.combined(reported, written)
        return counts.with_guardrail(combined, answer)

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:  # noqa: ARG002
        """What a whole native answer itself says. Most families say it in headers only."""
        return None

    def served(self, headers: Mapping[str, str], body: bytes) -> Served:  # noqa: ARG002
        return counts.served_of(headers)

    def heads(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        return headers

    def answer(self, body: bytes) -> bytes:
        return body

    def meter(self, body: Mapping[str, Any] | None = None) -> WireMeter:  # noqa: ARG002
        return self.meter_class()


_GUARD_CONFIG = frozenset({"tagSuffix", "streamProcessingMode"})


def guard_config(body: Mapping[str, Any]) -> None:
    """The guardrail itself is named by headers; the body only says how to read its tags."""
    config = body.get("amazon-bedrock-guardrailConfig")
    if config is not None:
        known_only(
            object_of(config, "The guardrail configuration"), _GUARD_CONFIG, "the guardrail configuration"
        )


def lowered(body: dict[str, Any], paths: tuple[Path, ...], limit: int) -> dict[str, Any]:
    """The body itself, or a copy in which no limit at `paths` is above `limit` (at least 1)."""
    for path in paths:
        value = at(body, path)
        if type(value) is int and value > max(limit, 1):
            body = replaced(body, path, max(limit, 1))
    return body


def _is_null(body: Mapping[str, Any], path: Path) -> bool:
    inner = at(body, path[:-1]) if len(path) > 1 else body
    return type(inner) is dict and path[-1] in inner
