"""Chat Completions said in Converse: answers, whole and streamed.

The frames of ConverseStream become SSE chunks in the shapes of OpenAI's API reference. Everything from
`messageStop` on is held back, so that no client sees a finish reason before the money is settled.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import orjson

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.converse import Converse
from proxy.bedrock.dialects.counts import Served
from proxy.bedrock.dialects.meters import WireMeter
from proxy.bedrock.eventstream import PRELUDE_BYTES, Assembler, BrokenStream, headers_of
from proxy.bedrock.mask import masked
from proxy.bedrock.sse import error_event
from proxy.domain.catalogue import Model
from proxy.domain.request import Bound
from proxy.domain.usage import Usage

EVENT_STREAM = "text/event-stream; charset=utf-8"
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}


def finish_of(stop_reason: Any) -> str:
    """OpenAI's word for a stop reason; it has none for malformed output."""
    return _FINISH.get(stop_reason, "stop") if type(stop_reason) is str else "stop"


def usage_of(usage: Usage) -> dict[str, Any]:
    """Usage in OpenAI's words: its prompt includes what the cache read and wrote."""
    prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
    }


class ChatOverConverse:
    """The dialect of one translated call (`proxy.ports.Dialect`), about its Converse body.

    `model` is the client's name for it, which its answers say again.
    """

    name = "chat_over_converse"

    def __init__(self, inner: Converse, *, model: str, stream: bool, include_usage: bool) -> None:
        self._inner = inner
        self._stream = stream
        self._include_usage = include_usage
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def bound(self, body: dict[str, Any], raw: bytes, model: Model, headers: Mapping[str, str]) -> Bound:
        return dataclasses.replace(self._inner.bound(body, raw, model, headers), stream=self._stream)

    def with_output_limit(self, body: dict[str, Any], raw: bytes, limit: int) -> bytes:
        return self._inner.with_output_limit(body, raw, limit)

    def prepared(self, body: dict[str, Any], raw: bytes) -> bytes:
        return self._inner.prepared(body, raw)

    def with_model(self, body: dict[str, Any], raw: bytes, model_id: str) -> bytes:
        return self._inner.with_model(body, raw, model_id)

    def usage(self, headers: Mapping[str, str], body: bytes) -> Usage | None:
        return self._inner.usage(headers, body)

    def served(self, headers: Mapping[str, str], body: bytes) -> Served:
        return self._inner.served(headers, body)

    def heads(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Bedrock's own headers speak of Converse, which the client did not call."""
        told = {n: v for n, v in headers.items() if not n.startswith("x-amzn-bedrock-")}
        return {**told, "content-type": EVENT_STREAM if self._stream else "application/json"}

    def answer(self, body: bytes) -> bytes:
        said = counts.answer_of(body)
        output = said.get("output") if said is not None else None
        message = output.get("message") if type(output) is dict else None
        content = message.get("content") if type(message) is dict else None
        if said is None or type(content) is not list:
            return body  # no answer of Converse's; it was charged its ceiling
        choice = {
            "index": 0,
            "message": _message(content),
            "logprobs": None,
            "finish_reason": finish_of(said.get("stopReason")),
        }
        told: dict[str, Any] = {**self._head, "object": "chat.completion", "choices": [choice]}
        usage = counts.converse_usage(said)
        if usage is not None:
            told["usage"] = usage_of(usage)
        tier = counts.converse_served(said).tier
        if tier is not None:
            told["service_tier"] = tier
        return orjson.dumps(told)

    def meter(self, body: Mapping[str, Any] | None = None) -> WireMeter:  # noqa: ARG002
        return ChatStream(self._head, include_usage=self._include_usage)


def _message(content: list[Any]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in content:
        if type(block) is not dict:
            continue
        used = block.get("toolUse")
        if type(block.get("text")) is str:
            texts.append(block["text"])
        elif type(used) is dict:
            arguments = orjson.dumps(used.get("input") or {}).decode()
            function = {"name": used.get("name"), "arguments": arguments}
            calls.append({"id": used.get("toolUseId"), "type": "function", "function": function})
        elif type(thought := _thought(block)) is str:
            thoughts.append(thought)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(texts) if texts or not calls else None,
        "refusal": None,
    }
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _thought(block: Mapping[str, Any]) -> str | None:
    """Text of a reasoning block, None for any other."""
    reasoning = block.get("reasoningContent")
    inner = reasoning.get("reasoningText") if type(reasoning) is dict else None
    text = inner.get("text") if type(inner) is dict else None
    return text if type(text) is str else None


class ChatStream:
    """Frames of ConverseStream in, SSE chunks out (`proxy.ports.StreamMeter`)."""

    def __init__(self, head: Mapping[str, Any], *, include_usage: bool) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.failure: str | None = None
        self.failure_message = ""
        self.served = counts.UNSAID
        self.events = 0
        self._head = {**head, "object": "chat.completion.chunk"}
        self._include_usage = include_usage
        self._held: list[bytes] = []
        self._tools: dict[int, int] = {}  # content block -> place among the tool calls
        self._empty: set[int] = set()  # tool calls without any argument yet
        self._assembler = Assembler()

    # ---- metering ----------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> bytes:
        data, places, _ = self._assembler.feed(chunk)
        self.events += len(places)
        out: list[bytes] = []
        for start, payload, end in places:
            if self.ended:
                break
            headers = headers_of(data[start + PRELUDE_BYTES : payload])
            event = counts.answer_of(data[payload : end - 4]) or {}
            if headers.get(":message-type") != "event":
                self._failed(headers, event)
            else:
                out += self._told(headers.get(":event-type", ""), event)
        return b"".join(out)

    def finish(self) -> None:
        if self._assembler.pending and not self.ended:
            raise BrokenStream("The answer ended inside a frame.")

    def held(self) -> bytes:
        held, self._held = b"".join(self._held), []
        return held

    def _failed(self, headers: Mapping[str, str], event: Mapping[str, Any]) -> None:
        self.ended = True
        kind = headers.get(":exception-type") or headers.get(":error-code") or "error"
        text = event.get("message") or event.get("Message") or headers.get(":error-message") or ""
        self.failure, self.failure_message = kind, masked(str(text))
        self._held = [error_event("chat_completions", kind, self.failure_message)]

    # ---- telling -----------------------------------------------------------------------------

    def _told(self, name: str, event: Mapping[str, Any]) -> list[bytes]:
        """The chunks that an event makes and that may go on now."""
        place = event.get("contentBlockIndex")
        if name == "contentBlockDelta":
            return self._delta(place, event.get("delta"))
        if name == "messageStart":
            return [self._chunk({"role": "assistant", "content": "", "refusal": None})]
        if name == "contentBlockStart":
            return self._started(place, event.get("start"))
        if name == "contentBlockStop" and place in self._empty:
            self._empty.discard(place)
            return [self._arguments(self._tools[place], "{}")]
        if name == "messageStop":
            self._held.append(self._chunk({}, finish_of(event.get("stopReason"))))
        elif name == "metadata":
            self._end(event)
        return []

    def _end(self, event: Mapping[str, Any]) -> None:
        self.ended = True
        self.usage = counts.converse_usage(event)
        self.served = counts.converse_served(event)
        if self._include_usage and self.usage is not None:
            self._held.append(_sse({**self._head, "choices": [], "usage": usage_of(self.usage)}))
        self._held.append(b"data: [DONE]\n\n")

    def _started(self, place: Any, start: Any) -> list[bytes]:
        used = start.get("toolUse") if type(start) is dict else None
        if type(used) is not dict or type(place) is not int:
            return []
        index = self._tools[place] = len(self._tools)
        self._empty.add(place)
        function = {"name": used.get("name"), "arguments": ""}
        call = {"index": index, "id": used.get("toolUseId"), "type": "function", "function": function}
        return [self._chunk({"tool_calls": [call]})]

    def _delta(self, place: Any, delta: Any) -> list[bytes]:
        if type(delta) is not dict:
            return []
        if type(delta.get("text")) is str:
            return [self._chunk({"content": delta["text"]})]
        used = delta.get("toolUse")
        if type(used) is dict and place in self._tools:
            part = used.get("input")
            if type(part) is not str or not part:
                return []
            self._empty.discard(place)
            return [self._arguments(self._tools[place], part)]
        reasoning = delta.get("reasoningContent")
        text = reasoning.get("text") if type(reasoning) is dict else None
        return [self._chunk({"reasoning_content": text})] if type(text) is str else []

    def _arguments(self, index: int, part: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return _sse(chunk)


def _sse(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
