"""Converse and ConverseStream: one body for all families.

Source: the `bedrock-runtime` service model of botocore (fields, unions, enums). Without
`inferenceConfig.maxTokens` the service uses the model's maximum, so a limit is always injected.
Fields of the family itself ride in `additionalModelRequestFields` and are held to the family's own
list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.blocks import conversation
from proxy.bedrock.dialects.bounds import (
    LATENCIES,
    TIERS,
    Tally,
    Terms,
    guard,
    known_only,
    largest,
    limit_of,
    metadata_of,
    number_of,
    object_of,
    one_of,
    stop_values,
    terms_of,
)
from proxy.bedrock.dialects.counts import Served
from proxy.bedrock.dialects.dialect import NativeDialect, lowered
from proxy.bedrock.dialects.edit import at, replaced, with_field
from proxy.bedrock.dialects.meters import ConverseMeter, WireMeter
from proxy.domain.catalogue import Model
from proxy.domain.request import Bound
from proxy.domain.usage import Usage
from proxy.errors import Invalid, UnboundedCost

_FIELDS = frozenset(
    {
        "messages", "system", "inferenceConfig", "toolConfig", "guardrailConfig",
        "additionalModelRequestFields", "additionalModelResponseFieldPaths", "requestMetadata",
        "performanceConfig", "serviceTier", "outputConfig",
    }
)  # fmt: skip
_INFERENCE = frozenset({"maxTokens", "temperature", "topP", "stopSequences"})
_LIMIT = ("inferenceConfig", "maxTokens")
_EXTRA = "additionalModelRequestFields"


class Converse:
    """`families` are the native dialects: their allowances and their additional fields count here.

    `native` finds the dialect of a family, or raises.
    """

    name = "converse"

    def __init__(self, native: Callable[[str], NativeDialect], families: Iterable[NativeDialect]) -> None:
        self._native = native
        dialects = tuple(families)
        #: everywhere an output limit may stand, whichever the family
        self._limits = (_LIMIT, *{(_EXTRA, *path) for dialect in dialects for path in dialect.limits})
        self._inner = tuple({(_EXTRA, *path) for dialect in dialects for path in dialect.inner_limits})

    def bound(
        self,
        body: dict[str, Any],
        raw: bytes,  # noqa: ARG002 - part of the protocol
        model: Model,
        headers: Mapping[str, str],
    ) -> Bound:
        _refuse_prompts(body)
        known_only(body, _FIELDS, "the Converse body")
        family = self._native(model.family)
        terms = _terms(body, headers)
        tally = Tally(family.allowance)
        conversation(body, tally)
        inference = _inference(body.get("inferenceConfig"))
        extra_limit, choices = None, 1
        if body.get(_EXTRA) is not None:
            extra_limit, choices = family.extras(object_of(body[_EXTRA], _EXTRA), model, tally)
        return Bound(
            input_tokens=tally.total(model.context_tokens),
            output_limit=largest((inference.get("maxTokens"), extra_limit)),
            choices=choices,
            cache_ttl=tally.cache_ttl,
            guardrail=terms.guardrail_id is not None,
            guardrail_id=terms.guardrail_id,
            tier=terms.tier,
            latency=terms.latency,
            metadata=terms.metadata,
            arns=(*terms.arns, *tally.arns),
            tools=tally.tools,
            deterministic=inference.get("temperature") == 0,
        )

    def with_output_limit(self, body: dict[str, Any], raw: bytes, limit: int) -> bytes:
        missing = at(body, _LIMIT) is None
        fields = body.get(_EXTRA)
        if missing and not fields:
            return with_field(body, raw, _LIMIT, limit)
        now = orjson.loads(raw)
        changed = lowered(lowered(now, self._limits, limit), self._inner, limit - 1)
        if missing:
            changed = replaced(changed, _LIMIT, limit)
        return raw if changed is now else orjson.dumps(changed)

    def prepared(self, body: dict[str, Any], raw: bytes) -> bytes:  # noqa: ARG002
        return raw

    def with_model(self, body: dict[str, Any], raw: bytes, model_id: str) -> bytes:  # noqa: ARG002
        return raw

    def usage(self, headers: Mapping[str, str], body: bytes) -> Usage | None:  # noqa: ARG002
        answer = counts.answer_of(body)
        return None if answer is None else counts.converse_usage(answer)

    def served(self, headers: Mapping[str, str], body: bytes) -> Served:
        answer = counts.answer_of(body)
        said = counts.UNSAID if answer is None else counts.converse_served(answer)
        echoed = counts.served_of(headers)
        return Served(said.tier or echoed.tier, said.latency or echoed.latency)

    def heads(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        return headers

    def answer(self, body: bytes) -> bytes:
        return body

    def meter(self, body: Mapping[str, Any] | None = None) -> WireMeter:  # noqa: ARG002
        return ConverseMeter()


def _refuse_prompts(body: Mapping[str, Any]) -> None:
    if "promptVariables" in body or "messages" not in body:
        raise UnboundedCost(
            "Stored prompts bring their own model and limits; send messages to a model instead."
        )


def _terms(body: Mapping[str, Any], headers: Mapping[str, str]) -> Terms:
    """Converse says its terms in the body; a header that contradicts it is refused."""
    terms = terms_of(headers)
    by_header = (terms.tier, terms.latency, terms.guardrail_id)
    if body.get("serviceTier") is not None:
        tier = object_of(body["serviceTier"], "serviceTier").get("type")
        terms.tier = one_of(tier, TIERS, "serviceTier.type")
    if body.get("performanceConfig") is not None:
        latency = object_of(body["performanceConfig"], "performanceConfig").get("latency", "standard")
        terms.latency = one_of(latency, LATENCIES, "performanceConfig.latency")
    if body.get("guardrailConfig") is not None:
        config = object_of(body["guardrailConfig"], "guardrailConfig")
        guard(terms, config.get("guardrailIdentifier", ""))
    if body.get("requestMetadata") is not None:
        terms.metadata = metadata_of(body["requestMetadata"])
    for header, now, usual in zip(
        by_header, (terms.tier, terms.latency, terms.guardrail_id), ("default", "standard", None), strict=True
    ):
        if header not in {now, usual}:
            raise Invalid("Headers and body of the request contradict each other.")
    return terms


def _inference(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    known_only(object_of(config, "inferenceConfig"), _INFERENCE, "inferenceConfig")
    if "maxTokens" in config:
        limit_of(config["maxTokens"], "inferenceConfig.maxTokens")
    if config.get("temperature") is not None:
        number_of(config["temperature"], "inferenceConfig.temperature", 1)
    if config.get("topP") is not None:
        number_of(config["topP"], "inferenceConfig.topP", 1)
    if config.get("stopSequences"):
        stop_values(config["stopSequences"], "inferenceConfig.stopSequences")
    return config if type(config) is dict else {}
