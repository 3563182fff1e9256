"""Mistral: chat with OpenAI's words, and the older models' text completion.

Source: user guide, "Mistral AI models". Neither body reports usage; headers and metrics do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Allowance, Tally, number_of
from proxy.bedrock.dialects.chat import check_tools, count_messages, text_format
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.domain.catalogue import Model
from proxy.domain.usage import Usage
from proxy.errors import Invalid


class Mistral(NativeDialect):
    name = "mistral"
    known = frozenset(
        {
            "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "stop", "n", "tools",
            "tool_choice", "parallel_tool_calls", "response_format", "random_seed", "seed",
            "presence_penalty", "frequency_penalty", "safe_prompt", "prompt_mode", "stream",
            "amazon-bedrock-guardrailConfig",
        }
    )  # fmt: skip
    limits = (("max_tokens",),)
    choices = (("n",),)
    #: Magistral and Devstral bring system prompts of over a thousand tokens
    allowance = Allowance(request=2048, tools=1024)

    def check(self, body: dict[str, Any], model: Model) -> None:  # noqa: ARG002
        for name in ("temperature", "top_p"):
            if body.get(name) is not None:
                number_of(body[name], name, 2)
        if "prompt" in body and "messages" in body:
            raise Invalid("A body has either messages or a prompt.")

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        if "prompt" in body:
            tally.text(body["prompt"], "prompt")
            return
        count_messages(body.get("messages"), tally)
        text_format(body, "response_format", tally)
        if body.get("tools"):
            self.tools(body["tools"], tally)

    def tools(self, tools: Any, tally: Tally) -> None:
        tally.tool_list(check_tools(tools))

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return counts.openai_usage(answer.get("usage"))


class MistralText(Mistral):
    """Mistral 7B, Mixtral and the 2402 models; those also take messages."""

    name = "mistral-text"
    allowance = Allowance(request=64, tools=1024)


MISTRAL = Mistral()
MISTRAL_TEXT = MistralText()
