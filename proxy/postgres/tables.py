"""The tables as the control plane and reports see them. The hot path uses none of this.

Money is integer nano-dollars (1e-9 USD); times are aware. `version` and `changed` of directory tables
are stamped by a trigger, `changed` from the one counter in `directory_epoch`: pollers read
`changed > last seen`. Rows are ended by a column, never deleted. Storage, triggers and partitions are
in the migrations; a test holds both sides equal.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    FetchedValue,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NIL = UUID(int=0)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy's own contract
        str: Text,
        int: Integer,
        bytes: LargeBinary,
        UUID: Uuid,
        dt.datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        list[int]: ARRAY(Integer),
    }


def _created() -> Mapped[dt.datetime]:
    return mapped_column(server_default=text("now()"))


def _version() -> Mapped[int]:
    return mapped_column(server_default=text("1"), server_onupdate=FetchedValue())


def _changed() -> Mapped[int]:
    return mapped_column(BigInteger, server_default=text("0"), server_onupdate=FetchedValue())


def _overrides() -> Mapped[dict[str, Any]]:
    return mapped_column(server_default=text("'{}'"))


class DirectoryEpoch(Base):
    __tablename__ = "directory_epoch"
    one: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class Tenant(Base):
    """`status`: active, suspended or deleted."""

    __tablename__ = "tenants"
    __table_args__ = (Index("tenants_changed", "changed"),)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    plan: Mapped[str] = mapped_column(server_default=text("'default'"))
    time_zone: Mapped[str] = mapped_column(server_default=text("'UTC'"))
    status: Mapped[str] = mapped_column(server_default=text("'active'"))
    overrides: Mapped[dict[str, Any]] = _overrides()
    version: Mapped[int] = _version()
    created_at: Mapped[dt.datetime] = _created()
    changed: Mapped[int] = _changed()


class Project(Base):
    """`status`: active, suspended or deleted."""

    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("tenant", "slug"), Index("projects_changed", "changed"))
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    slug: Mapped[str]
    name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'active'"))
    overrides: Mapped[dict[str, Any]] = _overrides()
    version: Mapped[int] = _version()
    created_at: Mapped[dt.datetime] = _created()
    changed: Mapped[int] = _changed()


class Key(Base):
    """`status`: active, disabled or revoked."""

    __tablename__ = "keys"
    __table_args__ = (Index("keys_tenant", "tenant"), Index("keys_changed", "changed"))
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    project: Mapped[UUID | None] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'active'"))
    expires_at: Mapped[dt.datetime | None]
    overrides: Mapped[dict[str, Any]] = _overrides()
    version: Mapped[int] = _version()
    created_at: Mapped[dt.datetime] = _created()
    changed: Mapped[int] = _changed()


class Credential(Base):
    """One secret of a key in two forms; only digests and ciphertexts are kept."""

    __tablename__ = "credentials"
    __table_args__ = (Index("credentials_key", "key"), Index("credentials_changed", "changed"))
    id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[UUID] = mapped_column(ForeignKey("keys.id"))
    bearer_digest: Mapped[bytes] = mapped_column(unique=True)
    bearer_prefix: Mapped[str]
    last4: Mapped[str]
    pepper_id: Mapped[int] = mapped_column(SmallInteger)
    access_key_id: Mapped[str | None] = mapped_column(unique=True)
    sigv4_ciphertext: Mapped[bytes | None]
    data_key_id: Mapped[int | None] = mapped_column(SmallInteger)
    version: Mapped[int] = _version()
    created_at: Mapped[dt.datetime] = _created()
    expires_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]
    changed: Mapped[int] = _changed()


class Limit(Base):
    """A configured rate. `scope`: tenant, project or key; `subject`: its uuid."""

    __tablename__ = "limits"
    __table_args__ = (
        Index("limits_subject", "subject", postgresql_where=text("deleted_at IS NULL")),
        Index("limits_changed", "changed"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True)
    scope: Mapped[str]
    subject: Mapped[UUID]
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    burst_seconds: Mapped[int] = mapped_column(server_default=text("60"))
    concurrency: Mapped[int | None]
    models: Mapped[list[str] | None]
    mode: Mapped[str] = mapped_column(server_default=text("'enforce'"))
    version: Mapped[int] = _version()
    created_at: Mapped[dt.datetime] = _created()
    deleted_at: Mapped[dt.datetime | None]
    changed: Mapped[int] = _changed()


class Admin(Base):
    """A principal of the admin REST. `role`: admin, auditor or tenant-admin (with its `tenant`)."""

    __tablename__ = "admins"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    tenant: Mapped[UUID | None] = mapped_column(ForeignKey("tenants.id"))
    digest: Mapped[bytes] = mapped_column(unique=True)
    pepper_id: Mapped[int | None] = mapped_column(SmallInteger)
    created_at: Mapped[dt.datetime] = _created()
    revoked_at: Mapped[dt.datetime | None]


class AuditRecord(Base):
    """Written by `audit_append(...)` only; a hash chain that `audit_first_bad()` verifies."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_object", "object", "seq"),)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[dt.datetime]
    actor: Mapped[str]
    action: Mapped[str]
    object: Mapped[str]
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    prev_hash: Mapped[bytes]
    hash: Mapped[bytes]


