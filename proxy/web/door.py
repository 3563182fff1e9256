"""What the server's parser let through and nobody behind it should have to think about.

The application never sees a request whose head can be read in two ways: no host or several, a host
that is none, a transfer coding besides `chunked`. Such a request is answered 400 in the dialect of
its path and its connection is closed, so that nothing that follows on it is taken for a request.

What the parser (hyper) refuses itself never gets here. What it settles itself, by RFC 9112, is listed
in docs/security.md: a Content-Length beside a Transfer-Encoding is dropped and the connection closed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.errors import Invalid
from proxy.web import problems
from proxy.web.routes import wire_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

#: RFC 3986 `host [":" port]`, without percent-encoding and user
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class Door:
    """An ASGI application in front of another one."""

    def __init__(self, inner: Application) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = ambiguity(scope["headers"]) if scope["type"] == "http" else None
        if why is None:
            await self._inner(scope, receive, send)
            return
        path = scope.get("raw_path") or scope["path"].encode()
        status, headers, body = problems.render(wire_of(path), Invalid(why, reason="ambiguous"))
        if scope["http_version"] != "2":
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def ambiguity(raw_headers: list[tuple[bytes, bytes]]) -> str | None:
    """Why the head may be read in two ways, None when it may not. Names are in lower case."""
    hosts = 0
    codings: list[bytes] = []
    for name, value in raw_headers:
        if name in {b"host", b":authority"}:
            hosts += name == b"host"
            if _HOST.fullmatch(value) is None:
                return "the Host header is missing or not a host"
        elif name == b"transfer-encoding":
            codings.append(value)
    if hosts > 1:
        return "the request has more than one Host header"
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        return "the only transfer coding that is accepted is chunked, once"
    return None
