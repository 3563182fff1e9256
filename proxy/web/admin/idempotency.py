"""`Idempotency-Key` on POST: the same request, sent again, is answered again and done once.

The key belongs to the principal and lives for a day. With another body it is refused (422); while the
first request runs, 409, and also when its process died: then nobody knows what became of it, and
the caller has to look. A refused request (4xx) keeps no key. Answers may hold fresh secrets, so they
are kept sealed.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from proxy.keys import SealError
from proxy.web.admin.access import Principal
from proxy.web.admin.core import Office
from proxy.web.admin.problems import Problem, Replay, conflict, invalid

log = logging.getLogger(__name__)

HEADER = "idempotency-key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_CLAIM = "idempotency_claim"
_KEPT_HEADERS = (b"content-type", b"etag", b"location", b"cache-control")


@dataclass(frozen=True, slots=True)
class Claim:
    """A first request, whose answer is to be kept."""

    office: Office
    principal: str
    key: str

    @property
    def context(self) -> str:
        return f"{self.principal}|{self.key}"

    async def settle(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        repeats = self.office.store.repeats
        if status >= 400:
            await repeats.release(self.principal, self.key)
            return
        answer = msgspec.json.encode((headers, body))
        sealed = self.office.keyring.seal_answer(answer, self.context)
        await repeats.keep(self.principal, self.key, status, sealed)


async def claim(connection: ASGIConnection[Any, Any, Any, Any], who: Principal, office: Office) -> None:
    """Part of the guard. Raises `Replay` with the first answer, or the `Problem` of a misused key."""
    given = connection.headers.getall(HEADER, [])
    if not given or connection.scope.get("method") != "POST":
        return
    if len(given) != 1 or _KEY.fullmatch(given[0]) is None:
        raise invalid(HEADER, "Idempotency-Key takes 1 to 255 visible ASCII characters")
    assert isinstance(connection, Request)  # noqa: S101 (the admin REST has no web sockets)
    target = f"POST {connection.scope['path']}\n".encode()
    request_hash = hashlib.sha256(target + await connection.body()).digest()
    mine = Claim(office, who.ident, given[0])
    first = await office.store.repeats.claim(mine.principal, mine.key, request_hash)
    if first is None:
        connection.scope["state"][_CLAIM] = mine
        return
    if first.request_hash != request_hash:
        raise Problem(422, "idempotency-key-reused", "this Idempotency-Key was used for another request")
    if first.status is None or first.sealed is None:
        raise conflict("the first request with this Idempotency-Key is still running, or its process died")
    try:
        headers, body = msgspec.json.decode(
            office.keyring.unseal_answer(first.sealed, mine.context), type=tuple[list[tuple[str, str]], bytes]
        )
    except SealError:
        raise conflict("the answer to this Idempotency-Key was kept under another master key") from None
    raise Replay(first.status, dict(headers), body)


class KeepAnswers(ASGIMiddleware):
    """Keeps the answer of a claimed request before the client sees it."""

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        messages: list[Message] = []

        async def hold(message: Message) -> None:
            if _CLAIM in scope["state"]:
                messages.append(message)
            else:
                await send(message)

        await next_app(scope, receive, hold)
        mine: Claim | None = scope["state"].pop(_CLAIM, None)
        if mine is not None:
            await self._settle(mine, messages)
        for message in messages:
            await send(message)

    async def _settle(self, mine: Claim, messages: list[Message]) -> None:
        status, headers, body = 500, [], b""
        for message in messages:
            if message["type"] == "http.response.start":
                status = message["status"]
                kept = [(name, value) for name, value in message["headers"] if name.lower() in _KEPT_HEADERS]
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in kept]
            elif message["type"] == "http.response.body":
                body += message["body"]
        try:
            await mine.settle(status, headers, body)
        except Exception:
            # the write itself is done; a repeat will be told that nobody knows
            log.exception("the answer to an idempotent request was not kept")