class IdempotencyRecord(Base):
    """The answer to an admin request that carried an idempotency key; `status` is null while it runs."""

    __tablename__ = "idempotency"
    __table_args__ = (PrimaryKeyConstraint("principal", "key"),)
    principal: Mapped[str]
    key: Mapped[str]
    request_hash: Mapped[bytes]
    status: Mapped[int | None]
    response: Mapped[dict[str, Any] | None]
    created_at: Mapped[dt.datetime] = _created()


class Budget(Base):
    """Money per calendar period. `models` are label ids of base models, None for all.

    Scope, subject, period, zone and models are fixed for life; changing `limit_nano` reaches the open
    accounts in the same transaction. One live budget per (scope, subject, period, models).
    """

    __tablename__ = "budgets"
    __table_args__ = (
        Index(
            "budgets_one_live",
            "scope",
            "subject",
            "period",
            text("coalesce(models, '{}'::integer[])"),
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("budgets_tenant", "tenant"),
        Index("budgets_changed", "changed"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True)
    scope: Mapped[str]
    subject: Mapped[UUID]
    tenant: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    period: Mapped[str]
    time_zone: Mapped[str] = mapped_column(server_default=text("'UTC'"))
    limit_nano: Mapped[int] = mapped_column(BigInteger)
    models: Mapped[list[int] | None]
    on_short: Mapped[str] = mapped_column(server_default=text("'reject'"))
    thresholds: Mapped[list[str]] = mapped_column(server_default=text("'{0.5,0.8,1}'"))
    floor_output_tokens: Mapped[int] = mapped_column(server_default=text("1"))
    #: plan@version of the template it came from
    origin: Mapped[str | None]
    version: Mapped[int] = _version()
    created_at: Mapped[dt.datetime] = _created()
    deleted_at: Mapped[dt.datetime | None]
    changed: Mapped[int] = _changed()


class Adjustment(Base):
    """A top-up (or its negative). Without `until` it lifts the current period, with it every period it
    touches until then. Inserting the row applies it.
    """

    __tablename__ = "adjustments"
    __table_args__ = (Index("adjustments_budget", "budget", "created_at"),)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    budget: Mapped[UUID] = mapped_column(ForeignKey("budgets.id"))
    amount: Mapped[int] = mapped_column(BigInteger)
    until: Mapped[dt.datetime | None]
    reason: Mapped[str]
    actor: Mapped[str] = mapped_column(server_default=text("''"))
    created_at: Mapped[dt.datetime] = _created()


class Account(Base):
    """The hot row of one budget and period. Never read it in a long transaction."""

    __tablename__ = "accounts"
    __table_args__ = (
        UniqueConstraint("budget", "starts_at"),
        CheckConstraint("reserved + settled <= limit_effective", name="accounts_never_over"),
    )
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    budget: Mapped[UUID]
    starts_at: Mapped[dt.datetime]
    ends_at: Mapped[dt.datetime]
    limit_target: Mapped[int] = mapped_column(BigInteger)
    limit_effective: Mapped[int] = mapped_column(BigInteger)
    reserved: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    settled: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    overrun: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    boost_amounts: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=text("'{}'"))
    boost_untils: Mapped[list[dt.datetime]] = mapped_column(
        ARRAY(DateTime(timezone=True)), server_default=text("'{}'")
    )
    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))


