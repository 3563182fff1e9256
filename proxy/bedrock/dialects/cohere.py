"""Cohere: Command R, the older Command, and Embed.

Source: user guide, "Cohere models" (Embed's fields from memory, unsure). Whole answers report no
usage in the body; streams of Command R do, in `meta.billed_units`, besides Bedrock's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Allowance, Tally, list_of, number_of
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.domain.catalogue import Model
from proxy.domain.usage import Usage

_SAMPLING = frozenset(
    {
        "max_tokens", "temperature", "p", "k", "stop_sequences", "seed", "stream",
        "amazon-bedrock-guardrailConfig",
    }
)  # fmt: skip


class Command(NativeDialect):
    """Command R and R+. Each tool result, document and turn is text in a template of the model's."""

    name = "cohere-command"
    known = _SAMPLING | {
        "message", "chat_history", "documents", "preamble", "tools", "tool_results", "prompt_truncation",
        "search_queries_only", "frequency_penalty", "presence_penalty", "return_prompt",
        "raw_prompting", "citation_quality", "force_single_step",
    }  # fmt: skip
    prompt_fields = frozenset({"message", "chat_history", "documents", "preamble", "tools", "tool_results"})
    limits = (("max_tokens",),)
    #: the grounded template's instructions are about 700 tokens
    allowance = Allowance(request=1024, tools=1024)

    def check(self, body: dict[str, Any], model: Model) -> None:  # noqa: ARG002
        if body.get("temperature") is not None:
            number_of(body["temperature"], "temperature", 5)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        tally.text(body.get("message"), "message")
        if body.get("preamble") is not None:
            tally.text(body["preamble"], "preamble")
        for name in ("chat_history", "documents", "tool_results"):
            for entry in list_of(body.get(name) or [], name):
                tally.message()
                tally.document(entry)
        if body.get("tools"):
            self.tools(body["tools"], tally)

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        meta = answer.get("meta")
        units = meta.get("billed_units") if type(meta) is dict else None
        if type(units) is not dict:
            return None
        try:
            return Usage(
                input_tokens=counts.count(units.get("input_tokens")),
                output_tokens=counts.count(units.get("output_tokens")),
            )
        except counts.NonsenseError:
            return None


class CommandText(NativeDialect):
    """Command and Command Light; answers multiply by `num_generations`."""

    name = "cohere-command-text"
    known = _SAMPLING | {"prompt", "num_generations", "return_likelihoods", "logit_bias", "truncate"}
    limits = (("max_tokens",),)
    choices = (("num_generations",),)
    allowance = Allowance(request=64)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        tally.text(body.get("prompt"), "prompt")


class Embed(NativeDialect):
    """Embed v3 and v4, text only: an answer does not say how many image tokens it took."""

    name = "cohere-embed"
    known = frozenset(
        {"texts", "input_type", "truncate", "embedding_types", "max_tokens", "output_dimension"}
    )
    generates = False
    allowance = Allowance(request=16)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        for text in list_of(body.get("texts"), "texts"):
            tally.message()
            tally.text(text, "A text")


COMMAND = Command()
COMMAND_TEXT = CommandText()
EMBED = Embed()
