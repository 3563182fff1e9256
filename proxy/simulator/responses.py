"""``/openai/v1/responses``, without stored state, with SSE streams."""
# ruff: noqa: ARG002 - one signature for every dialect

from typing import Any

import orjson

from proxy.simulator import tokens
from proxy.simulator.catalog import Model
from proxy.simulator.dialects import Chat, Outcome
from proxy.simulator.errors import Refusal, invalid
from proxy.simulator.families.base import Ask, Json, Prompt, Reply, integer, number
from proxy.simulator.families.openai import forced_tool, read_message
from proxy.simulator.prices import Usage


class Responses(Chat):
    """Usage says ``input_tokens`` with the cached ones included."""

    usage_at = -1

    def read(self, body: Json, model: Model) -> Ask:
        if model.family != "openai":
            raise invalid("This API does not support the model that you provided.")
        if body.get("background"):
            raise invalid("background is not supported.")
        if body.get("previous_response_id") is not None:
            raise Refusal("ResourceNotFoundException", "Previous response not found.")
        prompt = Prompt(overhead_tokens=tokens.REQUEST_TOKENS)
        tools = body.get("tools") or []
        if tools:
            prompt.add_tools(tools)
        if body.get("instructions"):
            prompt.add(str(body["instructions"]))
        self._input(prompt, body.get("input"))
        number(body, "temperature", 0, 2)
        limit = integer(body, "max_output_tokens") or model.default_output_tokens
        tool = forced_tool(tools, body.get("tool_choice")) if isinstance(tools, list) and tools else None
        return Ask(prompt, min(limit, model.max_output_tokens), tool=tool)

    def _input(self, prompt: Prompt, given: Any) -> None:
        if isinstance(given, str):
            prompt.tokens += tokens.MESSAGE_TOKENS
            prompt.add(given)
            return
        if not isinstance(given, list) or not given:
            raise invalid("input: expected a string or a list of items")
        for place, item in enumerate(given):
            kind = item.get("type", "message") if isinstance(item, dict) else None
            if kind == "message":
                read_message(prompt, item, f"input.{place}")
            elif kind in {"function_call", "function_call_output", "reasoning"}:
                prompt.tokens += tokens.MESSAGE_TOKENS
                prompt.add(orjson.dumps(item).decode())
            else:
                raise invalid(f"input.{place}: unsupported item type {kind!r}")

    def _usage(self, usage: Usage) -> Json:
        written = usage.cache_write + usage.cache_write_1h
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": written},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt + usage.output,
        }

    def _item(self, reply: Reply) -> Json:
        choice = reply.first
        if choice.stop == "tool":
            return {
                "type": "function_call",
                "id": f"fc_{reply.call_id}",
                "call_id": f"call_{reply.seed:016x}",
                "name": choice.tool_name,
                "arguments": choice.tool_json,
                "status": "completed",
            }
        content = [{"type": "output_text", "text": choice.text, "annotations": []}]
        identity = f"msg_{reply.call_id}"
        return {
            "type": "message",
            "id": identity,
            "role": "assistant",
            "status": "completed",
            "content": content,
        }

    def _response(self, reply: Reply, status: str, output: list[Json], outcome: Outcome) -> Json:
        answer: Json = {
            "id": f"resp_{reply.call_id}",
            "object": "response",
            "created_at": reply.created,
            "model": reply.model.requested,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "metadata": {},
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "temperature": None,
            "top_p": None,
        }
        if status != "in_progress" and outcome.usage is not None:
            answer["usage"] = self._usage(outcome.usage)
        return self._tiered(answer, outcome)

    def whole(self, ask: Ask, reply: Reply, outcome: Outcome) -> Json:
        status = "incomplete" if reply.first.stop == "length" else "completed"
        return self._response(reply, status, [self._item(reply)], outcome)

    def frames(self, ask: Ask, reply: Reply, outcome: Outcome) -> list[bytes]:
        status = "incomplete" if reply.first.stop == "length" else "completed"
        item = self._item(reply)
        place = {"item_id": item["id"], "output_index": 0}
        started = {**item, "status": "in_progress"}
        begun = self._response(reply, "in_progress", [], outcome)
        events: list[tuple[str, Json]] = [
            ("response.created", {"response": begun}),
            ("response.output_item.added", {"output_index": 0, "item": started}),
        ]
        if item["type"] == "message":
            started["content"] = []
            place["content_index"] = 0
            empty = {"type": "output_text", "text": "", "annotations": []}
            events.append(("response.content_part.added", {**place, "part": empty}))
            events += [
                ("response.output_text.delta", {**place, "delta": text, "logprobs": []})
                for text, _ in reply.pieces(reply.first)
            ]
            events.append(("response.output_text.done", {**place, "text": reply.first.text, "logprobs": []}))
            events.append(("response.content_part.done", {**place, "part": item["content"][0]}))
        else:
            started["arguments"] = ""
            events.append(("response.function_call_arguments.delta", {**place, "delta": item["arguments"]}))
            done = {**place, "arguments": item["arguments"], "name": item["name"]}
            events.append(("response.function_call_arguments.done", done))
        events.append(("response.output_item.done", {"output_index": 0, "item": item}))
        events.append((f"response.{status}", {"response": self._response(reply, status, [item], outcome)}))
        return [
            b"event: %b\ndata: %b\n\n"
            % (kind.encode(), orjson.dumps({"type": kind, "sequence_number": number_, **payload}))
            for number_, (kind, payload) in enumerate(events)
        ]

    def exception_frame(self, member: str, message: str) -> bytes:
        event = {"type": "error", "code": member, "message": message, "param": None, "sequence_number": 0}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(event)
