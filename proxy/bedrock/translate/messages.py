"""Messages in OpenAI's words as Converse's system blocks and messages.

Converse wants the roles to take turns, so neighbours of one role become one message; results of tools
are said by the user there.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from typing import Any

import orjson

from proxy.bedrock.dialects.bounds import list_of, object_of
from proxy.errors import Invalid

Block = dict[str, Any]

_DATA_URL = re.compile(
    r"data:([a-z0-9.+-]+/[a-z0-9.+-]+)(?:;charset=[a-z0-9-]+)?;base64,([A-Za-z0-9+/=\s]*)", re.IGNORECASE
)
_IMAGES = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
}
_DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}
_MESSAGE_FIELDS = frozenset(
    {
        "role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning_content", "reasoning",
        "annotations", "cache_control",
    }
)  # fmt: skip
_NAME_CHARACTERS = re.compile(r"[^A-Za-z0-9 ()\[\]-]+")


def messages_of(value: Any) -> tuple[list[Block], list[dict[str, Any]]]:
    """System blocks and messages. Raises `Invalid`."""
    system: list[Block] = []
    messages: list[dict[str, Any]] = []
    for message in list_of(value, "messages"):
        said = {n: v for n, v in object_of(message, "A message").items() if v is not None}
        if not said.keys() <= _MESSAGE_FIELDS:
            name = min(said.keys() - _MESSAGE_FIELDS)
            raise Invalid(f"Field {name[:64]!r} of a message is not supported for this model.")
        role = said.get("role")
        if role in ("system", "developer"):
            system += _content(said.get("content"))
            continue
        if role == "user":
            blocks = _content(said.get("content"))
        elif role == "assistant":
            blocks = _assistant(said)
        elif role == "tool":
            role, blocks = "user", [_result(said)]
        else:
            raise Invalid(f"Role {str(role)[:64]!r} is not supported for this model.")
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})
    return system, messages


def _assistant(said: dict[str, Any]) -> list[Block]:
    blocks = list(_content(said["content"])) if said.get("content") else []
    if said.get("refusal"):
        blocks.append({"text": said["refusal"]})
    for call in list_of(said.get("tool_calls", []), "tool_calls"):
        function = object_of(object_of(call, "A tool call").get("function"), "A tool call's function")
        blocks.append(
            {
                "toolUse": {
                    "toolUseId": call.get("id"),
                    "name": function.get("name"),
                    "input": _arguments(function.get("arguments")),
                }
            }
        )
    return blocks


def _arguments(text: Any) -> dict[str, Any]:
    """The model wrote them, so they may be no JSON; Converse takes nothing else."""
    if text is None or text == "":
        return {}
    try:
        found = orjson.loads(text) if type(text) is str else text
    except orjson.JSONDecodeError:
        found = None
    return object_of(found, "A tool call's arguments, as JSON,")


def _result(said: dict[str, Any]) -> Block:
    identifier = said.get("tool_call_id")
    if type(identifier) is not str:
        raise Invalid("A tool message needs a tool_call_id.")
    content = said.get("content", "")
    blocks = _content(content) if content else []  # Converse takes no blank text
    return {"toolResult": {"toolUseId": identifier, "content": blocks}}


def _content(content: Any) -> list[Block]:
    if type(content) is str:
        return [{"text": content}]
    return [
        block for part in list_of(content, "content") for block in _part(object_of(part, "A content part"))
    ]


def _part(part: dict[str, Any]) -> Iterator[Block]:
    kind = part.get("type")
    if kind == "text":
        yield {"text": part.get("text")}
    elif kind == "refusal":
        yield {"text": part.get("refusal")}
    elif kind == "image_url":
        image = part.get("image_url")
        media, data = _data(image.get("url") if type(image) is dict else image, "An image")
        if media not in _IMAGES:
            raise Invalid(f"Images of type {media[:64]!r} are not supported for this model.")
        yield {"image": {"format": _IMAGES[media], "source": {"bytes": data}}}
    elif kind == "file":
        yield _document(object_of(part.get("file"), "A file"))
    else:
        raise Invalid(f"Content parts of type {str(kind)[:64]!r} are not supported for this model.")
    control = part.get("cache_control")
    if control is not None:
        ttl = object_of(control, "cache_control").get("ttl")
        yield {"cachePoint": {"type": "default", **({"ttl": ttl} if ttl is not None else {})}}


def _document(file: dict[str, Any]) -> Block:
    if file.get("file_id") is not None:
        raise Invalid("Stored files are not served here: send the content itself.")
    media, data = _data(file.get("file_data"), "A file")
    if media not in _DOCUMENTS:
        raise Invalid(f"Files of type {media[:64]!r} are not supported for this model.")
    name = _NAME_CHARACTERS.sub(" ", str(file.get("filename") or "document")).strip()
    return {"document": {"format": _DOCUMENTS[media], "name": name or "document", "source": {"bytes": data}}}


def _data(url: Any, what: str) -> tuple[str, str]:
    """Media type and base64 of a data URL. Nothing is fetched for a client."""
    found = _DATA_URL.fullmatch(url) if type(url) is str else None
    if found is None:
        raise Invalid(f"{what} must be a data URL (data:image/png;base64,...): nothing is fetched for you.")
    data = "".join(found[2].split())
    try:
        binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error:
        raise Invalid(f"{what} is no base64.") from None
    return found[1].lower(), data
