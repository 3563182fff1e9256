"""`/keys`: issue, list, rotate, disable, enable, revoke. Secrets are shown once, when they are made."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Annotated, Any, cast
from uuid import UUID

from litestar import Controller, Response, get, patch, post
from litestar.params import Parameter

from proxy.clock import uuid7
from proxy.domain.control import CredentialRecord, KeyRecord, NewCredential, ScopeRef
from proxy.keys import AccessKey, Minted, Place
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
    aware,
    expected,
    given,
    record,
    shown,
    utc,
    utc_or_none,
)
from proxy.web.admin.problems import conflict, invalid
from proxy.web.admin.store import Session
from proxy.web.admin.tenants import own_tenant
from proxy.web.schemas import (
    CredentialOut,
    IssuedKeyOut,
    KeyIn,
    KeyOut,
    KeyPatch,
    KeyStatusName,
    NothingIn,
    RotateIn,
)


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Fresh secrets of one credential, on their way to the only answer that shows them."""

    bearer: Minted
    pair: AccessKey | None


@dataclass(frozen=True, slots=True)
class KeyDesk:
    office: Office

    async def issue(self, who: Principal, body: KeyIn) -> tuple[IssuedKeyOut, int]:
        self._check(body.expires_at, body.overrides)
        ident = uuid7()
        async with self.office.store.writing() as db:
            tenant = await own_tenant(db, who, body.tenant)
            project = await db.get_project(body.tenant, body.project) if body.project else None
            await db.insert_key(ident=ident, tenant=tenant.id, project=None if project is None else project.id,
                name=body.name, expires_at=body.expires_at, overrides=body.overrides or {},
            )  # fmt: skip
            secrets = await self._credential(db, tenant.id, ident, sigv4=body.sigv4)
            scope = ScopeRef(
                kind="key", name=f"key:{ident}", subject=ident, tenant=tenant.id, tenant_slug=tenant.slug,
                time_zone=tenant.time_zone,
            )  # fmt: skip
            await materialise(db, self.office.policies(), tenant.plan, scope)
            made = await db.get_key(ident)
            await record(db, who, "key.issue", f"key:{ident}", after=key_out(made))
        return _with_secrets(made, secrets), made.version

    async def read(self, who: Principal, ident: UUID) -> tuple[KeyOut, int]:
        async with self.office.store.reading() as db:
            found = await _own_key(db, who, ident)
        return key_out(found), found.version

    async def list(
        self,
        who: Principal,
        tenant: str | None,
        project: str | None,
        status: KeyStatusName | None,
        limit: int,
        cursor: str | None,
    ) -> Page[KeyOut]:
        after = paging.decode_id(cursor)
        async with self.office.store.reading() as db:
            tenant_id = who.tenant
            project_id: UUID | None = None
            if tenant is not None:
                tenant_id = (await own_tenant(db, who, tenant)).id
            if project is not None:
                slug = tenant or who.tenant_slug
                if slug is None:
                    raise invalid("project", "name the project's tenant too")
                project_id = (await db.get_project(slug, project)).id
            found = await db.list_keys(
                tenant=tenant_id, project=project_id, status=status, after=after, limit=limit + 1
            )
        return Page(
            items=[key_out(row) for row in found[:limit]],
            next=paging.encode(str(found[limit - 1].id)) if len(found) > limit else None,
        )

    async def change(
        self, who: Principal, ident: UUID, body: KeyPatch, version: int | None
    ) -> tuple[KeyOut, int]:
        changes = given(body)
        self._check(changes.get("expires_at"), changes.get("overrides"))
        if "overrides" in changes:
            changes["overrides"] = changes["overrides"] or {}
        return await self._write(who, ident, "key.change", changes, version)

    async def disable(self, who: Principal, ident: UUID) -> tuple[KeyOut, int]:
        return await self._write(who, ident, "key.disable", {"status": "disabled"}, None)

    async def enable(self, who: Principal, ident: UUID) -> tuple[KeyOut, int]:
        return await self._write(who, ident, "key.enable", {"status": "active"}, None)

    async def revoke(self, who: Principal, ident: UUID) -> tuple[KeyOut, int]:
        """For good, and idempotent."""
        async with self.office.store.writing() as db:
            before = await _own_key(db, who, ident, lock=True)
            if before.status == "revoked":
                return key_out(before), before.version
            await db.revoke_credentials(ident)
            after = await db.update_key(before, {"status": "revoked"}, version=None)
            out = key_out(after)
            await record(db, who, "key.revoke", f"key:{ident}", before=key_out(before), after=out)
        return out, after.version

    async def rotate(self, who: Principal, ident: UUID, grace_seconds: int) -> tuple[IssuedKeyOut, int]:
        """New secrets under the same key; those before work until the grace ends."""
        async with self.office.store.writing() as db:
            before = await _own_key(db, who, ident, lock=True)
            if before.status == "revoked":
                raise conflict("a revoked key has no more secrets; issue a new key")
            sigv4 = any(one.access_key_id for one in before.credentials) or not before.credentials
            await db.retire_credentials(ident, dt.timedelta(seconds=grace_seconds))
            secrets = await self._credential(db, before.tenant, ident, sigv4=sigv4)
            after = await db.get_key(ident)
            await record(db, who, "key.rotate", f"key:{ident}", before=key_out(before), after=key_out(after))
        return _with_secrets(after, secrets), after.version

    async def _write(
        self, who: Principal, ident: UUID, action: str, changes: dict[str, Any], version: int | None
    ) -> tuple[KeyOut, int]:
        async with self.office.store.writing() as db:
            before = await _own_key(db, who, ident, lock=True)
            if before.status == "revoked":
                raise conflict("a revoked key stays revoked; issue a new key")
            after = await db.update_key(before, changes, version=version)
            out = key_out(after)
            await record(db, who, action, f"key:{ident}", before=key_out(before), after=out)
        return out, after.version

    async def _credential(self, db: Session, tenant: UUID, key: UUID, *, sigv4: bool) -> Secrets:
        keyring = self.office.keyring
        bearer, pair = keyring.mint_bearer(), keyring.mint_access_key() if sigv4 else None
        place = Place(tenant=tenant, key=key, credential=uuid7(), version=1)
        new = NewCredential(
            id=place.credential,
            bearer_digest=bearer.digest,
            bearer_prefix=bearer.prefix,
            last4=bearer.last4,
            pepper_id=bearer.pepper_id,
            access_key_id=None if pair is None else pair.id,
            sigv4_ciphertext=None if pair is None else keyring.seal(pair.secret, place),
            data_key_id=None if pair is None else keyring.generation,
        )
        await db.insert_credential(key, new)
        return Secrets(bearer, pair)

    def _check(self, expires_at: dt.datetime | None, overrides: dict[str, Any] | None) -> None:
        end = aware("expires_at", expires_at)
        if end is not None and end.timestamp() <= self.office.clock():
            raise invalid("expires_at", "expires_at is not in the future")
        self.office.policies().check_overrides(overrides)


