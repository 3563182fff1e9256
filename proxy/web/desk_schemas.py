"""Bodies of webhooks, alerts, transfers and the like; see `schemas` for the rules."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import UNSET, Meta, UnsetType, field

from proxy.web.schemas import AdjustmentOut, In, Instant, ModelId, Name, Out, Reason, Slug, Usd

AlertKind = Literal["threshold", "forecast", "anomaly", "key_expiry", "ceilings"]
WebhookFormat = Literal["json", "slack"]
WebhookStatus = Literal["active", "disabled"]
HookUrl = Annotated[
    str, Meta(min_length=9, max_length=2000, examples=["https://hooks.example.com/tollhouse"])
]
Events = Annotated[list[AlertKind], Meta(min_length=1, max_length=20)]


class WebhookIn(In):
    name: Name
    url: HookUrl
    #: None hears of all tenants
    tenant: Slug | None = None
    format: WebhookFormat = "json"
    events: Events = field(
        default_factory=lambda: ["threshold", "forecast", "anomaly", "key_expiry", "ceilings"]
    )


class WebhookPatch(In):
    name: Name | UnsetType = UNSET
    url: HookUrl | UnsetType = UNSET
    format: WebhookFormat | UnsetType = UNSET
    events: Events | UnsetType = UNSET
    status: WebhookStatus | UnsetType = UNSET


class WebhookOut(Out):
    id: UUID
    tenant: str | None
    name: str
    url: str
    format: WebhookFormat
    events: list[AlertKind]
    status: WebhookStatus
    created_at: datetime


class IssuedWebhookOut(WebhookOut):
    """The only answer that ever contains the secret. Deliveries carry
    `X-Tollhouse-Signature: t=<unix>,v1=<hex>`: HMAC-SHA256 under it over `<unix>.<body>`.
    """

    secret: str


class DeliveryOut(Out):
    id: UUID
    alert: UUID
    kind: str
    status: Literal["waiting", "delivered", "failed"]
    tries: int
    next_at: datetime | None
    done_at: datetime | None
    last_error: str | None


class AlertOut(Out):
    id: UUID
    kind: str
    tenant: str | None
    subject: str
    message: str
    data: dict[str, Any]
    at: datetime


# -- policies ---------------------------------------------------------------------------------


class PoliciesOut(Out):
    #: changes when any file changes
    version: str
    #: errors of the last change, which is therefore not in force; `file:line:column: message`
    problems: list[str]
    plans: list[str]
    price_versions: list[str]
    rules: list[str]


class RuleOut(Out):
    name: str
    when: str
    effect: str
    mode: Literal["enforce", "observe"]
    file: str
    line: int


class PriceVersionOut(Out):
    id: str
    #: unix seconds
    effective_from: int
    #: prices it names; a later version names only what changed
    prices: int


# -- corrections ------------------------------------------------------------------------------

Share = Annotated[str, Meta(pattern=r"^(?:0(?:\.[0-9]{1,6})?|1(?:\.0{1,6})?)$(?!\n)", examples=["0.25"])]
Incident = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._#:/-]{0,99}$(?!\n)", examples=["INC-2026-11-24"])
]
TargetName = Annotated[str, Meta(min_length=1, max_length=500)]


class TransferIn(In):
    """From one budget's current period to another's."""

    source: UUID
    target: UUID
    amount_usd: Usd
    reason: Reason


class TransferOut(Out):
    source: AdjustmentOut
    target: AdjustmentOut


class RefundIn(In):
    amount_usd: Usd
    reason: Reason


class ReleaseIn(In):
    """Which ceilings; times are about the admission of the call."""

    incident: Incident
    since: Instant
    until: Instant
    tenant: Slug | None = None
    model: ModelId | None = None
    #: as the ledger names it, `us-east-1/<id>`
    target: TargetName | None = None
    #: part of each ceiling that stays charged
    keep_share: Share = "0"
    dry_run: bool = False


class RepriceIn(In):
    reason: Reason
    since: Instant
    until: Instant
    tenant: Slug | None = None
    model: ModelId | None = None
    target: TargetName | None = None
    dry_run: bool = False


class CorrectedOut(Out):
    """`amount_usd` is what was added to the ledger, negative for refunds."""

    found: int
    corrected: int
    #: corrected before, under the same evidence
    already: int
    #: left as they are: no price, or no tier that gives the recorded cost
    unexplained: int
    amount_usd: str
    dry_run: bool


class ExplainedOut(Out):
    attempt: UUID
    model: str
    target: str
    #: what it is charged, adjustments included
    cost_usd: str
    adjusted_usd: str
    price_version: str
    #: found again from the cost; null when nothing explains it
    tier: str | None
    latency: str | None
    lines: list[str]
    #: what the price book of today says
    book_cost_usd: str | None
    book_version: str | None


class PurgeIn(In):
    """Which answers; `{}`, or no body at all, is all of them."""

    #: base model id
    model: ModelId | None = None


class PurgedOut(Out):
    deleted: int
    model: str | None
