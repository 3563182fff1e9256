"""Anthropic: the Messages API (also served over SSE at ``/anthropic/v1/messages``) and the old text API."""
# ruff: noqa: ARG002 - one signature for every dialect

from typing import Any

import orjson

from proxy.simulator import tokens
from proxy.simulator.catalog import Model
from proxy.simulator.errors import invalid
from proxy.simulator.families.base import (
    Ask,
    Choice,
    Family,
    Json,
    Prompt,
    Reply,
    integer,
    malformed,
    number,
    string,
)
from proxy.simulator.prices import Usage

_STOPS = {"end": "end_turn", "length": "max_tokens", "tool": "tool_use", "guardrail": "end_turn"}
_SERVER_TOOLS = ("web_search", "code_execution", "web_fetch", "bash_code", "text_editor_code")


def _mark(prompt: Prompt, holder: Json) -> None:
    control = holder.get("cache_control")
    if control is None:
        return
    if not isinstance(control, dict) or control.get("type") != "ephemeral":
        raise invalid("cache_control: only type ephemeral is supported")
    prompt.mark(control.get("ttl"))


def _block(prompt: Prompt, block: Any, where: str, context: int) -> None:
    if not isinstance(block, dict):
        raise invalid(f"{where}: Input should be a valid dictionary or object")
    match block.get("type"):
        case "text":
            if not isinstance(block.get("text"), str):
                raise invalid(f"{where}.text: Input should be a valid string")
            prompt.add(block["text"])
        case "image":
            prompt.add_image(str(block.get("source"))[:200])
        case "document":
            prompt.add_document(str(block.get("source")), context)
        case "tool_use":
            prompt.add(str(block.get("name", "")))
            prompt.add(orjson.dumps(block.get("input")).decode())
        case "tool_result":
            _content(prompt, block.get("content", ""), where, context)
        case "thinking":
            prompt.add(str(block.get("thinking", "")))
        case "redacted_thinking":
            prompt.add(str(block.get("data", "")))
        case kind:
            raise invalid(
                f"{where}: Input tag '{kind}' found using 'type' does not match any of the expected tags"
            )
    _mark(prompt, block)


def _content(prompt: Prompt, content: Any, where: str, context: int) -> None:
    if isinstance(content, str):
        prompt.add(content)
    elif isinstance(content, list):
        for place, block in enumerate(content):
            _block(prompt, block, f"{where}.{place}", context)
    else:
        raise invalid(f"{where}: Input should be a valid string or list")


