"""Anthropic Claude on InvokeModel: Messages, and the old text completions of the same models.

Source: user guide, "Anthropic Claude models"; block and usage types of the `anthropic` package.
`max_tokens` bounds all output of one answer, thinking included; where a thinking budget is larger
(interleaved thinking allows it), the budget counts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Allowance, Tally, known_only, list_of, number_of, object_of
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.bedrock.dialects.edit import Path
from proxy.bedrock.dialects.meters import METRICS, ChunkMeter, WireMeter, native_of, needles
from proxy.domain.catalogue import Model
from proxy.domain.usage import Usage
from proxy.errors import Invalid, UnboundedCost

#: tools that Anthropic defines and the client runs; their hidden prompts are up to 735 tokens each
_CLIENT_TOOLS = re.compile(r"(bash|text_editor|computer|memory)_[0-9]{8}")
_CLIENT_TOOL_TOKENS = 2048
_TOOL_FIELDS = frozenset(
    {
        "type", "name", "description", "input_schema", "cache_control", "strict", "input_examples",
        "eager_input_streaming", "defer_loading", "display_width_px", "display_height_px",
        "display_number", "enable_zoom", "max_characters",
    }
)  # fmt: skip

#: betas that leave price and bounds alone. Not here, so refused: fast mode (dearer), skills, files,
#: code execution, web fetch, MCP connectors, server compaction.
_BETAS = re.compile(
    r"(claude-code|interleaved-thinking|prompt-caching|extended-cache-ttl|computer-use|"
    r"token-efficient-tools|fine-grained-tool-streaming|output-128k|max-tokens-3-5-sonnet|"
    r"dev-full-thinking|pdfs|token-counting|structured-outputs|effort|tool-examples|"
    r"adaptive-thinking|prompt-caching-scope|redact-thinking)-[0-9]{4}-?[0-9]{2}-?[0-9]{2}"
)
_LONG_CONTEXT = re.compile(r"context-1m-[0-9]{4}-[0-9]{2}-[0-9]{2}")
_CONTEXT_EDITS = re.compile(r"context-management-[0-9]{4}-[0-9]{2}-[0-9]{2}")

FIELDS = frozenset(
    {
        "anthropic_version", "anthropic_beta", "messages", "system", "max_tokens", "temperature",
        "top_p", "top_k", "stop_sequences", "tools", "tool_choice", "thinking", "metadata",
        "reasoning_config", "cache_control", "output_config", "output_format", "context_management",
        "amazon-bedrock-guardrailConfig",
    }
)  # fmt: skip


def check_betas(betas: Any, model: Model) -> None:
    """Raises `UnboundedCost` for a beta that is not known to leave the price alone."""
    for beta in list_of(betas, "anthropic_beta"):
        if type(beta) is not str:
            raise Invalid("anthropic_beta must be a list of strings.")
        if _BETAS.fullmatch(beta) or _CONTEXT_EDITS.fullmatch(beta):
            continue
        if _LONG_CONTEXT.fullmatch(beta) and model.context_tokens >= 1_000_000:
            continue
        raise UnboundedCost(f"Beta {beta[:64]!r} is not known to leave the cost bounded.")


def beta_header(headers: Mapping[str, str], model: Model) -> None:
    """The same for the `anthropic-beta` header, a comma-separated list."""
    value = headers.get("anthropic-beta")
    if value:
        check_betas([beta for part in value.split(",") if (beta := part.strip())], model)


class Anthropic(NativeDialect):
    name = "anthropic"
    known = FIELDS | {"prompt", "max_tokens_to_sample"}
    limits: ClassVar[tuple[Path, ...]] = (("max_tokens",), ("max_tokens_to_sample",))
    inner_limits = (("thinking", "budget_tokens"), ("reasoning_config", "budget_tokens"))
    allowance = Allowance(request=256, message=16, tools=1024, tool=64)

    def limit_path(self, body: Mapping[str, Any]) -> Path:
        return self.limits[1] if "prompt" in body else self.limits[0]

    def check(self, body: dict[str, Any], model: Model) -> None:
        if "temperature" in body:
            number_of(body["temperature"], "temperature", 1)
        if "top_p" in body:
            number_of(body["top_p"], "top_p", 1)
        for name in ("thinking", "reasoning_config"):
            if name in body:
                object_of(body[name], name)
        if "anthropic_beta" in body:
            check_betas(body["anthropic_beta"], model)
        _check_edits(body.get("context_management"))

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        if "prompt" in body:
            if "messages" in body:
                raise Invalid("A body has either messages or a prompt.")
            tally.text(body["prompt"], "prompt")
            return
        conversation(body, tally)
        if body.get("tools") is not None:
            self.tools(body["tools"], tally)

    def tools(self, tools: Any, tally: Tally) -> None:
        for tool in list_of(tools, "tools"):
            kind = object_of(tool, "A tool").get("type")
            if kind not in (None, "custom"):
                if type(kind) is not str or not _CLIENT_TOOLS.fullmatch(kind):
                    raise UnboundedCost(f"Tool {str(kind)[:64]!r} runs inside the service.")
                tally.tokens += _CLIENT_TOOL_TOKENS
            known_only(tool, _TOOL_FIELDS, "a tool")
            cache_point(tool, tally)
        if tools:
            tally.tool_list(tools)

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return reported_usage(answer.get("usage"))

    def meter(self, body: Mapping[str, Any] | None = None) -> WireMeter:  # noqa: ARG002
        return AnthropicMeter()


def _check_edits(management: Any) -> None:
    """Edits that clear old content make input smaller; compaction would generate unasked."""
    if management is None:
        return
    for edit in list_of(object_of(management, "context_management").get("edits", []), "edits"):
        kind = object_of(edit, "An edit").get("type")
        if type(kind) is not str or not kind.startswith("clear_"):
            raise UnboundedCost(f"Context edit {str(kind)[:64]!r} has no known bound.")


def cache_point(holder: Mapping[str, Any], tally: Tally) -> None:
    control = holder.get("cache_control")
    if control is not None:
        tally.cache(object_of(control, "cache_control").get("ttl"))


def conversation(body: Mapping[str, Any], tally: Tally) -> None:
    """Counts `system` and `messages`, and notes their cache points."""
    cache_point(body, tally)
    system = body.get("system")
    if system is not None:
        _content(system, tally, "system")
    messages = list_of(body.get("messages"), "messages")
    for message in messages:
        tally.message()
        _content(object_of(message, "A message").get("content"), tally, "content")
    for name in ("output_format", "output_config"):
        if body.get(name) is not None:
            tally.document(body[name])


def _content(content: Any, tally: Tally, where: str) -> None:
    if type(content) is str:
        tally.text(content, where)
        return
    for block in list_of(content, where):
        _block(object_of(block, "A content block"), tally)


def _block(block: dict[str, Any], tally: Tally) -> None:
    tally.message()
    cache_point(block, tally)
    kind = block.get("type")
    if kind == "text":
        tally.text(block.get("text"), "text")
        if block.get("citations"):
            tally.document(block["citations"])
    elif kind == "tool_use":
        tally.document(block)
    elif kind == "tool_result":
        tally.text(block.get("tool_use_id"), "tool_use_id")
        if block.get("content") is not None:
            _content(block["content"], tally, "A tool result")
    elif kind in ("image", "document"):
        _stored(block.get("source"))
        tally.context()
    elif kind in ("thinking", "redacted_thinking", "search_result"):
        tally.document(block)
    else:
        raise UnboundedCost(f"Content block {str(kind)[:64]!r} has no known bound.")


def _stored(source: Any) -> None:
    if object_of(source, "source").get("type") == "file":
        raise UnboundedCost("Stored files are not served here: send the content itself.")


def reported_usage(report: Any) -> Usage | None:
    """Anthropic's `usage` object: its input count excludes the cache."""
    if type(report) is not dict:
        return None
    try:
        writes = counts.optional(report, "cache_creation_input_tokens")
        split = report.get("cache_creation")
        hour = counts.optional(split, "ephemeral_1h_input_tokens") if type(split) is dict else 0
        return Usage(
            input_tokens=counts.count(report.get("input_tokens")),
            output_tokens=counts.count(report.get("output_tokens")),
            cache_read_tokens=counts.optional(report, "cache_read_input_tokens"),
            cache_write_5m_tokens=counts.count(writes - hour),
            cache_write_1h_tokens=hour,
        )
    except counts.NonsenseError:
        return None


