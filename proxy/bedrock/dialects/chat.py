"""Messages and tools as OpenAI words them; a dozen families took the words over."""

from __future__ import annotations

from typing import Any

from proxy.bedrock.dialects.bounds import Tally, known_only, list_of, object_of
from proxy.errors import Invalid, UnboundedCost

_MESSAGE_FIELDS = frozenset(
    {
        "role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal",
        "reasoning", "reasoning_content", "prefix", "partial",
    }
)  # fmt: skip
#: fields of a message that are read as JSON or text of their own
_WRITTEN = (
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "refusal",
    "reasoning",
    "reasoning_content",
)
_MEDIA = ("image_url", "input_image", "video_url", "document_url", "image")


def count_messages(value: Any, tally: Tally) -> None:
    """Counts a list of messages. Raises `Invalid` or `UnboundedCost`."""
    for message in list_of(value, "messages"):
        known_only(object_of(message, "A message"), _MESSAGE_FIELDS, "a message")
        tally.message()
        count_content(message.get("content"), tally)
        for name in _WRITTEN:
            if message.get(name) is not None:
                tally.document(message[name])


def count_content(content: Any, tally: Tally) -> None:
    if content is None:
        return
    if type(content) is str:
        tally.text(content, "content")
        return
    for part in list_of(content, "content"):
        tally.message()
        _part(object_of(part, "A content part"), tally)


def _part(part: dict[str, Any], tally: Tally) -> None:
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text"):
        tally.text(part.get("text"), "text")
    elif kind in ("refusal", "thinking", "reasoning"):
        tally.document(part)
    elif kind in _MEDIA:
        _no_stored(part)
        tally.context()
    elif kind in ("file", "input_file"):
        file = part.get("file")
        _no_stored(file if type(file) is dict else part)
        tally.context()
    else:
        raise UnboundedCost(f"Content part {str(kind)[:64]!r} has no known bound.")


def _no_stored(part: dict[str, Any]) -> None:
    if part.get("file_id") is not None:
        raise UnboundedCost("Stored files are not served here: send the content itself.")


def check_tools(tools: Any) -> list[Any]:
    """A list of tools that the client runs. Raises `UnboundedCost` for any other."""
    for tool in list_of(tools, "tools"):
        kind = object_of(tool, "A tool").get("type", "function")
        if kind not in ("function", "custom"):
            raise UnboundedCost(f"Tool {str(kind)[:64]!r} runs inside the service.")
    return list_of(tools, "tools")


def text_format(body: dict[str, Any], name: str, tally: Tally) -> None:
    """A response format may carry a schema, which is part of the prompt."""
    if body.get(name) is not None:
        tally.document(object_of(body[name], name))


def no_state(body: dict[str, Any], *names: str) -> None:
    """Raises `UnboundedCost` where a field reaches for state that the service stores."""
    for name in names:
        if body.get(name) is not None and body[name] is not False:
            raise UnboundedCost(f"Field {name!r} uses state stored in the service, which has no known bound.")


TIERS = frozenset({"auto", "default", "flex", "priority", "reserved"})


def tier_of(value: Any, header_tier: str) -> str:
    """The service tier that body and headers ask for; `auto` may be any. Raises `Invalid`."""
    if value is None:
        return header_tier
    if type(value) is not str or value not in TIERS:
        raise Invalid(f"service_tier must be one of {', '.join(sorted(TIERS))}.")
    if header_tier not in {"default", value}:
        raise Invalid("Headers and body of the request contradict each other.")
    return value
