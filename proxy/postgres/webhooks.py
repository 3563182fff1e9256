"""Webhooks, alerts and deliveries: reads and writes of the control plane.

Functions take a connection inside a transaction and raise `MissingError` or `VersionError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import AlertRecord, DeliveryRecord, MissingError, WebhookRecord
from proxy.postgres.control import check_version
from proxy.postgres.desk_tables import AlertRow, OutboxRow, Webhook
from proxy.postgres.tables import Tenant


def _webhooks() -> Any:
    return (
        select(
            Webhook.id,
            Webhook.tenant,
            Tenant.slug.label("tenant_slug"),
            Webhook.name,
            Webhook.url,
            Webhook.format,
            Webhook.events,
            Webhook.status,
            Webhook.version,
            Webhook.created_at,
        )
        .outerjoin(Tenant, Tenant.id == Webhook.tenant)
        .where(Webhook.deleted_at.is_(None))
    )


async def insert_webhook(db: AsyncConnection, ident: UUID, values: Mapping[str, Any]) -> WebhookRecord:
    await db.execute(insert(Webhook).values(id=ident, **values))
    return await get_webhook(db, ident)


async def get_webhook(db: AsyncConnection, ident: UUID, *, lock: bool = False) -> WebhookRecord:
    """Raises `MissingError`."""
    statement = _webhooks().where(Webhook.id == ident)
    if lock:
        statement = statement.with_for_update(of=Webhook, key_share=True)
    row = (await db.execute(statement)).mappings().one_or_none()
    if row is None:
        raise MissingError("webhook")
    return WebhookRecord(**row)


async def list_webhooks(
    db: AsyncConnection, *, tenant: UUID | None, after: UUID | None, limit: int
) -> list[WebhookRecord]:
    """In the order in which they were made."""
    statement = _webhooks().order_by(Webhook.id).limit(limit)
    if tenant is not None:
        statement = statement.where(Webhook.tenant == tenant)
    if after is not None:
        statement = statement.where(Webhook.id > after)
    return [WebhookRecord(**row) for row in (await db.execute(statement)).mappings()]


async def count_webhooks(db: AsyncConnection, tenant: UUID | None) -> int:
    """Live ones of a tenant, or those of no tenant."""
    mine = Webhook.tenant.is_(None) if tenant is None else Webhook.tenant == tenant
    counted = select(func.count()).select_from(Webhook).where(mine, Webhook.deleted_at.is_(None))
    return int(await db.scalar(counted) or 0)


async def update_webhook(
    db: AsyncConnection, before: WebhookRecord, changes: Mapping[str, Any], *, version: int | None
) -> WebhookRecord:
    """Change one that was read with `lock`. Raises `VersionError`."""
    check_version(before.version, version)
    values = {**changes, "version": before.version + 1}
    await db.execute(update(Webhook).where(Webhook.id == before.id).values(**values))
    return await get_webhook(db, before.id)


async def delete_webhook(db: AsyncConnection, before: WebhookRecord, *, version: int | None) -> None:
    """A tombstone without its secret. Raises `VersionError`."""
    check_version(before.version, version)
    gone = update(Webhook).where(Webhook.id == before.id)
    await db.execute(gone.values(deleted_at=func.now(), sealed=b"", version=before.version + 1))


async def enqueue(db: AsyncConnection, webhook: UUID, alert: UUID) -> None:
    statement = text(
        "INSERT INTO outbox (id, webhook, alert) VALUES (gen_random_uuid(), :webhook, :alert) ON CONFLICT DO NOTHING"
    )
    await db.execute(statement, {"webhook": webhook, "alert": alert})


async def deliveries(db: AsyncConnection, webhook: UUID, *, limit: int) -> list[DeliveryRecord]:
    """Newest first."""
    statement = (
        select(
            OutboxRow.id,
            OutboxRow.alert,
            AlertRow.kind,
            OutboxRow.status,
            OutboxRow.tries,
            OutboxRow.next_at,
            OutboxRow.done_at,
            OutboxRow.last_error,
        )
        .join(AlertRow, AlertRow.id == OutboxRow.alert)
        .where(OutboxRow.webhook == webhook)
        .order_by(OutboxRow.alert.desc())
        .limit(limit)
    )
    return [DeliveryRecord(**row) for row in (await db.execute(statement)).mappings()]


async def alerts(
    db: AsyncConnection, *, tenant: UUID | None, kind: str | None, before: UUID | None, limit: int
) -> list[AlertRecord]:
    """Newest first."""
    statement = (
        select(
            AlertRow.id,
            AlertRow.kind,
            AlertRow.tenant,
            Tenant.slug.label("tenant_slug"),
            AlertRow.subject,
            AlertRow.message,
            AlertRow.body,
            AlertRow.at,
        )
        .outerjoin(Tenant, Tenant.id == AlertRow.tenant)
        .order_by(AlertRow.id.desc())
        .limit(limit)
    )
    for column, value in ((AlertRow.tenant, tenant), (AlertRow.kind, kind)):
        if value is not None:
            statement = statement.where(column == value)
    if before is not None:
        statement = statement.where(AlertRow.id < before)
    return [AlertRecord(**row) for row in (await db.execute(statement)).mappings()]
