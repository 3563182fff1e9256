"""`/webhooks` and `/alerts`: what was noticed, and who is told."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from litestar import Controller, Response, delete, get, patch, post
from litestar.params import Parameter

from proxy.clock import uuid7
from proxy.domain.alerting import Condition
from proxy.domain.control import AlertRecord, DeliveryRecord, WebhookRecord
from proxy.domain.delivery import UnsafeUrlError, check_url, webhook_context
from proxy.web.admin import paging
from proxy.web.admin.access import Principal, of_own_tenant
from proxy.web.admin.calls import Slug
from proxy.web.admin.core import (
    PAGE,
    Cursor,
    IfMatch,
    Limit,
    Office,
    Page,
    expected,
    given,
    record,
    shown,
    utc,
    utc_or_none,
)
from proxy.web.admin.problems import conflict, invalid, not_found
from proxy.web.admin.store import Session
from proxy.web.admin.tenants import own_tenant
from proxy.web.desk_schemas import (
    AlertKind,
    AlertOut,
    DeliveryOut,
    IssuedWebhookOut,
    WebhookIn,
    WebhookOut,
    WebhookPatch,
)
from proxy.web.schemas import NothingIn

#: of one tenant, and of all tenants together
WEBHOOKS_MAX = 50


@dataclass(frozen=True, slots=True)
class WebhookDesk:
    """A tenant-admin has webhooks of its own tenant, which hear of that tenant only."""

    office: Office

    async def create(self, who: Principal, body: WebhookIn) -> tuple[IssuedWebhookOut, int]:
        self._check_url(body.url)
        ident, secret = uuid7(), "whsec_" + secrets.token_urlsafe(32)
        sealed = self.office.keyring.seal_answer(secret.encode(), webhook_context(ident))
        async with self.office.store.writing() as db:
            tenant = who.tenant
            if body.tenant is not None:
                tenant = (await own_tenant(db, who, body.tenant)).id
            if await db.count_webhooks(tenant) >= WEBHOOKS_MAX:
                raise conflict(f"there are {WEBHOOKS_MAX} webhooks already")
            values = {
                "tenant": tenant, "name": body.name, "url": body.url, "format": body.format,
                "events": sorted(set(body.events)), "sealed": sealed,
            }  # fmt: skip
            made = await db.insert_webhook(ident, values)
            out = _out(made)
            await record(db, who, "webhook.create", f"webhook:{ident}", after=out)
        fields = {name: getattr(out, name) for name in out.__struct_fields__}
        return IssuedWebhookOut(**fields, secret=secret), made.version

    async def read(self, who: Principal, ident: UUID) -> tuple[WebhookOut, int]:
        async with self.office.store.reading() as db:
            found = await _own(db, who, ident)
        return _out(found), found.version

    async def list(
        self, who: Principal, tenant: str | None, limit: int, cursor: str | None
    ) -> Page[WebhookOut]:
        after = paging.decode_id(cursor)
        async with self.office.store.reading() as db:
            ident = who.tenant if tenant is None else (await own_tenant(db, who, tenant)).id
            found = await db.list_webhooks(tenant=ident, after=after, limit=limit + 1)
        return Page(
            items=[_out(row) for row in found[:limit]],
            next=paging.encode(str(found[limit - 1].id)) if len(found) > limit else None,
        )

    async def change(
        self, who: Principal, ident: UUID, body: WebhookPatch, version: int | None
    ) -> tuple[WebhookOut, int]:
        changes = given(body)
        if "url" in changes:
            self._check_url(changes["url"])
        if "events" in changes:
            changes["events"] = sorted(set(changes["events"]))
        async with self.office.store.writing() as db:
            before = await _own(db, who, ident, lock=True)
            after = await db.update_webhook(before, changes, version=version)
            out = _out(after)
            await record(db, who, "webhook.change", f"webhook:{ident}", before=_out(before), after=out)
        return out, after.version

    async def delete(self, who: Principal, ident: UUID, version: int | None) -> None:
        async with self.office.store.writing() as db:
            before = await _own(db, who, ident, lock=True)
            await db.delete_webhook(before, version=version)
            await record(db, who, "webhook.delete", f"webhook:{ident}", before=_out(before))

    async def test(self, who: Principal, ident: UUID) -> None:
        """An alert of kind `test`, to this webhook only."""
        async with self.office.store.writing() as db:
            found = await _own(db, who, ident)
            alert = Condition(
                subject=f"webhook:{ident}", kind="test", detail=str(uuid7()), tenant=found.tenant,
                message=f"a test of the webhook {found.name!r}",
            )  # fmt: skip
            await db.try_webhook(ident, alert)
            await record(db, who, "webhook.test", f"webhook:{ident}")

    async def deliveries(self, who: Principal, ident: UUID, limit: int) -> Page[DeliveryOut]:
        async with self.office.store.reading() as db:
            await _own(db, who, ident)
            found = await db.deliveries(ident, limit=limit)
        return Page(items=[_delivery_out(row) for row in found])

    async def alerts(
        self, who: Principal, tenant: str | None, kind: str | None, limit: int, cursor: str | None
    ) -> Page[AlertOut]:
        before = paging.decode_id(cursor)
        async with self.office.store.reading() as db:
            ident = who.tenant if tenant is None else (await own_tenant(db, who, tenant)).id
            found = await db.alerts(tenant=ident, kind=kind, before=before, limit=limit + 1)
        return Page(
            items=[_alert_out(row) for row in found[:limit]],
            next=paging.encode(str(found[limit - 1].id)) if len(found) > limit else None,
        )

    def _check_url(self, url: str) -> None:
        try:
            check_url(url, self.office.networks)
        except UnsafeUrlError as error:
            raise invalid("url", str(error)) from None


async def _own(db: Session, who: Principal, ident: UUID, *, lock: bool = False) -> WebhookRecord:
    """Raises the 404 of whatever does not exist for this principal."""
    found = await db.get_webhook(ident, lock=lock)
    if found.tenant is None:
        if who.tenant is not None:
            raise not_found("webhook")
    else:
        of_own_tenant(who, found.tenant, "webhook")
    return found


def _out(row: WebhookRecord) -> WebhookOut:
    return WebhookOut(
        id=row.id, tenant=row.tenant_slug, name=row.name, url=row.url, format=cast("Any", row.format),
        events=cast("Any", row.events), status=cast("Any", row.status), created_at=utc(row.created_at),
    )  # fmt: skip


def _delivery_out(row: DeliveryRecord) -> DeliveryOut:
    waits = row.status == "waiting"
    return DeliveryOut(
        id=row.id, alert=row.alert, kind=row.kind, status=cast("Any", row.status), tries=row.tries,
        next_at=utc(row.next_at) if waits else None, done_at=utc_or_none(row.done_at),
        last_error=row.last_error,
    )  # fmt: skip


def _alert_out(row: AlertRecord) -> AlertOut:
    return AlertOut(
        id=row.id, kind=row.kind, tenant=row.tenant_slug, subject=row.subject, message=row.message,
        data=row.body, at=utc(row.at),
    )  # fmt: skip


class WebhookController(Controller):
    path = "/webhooks"
    tags = ("alerts",)

    @post(summary="Make a webhook; the answer is the only one that shows its signing secret")
    async def create(
        self, desk_of_webhooks: WebhookDesk, who: Principal, data: WebhookIn
    ) -> Response[IssuedWebhookOut]:
        out, version = await desk_of_webhooks.create(who, data)
        return shown(out, version, status=201, location=f"/admin/v1/webhooks/{out.id}")

    @get(summary="List webhooks")
    async def list(
        self,
        desk_of_webhooks: WebhookDesk,
        who: Principal,
        tenant: Slug = None,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[WebhookOut]:
        return await desk_of_webhooks.list(who, tenant, limit, cursor)

    @get("/{ident:uuid}", summary="Show a webhook")
    async def read(self, desk_of_webhooks: WebhookDesk, who: Principal, ident: UUID) -> Response[WebhookOut]:
        return shown(*await desk_of_webhooks.read(who, ident))

    @patch("/{ident:uuid}", summary="Change a webhook: name, url, format, events, status")
    async def change(
        self,
        desk_of_webhooks: WebhookDesk,
        who: Principal,
        ident: UUID,
        data: WebhookPatch,
        if_match: IfMatch = None,
    ) -> Response[WebhookOut]:
        return shown(*await desk_of_webhooks.change(who, ident, data, expected(if_match)))

    @delete("/{ident:uuid}", summary="Delete a webhook")
    async def remove(
        self, desk_of_webhooks: WebhookDesk, who: Principal, ident: UUID, if_match: IfMatch = None
    ) -> None:
        await desk_of_webhooks.delete(who, ident, expected(if_match))

    @post("/{ident:uuid}/test", status_code=202, summary="Send a test alert to one webhook")
    async def test(
        self,
        desk_of_webhooks: WebhookDesk,
        who: Principal,
        ident: UUID,
        data: NothingIn,  # noqa: ARG002 (it refuses fields)
    ) -> None:
        await desk_of_webhooks.test(who, ident)

    @get("/{ident:uuid}/deliveries", summary="List deliveries, newest first")
    async def deliveries(
        self, desk_of_webhooks: WebhookDesk, who: Principal, ident: UUID, limit: Limit = PAGE
    ) -> Page[DeliveryOut]:
        return await desk_of_webhooks.deliveries(who, ident, limit)


class AlertController(Controller):
    path = "/alerts"
    tags = ("alerts",)

    @get(summary="List alerts, newest first")
    async def list(
        self,
        desk_of_webhooks: WebhookDesk,
        who: Principal,
        tenant: Slug = None,
        kind: Annotated[AlertKind | Literal["test"] | None, Parameter(description="what was noticed")] = None,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[AlertOut]:
        return await desk_of_webhooks.alerts(who, tenant, kind, limit, cursor)