class AnthropicUsage:
    """Usage of one streamed message, collected from its events."""

    def __init__(self) -> None:
        self._start: Usage | None = None
        self._delta: dict[str, Any] | None = None

    def started(self, event: Mapping[str, Any]) -> None:
        """`message_start`: input and cache counts, with the lifetimes of cache writes."""
        message = event.get("message")
        report = message.get("usage") if type(message) is dict else None
        self._start = reported_usage(report)

    def changed(self, event: Mapping[str, Any]) -> None:
        """`message_delta`: the cumulative output count."""
        report = event.get("usage")
        self._delta = report if type(report) is dict else None

    def total(self, metrics: Any) -> Usage | None:
        """Bedrock's metrics where there are any, else what the message itself reported."""
        usage = counts.metrics_usage(metrics)
        if usage is not None:
            return counts.combined(usage, self._start)
        if metrics is not None or self._start is None or self._delta is None:
            return None
        try:
            return dataclasses.replace(
                self._start, output_tokens=counts.count(self._delta.get("output_tokens"))
            )
        except counts.NonsenseError:
            return None


class AnthropicMeter(ChunkMeter):
    """The metrics stand on `message_stop`; lifetimes of cache writes on `message_start`, the first."""

    marks: ClassVar[tuple[bytes, ...]] = (*ChunkMeter.marks, *needles("message_stop"))

    def __init__(self) -> None:
        super().__init__()
        self._usage = AnthropicUsage()

    def last(self, name: str, data: bytes, start: int, end: int) -> bool:
        if self._last is None and name == "chunk":
            self._usage.started(native_of(data[start:end]) or {})
        return super().last(name, data, start, end)

    def read(self, chunk: dict[str, Any] | None) -> bool:
        if chunk is None:
            return False
        metrics = chunk.get(METRICS)
        if metrics is None:
            if chunk.get("type") != "message_stop":
                return False
            if self._last is not None:
                data, start, end = self._last
                self._usage.changed(native_of(data[start:end]) or {})
        self.usage = counts.with_guardrail(self._usage.total(metrics), chunk)
        return True


class AnthropicText(Anthropic):
    """Claude 2 and Instant: the same body with a preference for `prompt`."""

    name = "anthropic-text"


ANTHROPIC = Anthropic()
ANTHROPIC_TEXT = AnthropicText()
