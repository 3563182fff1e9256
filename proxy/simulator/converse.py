"""Converse and ConverseStream: one body for all chat models."""
# ruff: noqa: ARG002 - one signature for every dialect

from collections.abc import Mapping
from typing import Any

import orjson

from proxy.simulator import eventstream, tokens
from proxy.simulator.catalog import Model
from proxy.simulator.dialects import LATENCIES, TIERS, Dialect, Outcome, Wishes, _choice
from proxy.simulator.errors import invalid
from proxy.simulator.families import FAMILIES
from proxy.simulator.families.base import Ask, Choice, Json, Prompt, Reply, integer, number
from proxy.simulator.families.blocks import read_messages, read_system, read_tools
from proxy.simulator.prices import Usage

_STOPS = {"end": "end_turn", "length": "max_tokens", "tool": "tool_use", "guardrail": "guardrail_intervened"}


def _member(body: Json, key: str) -> Json:
    value: Any = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"The value at {key} failed to satisfy constraint: Member must be a structure")
    return value


class Converse(Dialect):
    def read(self, body: Json, model: Model) -> Ask:
        if not FAMILIES[model.family].chats:
            raise invalid(
                "This action doesn't support the model that you provided. "
                "Try again with a supported text or chat model."
            )
        ask = self.read_prompt(body, model)
        extra = _member(body, "additionalModelRequestFields")
        limits = [integer(_member(body, "inferenceConfig"), "maxTokens")]
        limits += [integer(extra, key) for key in ("max_tokens", "max_gen_len", "max_completion_tokens")]
        given = [limit for limit in limits if limit is not None]
        if given and max(given) > model.max_output_tokens:
            raise invalid(
                f"The maximum tokens you requested exceeds the model limit of {model.max_output_tokens}. "
                f"Try again with a maximum tokens value that is lower than {model.max_output_tokens}."
            )
        ask.limit = max(given, default=model.max_output_tokens)
        number(_member(body, "inferenceConfig"), "temperature")
        number(_member(body, "inferenceConfig"), "topP")
        return ask

    def read_prompt(self, body: Json, model: Model) -> Ask:
        """The parts of a request that count as input."""
        prompt = Prompt(overhead_tokens=tokens.REQUEST_TOKENS)
        tool = read_tools(prompt, body.get("toolConfig"))
        read_system(prompt, body.get("system"))
        read_messages(prompt, body.get("messages"), model.context_tokens)
        return Ask(prompt, model.max_output_tokens, tool=tool)

    def wishes(self, headers: Mapping[str, str], body: Json) -> Wishes:
        guardrail = _member(body, "guardrailConfig")
        return Wishes(
            tier=_choice(_member(body, "serviceTier").get("type"), TIERS, "serviceTier.type"),
            latency=_choice(
                _member(body, "performanceConfig").get("latency"), LATENCIES, "performanceConfig.latency"
            ),
            guardrail=guardrail.get("guardrailIdentifier"),
            guardrail_trace=str(guardrail.get("trace", "")).startswith("enabled"),
            metadata=body.get("requestMetadata"),
        )

    def _usage(self, usage: Usage, outcome: Outcome) -> Json:
        report: Json = {
            "inputTokens": usage.input,
            "outputTokens": usage.output,
            "totalTokens": usage.prompt + usage.output,
        }
        written = usage.cache_write + usage.cache_write_1h
        if outcome.cached or usage.cache_read or written:
            report["cacheReadInputTokens"] = usage.cache_read
            report["cacheWriteInputTokens"] = written
            by_ttl = (("5m", usage.cache_write), ("1h", usage.cache_write_1h))
            report["cacheDetails"] = [{"ttl": ttl, "inputTokens": amount} for ttl, amount in by_ttl if amount]
        return report

    def _ending(self, outcome: Outcome) -> Json:
        ending: Json = {"metrics": {"latencyMs": outcome.latency_ms}}
        if outcome.usage is not None:
            ending["usage"] = self._usage(outcome.usage, outcome)
        if outcome.latency is not None:
            ending["performanceConfig"] = {"latency": outcome.latency}
        if outcome.tier is not None:
            ending["serviceTier"] = {"type": outcome.tier}
        if outcome.guardrail is not None and outcome.guardrail_trace:
            ending["trace"] = {"guardrail": outcome.guardrail["trace"]}
        return ending

    def _tool(self, reply: Reply, choice: Choice) -> Json:
        return {"toolUseId": f"tooluse_{reply.seed:016x}", "name": choice.tool_name}

    def whole(self, ask: Ask, reply: Reply, outcome: Outcome) -> Json:
        choice = reply.first
        block: Json = {"text": choice.text}
        if choice.stop == "tool":
            block = {"toolUse": {**self._tool(reply, choice), "input": choice.tool_input}}
        return {
            "output": {"message": {"role": "assistant", "content": [block]}},
            "stopReason": _STOPS[choice.stop],
            **self._ending(outcome),
        }

    def frames(self, ask: Ask, reply: Reply, outcome: Outcome) -> list[bytes]:
        choice = reply.first
        events: list[tuple[str, Json]] = [("messageStart", {"role": "assistant"})]
        if choice.stop == "tool":
            start = {"toolUse": self._tool(reply, choice)}
            events.append(("contentBlockStart", {"start": start, "contentBlockIndex": 0}))
            text = choice.tool_json
            deltas: list[Json] = [
                {"toolUse": {"input": text[at : at + 12]}} for at in range(0, len(text), 12)
            ]
        else:
            deltas = [{"text": text} for text, _ in reply.pieces(choice)]
        events += [("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta}) for delta in deltas]
        events.append(("contentBlockStop", {"contentBlockIndex": 0}))
        events.append(("messageStop", {"stopReason": _STOPS[choice.stop]}))
        events.append(("metadata", self._ending(outcome)))
        frames = []
        for place, (kind, payload) in enumerate(events):
            payload["p"] = eventstream.PADDING[: (reply.seed >> (place % 48)) % 62]
            frames.append(eventstream.event(kind, orjson.dumps(payload)))
        return frames
