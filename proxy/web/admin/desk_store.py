"""The part of a store's session that reports, statements, alerts and webhooks ask."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

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


class DeskSession(Protocol):
    async def usage(self, group_by: Sequence[str], where: CallFilter, *, limit: int) -> list[dict[str, Any]]:
        """Resolved attempts summed by `group_by`, the dearest group first (see `domain.reporting`)."""
        ...

    async def time_zones(self, tenant: UUID | None) -> dict[str, str]:
        """Zone by slug of a tenant, or of all for None, deleted ones included."""
        ...

    async def draft_statement(self, tenant: UUID, first: dt.date, *, lock: bool = False) -> Draft:
        """The statement of the month that begins on `first`, as the ledger stands. `lock` makes other
        issues of the tenant wait until this transaction ends.
        """
        ...

    async def issue_statement(self, tenant: UUID, made: Draft, body: dict[str, Any], actor: str) -> Issued:
        """Raises `ConflictError` when the month was issued before."""
        ...

    async def find_statement(self, tenant: UUID, first: dt.date) -> Issued | None: ...

    async def list_statements(self, tenant: UUID, *, limit: int) -> list[Issued]:
        """Newest month first."""
        ...

    # -- Webhooks and alerts --------------------------------------------------------------

    async def insert_webhook(self, ident: UUID, values: Mapping[str, Any]) -> WebhookRecord: ...

    async def get_webhook(self, ident: UUID, *, lock: bool = False) -> WebhookRecord:
        """Raises `MissingError`."""
        ...

    async def list_webhooks(
        self, *, tenant: UUID | None, after: UUID | None, limit: int
    ) -> list[WebhookRecord]:
        """In the order in which they were made; `tenant` None: every one."""
        ...

    async def update_webhook(
        self, before: WebhookRecord, changes: Mapping[str, Any], *, version: int | None
    ) -> WebhookRecord:
        """Change one that was read with `lock`. Raises `VersionError`."""
        ...

    async def delete_webhook(self, before: WebhookRecord, *, version: int | None) -> None:
        """What waits for it is not delivered any more."""
        ...

    async def count_webhooks(self, tenant: UUID | None) -> int: ...

    async def try_webhook(self, webhook: UUID, alert: Condition) -> None:
        """Put an alert on its way to one webhook."""
        ...

    async def deliveries(self, webhook: UUID, *, limit: int) -> list[DeliveryRecord]:
        """Newest first."""
        ...

    async def alerts(
        self, *, tenant: UUID | None, kind: str | None, before: UUID | None, limit: int
    ) -> list[AlertRecord]:
        """Newest first."""
        ...

    # -- Corrections ----------------------------------------------------------------------

    async def paid(
        self, where: CallFilter, *, target: str | None, after: UUID | None, limit: int
    ) -> list[PaidRecord]:
        """Attempts by id, from the first after `after` on."""
        ...

    async def paid_one(self, attempt: UUID, tenant: UUID | None) -> tuple[PaidRecord, str] | None:
        """One attempt and the name of its state, when it is `tenant`'s (or anybody's, for None)."""
        ...

    async def correct(self, entries: Sequence[Correction]) -> list[int]:
        """Answers of the bank: 0 written, 1 the same evidence is there already, 3 unknown, 4 refused."""
        ...

    async def lock_accounts(self, budgets: Sequence[UUID]) -> None:
        """Take the running accounts of several budgets in the bank's own order."""
        ...

    async def erase_tenant(self, tenant: TenantRecord) -> None:
        """Remove what tells who it was, in the transaction that deletes it: names, secrets, tags, alerts.
        Its calls and their money stay, under its slug.
        """
        ...
