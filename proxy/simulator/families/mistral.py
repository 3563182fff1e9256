"""Mistral (chat and text) and DeepSeek R1: no usage in the body, so headers and metrics alone tell it."""
# ruff: noqa: ARG002 - one signature for every dialect

from proxy.simulator import tokens
from proxy.simulator.catalog import Model
from proxy.simulator.families.base import Ask, Family, Json, Prompt, Reply, array, integer, number, string
from proxy.simulator.families.openai import OpenAIChat, read_message
from proxy.simulator.prices import Usage

_STOPS = {"end": "stop", "length": "length", "tool": "tool_calls", "guardrail": "stop"}


class MistralText(Family):
    """``prompt``, ``max_tokens``; ``outputs[].text``."""

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=1)
        prompt.add(string(body, "prompt"))
        number(body, "temperature")
        limit = integer(body, "max_tokens") or model.default_output_tokens
        return Ask(prompt, min(limit, model.max_output_tokens))

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        return {"outputs": [{"text": reply.first.text, "stop_reason": _STOPS[reply.first.stop]}]}

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        events: list[Json] = [
            {"outputs": [{"text": text, "stop_reason": None}]} for text, _ in reply.pieces(reply.first)
        ]
        events.append({"outputs": [{"text": "", "stop_reason": _STOPS[reply.first.stop]}]})
        return events


class MistralChat(OpenAIChat):
    """Messages in, ``choices`` out, without usage; older models name the end ``stop_reason``."""

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        answer = super().whole(ask, reply, None)
        for choice in answer["choices"]:
            choice["stop_reason"] = choice.pop("finish_reason")
        return answer

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        return super().events(ask, reply, None)


class DeepSeek(Family):
    """``prompt`` or messages, ``max_tokens``; ``choices[].text``."""

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=tokens.REQUEST_TOKENS)
        if "prompt" in body:
            prompt.add(string(body, "prompt"))
        else:
            for place, message in enumerate(array(body, "messages")):
                read_message(prompt, message, f"messages.{place}")
        limit = integer(body, "max_tokens", high=32_768) or model.default_output_tokens
        return Ask(prompt, min(limit, model.max_output_tokens))

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        return {"choices": [{"text": reply.first.text, "stop_reason": _STOPS[reply.first.stop]}]}

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        events: list[Json] = [
            {"choices": [{"text": text, "stop_reason": None}]} for text, _ in reply.pieces(reply.first)
        ]
        events.append({"choices": [{"text": "", "stop_reason": _STOPS[reply.first.stop]}]})
        return events
