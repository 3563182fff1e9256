"""What the desks ask of whoever keeps the facts. `proxy.postgres.session` is the one there is.

A session of `writing` is one transaction: it commits when its block ends well, and then everything is
true at once, the audit record with the change. Everything raises `BankAway` when the store does not
answer, and `RangeError` for what it cannot keep.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol
from uuid import UUID

from proxy.domain.control import (
    AdjustmentRecord,
    AdminRecord,
    BudgetRecord,
    CallFilter,
    CallRecord,
    EntryRecord,
    Kept,
    KeyRecord,
    LimitRecord,
    NewBudget,
    NewCredential,
    ProjectRecord,
    ScopeRef,
    TenantRecord,
    TrailRecord,
)
from proxy.web.admin.desk_store import DeskSession

RefusalKey = Literal["tenant", "key", "reason", "model", "day"]


class Session(DeskSession, Protocol):
    """One connection."""

    # -- Tenants and projects -------------------------------------------------------------

    async def insert_tenant(
        self, *, ident: UUID, slug: str, name: str, plan: str, time_zone: str, overrides: Mapping[str, Any]
    ) -> TenantRecord:
        """Raises `ConflictError` when the slug was ever used."""
        ...

    async def get_tenant(self, slug: str, *, lock: bool = False) -> TenantRecord:
        """Raises `MissingError`, for deleted tenants too."""
        ...

    async def list_tenants(
        self, *, after: str | None, limit: int, only: UUID | None = None
    ) -> list[TenantRecord]:
        """By slug."""
        ...

    async def update_tenant(
        self, before: TenantRecord, changes: Mapping[str, Any], *, version: int | None
    ) -> TenantRecord:
        """Change a tenant that was read with `lock`. Raises `VersionError`."""
        ...

    async def insert_project(
        self, *, ident: UUID, tenant: TenantRecord, slug: str, name: str
    ) -> ProjectRecord:
        """Raises `ConflictError` when the tenant has or had a project of that slug."""
        ...

    async def get_project(self, tenant: str, slug: str) -> ProjectRecord:
        """By slugs. Raises `MissingError`."""
        ...

    async def list_projects(self, tenant: UUID, *, after: str | None, limit: int) -> list[ProjectRecord]:
        """By slug."""
        ...

    # -- Keys and credentials -------------------------------------------------------------

    async def insert_key(
        self,
        *,
        ident: UUID,
        tenant: UUID,
        project: UUID | None,
        name: str,
        expires_at: dt.datetime | None,
        overrides: Mapping[str, Any],
    ) -> None: ...

    async def insert_credential(self, key: UUID, new: NewCredential) -> None: ...

    async def get_key(self, ident: UUID, *, lock: bool = False) -> KeyRecord:
        """With its live credentials. Raises `MissingError`."""
        ...

    async def list_keys(
        self, *, tenant: UUID | None, project: UUID | None, status: str | None, after: UUID | None, limit: int
    ) -> list[KeyRecord]:
        """In the order in which they were issued."""
        ...

    async def update_key(
        self, before: KeyRecord, changes: Mapping[str, Any], *, version: int | None
    ) -> KeyRecord:
        """Change a key that was read with `lock`. Raises `VersionError`."""
        ...

    async def retire_credentials(self, key: UUID, grace: dt.timedelta) -> None:
        """End every live credential of a key after `grace`, by the database's clock.

        None lives on longer than it would have. Without grace they are revoked at once.
        """
        ...

    async def revoke_credentials(self, key: UUID) -> None: ...

    # -- Scopes ---------------------------------------------------------------------------

    async def resolve_scope(self, name: str) -> ScopeRef:
        """`tenant:acme`, `project:acme/search` or `key:<id>`. Raises `MissingError` for any other text."""
        ...

    # -- Limits ---------------------------------------------------------------------------

    async def insert_limit(self, ident: UUID, scope: ScopeRef, values: Mapping[str, Any]) -> LimitRecord: ...

    async def get_limit(self, ident: UUID, *, lock: bool = False) -> LimitRecord:
        """Raises `MissingError`."""
        ...

    async def list_limits(
        self, *, tenant: UUID | None, subject: UUID | None, after: UUID | None, limit: int
    ) -> list[LimitRecord]:
        """In the order in which they were made."""
        ...

    async def update_limit(
        self, before: LimitRecord, changes: Mapping[str, Any], *, version: int | None
    ) -> LimitRecord:
        """Change a limit that was read with `lock`. Raises `VersionError`."""
        ...

    async def delete_limit(self, before: LimitRecord, *, version: int | None) -> None:
        """End a limit that was read with `lock`. Raises `VersionError`."""
        ...

    # -- Budgets --------------------------------------------------------------------------

    async def insert_budget(self, ident: UUID, scope: ScopeRef, new: NewBudget) -> BudgetRecord:
        """Its accounts are opened in the same transaction, in the tenant's time zone.

        Raises `ConflictError` when a live budget has the same scope, period and models.
        """
        ...

    async def get_budget(self, ident: UUID) -> BudgetRecord:
        """Raises `MissingError`."""
        ...

    async def lock_budget(self, ident: UUID, *, version: int | None) -> BudgetRecord:
        """For a change. Raises `MissingError` or `VersionError`."""
        ...

    async def list_budgets(
        self,
        *,
        tenant: UUID | None = None,
        subjects: Sequence[UUID] | None = None,
        after: UUID | None = None,
        limit: int,
    ) -> list[BudgetRecord]:
        """In the order in which they were made."""
        ...

    async def update_budget(self, ident: UUID, changes: Mapping[str, Any]) -> BudgetRecord:
        """Change a locked budget. A limit below what is committed holds back new calls and breaks nothing."""
        ...

    async def delete_budget(self, ident: UUID) -> None:
        """End a locked budget. Calls that hold money in it still settle there."""
        ...

    async def insert_adjustment(
        self, *, ident: UUID, budget: UUID, amount: int, until: dt.datetime | None, reason: str, actor: str
    ) -> AdjustmentRecord:
        """Applies it to the accounts in the same transaction."""
        ...

    async def list_adjustments(
        self, budget: UUID, *, after: UUID | None, limit: int
    ) -> list[AdjustmentRecord]:
        """In the order in which they were made."""
        ...

    async def materialise(self, ident: UUID, scope: ScopeRef, new: NewBudget) -> UUID | None:
        """Give a scope the budget of a plan's template, unless it has one like it.

        One that came from a template before is raised to the template's limit, never lowered; one that an
        administrator made is left alone. Returns the budget that was made or raised, None for neither.
        """
        ...

    # -- Administrators -------------------------------------------------------------------

    async def insert_admin(
        self, *, ident: UUID, name: str, role: str, tenant: UUID | None, digest: bytes, pepper_id: int
    ) -> AdminRecord: ...

    async def get_admin(self, ident: UUID) -> AdminRecord:
        """Revoked ones too. Raises `MissingError`."""
        ...

    async def find_admin(self, digests: Sequence[bytes]) -> AdminRecord | None:
        """The live principal whose key has one of these digests."""
        ...

    async def list_admins(self, *, after: UUID | None, limit: int) -> list[AdminRecord]:
        """Live ones, in the order in which they were made."""
        ...

    async def revoke_admin(self, ident: UUID) -> AdminRecord:
        """Idempotent. Raises `MissingError`."""
        ...

    # -- Refusals and the audit trail -----------------------------------------------------

    async def refusals(
        self,
        group_by: Sequence[RefusalKey],
        *,
        tenant: UUID | None,
        since: dt.datetime | None,
        until: dt.datetime | None,
        limit: int,
    ) -> list[dict[str, Any]]:
        """Counts of refused calls by `group_by`, the most frequent first, with one message of each group.

        The rollup keeps whole hours: `since` and `until` are widened to them.
        """
        ...

    async def trail(self, *, thing: str | None, before: int | None, limit: int) -> list[TrailRecord]:
        """Newest first; `before` is the number of the last record of the page before."""
        ...

    async def trail_first_bad(self) -> int | None:
        """Number of the first record that was edited, removed or reordered; None when the chain holds."""
        ...

    async def audit(
        self,
        actor: str,
        action: str,
        thing: str,
        *,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        """Append to the trail, as the last statement of a write. Never secrets, never digests."""
        ...

    async def knows_time_zone(self, name: str) -> bool: ...

    async def time_zone_of(self, tenant: UUID) -> str: ...


class Repeats(Protocol):
    """Requests with an idempotency key, and their answers, for a day."""

    async def claim(self, principal: str, key: str, request_hash: bytes) -> Kept | None:
        """None when this is the first such request, which is then marked as running; else the first."""
        ...

    async def keep(self, principal: str, key: str, status: int, sealed: bytes) -> None: ...

    async def release(self, principal: str, key: str) -> None: ...


class Store(Protocol):
    @property
    def repeats(self) -> Repeats: ...

    def reading(self) -> AbstractAsyncContextManager[Session]: ...

    def writing(self) -> AbstractAsyncContextManager[Session]: ...

    async def calls(self, where: CallFilter, *, limit: int, before: UUID | None) -> list[CallRecord]:
        """Newest first; `before` is the last attempt of the page before."""
        ...

    async def call(
        self, attempt: UUID, *, tenant: UUID | None
    ) -> tuple[CallRecord, list[EntryRecord]] | None:
        """One attempt, when it is `tenant`'s (or anybody's, for None), with every entry about its money, the
        terminal one first: both of one moment.
        """
        ...

    async def spend(
        self, group_by: Sequence[str], where: CallFilter, *, zone: str, limit: int
    ) -> list[dict[str, Any]]:
        """Resolved attempts summed by `group_by`, the dearest group first; days are days of `zone`."""
        ...
