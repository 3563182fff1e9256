"""The facts of the control plane, as its desks and its store pass them to each other.

Money is integer nano-dollars, times are aware. A record is what was read; a write takes what was read
and what should change.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from proxy.domain.ledger import EntryKind, Operation, State, Why
from proxy.domain.usage import Usage
from proxy.errors import TollhouseError

ScopeKind = Literal["tenant", "project", "key"]


class ControlError(TollhouseError):
    """A write that was refused; nothing of it happened."""


class MissingError(ControlError):
    """The thing does not exist (any more). The message is what kind of thing."""


class ConflictError(ControlError):
    """The write would contradict what is there."""


class VersionError(ControlError):
    """The thing was changed by somebody else since the caller read it."""


class RangeError(ControlError):
    """A number, a time or a character that the store cannot keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRecord:
    id: UUID
    slug: str
    name: str
    plan: str
    time_zone: str
    status: str
    overrides: dict[str, Any]
    version: int
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRecord:
    id: UUID
    tenant: UUID
    tenant_slug: str
    slug: str
    name: str
    status: str
    version: int
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRecord:
    """A live credential as it may be shown."""

    id: UUID
    key: UUID
    bearer_prefix: str
    last4: str
    access_key_id: str | None
    created_at: dt.datetime
    expires_at: dt.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    id: UUID
    tenant: UUID
    tenant_slug: str
    project: UUID | None
    project_slug: str | None
    name: str
    status: str
    expires_at: dt.datetime | None
    overrides: dict[str, Any]
    version: int
    created_at: dt.datetime
    credentials: tuple[CredentialRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NewCredential:
    """What is stored of fresh secrets."""

    id: UUID
    bearer_digest: bytes
    bearer_prefix: str
    last4: str
    pepper_id: int
    access_key_id: str | None
    sigv4_ciphertext: bytes | None
    data_key_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeRef:
    """`name` is the spelling callers use; `subject` the uuid of what it names."""

    kind: ScopeKind
    name: str
    subject: UUID
    tenant: UUID
    tenant_slug: str
    time_zone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRecord:
    id: UUID
    scope: str
    subject: UUID
    tenant: UUID
    requests_per_minute: int | None
    tokens_per_minute: int | None
    burst_seconds: int
    concurrency: int | None
    models: list[str] | None
    mode: str
    version: int
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRecord:
    """A budget and its current account. Without one (never for long) the money fields are 0."""

    id: UUID
    scope: str
    subject: UUID
    tenant: UUID
    period: str
    time_zone: str
    limit_nano: int
    models: list[str] | None
    on_short: str
    thresholds: list[str]
    floor_output_tokens: int
    origin: str | None
    version: int
    created_at: dt.datetime
    starts_at: dt.datetime | None
    ends_at: dt.datetime | None
    effective_nano: int
    settled: int
    reserved: int
    overrun: int

    @property
    def remaining(self) -> int:
        """Nano-dollars that calls may still take; never negative."""
        return max(0, self.effective_nano - self.settled - self.reserved - self.overrun)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustmentRecord:
    id: UUID
    budget: UUID
    amount: int
    until: dt.datetime | None
    reason: str
    actor: str
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBudget:
    """`models` are base model ids, None for all."""

    period: str
    limit_nano: int
    models: Sequence[str] | None
    on_short: str
    thresholds: Sequence[str]
    #: fewest output tokens that `clamp` leaves an answer
    floor_output_tokens: int = 1
    origin: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminRecord:
    id: UUID
    name: str
    role: str
    tenant: UUID | None
    tenant_slug: str | None
    created_at: dt.datetime
    revoked_at: dt.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailRecord:
    """One record of the audit trail. `hash` covers it and the record before it."""

    seq: int
    at: dt.datetime
    actor: str
    action: str
    object: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is known of a request made before. `status` is None while it runs, or when its process died."""

    request_hash: bytes
    status: int | None
    sealed: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFilter:
    """None does not filter. `since` is inclusive, `until` exclusive, both about the admission."""

    tenant: UUID | None = None
    project: UUID | None = None
    key: UUID | None = None
    call: UUID | None = None
    #: base model id
    model: str | None = None
    outcome: State | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One attempt as the ledger has it. What its end decides is None while it is OPEN."""

    attempt: UUID
    call: UUID
    tenant: UUID
    tenant_slug: str | None
    project_slug: str | None
    key: UUID
    operation: Operation
    model: str
    target: str
    tags: str
    outcome: State
    why: Why | None
    usage: Usage | None
    ceiling: int
    cost: int | None
    upstream_cost: int | None
    saved: int
    price_version: str
    upstream_request_id: str | None
    status: int | None
    admitted_at: dt.datetime
    finished_at: dt.datetime | None
    latency_ms: int | None
    first_byte_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRecord:
    """An immutable fact about the money of one attempt."""

    kind: EntryKind
    amount: int
    why: Why
    at: dt.datetime
    evidence: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRecord:
    """`tenant` None hears of all tenants."""

    id: UUID
    tenant: UUID | None
    tenant_slug: str | None
    name: str
    url: str
    format: str
    events: list[str]
    status: str
    version: int
    created_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRecord:
    id: UUID
    kind: str
    tenant: UUID | None
    tenant_slug: str | None
    subject: str
    message: str
    body: dict[str, Any]
    at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """One alert on its way to one webhook. `status`: waiting, delivered or failed."""

    id: UUID
    alert: UUID
    kind: str
    status: str
    tries: int
    next_at: dt.datetime
    done_at: dt.datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetShare:
    """The spent share of one budget in its current period. `models` are base ids, None for all."""

    subject: UUID
    models: frozenset[str] | None
    used: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """An entry to be written about a resolved attempt. The same evidence counts once per attempt and kind."""

    attempt: UUID
    kind: EntryKind
    amount: int
    upstream_amount: int
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidRecord:
    """A resolved attempt as corrections need it. `adjusted` is the part of `cost` that ADJUST entries are."""

    attempt: UUID
    tenant_slug: str
    model: str
    target: str
    version: str
    usage: Usage
    cost: int
    upstream_cost: int
    adjusted: int
    extra_entries: int
    admitted_at: dt.datetime