async def _own_key(db: Session, who: Principal, ident: UUID, *, lock: bool = False) -> KeyRecord:
    """Raises `MissingError`, also for another tenant's key."""
    found = await db.get_key(ident, lock=lock)
    of_own_tenant(who, found.tenant, "key")
    return found


def _credential_out(row: CredentialRecord) -> CredentialOut:
    return CredentialOut(
        id=row.id,
        prefix=row.bearer_prefix,
        last4=row.last4,
        aws_access_key_id=row.access_key_id,
        created_at=utc(row.created_at),
        expires_at=utc_or_none(row.expires_at),
    )


def _key_fields(row: KeyRecord) -> dict[str, Any]:
    return {
        "id": row.id,
        "tenant": row.tenant_slug,
        "project": row.project_slug,
        "name": row.name,
        "status": cast("KeyStatusName", row.status),
        "expires_at": utc_or_none(row.expires_at),
        "overrides": row.overrides or None,
        "created_at": utc(row.created_at),
        "credentials": [_credential_out(one) for one in row.credentials],
    }


def key_out(row: KeyRecord) -> KeyOut:
    return KeyOut(**_key_fields(row))


def _with_secrets(row: KeyRecord, secrets: Secrets) -> IssuedKeyOut:
    return IssuedKeyOut(
        **_key_fields(row),
        bearer_token=secrets.bearer.token,
        aws_access_key_id=None if secrets.pair is None else secrets.pair.id,
        aws_secret_access_key=None if secrets.pair is None else secrets.pair.secret,
    )


TenantFilter = Annotated[str | None, Parameter(description="slug of a tenant")]
ProjectFilter = Annotated[str | None, Parameter(description="slug of a project; needs `tenant`")]


class KeyController(Controller):
    path = "/keys"
    tags = ("keys",)

    @post(summary="Issue a key; the answer is the only one that shows its secrets")
    async def issue(self, desk_of_keys: KeyDesk, who: Principal, data: KeyIn) -> Response[IssuedKeyOut]:
        out, version = await desk_of_keys.issue(who, data)
        return shown(out, version, status=201, location=f"/admin/v1/keys/{out.id}")

    @get(summary="List keys")
    async def list(
        self,
        desk_of_keys: KeyDesk,
        who: Principal,
        tenant: TenantFilter = None,
        project: ProjectFilter = None,
        status: KeyStatusName | None = None,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[KeyOut]:
        return await desk_of_keys.list(who, tenant, project, status, limit, cursor)

    @get("/{key:uuid}", summary="Show a key")
    async def read(self, desk_of_keys: KeyDesk, who: Principal, key: UUID) -> Response[KeyOut]:
        return shown(*await desk_of_keys.read(who, key))

    @patch("/{key:uuid}", summary="Change a key: name, expires_at, overrides")
    async def change(
        self, desk_of_keys: KeyDesk, who: Principal, key: UUID, data: KeyPatch, if_match: IfMatch = None
    ) -> Response[KeyOut]:
        return shown(*await desk_of_keys.change(who, key, data, expected(if_match)))

    @post("/{key:uuid}/rotate", status_code=200, summary="New secrets under the same key")
    async def rotate(
        self, desk_of_keys: KeyDesk, who: Principal, key: UUID, data: RotateIn
    ) -> Response[IssuedKeyOut]:
        return shown(*await desk_of_keys.rotate(who, key, data.grace_seconds))

    @post("/{key:uuid}/disable", status_code=200, summary="Refuse a key until it is enabled again")
    async def disable(
        self,
        desk_of_keys: KeyDesk,
        who: Principal,
        key: UUID,
        data: NothingIn,  # noqa: ARG002 (it refuses fields)
    ) -> Response[KeyOut]:
        return shown(*await desk_of_keys.disable(who, key))

    @post("/{key:uuid}/enable", status_code=200, summary="Accept a disabled key again")
    async def enable(
        self,
        desk_of_keys: KeyDesk,
        who: Principal,
        key: UUID,
        data: NothingIn,  # noqa: ARG002 (it refuses fields)
    ) -> Response[KeyOut]:
        return shown(*await desk_of_keys.enable(who, key))

    @post("/{key:uuid}/revoke", status_code=200, summary="Refuse a key for ever")
    async def revoke(
        self,
        desk_of_keys: KeyDesk,
        who: Principal,
        key: UUID,
        data: NothingIn,  # noqa: ARG002 (it refuses fields)
    ) -> Response[KeyOut]:
        return shown(*await desk_of_keys.revoke(who, key))
