"""Every metric, named and described in one place, and the JSON log.

Money and tokens are exported as counters of base units (nano-dollars, tokens). Labels are bounded:
models come from the catalogue, tenants from the directory up to a configured number, everything
else is `other`. With several worker processes prometheus-client's multiprocess files add them up.
Steps of single calls name the call, as the exemplar of their bucket or counter (`exemplars`): only calls
that have a row in the ledger, where they can be looked up.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import prometheus_client
from prometheus_client import Gauge

from proxy.domain.ledger import Settled, Settlement, State
from proxy.domain.usage import Usage
from proxy.tally import Counter, Histogram

Metric = TypeVar("Metric", Counter, Histogram)


_FAST = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0)
_SLOW = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 60.0, 120.0, 300.0, 900.0, 3600.0)

CALLS = Counter(
    "tollhouse_calls_total",
    "Calls that were admitted, by how they ended",
    ["tenant", "model", "operation", "outcome"],
)
TOKENS = Counter("tollhouse_tokens_total", "Tokens reported by Bedrock", ["tenant", "model", "kind"])
COST = Counter(
    "tollhouse_cost_nanodollars_total", "Cost charged to tenants, in 1e-9 USD", ["tenant", "model"]
)
REFUSALS = Counter(
    "tollhouse_refusals_total", "Calls refused before anything was spent", ["tenant", "reason"]
)
AUTHENTICATION_FAILURES = Counter(
    "tollhouse_authentication_failures_total", "Requests without a key that proves anything"
)
ADMIT_SECONDS = Histogram("tollhouse_admit_seconds", "Time the bank took to admit one attempt", buckets=_FAST)
SETTLE_SECONDS = Histogram(
    "tollhouse_settle_seconds", "Time the bank took to settle one attempt", buckets=_FAST
)
GOVERNANCE_SECONDS = Histogram(
    "tollhouse_governance_seconds", "Time from a request's arrival to its sending upstream", buckets=_FAST
)
UPSTREAM_SECONDS = Histogram(
    "tollhouse_upstream_seconds", "Time of one sending, from send to its last byte", ["model"], buckets=_SLOW
)
FIRST_BYTE_SECONDS = Histogram(
    "tollhouse_first_byte_seconds",
    "Time from a request's arrival to the first byte of a streamed answer",
    buckets=_SLOW,
)
UPSTREAM_ERRORS = Counter("tollhouse_upstream_errors_total", "Complete error answers of Bedrock", ["kind"])
OVERRUN = Counter("tollhouse_overrun_nanodollars_total", "Cost above a ceiling, in 1e-9 USD; must stay 0")
CEILINGS = Counter("tollhouse_ceilings_total", "Attempts charged at their ceiling", ["why"])
IN_FLIGHT = Gauge(
    "tollhouse_calls_in_flight", "Calls between admission and settlement", multiprocess_mode="livesum"
)
DRAINING = Gauge(
    "tollhouse_calls_draining", "Answers read on after their client left", multiprocess_mode="livesum"
)
UNSETTLED = Gauge(
    "tollhouse_settlements_waiting",
    "Settlements that the bank has not taken yet",
    multiprocess_mode="livesum",
)
LIMITER_MODE = Gauge(
    "tollhouse_limiter_mode", "1 for the mode the rate limiter is in", ["mode"], multiprocess_mode="livemax"
)
LIMIT_OBSERVED = Counter(
    "tollhouse_limit_observed_total",
    "Calls a limit in observe mode would have refused",
    ["scope", "dimension"],
)
DIRECTORY_AGE = Gauge(
    "tollhouse_directory_age_seconds", "Age of the snapshot of keys and policies", multiprocess_mode="livemax"
)
BUDGET_LIMIT = Gauge(
    "tollhouse_budget_limit_nanodollars",
    "Limit in force of a budget's period",
    ["tenant", "scope", "budget"],
    multiprocess_mode="livemostrecent",
)
BUDGET_RESERVED = Gauge(
    "tollhouse_budget_reserved_nanodollars",
    "Held by open attempts",
    ["tenant", "scope", "budget"],
    multiprocess_mode="livemostrecent",
)
BUDGET_SETTLED = Gauge(
    "tollhouse_budget_settled_nanodollars",
    "Settled in a budget's period",
    ["tenant", "scope", "budget"],
    multiprocess_mode="livemostrecent",
)
INVARIANT = Gauge(
    "tollhouse_invariant_violations",
    "Rows that break an invariant of the ledger; must be 0",
    ["invariant"],
    multiprocess_mode="livemostrecent",
)
INVARIANTS_CHECKED = Gauge(
    "tollhouse_invariants_checked_seconds",
    "Unix time at which the invariants were last checked to the end; 0: never by this worker",
    multiprocess_mode="livemax",
)
OPEN_ATTEMPTS = Gauge(
    "tollhouse_open_attempts", "Attempts without a terminal entry", multiprocess_mode="livemostrecent"
)
OLDEST_OPEN = Gauge(
    "tollhouse_oldest_open_attempt_seconds",
    "Age of the oldest attempt without a terminal entry",
    multiprocess_mode="livemostrecent",
)
PARTITION_DAYS = Gauge(
    "tollhouse_partition_days_ahead",
    "Days of ledger partitions that exist ahead of now",
    multiprocess_mode="livemostrecent",
)
CACHE_CALLS = Counter(
    "tollhouse_cache_calls_total",
    "Calls by what the cache said: hit, joined (a like call was under way), miss, bypass",
    ["tenant", "result"],
)
CACHE_SAVED = Counter(
    "tollhouse_cache_saved_nanodollars_total",
    "Cost of the originals of answers given for nothing, in 1e-9 USD",
    ["tenant", "model"],
)
CACHE_SAVED_TOKENS = Counter(
    "tollhouse_cache_saved_tokens_total",
    "Tokens of the originals of answers given for nothing",
    ["tenant", "model", "kind"],
)
CACHE_EVICTIONS = Counter("tollhouse_cache_evictions_total", "Answers evicted for lack of room", ["tenant"])
CACHE_FAILURES = Counter("tollhouse_cache_failures_total", "Look-ups and stores that Redis did not answer")
CACHE_ENTRIES = Gauge(
    "tollhouse_cache_entries",
    "Answers kept, those that ended lately included",
    ["tenant"],
    multiprocess_mode="livemostrecent",
)
CACHE_BYTES = Gauge(
    "tollhouse_cache_bytes", "Bytes of the answers kept", ["tenant"], multiprocess_mode="livemostrecent"
)
SHARED_BYTES = Gauge(
    "tollhouse_shared_bytes", "Bytes of answers under way that others may join", multiprocess_mode="livesum"
)
DELIVERIES = Counter(
    "tollhouse_alert_deliveries_total", "Alerts sent to webhooks: delivered, retried, failed", ["result"]
)
USAGE_ROLLED_TO = Gauge(
    "tollhouse_usage_rolled_to_seconds",
    "Unix time up to which reports by day are in step with the ledger",
    multiprocess_mode="livemostrecent",
)
POLICY_PROBLEMS = Gauge(
    "tollhouse_policy_problems",
    "Errors in changed policy files that are therefore not in force",
    multiprocess_mode="livemax",
)
RULE_DECISIONS = Counter(
    "tollhouse_rule_decisions_total",
    "Rules whose condition held for a call, by what came of it: enforced, observed, error",
    ["rule", "effect", "result"],
)
TARGET_STATE = Gauge(
    "tollhouse_target_state",
    "Targets that failed: 0 in use, 1 tried after the others, 2 left alone",
    ["target"],
    multiprocess_mode="livemax",
)
TARGET_OPENINGS = Counter(
    "tollhouse_target_openings_total", "Times a target was left alone, by what opened it", ["target", "why"]
)
MODEL_ENDS = Gauge(
    "tollhouse_model_end_of_life_seconds",
    "Unix time at which AWS ends a base model, as its control plane says",
    ["model"],
    multiprocess_mode="livemostrecent",
)
KEYS_EXPIRING = Gauge(
    "tollhouse_keys_expiring",
    "Keys that were used within a week and end within the named time",
    ["within"],
    multiprocess_mode="livemostrecent",
)
CERTIFICATE_END = Gauge(
    "tollhouse_certificate_not_after_seconds",
    "Unix time at which the certificate that is served ends",
    ["surface"],
    multiprocess_mode="livemax",  # the parent sets it; what its forked workers inherit reads 0
)
PROVISIONED_UNITS = Gauge(
    "tollhouse_provisioned_units",
    "Model units of a provisioned throughput, as the control plane says",
    ["target"],
    multiprocess_mode="livemostrecent",
)
PROVISIONED_TOKENS = Counter(
    "tollhouse_provisioned_tokens_total", "Tokens that a provisioned throughput served", ["target", "kind"]
)
UNPROVEN = Gauge(
    "tollhouse_unproven_ceilings",
    "Attempts charged their ceiling for which the invocation log has no proof (yet)",
    multiprocess_mode="livemostrecent",
)
REFUNDED = Counter("tollhouse_refunds_total", "Ceilings lowered by evidence from the invocation log")
REFUNDED_MONEY = Counter(
    "tollhouse_refunded_nanodollars_total", "Money that evidence gave back to budgets, in 1e-9 USD"
)
UNEXPLAINED = Gauge(
    "tollhouse_reconciliation_unexplained_tokens",
    "Tokens by which the ledger and CloudWatch differ without a known reason, by age of the day",
    ["age", "kind"],
    multiprocess_mode="livemostrecent",
)
COUNTS = Counter(
    "tollhouse_counts_total",
    "Inputs counted because a byte bound did not fit a budget: exact, never (not countable), later (too many)",
    ["result"],
)
CLAMPED = Counter(
    "tollhouse_clamped_total", "Calls whose output limit was lowered to what a budget affords", ["model"]
)
FAILOVERS = Counter(
    "tollhouse_failovers_total", "Sendings after a failed one of the same call", ["model", "served"]
)
TRACE_SPANS = prometheus_client.Counter(  # the library's own: the exporting thread counts, too
    "tollhouse_trace_spans_total",
    "Spans of traced calls by what became of them: exported, queue_full, export_failed",
    ["result"],
)
SWEPT = Counter("tollhouse_swept_total", "Attempts resolved by the sweeper")
RECOVERED = Counter("tollhouse_recovered_total", "Attempts resolved from a flight recorder", ["outcome"])


@lru_cache(maxsize=8192)
def _child(metric: Metric, *labels: str) -> Metric:
    """`metric.labels(*labels)`, remembered. For metrics whose children are never removed."""
    return metric.labels(*labels)


class _Ended(NamedTuple):
    """What is counted of calls that ended alike."""

    calls: Counter
    upstream_seconds: Histogram
    cost: Counter
    input: Counter
    output: Counter


@lru_cache(maxsize=8192)
def _ended(tenant: str, model: str, operation: str, state: State) -> _Ended:
    return _Ended(
        _child(CALLS, tenant, model, operation, state.name),
        _child(UPSTREAM_SECONDS, model),
        _child(COST, tenant, model),
        _child(TOKENS, tenant, model, "input"),
        _child(TOKENS, tenant, model, "output"),
    )


def settled(settlement: Settlement, result: Settled) -> None:
    """Count what a settlement means for money that must never move."""
    if settlement.state is State.CEILING:
        CEILINGS.labels(settlement.why.name.lower()).inc(1, settlement.call)
    if result.overrun:
        OVERRUN.inc(result.overrun, settlement.call)


def moved_on(settlement: Settlement) -> None:
    if settlement.state is State.CEILING:
        CEILINGS.labels(settlement.why.name.lower()).inc(1, settlement.call)


def finished(tenant: str, model: str, operation: str, settlement: Settlement) -> None:
    """Count one resolved call."""
    ended = _ended(tenant, model, operation, settlement.state)
    ended.calls.inc()
    if settlement.latency_ms:
        ended.upstream_seconds.observe(settlement.latency_ms / 1000, settlement.call)
    if settlement.state is not State.POST:
        return
    usage = settlement.usage
    ended.cost.inc(settlement.cost)
    ended.input.inc(usage.input_tokens)
    ended.output.inc(usage.output_tokens)
    if usage.cache_read_tokens:
        _child(TOKENS, tenant, model, "cache_read").inc(usage.cache_read_tokens)
    if usage.cache_write_tokens:
        _child(TOKENS, tenant, model, "cache_write").inc(usage.cache_write_tokens)


def shared(tenant: str, model: str, result: str, usage: Usage, saved: int) -> None:
    """Count what the cache said to one call, and what an answer given for nothing would have cost."""
    _child(CACHE_CALLS, tenant, result).inc()
    if result not in {"hit", "joined"}:
        return
    _child(CACHE_SAVED, tenant, model).inc(saved)
    _child(CACHE_SAVED_TOKENS, tenant, model, "input").inc(
        usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    )
    _child(CACHE_SAVED_TOKENS, tenant, model, "output").inc(usage.output_tokens)


def hit(tenant: str, model: str, operation: str) -> None:
    """Count one call that is in the ledger as a HIT."""
    _child(CALLS, tenant, model, operation, State.HIT.name).inc()


def shelved(tenant: str, evicted: int, entries: int, size: int) -> None:
    """What a tenant's cache holds after a store; tenants that share a label have no figure."""
    if tenant != "other":
        CACHE_ENTRIES.labels(tenant).set(entries)
        CACHE_BYTES.labels(tenant).set(size)
    if evicted:
        CACHE_EVICTIONS.labels(tenant).inc(evicted)


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Values are escaped, so nothing a client sends can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = getattr(record, "call", None)
        if call is not None:
            line["call"] = str(call)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


def configure_logging(level: str) -> None:
    """JSON lines on standard error. The access logs of servers and clients stay off."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("botocore", "boto3", "urllib3", "asyncio", "aiohttp.access", "_granian"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
