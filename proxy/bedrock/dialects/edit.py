"""Changing one field of a body and nothing else.

A body is forwarded as it was received unless policy must change it. A field that is absent is
spliced into the received bytes; only a field that is present makes the body be written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

Path = tuple[str, ...]


def at(body: Mapping[str, Any], path: Path) -> Any:
    """The value at a path of objects, None where it is absent (or null)."""
    value: Any = body
    for name in path:
        if type(value) is not dict:
            return None
        value = value.get(name)
    return value


def with_field(body: Mapping[str, Any], raw: bytes, path: Path, value: Any) -> bytes:
    """The body with `value` at `path`.

    `body` is what the client sent; `raw` may have been changed since, so it is read again where
    more than a splice is needed.
    """
    head, *rest = path
    if head not in body:
        for name in reversed(rest):
            value = {name: value}
        member = orjson.dumps({head: value})[1:-1]
        start = raw.index(b"{") + 1
        return raw[:start] + member + (b"," if body else b"") + raw[start:]
    return rewritten(raw, path, value)


def rewritten(raw: bytes, path: Path, value: Any) -> bytes:
    """The body written anew with `value` at `path`."""
    return orjson.dumps(replaced(orjson.loads(raw), path, value))


def replaced(body: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with `value` at `path`; only the objects on the path are copied."""
    head, *rest = path
    if rest:
        inner = body.get(head)
        value = replaced(inner if type(inner) is dict else {}, tuple(rest), value)
    return {**body, head: value}