def _tools(prompt: Prompt, body: Json) -> tuple[str, Any] | None:
    tools = body.get("tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise invalid("tools: Input should be a valid list")
    for tool in tools:
        if str(tool.get("type", "custom")).startswith(_SERVER_TOOLS):
            raise invalid(f"tools: server tool {tool['type']} is not supported on this platform")
    prompt.add_tools(tools)
    for tool in tools:
        _mark(prompt, tool)
    choice = body.get("tool_choice") or {}
    if not isinstance(choice, dict):
        raise invalid("tool_choice: Input should be a valid dictionary")
    if choice.get("type") == "any":
        return str(tools[0].get("name")), tools[0].get("input_schema")
    if choice.get("type") == "tool":
        for tool in tools:
            if tool.get("name") == choice.get("name"):
                return str(tool["name"]), tool.get("input_schema")
        raise invalid(f"tool_choice.name: Tool '{choice.get('name')}' not found in provided tools")
    return None


class Claude(Family):
    counts_tokens = True

    def read(self, body: Json, model: Model) -> Ask:
        limit = integer(body, "max_tokens")
        if limit is None:
            raise invalid("max_tokens: Field required")
        if limit > model.max_output_tokens:
            raise invalid(
                f"max_tokens: {limit} > {model.max_output_tokens}, which is the maximum allowed number of output "
                f"tokens for {model.base}"
            )
        return self.read_prompt(body, model, limit)

    def read_prompt(self, body: Json, model: Model, limit: int) -> Ask:
        """The parts of a request that count as input."""
        prompt = Prompt(overhead_tokens=tokens.REQUEST_TOKENS)
        number(body, "temperature")
        number(body, "top_p")
        tool = _tools(prompt, body)
        if body.get("system"):
            _content(prompt, body["system"], "system", model.context_tokens)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid("messages: at least one message is required")
        for place, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in {"user", "assistant"}:
                raise invalid(f"messages.{place}.role: Input should be 'user' or 'assistant'")
            prompt.tokens += tokens.MESSAGE_TOKENS
            _content(prompt, message.get("content"), f"messages.{place}.content", model.context_tokens)
        if messages[0].get("role") != "user":
            raise invalid('messages: first message must use the "user" role')
        self._check_thinking(body, limit)
        return Ask(prompt, limit, tool=tool)

    def _check_thinking(self, body: Json, limit: int) -> None:
        thinking = body.get("thinking")
        if isinstance(thinking, dict) and thinking.get("type") == "enabled":
            budget = integer(thinking, "budget_tokens", low=1_024)
            if budget is None or budget >= limit:
                raise invalid("max_tokens must be greater than thinking.budget_tokens")

    def usage(self, usage: Usage, *, output: int) -> Json:
        return {
            "input_tokens": usage.input,
            "cache_creation_input_tokens": usage.cache_write + usage.cache_write_1h,
            "cache_read_input_tokens": usage.cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": usage.cache_write,
                "ephemeral_1h_input_tokens": usage.cache_write_1h,
            },
            "output_tokens": output,
        }

    def _message(self, reply: Reply, content: list[Json]) -> Json:
        return {
            "id": f"msg_bdrk_{reply.call_id.replace('-', '')[:24]}",
            "type": "message",
            "role": "assistant",
            "model": reply.model.base.removeprefix("anthropic."),
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        choice = reply.first
        message = self._message(reply, [self._full_block(reply, choice)])
        message["stop_reason"] = _STOPS[choice.stop]
        if usage is not None:
            message["usage"] = self.usage(usage, output=usage.output)
        return message

    def _full_block(self, reply: Reply, choice: Choice) -> Json:
        if choice.stop == "tool":
            identity = f"toolu_bdrk_{reply.seed:016x}"
            return {"type": "tool_use", "id": identity, "name": choice.tool_name, "input": choice.tool_input}
        return {"type": "text", "text": choice.text}

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        choice = reply.first
        message = self._message(reply, [])
        if usage is not None:
            message["usage"] = self.usage(usage, output=min(1, usage.output))
        start = self._full_block(reply, choice)
        start["input" if choice.stop == "tool" else "text"] = {} if choice.stop == "tool" else ""
        events: list[Json] = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": start},
        ]
        if choice.stop == "tool":
            text = choice.tool_json
            deltas = [
                {"type": "input_json_delta", "partial_json": text[at : at + 12]}
                for at in range(0, len(text), 12)
            ]
        else:
            deltas = [{"type": "text_delta", "text": text} for text, _ in reply.pieces(choice)]
        events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": 0})
        ending: Json = {
            "type": "message_delta",
            "delta": {"stop_reason": _STOPS[choice.stop], "stop_sequence": None},
        }
        if usage is not None:
            ending["usage"] = {"output_tokens": usage.output}
        events += [ending, {"type": "message_stop"}]
        return events


class ClaudeText(Family):
    """``prompt`` and ``max_tokens_to_sample``; usage only in headers and metrics."""

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=1)
        prompt.add(string(body, "prompt"))
        limit = integer(body, "max_tokens_to_sample")
        if limit is None:
            raise malformed("", "required key [max_tokens_to_sample] not found")
        return Ask(prompt, min(limit, model.max_output_tokens))

    def _stop(self, reply: Reply) -> str:
        return "max_tokens" if reply.first.stop == "length" else "stop_sequence"

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        return {
            "type": "completion",
            "completion": reply.first.text,
            "stop_reason": self._stop(reply),
            "stop": None,
        }

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        events: list[Json] = [
            {"type": "completion", "completion": text, "stop_reason": None, "stop": None}
            for text, _ in reply.pieces(reply.first)
        ]
        events.append(
            {"type": "completion", "completion": "", "stop_reason": self._stop(reply), "stop": None}
        )
        return events
