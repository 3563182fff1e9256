"""Principals of the admin REST: reads and writes. Only digests of their keys are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import AdminRecord, MissingError
from proxy.postgres.tables import Admin, Tenant


def _admins() -> Any:
    return select(
        Admin.id,
        Admin.name,
        Admin.role,
        Admin.tenant,
        Tenant.slug.label("tenant_slug"),
        Admin.created_at,
        Admin.revoked_at,
    ).outerjoin(Tenant, Tenant.id == Admin.tenant)


async def insert_admin(
    db: AsyncConnection,
    *,
    ident: UUID,
    name: str,
    role: str,
    tenant: UUID | None,
    digest: bytes,
    pepper_id: int,
) -> AdminRecord:
    values = {"name": name, "role": role, "tenant": tenant, "digest": digest, "pepper_id": pepper_id}
    await db.execute(insert(Admin).values(id=ident, **values))
    return await get_admin(db, ident)


async def get_admin(db: AsyncConnection, ident: UUID) -> AdminRecord:
    """Revoked ones too. Raises `MissingError`."""
    row = (await db.execute(_admins().where(Admin.id == ident))).mappings().one_or_none()
    if row is None:
        raise MissingError("admin")
    return AdminRecord(**row)


async def find_admin(db: AsyncConnection, digests: Sequence[bytes]) -> AdminRecord | None:
    """The live principal whose key has one of these digests."""
    statement = _admins().where(Admin.digest.in_(digests), Admin.revoked_at.is_(None))
    statement = statement.where(func.coalesce(Tenant.status, "active") != "deleted")
    row = (await db.execute(statement)).mappings().first()
    return None if row is None else AdminRecord(**row)


async def list_admins(db: AsyncConnection, *, after: UUID | None, limit: int) -> list[AdminRecord]:
    """Live ones, in the order in which they were made."""
    statement = _admins().where(Admin.revoked_at.is_(None)).order_by(Admin.id).limit(limit)
    if after is not None:
        statement = statement.where(Admin.id > after)
    return [AdminRecord(**row) for row in (await db.execute(statement)).mappings()]


async def under_other_peppers(db: AsyncConnection, pepper_id: int) -> int:
    """Live admin keys whose digest needs another master key than the current one, or may need it."""
    live = select(func.count()).select_from(Admin).where(Admin.revoked_at.is_(None))
    return int(await db.scalar(live.where(Admin.pepper_id.is_distinct_from(pepper_id))) or 0)


async def revoke_admin(db: AsyncConnection, ident: UUID) -> AdminRecord:
    """Idempotent. Raises `MissingError`."""
    when = func.coalesce(Admin.revoked_at, func.now())
    await db.execute(update(Admin).where(Admin.id == ident).values(revoked_at=when))
    return await get_admin(db, ident)
