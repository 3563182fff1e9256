"""What reports, statements, alerts and webhooks ask of one connection."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.alerting import Condition
from proxy.domain.control import (
    AlertRecord,
    CallFilter,
    Correction,
    DeliveryRecord,
    PaidRecord,
    TenantRecord,
    WebhookRecord,
)
from proxy.domain.reporting import Draft, Issued
from proxy.postgres import corrections, statements, tombstones, webhooks
from proxy.postgres.alerts import write_alert
from proxy.postgres.usage import usage

_SERIALIZED = text("SELECT pg_advisory_xact_lock(hashtextextended(:tenant, 7305804405))")


class DeskSession:
    """One connection; see the functions behind the questions."""

    def __init__(self, db: AsyncConnection) -> None:
        self._db = db

    async def usage(self, group_by: Sequence[str], where: CallFilter, *, limit: int) -> list[dict[str, Any]]:
        return await usage(self._db, group_by, where, limit=limit)

    async def time_zones(self, tenant: UUID | None) -> dict[str, str]:
        """Zone by slug, deleted tenants included."""
        found = await self._db.execute(
            text("SELECT slug, time_zone FROM tenants WHERE CAST(:tenant AS uuid) IS NULL OR id = :tenant"),
            {"tenant": tenant},
        )
        return {row.slug: row.time_zone for row in found}

    async def draft_statement(self, tenant: UUID, first: dt.date, *, lock: bool = False) -> Draft:
        """`lock` makes other issues of the tenant wait until this transaction ends."""
        if lock:
            await self._db.execute(_SERIALIZED, {"tenant": str(tenant)})
        return await statements.draft(self._db, tenant, first)

    async def issue_statement(self, tenant: UUID, made: Draft, body: dict[str, Any], actor: str) -> Issued:
        return await statements.issue(self._db, tenant, made, body, actor)

    async def find_statement(self, tenant: UUID, first: dt.date) -> Issued | None:
        return await statements.find(self._db, tenant, first)

    async def list_statements(self, tenant: UUID, *, limit: int) -> list[Issued]:
        return await statements.issued(self._db, tenant, limit=limit)

    # -- Webhooks and alerts --------------------------------------------------------------

    async def insert_webhook(self, ident: UUID, values: Mapping[str, Any]) -> WebhookRecord:
        return await webhooks.insert_webhook(self._db, ident, values)

    async def get_webhook(self, ident: UUID, *, lock: bool = False) -> WebhookRecord:
        return await webhooks.get_webhook(self._db, ident, lock=lock)

    async def list_webhooks(
        self, *, tenant: UUID | None, after: UUID | None, limit: int
    ) -> list[WebhookRecord]:
        return await webhooks.list_webhooks(self._db, tenant=tenant, after=after, limit=limit)

    async def update_webhook(
        self, before: WebhookRecord, changes: Mapping[str, Any], *, version: int | None
    ) -> WebhookRecord:
        return await webhooks.update_webhook(self._db, before, changes, version=version)

    async def delete_webhook(self, before: WebhookRecord, *, version: int | None) -> None:
        await webhooks.delete_webhook(self._db, before, version=version)

    async def count_webhooks(self, tenant: UUID | None) -> int:
        return await webhooks.count_webhooks(self._db, tenant)

    async def try_webhook(self, webhook: UUID, alert: Condition) -> None:
        await webhooks.enqueue(self._db, webhook, await write_alert(self._db, alert))

    async def deliveries(self, webhook: UUID, *, limit: int) -> list[DeliveryRecord]:
        return await webhooks.deliveries(self._db, webhook, limit=limit)

    async def alerts(
        self, *, tenant: UUID | None, kind: str | None, before: UUID | None, limit: int
    ) -> list[AlertRecord]:
        return await webhooks.alerts(self._db, tenant=tenant, kind=kind, before=before, limit=limit)

    # -- Corrections ----------------------------------------------------------------------

    async def paid(
        self, where: CallFilter, *, target: str | None, after: UUID | None, limit: int
    ) -> list[PaidRecord]:
        return await corrections.paid(self._db, where, target=target, after=after, limit=limit)

    async def paid_one(self, attempt: UUID, tenant: UUID | None) -> tuple[PaidRecord, str] | None:
        return await corrections.paid_one(self._db, attempt, tenant)

    async def correct(self, entries: Sequence[Correction]) -> list[int]:
        return await corrections.correct(self._db, entries)

    async def lock_accounts(self, budgets: Sequence[UUID]) -> None:
        await corrections.lock_accounts(self._db, budgets)

    async def erase_tenant(self, tenant: TenantRecord) -> None:
        await tombstones.erase(self._db, tenant)
