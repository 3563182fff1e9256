"""Families that speak OpenAI's Chat Completions on InvokeModel: gpt-oss, Qwen, Kimi, MiniMax, GLM,
Gemma, Nemotron, Grok, Writer, DeepSeek from V3 on.

Source: user guide, "OpenAI models" (fields and usage); for the other families the words are assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Allowance, Tally, number_of
from proxy.bedrock.dialects.chat import check_tools, count_messages, no_state, text_format
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.bedrock.dialects.edit import Path
from proxy.domain.catalogue import Model
from proxy.domain.usage import Usage
from proxy.errors import Invalid, UnboundedCost

CHAT_FIELDS = frozenset(
    {
        "messages", "model", "max_completion_tokens", "max_tokens", "n", "temperature", "top_p", "stop",
        "stream", "stream_options", "seed", "user", "metadata", "presence_penalty",
        "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools",
        "tool_choice", "parallel_tool_calls", "functions", "function_call", "reasoning_effort",
        "verbosity", "service_tier", "store", "safety_identifier", "prompt_cache_key", "modalities",
        "amazon-bedrock-guardrailConfig",
    }
)  # fmt: skip


class OpenAiChat(NativeDialect):
    """`model` in a native body must be the model of the URL."""

    name = "openai"
    known = CHAT_FIELDS
    prompt_fields = frozenset({"messages", "model", "stream", "stream_options", "store"})
    limits: ClassVar[tuple[Path, ...]] = (("max_completion_tokens",), ("max_tokens",))
    choices = (("n",),)
    null_limit = True
    #: the harmony template writes a system message of its own
    allowance = Allowance(request=512, tools=1024)

    def check(self, body: dict[str, Any], model: Model) -> None:  # noqa: ARG002
        for name, most in (("temperature", 2), ("top_p", 1)):
            if body.get(name) is not None:
                number_of(body[name], name, most)
        no_state(body, "store")
        if body.get("modalities") not in (None, ["text"]):
            raise UnboundedCost("Only text output is served here.")

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:
        self.check_model(body.get("model"), model)
        count_messages(body.get("messages"), tally)
        text_format(body, "response_format", tally)
        for name in ("tools", "functions"):
            if body.get(name):
                self.tools(body[name], tally)

    def check_model(self, named: Any, model: Model) -> None:
        if named is not None and (
            type(named) is not str or named.split(".", 1)[-1] != model.id.split(".", 1)[-1]
        ):
            raise Invalid("The model in the body is not the model of the URL.")

    def tools(self, tools: Any, tally: Tally) -> None:
        tally.tool_list(check_tools(tools))

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return counts.openai_usage(answer.get("usage"))


class OpenAiCompatible(OpenAiChat):
    """Third-party families take the limit as `max_tokens` and some sampling fields more."""

    name = "openai-compatible"
    known = CHAT_FIELDS | {
        "max_gen_len", "top_k", "min_p", "repetition_penalty", "chat_template_kwargs", "thinking",
        "reasoning", "enable_thinking", "include_reasoning", "prompt",
    }  # fmt: skip
    prompt_fields = OpenAiChat.prompt_fields | {"prompt"}
    limits = (("max_tokens",), ("max_completion_tokens",), ("max_gen_len",))
    #: some templates bring a long system prompt of their own
    allowance = Allowance(request=2048, tools=2048)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:
        if "prompt" in body and "messages" not in body:
            self.check_model(body.get("model"), model)
            tally.text(body["prompt"], "prompt")
            return
        super().content(body, model, tally)
        if body.get("prompt") is not None:
            tally.text(body["prompt"], "prompt")


OPENAI = OpenAiChat()
OPENAI_COMPATIBLE = OpenAiCompatible()