class AttemptRow(Base):
    """One sending. Written at admission and at resolution; `holds` are the accounts it reserved in."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("attempts_tenant", "tenant", text("uuid_send(attempt)")),
        {"postgresql_partition_by": "RANGE (attempt)"},
    )
    attempt: Mapped[UUID] = mapped_column(primary_key=True)
    call: Mapped[UUID]
    tenant: Mapped[UUID]
    project: Mapped[UUID | None]
    key: Mapped[UUID]
    credential: Mapped[UUID]
    recorder: Mapped[UUID]
    admitted_at: Mapped[dt.datetime]
    ceiling: Mapped[int] = mapped_column(BigInteger)
    model: Mapped[int]
    target: Mapped[int]
    price: Mapped[int]
    tags: Mapped[int] = mapped_column(server_default=text("0"))
    operation: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    why: Mapped[int | None] = mapped_column(SmallInteger)
    extra_entries: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    usage_exact: Mapped[bool | None]
    holds: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    finished_at: Mapped[dt.datetime | None]
    #: everything charged so far, overruns and corrections included
    cost: Mapped[int | None] = mapped_column(BigInteger)
    upstream_cost: Mapped[int | None] = mapped_column(BigInteger)
    #: what a cache hit would have cost
    saved: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    price_final: Mapped[int | None]
    input_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    cache_read_tokens: Mapped[int | None]
    cache_write_5m_tokens: Mapped[int | None]
    cache_write_1h_tokens: Mapped[int | None]
    images: Mapped[int | None]
    guardrail_units: Mapped[int | None]
    status: Mapped[int | None]
    latency_ms: Mapped[int | None]
    first_byte_ms: Mapped[int | None]
    upstream_request_id: Mapped[str | None]


class EntryRow(Base):
    """An immutable fact about money. Slot 0 is the terminal entry."""

    __tablename__ = "entries"
    __table_args__ = (
        PrimaryKeyConstraint("attempt", "slot"),
        Index(
            "entries_evidence", "attempt", "kind", "evidence", unique=True, postgresql_where=text("slot > 0")
        ),
        Index("entries_ceilings", "attempt", postgresql_where=text("slot = 0 AND kind = 3")),
        {"postgresql_partition_by": "RANGE (attempt)"},
    )
    attempt: Mapped[UUID]
    slot: Mapped[int] = mapped_column(SmallInteger, autoincrement=False)
    kind: Mapped[int] = mapped_column(SmallInteger)
    why: Mapped[int] = mapped_column(SmallInteger)
    amount: Mapped[int] = mapped_column(BigInteger)
    upstream_amount: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    at: Mapped[dt.datetime]
    evidence: Mapped[str | None]


class SweepMark(Base):
    """No open attempt has an id below `swept_to`."""

    __tablename__ = "sweep_mark"
    one: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    swept_to: Mapped[UUID] = mapped_column(server_default=text("'00000000-0000-0000-0000-000000000000'"))


class Timeline(Base):
    """The server's timeline on which admission is open; `tollhouse recover` accepts another."""

    __tablename__ = "timeline"
    one: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    accepted: Mapped[int] = mapped_column(Integer)
    accepted_at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))


class Label(Base):
    """Interned names; `kind` is one of `proxy.postgres.labels.Kind`."""

    __tablename__ = "labels"
    __table_args__ = (UniqueConstraint("kind", "value"),)
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    kind: Mapped[int] = mapped_column(SmallInteger)
    value: Mapped[str]


class RefusalCount(Base):
    """Refusals of one minute. `key` is the nil uuid and `model` 0 where unknown."""

    __tablename__ = "refusals"
    __table_args__ = (PrimaryKeyConstraint("tenant", "bucket", "key", "reason", "model"),)
    tenant: Mapped[UUID]
    bucket: Mapped[dt.datetime]
    key: Mapped[UUID]
    reason: Mapped[str]
    model: Mapped[int] = mapped_column(server_default=text("0"), autoincrement=False)
    count: Mapped[int] = mapped_column(BigInteger)
    last_message: Mapped[str] = mapped_column(server_default=text("''"))
