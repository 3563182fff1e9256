"""The cache over Redis: `proxy.ports.Cache`.

    1. A look-up, with the turn to make what is missing, is one EVALSHA of `cache.lua`.
    2. Redis away, slow or wrong is a miss. After a failure nobody asks for a second, so a dead Redis
       delays one call and not every call.
    3. Giving a turn back, or keeping it, is sent and not waited for; a lost one ends by itself.

It wants a connection of its own: an entry may be large, and limits must not wait behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from uuid import UUID

from redis.exceptions import ResponseError

from proxy.errors import Unavailable
from proxy.ports import NOT_FOUND, Answer, Found, Shelf
from proxy.redis.client import Argument, RedisAway, RedisClient, Script
from proxy.redis.entries import Entries, TenantKey, UnreadableError

log = logging.getLogger("tollhouse.cache")

SCRIPT = Script(files("proxy.redis").joinpath("cache.lua").read_text(encoding="utf-8"))
#: a turn that nobody renews ends after this; a killed worker holds nobody up for longer
TURN_MS = 15_000
_PROMISE_MS = 24 * 3600 * 1000
_SILENCE_S = 1.0
#: entries from this size on are packed and unpacked in a thread
_LARGE_BYTES = 16 << 10
_BUSY = Found(busy=True)
_FAILURES = (RedisAway, ResponseError)


class RedisCache:
    """`key_of` gives the key that a tenant's entries are sealed under; None leaves them open.

    `on_failure` is told of every call that Redis did not answer.
    """

    def __init__(
        self,
        redis: RedisClient,
        *,
        key_of: TenantKey | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis = redis
        self._entries = Entries(key_of)
        self._on_failure = on_failure
        self._silent_until = 0.0

    # ---- proxy.ports.Cache -------------------------------------------------------------------

    async def find(self, tenant: UUID, key: bytes, owner: bytes) -> Found:
        try:
            reply = await self._run(tenant, key, "find", owner)
            if reply[0] == 2:
                return _BUSY
            return NOT_FOUND if reply[0] == 0 else Found(await self._unpack(tenant, key, reply[1]))
        except _FAILURES as error:
            self._failed(error)
        except UnreadableError as error:
            log.info("an entry of the cache cannot be read: %s", error)
        return NOT_FOUND

    async def store(
        self, tenant: UUID, key: bytes, owner: bytes, answer: Answer, ttl_seconds: int, budget_bytes: int
    ) -> Shelf | None:
        try:
            if len(answer.body) < _LARGE_BYTES:
                data = self._entries.pack(tenant, key, answer)
            else:
                data = await asyncio.to_thread(self._entries.pack, tenant, key, answer)
            more = (data, ttl_seconds * 1000, budget_bytes, answer.model, _prefix(tenant))
            reply = await self._run(tenant, key, "store", owner, *more)
            return Shelf(reply[0] == 1, *reply[1:])
        except _FAILURES as error:
            self._failed(error)
            return None

    def announce(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        if time.monotonic() >= self._silent_until:
            turn = _keys(tenant, key)[1]
            _unheard(self._redis.submit("SET", turn, owner, "NX", "PX", TURN_MS))

    def leave(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        if time.monotonic() >= self._silent_until:
            _unheard(self._submit(tenant, key, "leave", owner))

    def renew(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        if time.monotonic() >= self._silent_until:
            _unheard(self._submit(tenant, key, "renew", owner))

    async def promise(self, tenant: UUID, key: bytes, request: bytes) -> bool:
        try:
            kept = await self._run(tenant, key, "promise", request, _PROMISE_MS)
        except _FAILURES as error:
            self._failed(error)
            return True
        return bool(kept == 1)

    async def purge(self, tenant: UUID, model: str | None = None) -> int:
        deleted = 0
        cursor = b"0"
        try:
            while True:
                more = (cursor, model or "", _prefix(tenant))
                cursor, count = await self._submit(tenant, b"", "purge", b"", *more)
                deleted += int(count)
                if cursor == b"0":
                    return deleted
        except _FAILURES as error:
            raise Unavailable(
                f"Redis did not answer; {deleted} answers are deleted, repeat the purge", reason="cache_away"
            ) from error

    # ---- inside ------------------------------------------------------------------------------

    def _submit(
        self, tenant: UUID, key: bytes, op: str, owner: bytes, *more: Argument
    ) -> asyncio.Future[Any]:
        keys = _keys(tenant, key)
        if op == "promise":
            keys = (f"th:{{{tenant}}}:p:{key.hex()}", *keys[1:])
        return self._redis.run(SCRIPT, keys, (op, owner, TURN_MS, key.hex(), *more))

    async def _run(self, tenant: UUID, key: bytes, op: str, owner: bytes, *more: Argument) -> Any:
        if time.monotonic() < self._silent_until:
            raise RedisAway("it did not answer a moment ago")
        return await self._submit(tenant, key, op, owner, *more)

    async def _unpack(self, tenant: UUID, key: bytes, data: bytes) -> Answer:
        if len(data) < _LARGE_BYTES:
            return self._entries.unpack(tenant, key, data)
        return await asyncio.to_thread(self._entries.unpack, tenant, key, data)

    def _failed(self, error: Exception) -> None:
        self._on_failure()
        if time.monotonic() >= self._silent_until:
            log.warning("the cache is away: %s", error)
            self._silent_until = time.monotonic() + _SILENCE_S


def _prefix(tenant: UUID) -> str:
    return f"th:{{{tenant}}}:c:"


def _keys(tenant: UUID, key: bytes) -> tuple[str, str, str, str]:
    prefix, name = _prefix(tenant), key.hex()
    return (
        f"{prefix}{name}",
        f"th:{{{tenant}}}:f:{name}",
        f"th:{{{tenant}}}:cache:index",
        f"th:{{{tenant}}}:cache:meta",
    )


def _unheard(*sent: asyncio.Future[Any]) -> None:
    """Nobody waits for these replies; a failure is the next call's to notice."""
    for future in sent:
        future.add_done_callback(_seen)


def _seen(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
