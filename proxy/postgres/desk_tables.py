"""The tables of reports, alerts and webhooks, with those of `tables`; the metadata of the whole schema.

Money is integer nano-dollars. Rows of `usage_days` are sums that can be made again from the ledger as
long as its partition is there; `statements` and `ledger_months` are facts.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Date,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    SmallInteger,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from proxy.postgres.tables import Base, EntryRow

__all__ = [
    "AlertRow",
    "Base",
    "Crossing",
    "LedgerMonth",
    "OutboxRow",
    "StatementRow",
    "UsageDay",
    "UsageDirty",
    "UsageMark",
    "Webhook",
]

Index("entries_at", EntryRow.__table__.c.at, postgresql_using="brin", postgresql_with={"autosummarize": "on"})


def _sum() -> Mapped[int]:
    return mapped_column(BigInteger)


def _day() -> Mapped[dt.date]:
    return mapped_column(Date)


class UsageDay(Base):
    """Resolved attempts of one tenant's local day. `project` is the nil uuid for none."""

    __tablename__ = "usage_days"
    __table_args__ = (
        PrimaryKeyConstraint(
            *("tenant", "day", "month", "project", "key", "model", "target", "tags", "operation", "state")
        ),
    )
    tenant: Mapped[UUID]
    day: Mapped[dt.date] = _day()
    month: Mapped[dt.date] = _day()
    project: Mapped[UUID]
    key: Mapped[UUID]
    model: Mapped[int] = mapped_column(autoincrement=False)
    target: Mapped[int] = mapped_column(autoincrement=False)
    tags: Mapped[int] = mapped_column(autoincrement=False)
    operation: Mapped[int] = mapped_column(SmallInteger, autoincrement=False)
    state: Mapped[int] = mapped_column(SmallInteger, autoincrement=False)
    attempts: Mapped[int] = _sum()
    cost: Mapped[int] = _sum()
    upstream_cost: Mapped[int] = _sum()
    saved: Mapped[int] = _sum()
    refunded: Mapped[int] = _sum()
    adjusted: Mapped[int] = _sum()
    overrun: Mapped[int] = _sum()
    input_tokens: Mapped[int] = _sum()
    output_tokens: Mapped[int] = _sum()
    cache_read_tokens: Mapped[int] = _sum()
    cache_write_tokens: Mapped[int] = _sum()
    images: Mapped[int] = _sum()
    guardrail_units: Mapped[int] = _sum()


class UsageDirty(Base):
    """Days whose sums are older than the ledger."""

    __tablename__ = "usage_dirty"
    tenant: Mapped[UUID] = mapped_column(primary_key=True)
    day: Mapped[dt.date] = mapped_column(Date, primary_key=True)
    month: Mapped[dt.date] = mapped_column(Date, primary_key=True)


class UsageMark(Base):
    """Every entry up to `rolled_to` is in `usage_days`, or its day in `usage_dirty`."""

    __tablename__ = "usage_mark"
    one: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    rolled_to: Mapped[dt.datetime] = mapped_column(server_default=text("'-infinity'"))


class LedgerMonth(Base):
    """A month of the ledger that was dropped, with what was in it."""

    __tablename__ = "ledger_months"
    month: Mapped[dt.date] = mapped_column(Date, primary_key=True)
    dropped_at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))
    attempts: Mapped[int] = _sum()
    cost: Mapped[int] = _sum()
    upstream_cost: Mapped[int] = _sum()


class StatementRow(Base):
    """What a tenant was told it owes for a calendar month; never changed."""

    __tablename__ = "statements"
    __table_args__ = (PrimaryKeyConstraint("tenant", "month"),)
    tenant: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    month: Mapped[dt.date] = _day()
    issued_at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))
    issued_by: Mapped[str]
    usage: Mapped[int] = _sum()
    corrections: Mapped[int] = _sum()
    total: Mapped[int] = _sum()
    body: Mapped[dict[str, Any]]


class Webhook(Base):
    """Where alerts go. `sealed` is the signing secret; `tenant` None hears of all tenants."""

    __tablename__ = "webhooks"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[UUID | None] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str]
    url: Mapped[str]
    format: Mapped[str] = mapped_column(server_default=text("'json'"))
    events: Mapped[list[str]]
    sealed: Mapped[bytes]
    status: Mapped[str] = mapped_column(server_default=text("'active'"))
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))
    deleted_at: Mapped[dt.datetime | None]


class Crossing(Base):
    """A condition that holds now and was told."""

    __tablename__ = "crossings"
    __table_args__ = (PrimaryKeyConstraint("subject", "what"),)
    subject: Mapped[str]
    what: Mapped[str]
    since: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))


class AlertRow(Base):
    __tablename__ = "alerts"
    __table_args__ = (Index("alerts_tenant", "tenant", "id"),)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    tenant: Mapped[UUID | None]
    subject: Mapped[str]
    what: Mapped[str]
    at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))
    message: Mapped[str]
    body: Mapped[dict[str, Any]]


class OutboxRow(Base):
    """One alert on its way to one webhook. `status`: waiting, delivered or failed."""

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("webhook", "alert"),
        Index("outbox_waiting", "next_at", postgresql_where=text("status = 'waiting'")),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True)
    webhook: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id"))
    alert: Mapped[UUID] = mapped_column(ForeignKey("alerts.id"))
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    next_at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))
    done_at: Mapped[dt.datetime | None]
    status: Mapped[str] = mapped_column(server_default=text("'waiting'"))
    last_error: Mapped[str | None]
