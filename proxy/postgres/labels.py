"""Interned names: models, targets, price versions and tags are small integers in the ledger.

Ids never change and rows are never removed, so a cached pair is right for ever; memory is bounded,
the oldest pair goes first. `proxy.ports.Labels` is one of its faces.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.errors import BankAway

#: longest value, characters
MAX_LENGTH = 2000
_AWAY = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
_ALL = text("SELECT id, kind, value FROM labels ORDER BY id DESC LIMIT :bound")
_FIND = text("SELECT id FROM labels WHERE kind = :kind AND value = :value")
_MAKE = text("INSERT INTO labels (kind, value) VALUES (:kind, :value) ON CONFLICT DO NOTHING RETURNING id")
_VALUES = text("SELECT id, kind, value FROM labels WHERE id = ANY(:ids)")


class PostgresLabels:
    """Both ways, id <-> (kind, value). Id 0 stands for nothing and has the value ''."""

    def __init__(self, engine: AsyncEngine, *, max_cached: int = 50_000) -> None:
        self._engine = engine
        self._max_cached = max_cached
        self._ids: dict[tuple[int, str], int] = {}
        self._values: OrderedDict[int, tuple[int, str]] = OrderedDict()
        self._making: dict[tuple[int, str], asyncio.Future[int]] = {}

    async def load(self) -> None:
        """Fill the memory with the newest labels. Raises BankAway."""
        try:
            async with self._engine.connect() as db:
                rows = (await db.execute(_ALL, {"bound": self._max_cached})).all()
        except _AWAY as error:
            raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error
        for number, kind, value in reversed(rows):
            self._keep(number, kind, value)

    def known(self, kind: int, value: str) -> int | None:
        """The id, when it is in memory. An empty value is always 0."""
        if not value:
            return 0
        return self._ids.get((kind, value))

    async def intern(self, kind: int, value: str) -> int:
        """The id, made if need be. Raises BankAway; ValueError above MAX_LENGTH or with a NUL."""
        number = self.known(kind, value)
        if number is not None:
            return number
        if len(value) > MAX_LENGTH or "\x00" in value:
            raise ValueError("not a label: too long, or it holds a NUL")
        running = self._making.get((kind, value))
        if running is None:
            running = asyncio.ensure_future(self._fetch_or_make(kind, value))
            self._making[kind, value] = running
            running.add_done_callback(lambda _: self._making.pop((kind, value), None))
        return await asyncio.shield(running)

    async def values(self, ids: Iterable[int]) -> dict[int, str]:
        """The values of these ids; unknown ids are missing. Raises BankAway."""
        wanted = set(ids)
        found = {number: self._values[number][1] for number in wanted if number in self._values}
        missing = wanted - found.keys() - {0}
        if missing:
            try:
                async with self._engine.connect() as db:
                    rows = (await db.execute(_VALUES, {"ids": sorted(missing)})).all()
            except _AWAY as error:
                raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error
            for number, kind, value in rows:
                self._keep(number, kind, value)
                found[number] = value
        return found | ({0: ""} if 0 in wanted else {})

    async def _fetch_or_make(self, kind: int, value: str) -> int:
        label = {"kind": kind, "value": value}
        try:
            async with self._engine.begin() as db:
                number = await db.scalar(_FIND, label)
                if number is None:
                    number = await db.scalar(_MAKE, label)
                if number is None:  # another process made it between the two
                    number = await db.scalar(_FIND, label)
        except _AWAY as error:
            raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error
        if number is None:
            raise BankAway("a label vanished while it was made")
        self._keep(number, kind, value)
        return int(number)

    def _keep(self, number: int, kind: int, value: str) -> None:
        self._ids[kind, value] = number
        self._values[number] = (kind, value)
        while len(self._values) > self._max_cached:
            _, pair = self._values.popitem(last=False)
            self._ids.pop(pair, None)
