"""Tenants and projects: reads and writes of the control plane.

Functions take a connection inside a transaction (see `control.writing`) and raise `MissingError`,
`ConflictError` or `VersionError`. Deleted tenants keep their rows, and their slugs, for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import MissingError, ProjectRecord, TenantRecord
from proxy.postgres.control import check_version, conflict_or
from proxy.postgres.roster import PostgresRoster
from proxy.postgres.tables import Project, Tenant

__all__ = [
    "PostgresRoster",
    "ProjectRecord",
    "TenantRecord",
    "get_project",
    "get_tenant",
    "insert_project",
    "insert_tenant",
    "list_projects",
    "list_tenants",
    "update_tenant",
]


_TENANT = (
    Tenant.id,
    Tenant.slug,
    Tenant.name,
    Tenant.plan,
    Tenant.time_zone,
    Tenant.status,
    Tenant.overrides,
    Tenant.version,
    Tenant.created_at,
)


async def insert_tenant(
    db: AsyncConnection,
    *,
    id: UUID,  # noqa: A002 (the column's name)
    slug: str,
    name: str,
    plan: str,
    time_zone: str,
    overrides: Mapping[str, Any],
) -> TenantRecord:
    """Raises `ConflictError` when the slug was ever used."""
    values = {"id": id, "slug": slug, "name": name, "plan": plan, "time_zone": time_zone}
    statement = insert(Tenant).values(**values, overrides=dict(overrides)).returning(*_TENANT)
    try:
        row = (await db.execute(statement)).mappings().one()
    except IntegrityError as error:
        raise conflict_or(error, f"there is or was a tenant {slug!r}") from error
    return TenantRecord(**row)


async def get_tenant(db: AsyncConnection, slug: str, *, lock: bool = False) -> TenantRecord:
    """Raises `MissingError`, for deleted tenants too."""
    statement = select(*_TENANT).where(Tenant.slug == slug, Tenant.status != "deleted")
    if lock:
        statement = statement.with_for_update(key_share=True)
    row = (await db.execute(statement)).mappings().one_or_none()
    if row is None:
        raise MissingError("tenant")
    return TenantRecord(**row)


async def list_tenants(
    db: AsyncConnection, *, after: str | None, limit: int, only: UUID | None = None
) -> list[TenantRecord]:
    """By slug."""
    statement = select(*_TENANT).where(Tenant.status != "deleted").order_by(Tenant.slug).limit(limit)
    if after is not None:
        statement = statement.where(Tenant.slug > after)
    if only is not None:
        statement = statement.where(Tenant.id == only)
    return [TenantRecord(**row) for row in (await db.execute(statement)).mappings()]


async def update_tenant(
    db: AsyncConnection, before: TenantRecord, changes: Mapping[str, Any], *, version: int | None
) -> TenantRecord:
    """Change a tenant that was read with `lock`. Raises `VersionError`."""
    check_version(before.version, version)
    statement = update(Tenant).where(Tenant.id == before.id).values(**changes).returning(*_TENANT)
    return TenantRecord(**(await db.execute(statement)).mappings().one())


def _projects() -> Any:
    return (
        select(
            Project.id,
            Project.tenant,
            Tenant.slug.label("tenant_slug"),
            Project.slug,
            Project.name,
            Project.status,
            Project.version,
            Project.created_at,
        )
        .join(Tenant, Tenant.id == Project.tenant)
        .where(Project.status != "deleted", Tenant.status != "deleted")
    )


async def insert_project(
    db: AsyncConnection,
    *,
    id: UUID,  # noqa: A002 (the column's name)
    tenant: TenantRecord,
    slug: str,
    name: str,
) -> ProjectRecord:
    """Raises `ConflictError` when the tenant has or had a project of that slug."""
    statement = insert(Project).values(id=id, tenant=tenant.id, slug=slug, name=name)
    try:
        await db.execute(statement)
    except IntegrityError as error:
        raise conflict_or(error, f"tenant {tenant.slug!r} has or had a project {slug!r}") from error
    return await get_project(db, tenant.slug, slug)


async def get_project(db: AsyncConnection, tenant: str, slug: str) -> ProjectRecord:
    """By slugs. Raises `MissingError`."""
    statement = _projects().where(Tenant.slug == tenant, Project.slug == slug)
    row = (await db.execute(statement)).mappings().one_or_none()
    if row is None:
        raise MissingError("project")
    return ProjectRecord(**row)


async def list_projects(
    db: AsyncConnection, tenant: UUID, *, after: str | None, limit: int
) -> list[ProjectRecord]:
    """By slug."""
    statement = _projects().where(Project.tenant == tenant).order_by(Project.slug).limit(limit)
    if after is not None:
        statement = statement.where(Project.slug > after)
    return [ProjectRecord(**row) for row in (await db.execute(statement)).mappings()]
