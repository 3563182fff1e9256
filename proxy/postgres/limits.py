"""Configured rates: reads and writes of the control plane. Deleted ones keep their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import LimitRecord, MissingError, ScopeRef
from proxy.postgres import scopes
from proxy.postgres.control import check_version
from proxy.postgres.tables import Limit

_SELECT = f"""
    SELECT x.id, {scopes.NAME} AS scope, x.subject, t.id AS tenant, x.requests_per_minute, x.tokens_per_minute,
           x.burst_seconds, x.concurrency, x.models, x.mode, x.version, x.created_at
      FROM limits x
      LEFT JOIN projects p ON x.scope = 'project' AND p.id = x.subject
      LEFT JOIN keys k ON x.scope = 'key' AND k.id = x.subject
      JOIN tenants t ON t.id = CASE x.scope WHEN 'tenant' THEN x.subject
                                            WHEN 'project' THEN p.tenant ELSE k.tenant END
     WHERE x.deleted_at IS NULL AND t.status <> 'deleted'"""  # noqa: S608 (constants only)


async def insert_limit(
    db: AsyncConnection, ident: UUID, scope: ScopeRef, values: Mapping[str, Any]
) -> LimitRecord:
    await db.execute(insert(Limit).values(id=ident, scope=scope.kind, subject=scope.subject, **values))
    return await get_limit(db, ident)


async def get_limit(db: AsyncConnection, ident: UUID, *, lock: bool = False) -> LimitRecord:
    """Raises `MissingError`."""
    statement = _SELECT + " AND x.id = :id" + (" FOR NO KEY UPDATE OF x" if lock else "")
    row = (await db.execute(text(statement), {"id": ident})).mappings().one_or_none()
    if row is None:
        raise MissingError("limit")
    return LimitRecord(**row)


async def list_limits(
    db: AsyncConnection,
    *,
    tenant: UUID | None,
    subject: UUID | None,
    after: UUID | None,
    limit: int,
) -> list[LimitRecord]:
    """In the order in which they were made."""
    statement = _SELECT
    parameters: dict[str, Any] = {"limit": limit}
    for condition, value in (("t.id = ", tenant), ("x.subject = ", subject), ("x.id > ", after)):
        if value is not None:
            name = f"p{len(parameters)}"
            statement += f" AND {condition}:{name}"
            parameters[name] = value
    rows = await db.execute(text(statement + " ORDER BY x.id LIMIT :limit"), parameters)
    return [LimitRecord(**row) for row in rows.mappings()]


async def update_limit(
    db: AsyncConnection, before: LimitRecord, changes: Mapping[str, Any], *, version: int | None
) -> LimitRecord:
    """Change a limit that was read with `lock`. Raises `VersionError`."""
    check_version(before.version, version)
    await db.execute(update(Limit).where(Limit.id == before.id).values(**changes))
    return await get_limit(db, before.id)


async def delete_limit(db: AsyncConnection, before: LimitRecord, *, version: int | None) -> None:
    """End a limit that was read with `lock`. Raises `VersionError`."""
    check_version(before.version, version)
    await db.execute(update(Limit).where(Limit.id == before.id).values(deleted_at=func.now()))
