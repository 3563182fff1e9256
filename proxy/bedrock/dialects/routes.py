"""Bedrock's own OpenAI and Anthropic HTTP routes: the model stands in the body, streams are SSE.

Source: user guide, "Inference using Chat Completions / Responses / Messages API".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import chat, counts
from proxy.bedrock.dialects.anthropic import FIELDS, Anthropic, beta_header
from proxy.bedrock.dialects.bounds import Allowance, Tally, known_only, list_of, number_of, object_of
from proxy.bedrock.dialects.counts import Served
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.bedrock.dialects.edit import at, rewritten, with_field
from proxy.bedrock.dialects.meters import WireMeter
from proxy.bedrock.dialects.openai import CHAT_FIELDS, OpenAiChat
from proxy.bedrock.dialects.ssemeters import ChatMeter, MessagesMeter, ResponsesMeter
from proxy.domain.catalogue import Model
from proxy.domain.request import Bound
from proxy.domain.usage import Usage
from proxy.errors import Invalid, UnboundedCost


class _Route(NativeDialect):
    """What the three routes share: the model's name and the tier stand in the body."""

    def bound(self, body: dict[str, Any], raw: bytes, model: Model, headers: Mapping[str, str]) -> Bound:
        found = super().bound(body, raw, model, headers)
        tier = chat.tier_of(body.get("service_tier"), found.tier)
        if body.get("stream") not in (None, True, False):
            raise Invalid("stream must be true or false.")
        return dataclasses.replace(found, tier=tier) if tier != found.tier else found

    def with_model(self, body: dict[str, Any], raw: bytes, model_id: str) -> bytes:
        return raw if body.get("model") == model_id else rewritten(raw, ("model",), model_id)

    def served(self, headers: Mapping[str, str], body: bytes) -> Served:
        echoed = counts.served_of(headers)
        answer = counts.answer_of(body) or {}
        return Served(echoed.tier or counts.body_tier(answer), echoed.latency)


class ChatCompletions(_Route, OpenAiChat):
    """A stream is always asked for its usage; the meter hides it from clients that did not ask."""

    name = "chat_completions"
    known = CHAT_FIELDS | {"top_k", "min_p", "repetition_penalty", "reasoning", "chat_template_kwargs"}
    #: any family answers here, so the largest template counts
    allowance = Allowance(request=2048, tools=2048)

    def check_model(self, named: Any, model: Model) -> None:
        """The name is an alias of ours; it was resolved before."""

    def prepared(self, body: dict[str, Any], raw: bytes) -> bytes:
        if body.get("stream") is not True or _wants_usage(body):
            return raw
        return with_field(body, raw, ("stream_options", "include_usage"), value=True)

    def meter(self, body: Mapping[str, Any] | None = None) -> WireMeter:
        return ChatMeter(hide_usage=body is not None and not _wants_usage(body))


def _wants_usage(body: Mapping[str, Any]) -> bool:
    return at(body, ("stream_options", "include_usage")) is True


_RESPONSES_FIELDS = frozenset(
    {
        "model", "input", "instructions", "max_output_tokens", "max_tool_calls", "temperature", "top_p",
        "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning",
        "include", "truncation", "metadata", "user", "safety_identifier", "prompt_cache_key",
        "service_tier", "store", "background", "previous_response_id", "conversation", "prompt",
        "top_logprobs",
    }
)  # fmt: skip


class Responses(_Route):
    """Stateless: `store` is forced to false, and what reaches for stored state is refused."""

    name = "responses"
    known = _RESPONSES_FIELDS
    limits = (("max_output_tokens",),)
    null_limit = True
    allowance = Allowance(request=2048, tools=2048)

    def check(self, body: dict[str, Any], model: Model) -> None:  # noqa: ARG002
        chat.no_state(body, "background", "previous_response_id", "conversation", "prompt")
        for name, most in (("temperature", 2), ("top_p", 1)):
            if body.get(name) is not None:
                number_of(body[name], name, most)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        if body.get("instructions") is not None:
            tally.text(body["instructions"], "instructions")
        given = body.get("input")
        if type(given) is str:
            tally.text(given, "input")
        else:
            for item in list_of(given, "input"):
                _item(object_of(item, "An input item"), tally)
        chat.text_format(body, "text", tally)
        if body.get("tools"):
            self.tools(body["tools"], tally)

    def tools(self, tools: Any, tally: Tally) -> None:
        tally.tool_list(chat.check_tools(tools))

    def prepared(self, body: dict[str, Any], raw: bytes) -> bytes:
        return raw if body.get("store") is False else with_field(body, raw, ("store",), value=False)

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return counts.openai_usage(answer.get("usage"))

    def meter(self, body: Mapping[str, Any] | None = None) -> WireMeter:  # noqa: ARG002
        return ResponsesMeter()


def _item(item: dict[str, Any], tally: Tally) -> None:
    tally.message()
    kind = item.get("type", "message")
    if kind == "message":
        chat.count_content(item.get("content"), tally)
    elif kind in ("function_call", "custom_tool_call", "reasoning"):
        tally.document(item)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        chat.count_content(item.get("output"), tally)
    else:
        raise UnboundedCost(f"Input item {str(kind)[:64]!r} has no known bound.")


class Messages(_Route, Anthropic):
    """Anthropic Messages; betas come in a header here."""

    name = "messages"
    known = FIELDS | {"model", "stream", "service_tier"}
    limits = (("max_tokens",),)

    def bound(self, body: dict[str, Any], raw: bytes, model: Model, headers: Mapping[str, str]) -> Bound:
        beta_header(headers, model)
        if body.get("service_tier") in ("auto", "standard_only"):
            # Anthropic's words for capacity bought from Anthropic, which Bedrock does not have
            body = {name: value for name, value in body.items() if name != "service_tier"}
        known_only(body, self.known, "the Messages body")
        return super().bound(body, raw, model, headers)

    def meter(self, body: Mapping[str, Any] | None = None) -> WireMeter:  # noqa: ARG002
        return MessagesMeter()


CHAT_COMPLETIONS = ChatCompletions()
RESPONSES = Responses()
MESSAGES = Messages()
