"""What a budget or a limit is attached to: a tenant, a project or a key, by the name callers use."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import MissingError, ScopeKind, ScopeRef

#: SQL of the name of a scope, over budgets or limits `x`, tenants `t` and projects `p`
NAME = """CASE x.scope WHEN 'tenant' THEN 'tenant:' || t.slug
                       WHEN 'project' THEN 'project:' || t.slug || '/' || p.slug
                       ELSE 'key:' || x.subject::text END"""


_TENANT = """SELECT id AS subject, id AS tenant, slug, time_zone FROM tenants
              WHERE slug = :one AND status <> 'deleted'"""
_PROJECT = """SELECT p.id AS subject, t.id AS tenant, t.slug, t.time_zone
                FROM projects p JOIN tenants t ON t.id = p.tenant
               WHERE t.slug = :one AND p.slug = :two AND p.status <> 'deleted' AND t.status <> 'deleted'"""
_KEY = """SELECT k.id AS subject, t.id AS tenant, t.slug, t.time_zone
            FROM keys k JOIN tenants t ON t.id = k.tenant
           WHERE k.id = :one AND t.status <> 'deleted'"""


async def resolve(db: AsyncConnection, name: str) -> ScopeRef:
    """`tenant:acme`, `project:acme/search` or `key:<id>`. Raises `MissingError` for any other text."""
    kind, _, rest = name.partition(":")
    one, _, two = rest.partition("/")
    parameters: dict[str, str | UUID] = {"one": one}
    if kind == "key":
        try:
            parameters = {"one": UUID(rest)}
        except ValueError:
            raise MissingError(f"scope {name!r}") from None
    elif kind == "project":
        parameters["two"] = two
    statement = {"tenant": _TENANT, "project": _PROJECT, "key": _KEY}.get(kind)
    if statement is None or (kind == "tenant" and "/" in rest):
        raise MissingError(f"scope {name!r}")
    row = (await db.execute(text(statement), parameters)).mappings().one_or_none()
    if row is None:
        raise MissingError(f"scope {name!r}")
    return ScopeRef(
        kind=cast("ScopeKind", kind),
        name=f"key:{row['subject']}" if kind == "key" else name,
        subject=row["subject"],
        tenant=row["tenant"],
        tenant_slug=row["slug"],
        time_zone=row["time_zone"],
    )
