"""Amazon's own: Nova (shaped like Converse), Titan text and Titan embeddings."""
# ruff: noqa: ARG002 - one signature for every dialect

from typing import Any

from proxy.simulator import tokens
from proxy.simulator.catalog import Model
from proxy.simulator.families.base import Ask, Family, Json, Prompt, Reply, integer, malformed, number, string
from proxy.simulator.families.blocks import read_messages, read_system, read_tools
from proxy.simulator.prices import Usage

NOVA_STOPS = {"end": "end_turn", "length": "max_tokens", "tool": "tool_use", "guardrail": "content_filtered"}
_TITAN_STOPS = {"end": "FINISH", "length": "LENGTH", "tool": "FINISH", "guardrail": "CONTENT_FILTERED"}


class Nova(Family):
    counts_tokens = True

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=tokens.REQUEST_TOKENS)
        tool = read_tools(prompt, body.get("toolConfig"))
        read_system(prompt, body.get("system"))
        read_messages(prompt, body.get("messages"), model.context_tokens)
        settings: Any = body.get("inferenceConfig") or {}
        if not isinstance(settings, dict):
            raise malformed("/inferenceConfig", "expected type: JSONObject")
        limits = [integer(settings, key) for key in ("maxTokens", "max_new_tokens")]
        limit = max((value for value in limits if value is not None), default=model.default_output_tokens)
        number(settings, "temperature")
        return Ask(prompt, min(limit, model.max_output_tokens), tool=tool)

    def usage(self, usage: Usage) -> Json:
        return {
            "inputTokens": usage.input,
            "outputTokens": usage.output,
            "totalTokens": usage.prompt + usage.output,
            "cacheReadInputTokenCount": usage.cache_read,
            "cacheWriteInputTokenCount": usage.cache_write + usage.cache_write_1h,
        }

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        choice = reply.first
        block: Json = {"text": choice.text}
        if choice.stop == "tool":
            identity = f"tooluse_{reply.seed:016x}"
            block = {"toolUse": {"toolUseId": identity, "name": choice.tool_name, "input": choice.tool_input}}
        answer: Json = {
            "output": {"message": {"role": "assistant", "content": [block]}},
            "stopReason": NOVA_STOPS[choice.stop],
        }
        if usage is not None:
            answer["usage"] = self.usage(usage)
        return answer

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        choice = reply.first
        events: list[Json] = [{"messageStart": {"role": "assistant"}}]
        if choice.stop == "tool":
            start = {"toolUse": {"toolUseId": f"tooluse_{reply.seed:016x}", "name": choice.tool_name}}
            events.append({"contentBlockStart": {"start": start, "contentBlockIndex": 0}})
            deltas: list[Json] = [{"toolUse": {"input": choice.tool_json}}]
        else:
            deltas = [{"text": text} for text, _ in reply.pieces(choice)]
        events += [{"contentBlockDelta": {"delta": delta, "contentBlockIndex": 0}} for delta in deltas]
        events.append({"contentBlockStop": {"contentBlockIndex": 0}})
        events.append({"messageStop": {"stopReason": NOVA_STOPS[choice.stop]}})
        metadata: Json = {"metrics": {}, "trace": {}}
        if usage is not None:
            metadata["usage"] = self.usage(usage)
        events.append({"metadata": metadata})
        return events


class Titan(Family):
    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=1)
        prompt.add(string(body, "inputText"))
        settings: Any = body.get("textGenerationConfig") or {}
        if not isinstance(settings, dict):
            raise malformed("/textGenerationConfig", "expected type: JSONObject")
        limit = integer(settings, "maxTokenCount", low=0) or model.default_output_tokens
        return Ask(prompt, min(limit, model.max_output_tokens))

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        result: Json = {"outputText": reply.first.text, "completionReason": _TITAN_STOPS[reply.first.stop]}
        answer: Json = {"results": [result]}
        if usage is not None:
            answer = {
                "inputTextTokenCount": usage.prompt,
                "results": [{"tokenCount": usage.output, **result}],
            }
        return answer

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        prompt_count = None if usage is None else usage.prompt

        def event(text: str, reason: str | None, total: int | None) -> Json:
            return {
                "outputText": text,
                "index": 0,
                "totalOutputTextTokenCount": total,
                "completionReason": reason,
                "inputTextTokenCount": prompt_count,
            }

        events = [event(text, None, None) for text, _ in reply.pieces(reply.first)]
        events.append(event("", _TITAN_STOPS[reply.first.stop], None if usage is None else usage.output))
        return events


class TitanEmbed(Family):
    count_headers = "input"
    chats = False

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt()
        prompt.add(string(body, "inputText"))
        size = integer(body, "dimensions", low=256, high=1_024)
        return Ask(prompt, 0, silent=True, extra={"size": size or (1_024 if "v2" in model.base else 1_536)})

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        answer: Json = {"embedding": reply.vector(ask.extra["size"])}
        if "v2" in reply.model.base:
            answer["embeddingsByType"] = {"float": answer["embedding"]}
        if usage is not None:
            answer["inputTextTokenCount"] = usage.prompt
        return answer
