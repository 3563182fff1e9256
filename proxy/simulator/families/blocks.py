"""Content blocks that Converse and Nova's native body share."""

from typing import Any

import orjson

from proxy.simulator import tokens
from proxy.simulator.errors import invalid
from proxy.simulator.families.base import Json, Prompt


def read_block(prompt: Prompt, block: Any, where: str, context: int) -> None:
    """One block: exactly one of the union's members. Raises Refusal for an unknown one."""
    if not isinstance(block, dict) or not block:
        raise invalid(f"The content field at {where} is not valid. Provide a content block.")
    for kind, value in block.items():
        if value is not None:
            _read_member(prompt, kind, value, where, context)


def _read_member(prompt: Prompt, kind: str, value: Any, where: str, context: int) -> None:
    if kind == "text":
        if not isinstance(value, str):
            raise invalid(f"The value at {where}.text failed to satisfy constraint: Member must be a string")
        prompt.add(value)
        return
    if not isinstance(value, dict):
        raise invalid(f"The value at {where}.{kind} failed to satisfy constraint: Member must be a structure")
    match kind:
        case "image":
            prompt.add_image(_bytes_of(value)[:200])
        case "document" | "video" | "audio":
            prompt.add_document(_bytes_of(value), context)
        case "toolUse":
            prompt.add(str(value.get("name", "")))
            prompt.add(orjson.dumps(value.get("input")).decode())
        case "toolResult":
            for place, inner in enumerate(value.get("content") or []):
                read_block(prompt, inner, f"{where}.toolResult.content.{place}", context)
        case "json":
            prompt.add(orjson.dumps(value).decode())
        case "guardContent":
            text = value.get("text")
            prompt.add(str(text.get("text", "")) if isinstance(text, dict) else "")
        case "reasoningContent":
            text = value.get("reasoningText")
            prompt.add(str(text.get("text", "")) if isinstance(text, dict) else "")
        case "cachePoint":
            prompt.mark(value.get("ttl"))
        case _:
            raise invalid(f"The content block at {where} has an unknown member: {kind}")


def _bytes_of(value: Json) -> str:
    source = value.get("source")
    data = source.get("bytes", source.get("text", "")) if isinstance(source, dict) else ""
    return data if isinstance(data, str) else ""


def read_system(prompt: Prompt, system: Any) -> None:
    if system is None:
        return
    if not isinstance(system, list):
        raise invalid("The value at system failed to satisfy constraint: Member must be a list")
    for place, block in enumerate(system):
        read_block(prompt, block, f"system.{place}", 0)


def read_messages(prompt: Prompt, messages: Any, context: int) -> None:
    if not isinstance(messages, list) or not messages:
        raise invalid("The messages field must not be empty. Add a message and try again.")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in {"user", "assistant"}:
            raise invalid(
                f"The value at messages.{place}.role failed to satisfy constraint: [user, assistant]"
            )
        prompt.tokens += tokens.MESSAGE_TOKENS
        content = message.get("content")
        if not isinstance(content, list) or not content:
            raise invalid(
                f"The content field in the Message object at messages.{place} is empty. "
                "Add a ContentBlock object to the content field and try again."
            )
        for inner, block in enumerate(content):
            read_block(prompt, block, f"messages.{place}.content.{inner}", context)
    if messages[0]["role"] != "user":
        raise invalid(
            "A conversation must start with a user message. Try again with a conversation that does."
        )


def read_tools(prompt: Prompt, config: Any) -> tuple[str, Any] | None:
    """Counts the tools; returns the one that the request forces, with its input schema."""
    if not config:
        return None
    tools = config.get("tools") if isinstance(config, dict) else None
    if not isinstance(tools, list) or not tools:
        raise invalid("The toolConfig field must contain at least one tool.")
    specs: list[Json] = []
    for place, tool in enumerate(tools):
        if isinstance(tool, dict) and isinstance(tool.get("toolSpec"), dict):
            specs.append(tool["toolSpec"])
        elif not (isinstance(tool, dict) and "cachePoint" in tool):
            raise invalid(f"The value at toolConfig.tools.{place} failed to satisfy constraint: toolSpec")
    prompt.add_tools(specs)
    for tool in tools:
        if "cachePoint" in tool:
            prompt.mark((tool["cachePoint"] or {}).get("ttl"))
    choice = config.get("toolChoice") or {}
    if "any" in choice:
        wanted = specs[:1]
    elif "tool" in choice:
        name = (choice["tool"] or {}).get("name")
        wanted = [spec for spec in specs if spec.get("name") == name]
        if not wanted:
            raise invalid(f"The tool {name} in toolChoice is not among the tools.")
    else:
        return None
    return str(wanted[0].get("name")), (wanted[0].get("inputSchema") or {}).get("json")
