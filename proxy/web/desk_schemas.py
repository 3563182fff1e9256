"""Bodies of webhooks, alerts, transfers and the like; see `schemas` for the rules."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import UNSET, Meta, UnsetType, field

from proxy.web.schemas import In, Name, Out, Slug

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
