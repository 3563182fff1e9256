"""Bodies of the admin REST: what callers may send, and what they are shown.

Money is a decimal string in USD with up to nine decimals, exact to the nano-dollar; JSON numbers are
refused for it. Times are RFC 3339 in UTC. A field that is not listed here is refused.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType, field

NANOS = 1_000_000_000
#: largest amount of any one field
USD_MAX = 1_000_000_000

# `$(?!\n)`: in Python a bare `$` would let a trailing newline pass
#: slugs are chosen by the admin and stay for ever; they appear in scopes, metrics and reports
Slug = Annotated[
    str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?$(?!\n)", max_length=63, examples=["acme"])
]
Name = Annotated[
    str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)", examples=["Acme"])
]
PlanName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$(?!\n)", examples=["default"])]
ZoneName = Annotated[str, Meta(min_length=1, max_length=64, examples=["Europe/Berlin"])]
Usd = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,10}(?:\.[0-9]{1,9})?$(?!\n)",
        description="USD, at most 1,000,000,000, up to nine decimals",
        examples=["100.00"],
    ),
]
SignedUsd = Annotated[
    str,
    Meta(
        pattern=r"^-?[0-9]{1,10}(?:\.[0-9]{1,9})?$(?!\n)",
        description="USD, may be negative, up to nine decimals",
        examples=["50.00"],
    ),
]
Fraction = Annotated[
    str,
    Meta(
        pattern=r"^[0-9](?:\.[0-9]{1,6})?$(?!\n)",
        description="part of the limit, above 0 and up to 9.999999",
        examples=["0.8"],
    ),
]
Scope = Annotated[
    str,
    Meta(
        pattern=r"^(?:tenant|project|key):[a-z0-9/_-]{1,130}$(?!\n)",
        description="`tenant:acme`, `project:acme/search` or `key:<id>`",
        examples=["tenant:acme"],
    ),
]
ModelId = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9.:_/-]+$(?!\n)")]
Models = Annotated[list[ModelId], Meta(min_length=1, max_length=200, description="base model ids")]
Reason = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]
Instant = Annotated[datetime, Meta(tz=True)]
Overrides = Annotated[dict[str, Any], Meta(description="policy fields that differ from the plan's")]
#: the bank keeps it in 32 bits
FloorTokens = Annotated[
    int,
    Meta(
        ge=1,
        le=10_000_000,
        description="with `on_short` clamp: fewest output tokens an answer is clamped to; below that the call is refused",
    ),
]
Rate = Annotated[int, Meta(ge=0, le=1_000_000_000)]

Period = Literal["day", "week", "month", "total"]
OnShort = Literal["reject", "clamp"]
Mode = Literal["enforce", "observe"]
Role = Literal["admin", "auditor", "tenant-admin"]
TenantStatus = Literal["active", "suspended"]
KeyStatusName = Literal["active", "disabled", "revoked"]
OutcomeName = Literal["OPEN", "POST", "VOID", "CEILING", "HIT"]


class In(Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body."""


class Out(Struct, kw_only=True):
    """A response body."""


# -- tenants and projects ---------------------------------------------------------------------


class TenantIn(In):
    id: Slug
    name: Name
    plan: PlanName = "default"
    time_zone: ZoneName = "UTC"
    overrides: Overrides | None = None


class TenantPatch(In):
    name: Name | UnsetType = UNSET
    status: TenantStatus | UnsetType = UNSET
    plan: PlanName | UnsetType = UNSET
    overrides: Overrides | UnsetType | None = UNSET


class TenantOut(Out):
    id: str
    name: str
    plan: str
    time_zone: str
    status: TenantStatus
    overrides: dict[str, Any] | None
    created_at: datetime


class ProjectIn(In):
    id: Slug
    name: Name


class ProjectOut(Out):
    id: str
    tenant: str
    name: str
    created_at: datetime


# -- keys -------------------------------------------------------------------------------------


class KeyIn(In):
    tenant: Slug
    name: Name
    project: Slug | None = None
    expires_at: Instant | None = None
    overrides: Overrides | None = None
    #: False: no AWS access key pair is made, so this key cannot sign
    sigv4: bool = True


class KeyPatch(In):
    name: Name | UnsetType = UNSET
    expires_at: Instant | UnsetType | None = UNSET
    overrides: Overrides | UnsetType | None = UNSET


class RotateIn(In):
    #: how long the replaced secrets go on working
    grace_seconds: Annotated[int, Meta(ge=0, le=2_592_000)] = 3600


