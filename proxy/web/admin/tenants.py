"""`/tenants` and `/tenants/{id}/projects`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, cast
from zoneinfo import available_timezones

from litestar import Controller, Response, delete, get, patch, post

from proxy.clock import uuid7
from proxy.domain.control import ProjectRecord, ScopeRef, TenantRecord
from proxy.errors import Unavailable
from proxy.policyfile.materialising import materialise
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
from proxy.web.desk_schemas import PurgedOut, PurgeIn
from proxy.web.schemas import ProjectIn, ProjectOut, TenantIn, TenantOut, TenantPatch


@dataclass(frozen=True, slots=True)
class TenantDesk:
    office: Office

    async def create(self, who: Principal, body: TenantIn) -> tuple[TenantOut, int]:
        """With the budgets of its plan, in one transaction."""
        who.need_all_tenants()
        overrides = self._checked(body.plan, body.overrides)
        if body.time_zone not in available_timezones():
            raise invalid("time_zone", f"there is no time zone {body.time_zone!r} in the IANA database")
        async with self.office.store.writing() as db:
            if not await db.knows_time_zone(body.time_zone):
                raise invalid("time_zone", f"the database does not know the time zone {body.time_zone!r}")
            made = await db.insert_tenant(ident=uuid7(), slug=body.id, name=body.name, plan=body.plan, time_zone=body.time_zone,
                overrides=overrides,
            )  # fmt: skip
            await self._give_budgets(db, made)
            out = tenant_out(made)
            await record(db, who, "tenant.create", f"tenant:{made.slug}", after=out)
        return out, made.version

    async def read(self, who: Principal, slug: str) -> tuple[TenantOut, int]:
        async with self.office.store.reading() as db:
            found = await own_tenant(db, who, slug)
        return tenant_out(found), found.version

    async def list(self, who: Principal, limit: int, cursor: str | None) -> Page[TenantOut]:
        after = paging.decode(cursor, str)
        async with self.office.store.reading() as db:
            found = await db.list_tenants(after=after, limit=limit + 1, only=who.tenant)
        return Page(
            items=[tenant_out(row) for row in found[:limit]],
            next=paging.encode(found[limit - 1].slug) if len(found) > limit else None,
        )

    async def change(
        self, who: Principal, slug: str, body: TenantPatch, version: int | None
    ) -> tuple[TenantOut, int]:
        who.need_all_tenants()
        changes = given(body)
        async with self.office.store.writing() as db:
            before = await db.get_tenant(slug, lock=True)
            plan = changes.get("plan", before.plan)
            changes["overrides"] = self._checked(plan, changes.get("overrides", before.overrides))
            after = await db.update_tenant(before, changes, version=version)
            if after.plan != before.plan:
                await self._give_budgets(db, after)
            out = tenant_out(after)
            await record(db, who, "tenant.change", f"tenant:{slug}", before=tenant_out(before), after=out)
        return out, after.version

    async def delete(self, who: Principal, slug: str, version: int | None) -> None:
        """A tombstone: its keys are worth nothing at once; names, secrets and tags are removed, its slug
        and its money stay. The trail keeps only that it was deleted, and by whom.
        """
        who.need_all_tenants()
        async with self.office.store.writing() as db:
            before = await db.get_tenant(slug, lock=True)
            await db.erase_tenant(before)
            await db.update_tenant(before, {"status": "deleted"}, version=version)
            await record(db, who, "tenant.delete", f"tenant:{slug}")
        with contextlib.suppress(Unavailable):  # what is cached for a tenant without keys only ages
            await self.office.cache().purge(before.id)

    async def purge(self, who: Principal, slug: str, body: PurgeIn) -> PurgedOut:
        """Forget a tenant's cached answers, of one base model or of all. Raises `Unavailable` when the
        cache does not answer.
        """
        async with self.office.store.reading() as db:
            tenant = await own_tenant(db, who, slug)
        if body.model is not None:
            self.office.known_models([body.model], "model")
        out = PurgedOut(deleted=await self.office.cache().purge(tenant.id, body.model), model=body.model)
        async with self.office.store.writing() as db:
            await record(db, who, "cache.purge", f"tenant:{slug}", after=out)
        return out

    async def create_project(self, who: Principal, slug: str, body: ProjectIn) -> tuple[ProjectOut, int]:
        async with self.office.store.writing() as db:
            tenant = await own_tenant(db, who, slug)
            made = await db.insert_project(ident=uuid7(), tenant=tenant, slug=body.id, name=body.name)
            await materialise(db, self.office.policies(), tenant.plan, _project_scope(made, tenant))
            out = project_out(made)
            await record(db, who, "project.create", f"project:{slug}/{body.id}", after=out)
        return out, made.version

    async def read_project(self, who: Principal, slug: str, project: str) -> tuple[ProjectOut, int]:
        async with self.office.store.reading() as db:
            await own_tenant(db, who, slug)
            found = await db.get_project(slug, project)
        return project_out(found), found.version

    async def list_projects(
        self, who: Principal, slug: str, limit: int, cursor: str | None
    ) -> Page[ProjectOut]:
        after = paging.decode(cursor, str)
        async with self.office.store.reading() as db:
            tenant = await own_tenant(db, who, slug)
            found = await db.list_projects(tenant.id, after=after, limit=limit + 1)
        return Page(
            items=[project_out(row) for row in found[:limit]],
            next=paging.encode(found[limit - 1].slug) if len(found) > limit else None,
        )

    def _checked(self, plan: str, overrides: dict[str, Any] | None) -> dict[str, Any]:
        """Raises `ConfigurationError` for an unknown plan or a wrong override."""
        policies = self.office.policies()
        policies.plan(plan)
        policies.check_overrides(overrides)
        return overrides or {}

    async def _give_budgets(self, db: Session, tenant: TenantRecord) -> None:
        await materialise(db, self.office.policies(), tenant.plan, tenant_scope(tenant))


async def own_tenant(db: Session, who: Principal, slug: str) -> TenantRecord:
    """Raises `MissingError`, also for another's tenant."""
    found = await db.get_tenant(slug)
    of_own_tenant(who, found.id, "tenant")
    return found


