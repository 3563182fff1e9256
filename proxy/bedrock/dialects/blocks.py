"""Content blocks of Converse, which Nova's native body shares.

Source: the unions ContentBlock, SystemContentBlock, ToolResultContentBlock and Tool of the service
model. A block that is not listed here is refused, because its cost has no known bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.bedrock.dialects.bounds import Tally, known_only, list_of, object_of
from proxy.errors import Invalid, UnboundedCost


def conversation(body: Mapping[str, Any], tally: Tally) -> None:
    if body.get("system") is not None:
        for block in list_of(body["system"], "system"):
            _block(block, tally)
    for message in list_of(body["messages"], "messages"):
        tally.message()
        for block in list_of(object_of(message, "A message").get("content"), "content"):
            _block(block, tally)
    if body.get("toolConfig") is not None:
        _tools(object_of(body["toolConfig"], "toolConfig"), tally)
    if body.get("outputConfig") is not None:
        tally.document(body["outputConfig"])


def _tools(config: dict[str, Any], tally: Tally) -> None:
    known_only(config, frozenset({"tools", "toolChoice"}), "toolConfig")
    tools = list_of(config.get("tools"), "toolConfig.tools")
    for tool in tools:
        object_of(tool, "A tool")
        if "cachePoint" in tool:
            _cache_point(tool["cachePoint"], tally)
        elif "toolSpec" not in tool or len(tool) != 1:
            raise UnboundedCost(f"Tool {next(iter(tool), 'unknown')[:64]!r} runs inside the service.")
    if tools:
        tally.tool_list(tools)


def _block(block: Any, tally: Tally) -> None:
    """One content block; a union, so it must have exactly one member."""
    if type(block) is not dict or len(block) != 1:
        raise Invalid("A content block must be an object with exactly one member.")
    tally.message()
    kind, value = next(iter(block.items()))
    if kind == "text":
        tally.text(value, "text")
        return
    if kind == "json":
        tally.document(value)
        return
    count = _BLOCKS.get(kind)
    if count is None:
        raise UnboundedCost(f"Content block {kind[:64]!r} has no known bound.")
    count(object_of(value, kind), tally)


def _cache_point(value: Any, tally: Tally) -> None:
    tally.cache(object_of(value, "cachePoint").get("ttl"))


def _tool_use(value: dict[str, Any], tally: Tally) -> None:
    if value.get("type") is not None:
        raise UnboundedCost("Tools that run inside the service have no known bound.")
    tally.document(value)


def _tool_result(value: dict[str, Any], tally: Tally) -> None:
    tally.text(value.get("toolUseId"), "toolUseId")
    for block in list_of(value.get("content"), "toolResult.content"):
        _block(block, tally)


def _media(value: dict[str, Any], tally: Tally) -> None:
    source = object_of(value.get("source"), "source")
    location = source.get("s3Location")
    if location is not None:
        uri = object_of(location, "s3Location").get("uri")
        if type(uri) is not str:
            raise Invalid("s3Location.uri must be a string.")
        tally.arns.append(uri)
    tally.context()


def _guarded(value: dict[str, Any], tally: Tally) -> None:
    if "image" in value:
        tally.context()
    tally.document(value)


def _document(value: dict[str, Any], tally: Tally) -> None:
    tally.document(value)


_BLOCKS: dict[str, Callable[[dict[str, Any], Tally], None]] = {
    "cachePoint": _cache_point,
    "toolUse": _tool_use,
    "toolResult": _tool_result,
    "image": _media,
    "document": _media,
    "video": _media,
    "audio": _media,
    "guardContent": _guarded,
    "reasoningContent": _document,
    "citationsContent": _document,
    "searchResult": _document,
}
