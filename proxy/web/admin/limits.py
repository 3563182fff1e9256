"""`/limits`: rates of tenants, projects and keys. The directory carries a change to every replica."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast
from uuid import UUID

from litestar import Controller, Response, delete, get, patch, post
from litestar.params import Parameter

from proxy.clock import uuid7
from proxy.domain.control import LimitRecord, ScopeRef
from proxy.web.admin import paging
from proxy.web.admin.access import Principal, of_own_tenant
from proxy.web.admin.core import (
    PAGE,
    Cursor,
    IfMatch,
    Limit,
    Office,
    Page,
    expected,
    given,
    record,
    shown,
    utc,
)
from proxy.web.admin.problems import invalid
from proxy.web.admin.store import Session
from proxy.web.admin.tenants import own_tenant
from proxy.web.schemas import LimitIn, LimitOut, LimitPatch, Mode

_DIMENSIONS = ("requests_per_minute", "tokens_per_minute", "concurrency")
ScopeFilter = Annotated[
    str | None,
    Parameter(query="scope", description="`tenant:acme`, `project:acme/search` or `key:<id>`"),
]
TenantFilter = Annotated[str | None, Parameter(description="slug: everything inside that tenant")]


@dataclass(frozen=True, slots=True)
class LimitDesk:
    office: Office

    async def create(self, who: Principal, body: LimitIn) -> tuple[LimitOut, int]:
        values: dict[str, Any] = {
            "requests_per_minute": body.requests_per_minute,
            "tokens_per_minute": body.tokens_per_minute,
            "concurrency": body.concurrency,
            "burst_seconds": 60 if body.burst_seconds is None else body.burst_seconds,
            "models": self.office.known_models(body.models),
            "mode": body.mode or "enforce",
        }
        _limits_something(values)
        async with self.office.store.writing() as db:
            scope = await own_scope(db, who, body.scope)
            may_govern(who, scope.kind)
            made = await db.insert_limit(uuid7(), scope, values)
            out = limit_out(made)
            await record(db, who, "limit.create", f"limit:{made.id}", after=out)
        return out, made.version

    async def read(self, who: Principal, ident: UUID) -> tuple[LimitOut, int]:
        async with self.office.store.reading() as db:
            found = await _own_limit(db, who, ident)
        return limit_out(found), found.version

    async def list(
        self, who: Principal, scope: str | None, tenant: str | None, limit: int, cursor: str | None
    ) -> Page[LimitOut]:
        after = paging.decode_id(cursor)
        async with self.office.store.reading() as db:
            tenant_id, subject = await filters(db, who, scope, tenant)
            found = await db.list_limits(tenant=tenant_id, subject=subject, after=after, limit=limit + 1)
        return Page(
            items=[limit_out(row) for row in found[:limit]],
            next=paging.encode(str(found[limit - 1].id)) if len(found) > limit else None,
        )

    async def change(
        self, who: Principal, ident: UUID, body: LimitPatch, version: int | None
    ) -> tuple[LimitOut, int]:
        changes = given(body)
        if "models" in changes:
            changes["models"] = self.office.known_models(changes["models"])
        async with self.office.store.writing() as db:
            before = await _own_limit(db, who, ident, lock=True)
            may_govern(who, before.scope.partition(":")[0])
            _limits_something({name: getattr(before, name) for name in _DIMENSIONS} | changes)
            after = await db.update_limit(before, changes, version=version)
            out = limit_out(after)
            await record(db, who, "limit.change", f"limit:{ident}", before=limit_out(before), after=out)
        return out, after.version

    async def delete(self, who: Principal, ident: UUID, version: int | None) -> None:
        async with self.office.store.writing() as db:
            before = await _own_limit(db, who, ident, lock=True)
            may_govern(who, before.scope.partition(":")[0])
            await db.delete_limit(before, version=version)
            await record(db, who, "limit.delete", f"limit:{ident}", before=limit_out(before))


def may_govern(who: Principal, scope: str) -> None:
    """A tenant-admin divides what its tenant was given; it does not decide how much that is."""
    if scope == "tenant":
        who.need_all_tenants()


async def own_scope(db: Session, who: Principal, name: str) -> ScopeRef:
    """Raises `MissingError`, also for another tenant's scope."""
    found = await db.resolve_scope(name)
    of_own_tenant(who, found.tenant, f"scope {name!r}")
    return found


async def filters(
    db: Session, who: Principal, scope: str | None, tenant: str | None
) -> tuple[UUID | None, UUID | None]:
    """(tenant, subject) that a list is narrowed to; a tenant-admin's is always its own."""
    subject = None if scope is None else (await own_scope(db, who, scope)).subject
    tenant_id = who.tenant if tenant is None else (await own_tenant(db, who, tenant)).id
    return tenant_id, subject


async def _own_limit(db: Session, who: Principal, ident: UUID, *, lock: bool = False) -> LimitRecord:
    found = await db.get_limit(ident, lock=lock)
    of_own_tenant(who, found.tenant, "limit")
    return found


def _limits_something(values: dict[str, Any]) -> None:
    if all(values[name] is None for name in _DIMENSIONS):
        raise invalid("", f"this limits nothing: give one of {', '.join(_DIMENSIONS)}")


def limit_out(row: LimitRecord) -> LimitOut:
    return LimitOut(
        id=row.id,
        scope=row.scope,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        burst_seconds=row.burst_seconds,
        concurrency=row.concurrency,
        models=row.models,
        mode=cast("Mode", row.mode),
        created_at=utc(row.created_at),
    )


class LimitController(Controller):
    path = "/limits"
    tags = ("limits",)

    @post(summary="Make a limit")
    async def create(self, desk_of_limits: LimitDesk, who: Principal, data: LimitIn) -> Response[LimitOut]:
        out, version = await desk_of_limits.create(who, data)
        return shown(out, version, status=201, location=f"/admin/v1/limits/{out.id}")

    @get(summary="List limits")
    async def list(
        self,
        desk_of_limits: LimitDesk,
        who: Principal,
        scope_: ScopeFilter = None,
        tenant: TenantFilter = None,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[LimitOut]:
        return await desk_of_limits.list(who, scope_, tenant, limit, cursor)

    @get("/{ident:uuid}", summary="Show a limit")
    async def read(self, desk_of_limits: LimitDesk, who: Principal, ident: UUID) -> Response[LimitOut]:
        return shown(*await desk_of_limits.read(who, ident))

    @patch("/{ident:uuid}", summary="Change a limit; its scope stays")
    async def change(
        self,
        desk_of_limits: LimitDesk,
        who: Principal,
        ident: UUID,
        data: LimitPatch,
        if_match: IfMatch = None,
    ) -> Response[LimitOut]:
        return shown(*await desk_of_limits.change(who, ident, data, expected(if_match)))

    @delete("/{ident:uuid}", summary="Delete a limit")
    async def remove(
        self, desk_of_limits: LimitDesk, who: Principal, ident: UUID, if_match: IfMatch = None
    ) -> None:
        await desk_of_limits.delete(who, ident, expected(if_match))
