"""What the server's parser let through and nobody behind it should have to think about.

The application never sees a request whose head can be read in two ways: no host or several, a host
that is none, a transfer coding besides `chunked`. Such a request is answered 400 in the dialect of
its path and its connection is closed, so that nothing that follows on it is taken for a request.

The bodies of the control plane get the deadline that those of calls have.

The framework routes by the decoded path and forgives doubled slashes. A path that only becomes one of
the control plane's by that is no route: a rule in front of the proxy that looks for `/admin` sees every
request that gets there.

What the parser (hyper) refuses itself never gets here. What it settles itself, by RFC 9112, is listed
in docs/security.md: a Content-Length beside a Transfer-Encoding is dropped and the connection closed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.errors import Invalid, NotServed, Refusal
from proxy.web import problems
from proxy.web.inference import MOUNTS
from proxy.web.routes import wire_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

#: RFC 3986 `host [":" port]`, without percent-encoding and user
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

#: decoded beginnings of paths that are the framework's, in any spelling that it forgives
_DESK = re.compile(r"/*(?:admin|me|health)(?:/|$)")
#: raw beginnings of paths that are inference whatever follows
_INFERENCE = tuple(f"{mount}/".encode() for mount in MOUNTS)
_PLAIN = re.compile(rb"/(?:admin|me|health)(?:/|$)")


class Door:
    """An ASGI application in front of another one.

    `inference` serves what is plainly under an inference path without the framework, whose routing
    would lead there too; any other spelling of such a path takes the way through `inner`.
    """

    def __init__(
        self, inner: Application, inference: Application | None = None, body_seconds: float = 30.0
    ) -> None:
        self._inner = inner
        self._inference = inference or inner
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        plainly = scope["raw_path"].startswith(_INFERENCE)
        refusal = _refusal(scope, plainly)
        if refusal is None:
            if not plainly and _DESK.match(scope["path"]):
                receive = _in_time(receive, self._body_seconds)
            await (self._inference if plainly else self._inner)(scope, receive, send)
            return
        status, headers, body = problems.render(wire_of(scope["raw_path"]), refusal)
        if isinstance(refusal, Invalid) and scope["http_version"] != "2":
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _in_time(receive: Receive, seconds: float) -> Receive:
    """`receive` that raises `Invalid` for a body that is late or breaks off. Inference reads by itself."""
    deadline = asyncio.get_running_loop().time() + seconds
    whole = False

    async def in_time() -> Any:
        nonlocal whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise Invalid(f"the body did not arrive within {seconds:g} s", reason="slow_body") from None
        if message["type"] == "http.disconnect":
            raise Invalid("the body broke off or was wrongly framed", reason="broken_body")
        whole = not message.get("more_body", False)
        return message

    return in_time


def _refusal(scope: Scope, plainly: bool) -> Refusal | None:
    """`plainly`: the raw path is inference, so that its decoded form cannot be the control plane's."""
    why = ambiguity(scope["headers"])
    if why is not None:
        return Invalid(why, reason="ambiguous")
    if not plainly and _DESK.match(scope["path"]) and not _PLAIN.match(scope["raw_path"]):
        return NotServed("no such route")
    return None


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