class NothingIn(In):
    """`{}`, or no body at all."""


class CredentialOut(Out):
    id: UUID
    #: the first characters of the bearer token, to recognise it by
    prefix: str
    last4: str
    aws_access_key_id: str | None
    created_at: datetime
    expires_at: datetime | None


class KeyOut(Out):
    id: UUID
    tenant: str
    project: str | None
    name: str
    status: KeyStatusName
    expires_at: datetime | None
    overrides: dict[str, Any] | None
    created_at: datetime
    credentials: list[CredentialOut]


class IssuedKeyOut(KeyOut):
    """The only answer that ever contains the secrets."""

    bearer_token: str
    aws_access_key_id: str | None
    aws_secret_access_key: str | None


# -- limits -----------------------------------------------------------------------------------


class LimitIn(In):
    scope: Scope
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    burst_seconds: Annotated[int, Meta(ge=1, le=86_400)] | None = None
    concurrency: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    models: Models | None = None
    mode: Mode | None = None


class LimitPatch(In):
    requests_per_minute: Rate | UnsetType | None = UNSET
    tokens_per_minute: Rate | UnsetType | None = UNSET
    burst_seconds: Annotated[int, Meta(ge=1, le=86_400)] | UnsetType = UNSET
    concurrency: Annotated[int, Meta(ge=0, le=1000000)] | UnsetType | None = UNSET
    models: Models | UnsetType | None = UNSET
    mode: Mode | UnsetType = UNSET


class LimitOut(Out):
    id: UUID
    scope: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    burst_seconds: int
    concurrency: int | None
    models: list[str] | None
    mode: Mode
    created_at: datetime


# -- budgets ----------------------------------------------------------------------------------


class BudgetIn(In):
    scope: Scope
    period: Period
    limit_usd: Usd
    models: Models | None = None
    on_short: OnShort = "reject"
    floor_output_tokens: FloorTokens = 1
    thresholds: Annotated[list[Fraction], Meta(max_length=20)] = field(
        default_factory=lambda: ["0.5", "0.8", "1"]
    )


class BudgetPatch(In):
    limit_usd: Usd | UnsetType = UNSET
    on_short: OnShort | UnsetType = UNSET
    floor_output_tokens: FloorTokens | UnsetType = UNSET
    thresholds: Annotated[list[Fraction], Meta(max_length=20)] | UnsetType = UNSET


class BudgetOut(Out):
    """A budget with its current period, as the bank's row stands.

    `limit_usd` is what was asked for; `effective_limit_usd` adds adjustments and is never below what
    is already committed.
    """

    id: UUID
    scope: str
    period: Period
    time_zone: str
    limit_usd: str
    effective_limit_usd: str
    settled_usd: str
    reserved_usd: str
    overrun_usd: str
    remaining_usd: str
    period_start: datetime | None
    resets_at: datetime | None
    models: list[str] | None
    on_short: OnShort
    floor_output_tokens: int
    thresholds: list[str]
    origin: str | None
    created_at: datetime


class AdjustmentIn(In, kw_only=True):
    amount_usd: SignedUsd
    #: None: until the current period ends
    until: Instant | None = None
    reason: Reason


class AdjustmentOut(Out):
    id: UUID
    budget: UUID
    amount_usd: str
    until: datetime | None
    reason: str
    created_at: datetime
    created_by: str


# -- administrators and problems -------------------------------------------------------------


class AdminIn(In):
    name: Name
    role: Role
    #: required for, and only for, the role `tenant-admin`
    tenant: Slug | None = None


class AdminOut(Out):
    id: UUID
    name: str
    role: Role
    tenant: str | None
    created_at: datetime
    revoked_at: datetime | None


class IssuedAdminOut(AdminOut):
    """The only answer that ever contains the admin key."""

    admin_key: str


class FieldError(Out):
    """`field` is the path of the wrong value in the body or the query."""

    field: str
    message: str


class ProblemOut(Out):
    """An error, as `application/problem+json` (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []


def nanos(usd: str) -> int:
    """Nano-dollars of a decimal string that matched `Usd` or `SignedUsd`. Exact."""
    return int(Decimal(usd).scaleb(9).to_integral_exact())


def usd(nano_dollars: int) -> str:
    """Decimal string in USD: at least two decimals, no more than are needed to be exact."""
    sign, value = ("-", -nano_dollars) if nano_dollars < 0 else ("", nano_dollars)
    whole, part = divmod(value, NANOS)
    decimals = f"{part:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"
