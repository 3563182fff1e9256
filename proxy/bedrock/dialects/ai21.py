"""AI21: Jamba with OpenAI's words (answers multiply by `n`), and the retired Jurassic-2.

Source: user guide, "AI21 Labs models"; Jamba's usage by AI21's own documentation (unsure on Bedrock).
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


class Jamba(NativeDialect):
    name = "jamba"
    known = frozenset(
        {
            "messages", "max_tokens", "n", "temperature", "top_p", "stop", "frequency_penalty",
            "presence_penalty", "tools", "documents", "response_format", "stream",
            "amazon-bedrock-guardrailConfig",
        }
    )  # fmt: skip
    limits = (("max_tokens",),)
    choices = (("n",),)

    def check(self, body: dict[str, Any], model: Model) -> None:  # noqa: ARG002
        for name, most in (("temperature", 2), ("top_p", 1)):
            if body.get(name) is not None:
                number_of(body[name], name, most)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        count_messages(body.get("messages"), tally)
        text_format(body, "response_format", tally)
        if body.get("documents"):
            tally.document(body["documents"])
        if body.get("tools"):
            self.tools(body["tools"], tally)

    def tools(self, tools: Any, tally: Tally) -> None:
        tally.tool_list(check_tools(tools))

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return counts.openai_usage(answer.get("usage"))


class Jurassic(NativeDialect):
    name = "ai21-j2"
    known = frozenset(
        {
            "prompt", "maxTokens", "minTokens", "numResults", "temperature", "topP", "topKReturn",
            "stopSequences", "countPenalty", "presencePenalty", "frequencyPenalty",
            "amazon-bedrock-guardrailConfig",
        }
    )  # fmt: skip
    limits = (("maxTokens",), ("minTokens",))
    choices = (("numResults",),)
    allowance = Allowance(request=64)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        tally.text(body.get("prompt"), "prompt")

    def limit(self, body: Mapping[str, Any], model: Model) -> int | None:
        if body.get("minTokens") == 0:
            body = {name: value for name, value in body.items() if name != "minTokens"}
        return super().limit(body, model)


JAMBA = Jamba()
JURASSIC = Jurassic()
