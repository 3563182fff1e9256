"""What the ledger, the reports and `/me` show. Money and times as in `proxy.web.schemas`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from msgspec import UNSET, UnsetType

from proxy.web.schemas import BudgetOut, Mode, Out, OutcomeName


class UsageOut(Out):
    """Units of one attempt. `cache_write_tokens` is the sum of its two lifetimes."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    images: int
    guardrail_units: int


class EntryOut(Out):
    """An immutable fact about the money of one attempt."""

    kind: str
    amount_usd: str
    why: str
    at: datetime
    evidence: str | None


class CallOut(Out):
    """One attempt: one sending of a call upstream. `cost_usd` is null while it is OPEN."""

    id: UUID
    attempt: UUID
    tenant: str
    project: str | None
    key: UUID
    operation: str
    #: a probe counts or checks; no model runs in it
    kind: Literal["call", "probe"]
    model: str
    target: str
    outcome: OutcomeName
    #: why it was resolved as it was
    why: str | None
    usage: UsageOut
    ceiling_usd: str
    cost_usd: str | None
    #: what a cache hit would have cost
    saved_usd: str
    price_version: str | None
    upstream_request_id: str | None
    status: int | None
    tags: str | None
    admitted_at: datetime
    finished_at: datetime | None
    latency_ms: int | None
    first_byte_ms: int | None
    #: what AWS bills, only where it is not `cost_usd`
    upstream_cost_usd: str | UnsetType = UNSET
    #: only where one attempt is shown
    entries: list[EntryOut] | UnsetType = UNSET


class RefusalOut(Out):
    """Calls refused, by what `group_by` names; the other names are absent."""

    count: int
    last_message: str
    tenant: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    day: str | UnsetType = UNSET


class SpendOut(Out):
    """Money by what `group_by` names; the other names are absent. OPEN attempts are not in it."""

    cost_usd: str
    upstream_cost_usd: str
    saved_usd: str
    attempts: int
    hits: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    tenant: str | UnsetType = UNSET
    project: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    day: str | UnsetType = UNSET
    outcome: str | UnsetType = UNSET
    operation: str | UnsetType = UNSET
    tags: str | UnsetType = UNSET
    target: str | UnsetType = UNSET
    month: str | UnsetType = UNSET
    #: value of the tag in `group_by`, empty for calls without it
    tag: str | UnsetType = UNSET


class SpendReportOut(Out):
    items: list[SpendOut]
    #: of all groups, shown or not
    total_usd: str
    #: more groups exist than are shown; narrow the time or group by less
    truncated: bool
    next: str | None = None


CachePlace = Literal["tools", "system", "messages"]
CacheTtl = Literal["5m", "1h"]


class PromptCachingOptionOut(Out):
    """What one way of placing cache points would have done: one at the end of the tools, of the system
    prompt or of the last message, whose entries live so long after their last use.
    """

    place: CachePlace
    ttl: CacheTtl
    #: input tokens that would have been read from the cache, and written to it
    read_tokens: int
    write_tokens: int
    #: against the plain input rate; negative is a loss
    saved_usd: str


class PromptCachingOut(Out):
    """The paid prompts of one tenant and model in the last day."""

    tenant: str
    model: str
    calls: int
    #: input of every kind
    input_tokens: int
    #: input that was read from Bedrock's prompt cache as it is
    cached_tokens: int
    #: part of the input that an earlier prompt of the last 5 minutes, or hour, began with
    repeated_share_5m: str
    repeated_share_1h: str
    #: fewest tokens before a cache point; null where the model takes none
    minimum_tokens: int | None
    #: what to do, in a sentence
    advice: str
    #: the first of `options`; null when there are none
    best: PromptCachingOptionOut | None
    #: the best first
    options: list[PromptCachingOptionOut]


class StatementLineOut(Out):
    project: str | None
    key: str
    model: str
    cost_usd: str
    saved_usd: str
    attempts: int
    hits: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int


class StatementOut(Out):
    """`total_usd` = `usage_usd` + `corrections_usd`; `usage_usd` = what was charged, refunded, adjusted
    and overrun, and the sum of `lines`.
    """

    tenant: str
    month: str
    status: Literal["draft", "issued"]
    currency: str
    time_zone: str
    period_start: datetime
    period_end: datetime
    charged_usd: str
    refunded_usd: str
    adjusted_usd: str
    overrun_usd: str
    usage_usd: str
    #: changes of earlier months since their statements were issued
    corrections_usd: str
    total_usd: str
    upstream_cost_usd: str
    #: calls of the month that are not resolved yet, and the most they can cost
    open_attempts: int
    open_ceiling_usd: str
    lines: list[StatementLineOut]
    issued_at: datetime | None = None
    issued_by: str | None = None


class AuditOut(Out):
    seq: int
    at: datetime
    actor: str
    action: str
    object: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    hash: str


class TrailCheckOut(Out):
    intact: bool
    first_bad: int | None


class ModelOut(Out):
    id: str
    provider: str
    name: str
    context_tokens: int
    max_output_tokens: int
    modality: str
    streaming: bool
    end_of_life: str | None


class PlanOut(Out):
    id: str
    version: str
    description: str


class MeOut(Out):
    """What an issued key may know of itself."""

    tenant: str
    project: str | None
    key: UUID
    name: str
    expires_at: datetime | None
    plan: str
    models_allowed: list[str]
    models_denied: list[str]
    default_output_tokens: int
    max_output_tokens: int | None
    budgets: list[BudgetOut]
    limits: list[MyLimitOut]


class MyLimitOut(Out):
    id: UUID
    scope: Literal["tenant", "project", "key"]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    burst_seconds: int
    concurrency: int | None
    models: list[str] | None
    mode: Mode


class MyUsageOut(Out):
    """Usage of one key since the calendar month began in its tenant's time zone, or as asked for."""

    since: datetime
    until: datetime
    cost_usd: str
    items: list[SpendOut]