def tenant_scope(tenant: TenantRecord) -> ScopeRef:
    return ScopeRef(
        kind="tenant",
        name=f"tenant:{tenant.slug}",
        subject=tenant.id,
        tenant=tenant.id,
        tenant_slug=tenant.slug,
        time_zone=tenant.time_zone,
    )


def _project_scope(project: ProjectRecord, tenant: TenantRecord) -> ScopeRef:
    return ScopeRef(
        kind="project",
        name=f"project:{tenant.slug}/{project.slug}",
        subject=project.id,
        tenant=tenant.id,
        tenant_slug=tenant.slug,
        time_zone=tenant.time_zone,
    )


def tenant_out(row: TenantRecord) -> TenantOut:
    return TenantOut(
        id=row.slug,
        name=row.name,
        plan=row.plan,
        time_zone=row.time_zone,
        status=cast("Any", row.status),
        overrides=row.overrides or None,
        created_at=utc(row.created_at),
    )


def project_out(row: ProjectRecord) -> ProjectOut:
    return ProjectOut(id=row.slug, tenant=row.tenant_slug, name=row.name, created_at=utc(row.created_at))


class TenantController(Controller):
    path = "/tenants"
    tags = ("tenants",)

    @post(summary="Make a tenant")
    async def create(
        self, desk_of_tenants: TenantDesk, who: Principal, data: TenantIn
    ) -> Response[TenantOut]:
        out, version = await desk_of_tenants.create(who, data)
        return shown(out, version, status=201, location=f"/admin/v1/tenants/{out.id}")

    @get(summary="List tenants")
    async def list(
        self, desk_of_tenants: TenantDesk, who: Principal, limit: Limit = PAGE, cursor: Cursor = None
    ) -> Page[TenantOut]:
        return await desk_of_tenants.list(who, limit, cursor)

    @get("/{tenant:str}", summary="Show a tenant")
    async def read(self, desk_of_tenants: TenantDesk, who: Principal, tenant: str) -> Response[TenantOut]:
        return shown(*await desk_of_tenants.read(who, tenant))

    @patch("/{tenant:str}", summary="Change a tenant: name, status, plan, overrides")
    async def change(
        self,
        desk_of_tenants: TenantDesk,
        who: Principal,
        tenant: str,
        data: TenantPatch,
        if_match: IfMatch = None,
    ) -> Response[TenantOut]:
        return shown(*await desk_of_tenants.change(who, tenant, data, expected(if_match)))

    @delete(
        "/{tenant:str}", summary="Delete a tenant and what tells who it was; its money stays in the ledger"
    )
    async def remove(
        self, desk_of_tenants: TenantDesk, who: Principal, tenant: str, if_match: IfMatch = None
    ) -> None:
        await desk_of_tenants.delete(who, tenant, expected(if_match))

    @post("/{tenant:str}/cache/purge", status_code=200, summary="Forget a tenant's cached answers")
    async def purge(
        self,
        desk_of_tenants: TenantDesk,
        who: Principal,
        tenant: str,
        data: PurgeIn,
    ) -> PurgedOut:
        return await desk_of_tenants.purge(who, tenant, data)

    @post("/{tenant:str}/projects", summary="Make a project")
    async def create_project(
        self, desk_of_tenants: TenantDesk, who: Principal, tenant: str, data: ProjectIn
    ) -> Response[ProjectOut]:
        out, version = await desk_of_tenants.create_project(who, tenant, data)
        return shown(out, version, status=201, location=f"/admin/v1/tenants/{tenant}/projects/{out.id}")

    @get("/{tenant:str}/projects", summary="List projects")
    async def list_projects(
        self,
        desk_of_tenants: TenantDesk,
        who: Principal,
        tenant: str,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[ProjectOut]:
        return await desk_of_tenants.list_projects(who, tenant, limit, cursor)

    @get("/{tenant:str}/projects/{project:str}", summary="Show a project")
    async def read_project(
        self, desk_of_tenants: TenantDesk, who: Principal, tenant: str, project: str
    ) -> Response[ProjectOut]:
        return shown(*await desk_of_tenants.read_project(who, tenant, project))
