"""OpenAI chat completions: gpt-oss, Qwen, Kimi, GLM and the like, and AI21 Jamba; ``n`` multiplies output."""
# ruff: noqa: ARG002 - one signature for every dialect

from typing import Any

import orjson

from proxy.simulator import tokens
from proxy.simulator.catalog import Model
from proxy.simulator.errors import invalid
from proxy.simulator.families.base import Ask, Choice, Family, Json, Prompt, Reply, array, integer, number
from proxy.simulator.prices import Usage

_STOPS = {"end": "stop", "length": "length", "tool": "tool_calls", "guardrail": "content_filter"}
_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
_MOST_CHOICES = 16


def read_part(prompt: Prompt, part: Any, where: str) -> None:
    """One content part of a chat message or of a Responses item."""
    if not isinstance(part, dict):
        raise invalid(f"{where}: expected an object")
    match part.get("type"):
        case "text" | "input_text" | "output_text" | "refusal" | "summary_text":
            text = part.get("text", part.get("refusal"))
            if not isinstance(text, str):
                raise invalid(f"{where}.text: expected a string")
            prompt.add(text)
        case "image_url" | "input_image":
            prompt.add_image(str(part.get("image_url"))[:200])
        case kind:
            raise invalid(f"{where}: unsupported content type {kind!r}")


def read_message(prompt: Prompt, message: Any, where: str) -> None:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise invalid(f"{where}.role: expected one of {', '.join(sorted(_ROLES))}")
    prompt.tokens += tokens.MESSAGE_TOKENS
    content = message.get("content")
    if isinstance(content, str):
        prompt.add(content)
    elif isinstance(content, list):
        for place, part in enumerate(content):
            read_part(prompt, part, f"{where}.content.{place}")
    elif content is not None or message["role"] != "assistant":
        raise invalid(f"{where}.content: expected a string or a list")
    if message.get("tool_calls"):
        prompt.add(orjson.dumps(message["tool_calls"]).decode())


def forced_tool(tools: list[Any], choice: Any) -> tuple[str, Any] | None:
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, dict)]
    if choice == "required":
        wanted = functions[0] if functions else {}
    elif isinstance(choice, dict):
        name = choice.get("function", choice).get("name")
        wanted = next((function for function in functions if function.get("name") == name), None)
        if wanted is None:
            raise invalid(f"tool_choice: tool {name!r} not found")
    else:
        return None
    return str(wanted.get("name")), wanted.get("parameters")


class OpenAIChat(Family):
    counts_tokens = False

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=tokens.REQUEST_TOKENS)
        if body.get("tools"):
            prompt.add_tools(body["tools"])
        for place, message in enumerate(array(body, "messages")):
            read_message(prompt, message, f"messages.{place}")
        number(body, "temperature", 0, 2)
        number(body, "top_p")
        limit = self._limit(body, model)
        choices = integer(body, "n", high=_MOST_CHOICES) or 1
        tools = body.get("tools")
        tool = forced_tool(tools, body.get("tool_choice")) if isinstance(tools, list) and tools else None
        options = body.get("stream_options")
        include = isinstance(options, dict) and options.get("include_usage") is True
        return Ask(prompt, limit, choices=choices, tool=tool, extra={"include_usage": include})

    def _limit(self, body: Json, model: Model) -> int:
        given = [
            integer(body, "max_completion_tokens"),
            integer(body, "max_tokens"),
            integer(body, "max_gen_len"),
        ]
        limit = next((value for value in given if value is not None), model.default_output_tokens)
        return min(limit, model.max_output_tokens)

    def usage(self, usage: Usage) -> Json:
        """``prompt_tokens`` includes cached tokens, as the vendor's API has it."""
        return {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.output,
            "total_tokens": usage.prompt + usage.output,
            "prompt_tokens_details": {
                "cached_tokens": usage.cache_read,
                "cache_write_tokens": usage.cache_write + usage.cache_write_1h,
            },
        }

    def _head(self, reply: Reply, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{reply.call_id}",
            "object": kind,
            "created": reply.created,
            "model": reply.model.requested,
        }

    def _calls(self, reply: Reply, choice: Choice) -> list[Json]:
        function = {"name": choice.tool_name, "arguments": choice.tool_json}
        return [{"index": 0, "id": f"call_{reply.seed:016x}", "type": "function", "function": function}]

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        answer = self._head(reply, "chat.completion")
        answer["choices"] = []
        for place, choice in enumerate(reply.choices):
            message: Json = {"role": "assistant", "content": choice.text}
            if choice.stop == "tool":
                calls = [
                    {k: v for k, v in call.items() if k != "index"} for call in self._calls(reply, choice)
                ]
                message = {"role": "assistant", "content": None, "tool_calls": calls}
            answer["choices"].append(
                {"index": place, "message": message, "finish_reason": _STOPS[choice.stop]}
            )
        if usage is not None:
            answer["usage"] = self.usage(usage)
        return answer

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        """Deltas of all choices; the last event has the usage, when it is asked for or the stream is native."""
        head = self._head(reply, "chat.completion.chunk")

        def chunk(place: int, delta: Json, finish: str | None = None) -> Json:
            return {**head, "choices": [{"index": place, "delta": delta, "finish_reason": finish}]}

        events: list[Json] = []
        for place, choice in enumerate(reply.choices):
            events.append(chunk(place, {"role": "assistant", "content": ""}))
            if choice.stop == "tool":
                events.append(chunk(place, {"tool_calls": self._calls(reply, choice)}))
            else:
                events += [chunk(place, {"content": text}) for text, _ in reply.pieces(choice)]
            events.append(chunk(place, {}, _STOPS[choice.stop]))
        if ask.extra.get("include_usage") and usage is not None:
            events.append({**head, "choices": [], "usage": self.usage(usage)})
        return events


class Jamba(OpenAIChat):
    """AI21 Jamba: the same shape; documented default and most of 4,096 output tokens per choice."""
