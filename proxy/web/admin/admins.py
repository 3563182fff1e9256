"""`/admins`: principals of this REST and their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast
from uuid import UUID

from litestar import Controller, Response, delete, get, post

from proxy.clock import uuid7
from proxy.domain.control import AdminRecord, MissingError, TenantRecord
from proxy.web.admin import paging
from proxy.web.admin.access import Principal
from proxy.web.admin.core import PAGE, Cursor, Limit, Office, Page, record, utc, utc_or_none
from proxy.web.admin.oidc import Oidc
from proxy.web.admin.problems import invalid
from proxy.web.schemas import AdminIn, AdminOut, IssuedAdminOut, Role


@dataclass(frozen=True, slots=True)
class AdminDesk:
    """Only administrators of all tenants come to this desk."""

    office: Office

    async def create(self, who: Principal, body: AdminIn) -> IssuedAdminOut:
        who.need_all_tenants()
        if (body.role == "tenant-admin") != (body.tenant is not None):
            raise invalid("tenant", "a tenant belongs to the role tenant-admin, and to no other")
        minted = self.office.keyring.mint_admin()
        async with self.office.store.writing() as db:
            tenant = None if body.tenant is None else (await db.get_tenant(body.tenant)).id
            made = await db.insert_admin(
                ident=uuid7(),
                name=body.name,
                role=body.role,
                tenant=tenant,
                digest=minted.digest,
                pepper_id=minted.pepper_id,
            )
            await record(db, who, "admin.create", f"admin:{made.id}", after=_out(made))
        out = _out(made)
        return IssuedAdminOut(
            **{name: getattr(out, name) for name in out.__struct_fields__}, admin_key=minted.token
        )

    async def list(self, who: Principal, limit: int, cursor: str | None) -> Page[AdminOut]:
        who.need_all_tenants()
        after = paging.decode_id(cursor)
        async with self.office.store.reading() as db:
            found = await db.list_admins(after=after, limit=limit + 1)
        return Page(
            items=[_out(row) for row in found[:limit]],
            next=paging.encode(str(found[limit - 1].id)) if len(found) > limit else None,
        )

    async def revoke(self, who: Principal, ident: UUID) -> None:
        """Dead at once: nothing caches admin keys."""
        who.need_all_tenants()
        async with self.office.store.writing() as db:
            before = await db.get_admin(ident)
            if before.revoked_at is not None:
                raise MissingError("admin")
            await db.revoke_admin(ident)
            await record(db, who, "admin.revoke", f"admin:{ident}", before=_out(before))


class PostgresAdmins:
    """An `AdminStore`: asks Postgres for every request."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def admin_by_digest(self, digests: tuple[bytes, ...]) -> Principal | None:
        async with self._office.store.reading() as db:
            found = await db.find_admin(digests)
        if found is None:
            return None
        return Principal(
            ident=str(found.id),
            name=found.name,
            role=cast("Role", found.role),
            tenant=found.tenant,
            tenant_slug=found.tenant_slug,
        )


class OidcAdmins:
    """Principals behind tokens of a configured issuer, as `access.Tokens`."""

    def __init__(self, office: Office, oidc: Oidc) -> None:
        self._office = office
        self._oidc = oidc

    async def principal(self, token: str) -> Principal:
        return await self._oidc.principal(token, self)

    async def tenant(self, slug: str) -> TenantRecord:
        async with self._office.store.reading() as db:
            return await db.get_tenant(slug)


def _out(row: AdminRecord) -> AdminOut:
    return AdminOut(
        id=row.id,
        name=row.name,
        role=cast("Role", row.role),
        tenant=row.tenant_slug,
        created_at=utc(row.created_at),
        revoked_at=utc_or_none(row.revoked_at),
    )


class AdminController(Controller):
    path = "/admins"
    tags = ("admins",)

    @post(summary="Make an admin key; the answer is the only one that shows it")
    async def create(
        self, desk_of_admins: AdminDesk, who: Principal, data: AdminIn
    ) -> Response[IssuedAdminOut]:
        out = await desk_of_admins.create(who, data)
        headers = {"Cache-Control": "no-store", "Location": f"/admin/v1/admins/{out.id}"}
        return Response(out, status_code=201, headers=headers)

    @get(summary="List administrators")
    async def list(
        self, desk_of_admins: AdminDesk, who: Principal, limit: Limit = PAGE, cursor: Cursor = None
    ) -> Page[AdminOut]:
        return await desk_of_admins.list(who, limit, cursor)

    @delete("/{ident:uuid}", summary="Revoke an admin key")
    async def remove(self, desk_of_admins: AdminDesk, who: Principal, ident: UUID) -> None:
        await desk_of_admins.revoke(who, ident)
