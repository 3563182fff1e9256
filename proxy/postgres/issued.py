"""Keys and their credentials: reads and writes of the control plane.

Secrets never pass through here: credentials arrive as digests and sealed boxes. Functions take a
connection inside a transaction (see `control.writing`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import CredentialRecord, KeyRecord, MissingError, NewCredential
from proxy.postgres.control import check_version
from proxy.postgres.tables import Credential, Key, Project, Tenant

__all__ = [
    "NewCredential",
    "SealedSecret",
    "get_key",
    "insert_credential",
    "insert_key",
    "list_keys",
    "replace_sealed",
    "retire_credentials",
    "revoke_credentials",
    "sealed_elsewhere",
    "under_other_peppers",
    "update_key",
]


def _keys() -> Any:
    return (
        select(
            Key.id,
            Key.tenant,
            Tenant.slug.label("tenant_slug"),
            Key.project,
            Project.slug.label("project_slug"),
            Key.name,
            Key.status,
            Key.expires_at,
            Key.overrides,
            Key.version,
            Key.created_at,
        )
        .join(Tenant, Tenant.id == Key.tenant)
        .outerjoin(Project, Project.id == Key.project)
        .where(Tenant.status != "deleted")
    )


async def insert_key(
    db: AsyncConnection,
    *,
    id: UUID,  # noqa: A002 (the column's name)
    tenant: UUID,
    project: UUID | None,
    name: str,
    expires_at: dt.datetime | None,
    overrides: Mapping[str, Any],
) -> None:
    values = {"id": id, "tenant": tenant, "project": project, "name": name, "expires_at": expires_at}
    await db.execute(insert(Key).values(**values, overrides=dict(overrides)))


async def insert_credential(db: AsyncConnection, key: UUID, new: NewCredential) -> None:
    await db.execute(
        insert(Credential).values(
            id=new.id,
            key=key,
            bearer_digest=new.bearer_digest,
            bearer_prefix=new.bearer_prefix,
            last4=new.last4,
            pepper_id=new.pepper_id,
            access_key_id=new.access_key_id,
            sigv4_ciphertext=new.sigv4_ciphertext,
            data_key_id=new.data_key_id,
        )
    )


async def get_key(db: AsyncConnection, ident: UUID, *, lock: bool = False) -> KeyRecord:
    """With its live credentials. Raises `MissingError`."""
    statement = _keys().where(Key.id == ident)
    if lock:
        statement = statement.with_for_update(of=Key, key_share=True)
    row = (await db.execute(statement)).mappings().one_or_none()
    if row is None:
        raise MissingError("key")
    return (await _with_credentials(db, [KeyRecord(**row)]))[0]


async def list_keys(
    db: AsyncConnection,
    *,
    tenant: UUID | None,
    project: UUID | None,
    status: str | None,
    after: UUID | None,
    limit: int,
) -> list[KeyRecord]:
    """In the order in which they were issued."""
    statement = _keys().order_by(Key.id).limit(limit)
    wanted = ((Key.tenant, tenant), (Key.project, project), (Key.status, status))
    for column, value in wanted:
        if value is not None:
            statement = statement.where(column == value)
    if after is not None:
        statement = statement.where(Key.id > after)
    records = [KeyRecord(**row) for row in (await db.execute(statement)).mappings()]
    return await _with_credentials(db, records)


async def update_key(
    db: AsyncConnection, before: KeyRecord, changes: Mapping[str, Any], *, version: int | None
) -> KeyRecord:
    """Change a key that was read with `lock`. Raises `VersionError`."""
    check_version(before.version, version)
    await db.execute(update(Key).where(Key.id == before.id).values(**changes))
    return await get_key(db, before.id)


async def retire_credentials(db: AsyncConnection, key: UUID, grace: dt.timedelta) -> None:
    """End every live credential of a key after `grace`, by the database's clock.

    None lives on longer than it would have. Without grace they are revoked at once.
    """
    live = (Credential.key == key, Credential.revoked_at.is_(None))
    if not grace:
        await db.execute(update(Credential).where(*live).values(revoked_at=func.now()))
        return
    end = func.now() + grace
    later = or_(Credential.expires_at.is_(None), Credential.expires_at > end)
    await db.execute(update(Credential).where(*live, later).values(expires_at=end))


async def revoke_credentials(db: AsyncConnection, key: UUID) -> None:
    await retire_credentials(db, key, dt.timedelta())


async def _with_credentials(db: AsyncConnection, keys: Sequence[KeyRecord]) -> list[KeyRecord]:
    statement = (
        select(
            Credential.id,
            Credential.key,
            Credential.bearer_prefix,
            Credential.last4,
            Credential.access_key_id,
            Credential.created_at,
            Credential.expires_at,
        )
        .where(Credential.key.in_([key.id for key in keys]), Credential.revoked_at.is_(None))
        .where(or_(Credential.expires_at.is_(None), Credential.expires_at > func.now()))
        .order_by(Credential.created_at, Credential.id)
    )
    found: dict[UUID, list[CredentialRecord]] = {}
    if keys:
        for row in (await db.execute(statement)).mappings():
            found.setdefault(row["key"], []).append(CredentialRecord(**row))
    return [replace(key, credentials=tuple(found.get(key.id, ()))) for key in keys]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SealedSecret:
    """A sealed secret with the place it is bound to."""

    credential: UUID
    key: UUID
    tenant: UUID
    sealed: bytes


async def sealed_elsewhere(db: AsyncConnection, data_key_id: int, *, limit: int) -> list[SealedSecret]:
    """Live secrets sealed under another data key than this; locked until the transaction ends."""
    statement = (
        select(
            Credential.id.label("credential"),
            Credential.key,
            Key.tenant,
            Credential.sigv4_ciphertext.label("sealed"),
        )
        .join(Key, Key.id == Credential.key)
        .where(Credential.sigv4_ciphertext.is_not(None), Credential.revoked_at.is_(None))
        .where(Credential.data_key_id != data_key_id)
        .order_by(Credential.id)
        .limit(limit)
        .with_for_update(of=Credential, key_share=True)
    )
    return [SealedSecret(**row) for row in (await db.execute(statement)).mappings()]


async def replace_sealed(db: AsyncConnection, credential: UUID, sealed: bytes, data_key_id: int) -> None:
    """The same secret in another box."""
    values = {"sigv4_ciphertext": sealed, "data_key_id": data_key_id}
    await db.execute(update(Credential).where(Credential.id == credential).values(**values))


async def under_other_peppers(db: AsyncConnection, pepper_id: int) -> int:
    """Usable bearer tokens whose digest needs another master key than the current one."""
    usable = or_(Credential.expires_at.is_(None), Credential.expires_at > func.now())
    statement = (
        select(func.count())
        .select_from(Credential)
        .join(Key, Key.id == Credential.key)
        .where(Credential.pepper_id != pepper_id, Credential.revoked_at.is_(None), usable)
        .where(Key.status != "revoked")
    )
    return int(await db.scalar(statement) or 0)
