"""Amazon Titan text and embeddings, and Nova's embeddings.

Source: user guide, "Amazon Titan models" and "Batch inference results" (answer shapes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Allowance, Tally, known_only, number_of, object_of
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.domain.catalogue import Model
from proxy.domain.usage import Usage
from proxy.errors import UnboundedCost

_GENERATION = frozenset({"maxTokenCount", "stopSequences", "temperature", "topP"})


class TitanText(NativeDialect):
    name = "titan-text"
    known = frozenset({"inputText", "textGenerationConfig", "amazon-bedrock-guardrailConfig"})
    prompt_fields = frozenset({"inputText"})
    limits = (("textGenerationConfig", "maxTokenCount"),)
    temperature = ("textGenerationConfig", "temperature")
    allowance = Allowance(request=64)

    def check(self, body: dict[str, Any], model: Model) -> None:  # noqa: ARG002
        config = body.get("textGenerationConfig")
        if config is not None:
            known_only(object_of(config, "textGenerationConfig"), _GENERATION, "textGenerationConfig")
            for name in ("temperature", "topP"):
                if config.get(name) is not None:
                    number_of(config[name], name, 1)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        tally.text(body.get("inputText"), "inputText")

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        results = answer.get("results")
        try:
            return Usage(
                input_tokens=counts.count(answer.get("inputTextTokenCount")),
                output_tokens=sum(
                    counts.count(result.get("tokenCount") if type(result) is dict else None)
                    for result in (results if type(results) is list else [None])
                ),
            )
        except counts.NonsenseError:
            return None


class TitanEmbed(NativeDialect):
    """Titan Embeddings v1, v2 and multimodal with text."""

    name = "titan-embed"
    known = frozenset(
        {"inputText", "inputImage", "dimensions", "normalize", "embeddingTypes", "embeddingConfig"}
    )
    generates = False
    allowance = Allowance(request=16)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        if body.get("inputImage") is not None:
            raise UnboundedCost("Image embeddings are not served: their answers do not report the image.")
        tally.text(body.get("inputText"), "inputText")

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        try:
            return Usage(input_tokens=counts.count(answer.get("inputTextTokenCount")))
        except counts.NonsenseError:
            return None


class NovaEmbed(NativeDialect):
    """Nova multimodal embeddings: one text in one call; other media are priced otherwise."""

    name = "nova-embed"
    known = frozenset({"schemaVersion", "taskType", "singleEmbeddingParams"})
    generates = False
    allowance = Allowance(request=16)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        if body.get("taskType") != "SINGLE_EMBEDDING":
            raise UnboundedCost("Only taskType SINGLE_EMBEDDING is served.")
        params = object_of(body.get("singleEmbeddingParams"), "singleEmbeddingParams")
        known = frozenset({"embeddingPurpose", "embeddingDimension", "text"})
        known_only(params, known, "singleEmbeddingParams")
        text = object_of(params.get("text"), "text")
        known_only(text, frozenset({"truncationMode", "value"}), "text")
        tally.text(text.get("value"), "text.value")

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        try:
            return Usage(input_tokens=counts.count(answer.get("inputTextTokenCount")))
        except counts.NonsenseError:
            return None


TITAN_TEXT = TitanText()
TITAN_EMBED = TitanEmbed()
NOVA_EMBED = NovaEmbed()
