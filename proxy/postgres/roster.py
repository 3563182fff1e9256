"""The rows of the directory, read whole and by their changes.

Every write of a directory table takes the one row of `directory_epoch` and stamps its own row with
the new version: versions become visible in their order. So whoever has seen version n misses nothing
by asking for rows with a larger one. The epoch is read before the rows: what is committed in between
comes twice rather than never.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import asyncpg
import msgspec
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.domain.policy import Limit
from proxy.domain.roster import CredentialRow, KeyRow, ProjectRow, Roster, TenantRow
from proxy.errors import BankAway

CHANNEL = "tollhouse_directory"
LOAD_SECONDS = 30.0
CHANGES_SECONDS = 0.9
#: between two tries to be told of changes
LISTEN_AGAIN_SECONDS = 5.0

_EPOCH = "SELECT version FROM directory_epoch"
_TENANTS = "SELECT id, slug, plan, status, nullif(overrides, '{}')::text AS overrides FROM tenants"
_PROJECTS = "SELECT id, tenant, slug, status FROM projects"
_KEYS = """SELECT id, tenant, project, name, status, nullif(overrides, '{}')::text AS overrides,
                  floor(extract(epoch FROM expires_at))::bigint AS expires_at FROM keys"""
_CREDENTIALS = """SELECT id, key, bearer_digest AS digest, access_key_id, sigv4_ciphertext AS sealed,
                         floor(extract(epoch FROM expires_at))::bigint AS expires_at,
                         revoked_at IS NOT NULL AS revoked FROM credentials"""
_LIMITS = """SELECT id, scope, subject, requests_per_minute, tokens_per_minute, burst_seconds, concurrency,
                    models, mode, deleted_at IS NOT NULL AS gone FROM limits"""

_Rows = Iterable[Any]


class PostgresRoster:
    """Reads the directory's rows. Holds one connection of the pool to be told of changes."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._changed = asyncio.Event()
        self._listener: tuple[AsyncConnection, Any] | None = None
        self._listen_at = 0.0

    async def load(self) -> Roster:
        """Everything that could matter from now on. Raises `BankAway`."""
        async with _answering(LOAD_SECONDS), self._driver() as driver:
            mark = await driver.fetchval(_EPOCH)
            return Roster(
                mark=mark,
                tenants=_tenants(await driver.fetch(_TENANTS)),
                projects=_projects(await driver.fetch(_PROJECTS)),
                keys=_keys(await driver.fetch(_KEYS)),
                credentials=_credentials(await driver.fetch(_CREDENTIALS)),
                limits=_limits(await driver.fetch(_LIMITS + " WHERE deleted_at IS NULL")),
            )

    async def changes(self, mark: int) -> Roster:
        """Rows that changed after `mark`. Raises `BankAway`."""
        async with _answering(CHANGES_SECONDS), self._driver() as driver:
            now = await driver.fetchval(_EPOCH)
            if now == mark:
                return Roster(mark=mark)
            since = " WHERE changed > $1"
            limits = await driver.fetch(_LIMITS + since, mark)
            return Roster(
                mark=now,
                tenants=_tenants(await driver.fetch(_TENANTS + since, mark)),
                projects=_projects(await driver.fetch(_PROJECTS + since, mark)),
                keys=_keys(await driver.fetch(_KEYS + since, mark)),
                credentials=_credentials(await driver.fetch(_CREDENTIALS + since, mark)),
                limits=_limits(row for row in limits if not row["gone"]),
                limits_gone=tuple(row["id"] for row in limits if row["gone"]),
            )

    async def wait(self, seconds: float) -> None:
        """Sleep, or wake as soon as Postgres announces a change. Never raises."""
        await self._listen()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        """Stop being told, and give the connection back."""
        self._listen_at = float("inf")
        await self._forget()

    async def _listen(self) -> None:
        if self._listener is not None:
            if not self._listener[1].is_closed():
                return
            await self._forget()
        if time.monotonic() < self._listen_at:
            return
        self._listen_at = time.monotonic() + LISTEN_AGAIN_SECONDS
        with contextlib.suppress(BankAway):
            async with _answering(CHANGES_SECONDS):
                connection = await self._engine.connect()
                try:
                    driver = (await connection.get_raw_connection()).driver_connection
                    assert driver is not None  # noqa: S101 (a fresh connection has one)
                    await driver.add_listener(CHANNEL, self._announced)
                except BaseException:
                    await connection.invalidate()
                    await connection.close()
                    raise
                self._listener = (connection, driver)

    def _announced(self, *_: object) -> None:
        self._changed.set()

    async def _forget(self) -> None:
        if self._listener is None:
            return
        connection, driver = self._listener
        self._listener = None
        with contextlib.suppress(SQLAlchemyError, asyncpg.PostgresError, OSError, TimeoutError):
            async with asyncio.timeout(CHANGES_SECONDS):
                if driver.is_closed():
                    await connection.invalidate()
                else:
                    await driver.remove_listener(CHANNEL, self._announced)
                await connection.close()

    @contextlib.asynccontextmanager
    async def _driver(self) -> AsyncIterator[Any]:
        """A connection outside any transaction, without SQLAlchemy's cost per row."""
        async with self._engine.connect() as connection:
            yield (await connection.get_raw_connection()).driver_connection


@contextlib.asynccontextmanager
async def _answering(seconds: float) -> AsyncIterator[None]:
    """Within `seconds`, or `BankAway`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error


def _json(value: str | None) -> Any:
    return None if value is None else msgspec.json.decode(value)


def _tenants(rows: _Rows) -> tuple[TenantRow, ...]:
    return tuple(
        TenantRow(
            id=row["id"],
            slug=row["slug"],
            plan=row["plan"],
            status=row["status"],
            overrides=_json(row["overrides"]),
        )
        for row in rows
    )


def _projects(rows: _Rows) -> tuple[ProjectRow, ...]:
    return tuple(
        ProjectRow(id=row["id"], tenant=row["tenant"], slug=row["slug"], status=row["status"]) for row in rows
    )


def _keys(rows: _Rows) -> tuple[KeyRow, ...]:
    return tuple(
        KeyRow(
            id=row["id"],
            tenant=row["tenant"],
            project=row["project"],
            name=row["name"],
            status=row["status"],
            expires_at=row["expires_at"],
            overrides=_json(row["overrides"]),
        )
        for row in rows
    )


def _credentials(rows: _Rows) -> tuple[CredentialRow, ...]:
    return tuple(
        CredentialRow(
            id=row["id"],
            key=row["key"],
            digest=row["digest"],
            access_key_id=row["access_key_id"],
            sealed=row["sealed"],
            expires_at=row["expires_at"],
            revoked=row["revoked"],
        )
        for row in rows
    )


def _limits(rows: _Rows) -> tuple[Limit, ...]:
    return tuple(
        Limit(
            id=row["id"],
            scope=row["scope"],
            subject=row["subject"],
            requests_per_minute=row["requests_per_minute"],
            tokens_per_minute=row["tokens_per_minute"],
            burst_seconds=row["burst_seconds"],
            concurrency=row["concurrency"],
            models=None if row["models"] is None else frozenset(row["models"]),
            mode=row["mode"],
        )
        for row in rows
    )
