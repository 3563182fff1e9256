"""Amazon Nova: Converse's blocks in a native body.

Source: Nova user guide, "Complete request schema". Cache counts are named as in the guide's samples
(unsure); older samples say `max_new_tokens` and `top_p`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.blocks import conversation
from proxy.bedrock.dialects.bounds import Allowance, Tally, known_only, largest, number_of, object_of
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.bedrock.dialects.edit import at
from proxy.domain.catalogue import Model
from proxy.domain.usage import Usage
from proxy.errors import Invalid

_INFERENCE = frozenset(
    {
        "maxTokens", "max_new_tokens", "temperature", "topP", "top_p", "topK", "top_k",
        "stopSequences", "stop_sequences",
    }
)  # fmt: skip
#: with high reasoning effort Nova 2 takes no limit and may write this much (unsure)
_HIGH_EFFORT_TOKENS = 128_000


class Nova(NativeDialect):
    name = "nova"
    known = frozenset(
        {
            "schemaVersion", "system", "messages", "inferenceConfig", "toolConfig", "reasoningConfig",
            "amazon-bedrock-guardrailConfig",
        }
    )  # fmt: skip
    prompt_fields = frozenset({"schemaVersion", "system", "messages", "toolConfig"})
    limits = (("inferenceConfig", "maxTokens"), ("inferenceConfig", "max_new_tokens"))
    temperature = ("inferenceConfig", "temperature")
    allowance = Allowance(request=512, tools=2048)

    def check(self, body: dict[str, Any], model: Model) -> None:  # noqa: ARG002
        config = body.get("inferenceConfig")
        if config is not None:
            known_only(object_of(config, "inferenceConfig"), _INFERENCE, "inferenceConfig")
            for name in ("temperature", "topP", "top_p"):
                if config.get(name) is not None:
                    number_of(config[name], name, 1)
        if body.get("reasoningConfig") is not None:
            object_of(body["reasoningConfig"], "reasoningConfig")

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        if "messages" not in body:
            raise Invalid("messages is missing.")
        conversation(body, tally)

    def limit(self, body: Mapping[str, Any], model: Model) -> int | None:
        named = super().limit(body, model)
        if at(body, ("reasoningConfig", "maxReasoningEffort")) == "high":
            return largest((named, model.max_output_tokens, _HIGH_EFFORT_TOKENS))
        return named

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        report = answer.get("usage")
        if type(report) is not dict:
            return None
        try:
            return Usage(
                input_tokens=counts.count(report.get("inputTokens")),
                output_tokens=counts.count(report.get("outputTokens")),
                cache_read_tokens=counts.optional(report, "cacheReadInputTokenCount"),
                cache_write_5m_tokens=counts.optional(report, "cacheWriteInputTokenCount"),
            )
        except counts.NonsenseError:
            return None


NOVA = Nova()
