"""Writes tollhouse/dashboards/*.json.

    python helm/dashboards.py          write them
    python helm/dashboards.py --check  fail when the files in the chart are not what would be written

Panels over metrics that the proxy does not have (yet) are left out, so that none is ever empty; the left-out
metrics are named on standard error.
"""

from __future__ import annotations

import ast
import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prometheus_client.metrics import MetricWrapperBase

from helm.panels import Dashboard, Panel, Query, Variable, dashboard
from proxy import telemetry

REPOSITORY = Path(__file__).resolve().parents[1]
TARGET = Path(__file__).resolve().parent / "tollhouse" / "dashboards"

NS = 'namespace=~"$namespace"'
TENANT = f'{NS}, tenant=~"$tenant"'
MODEL = f'{NS}, tenant=~"$tenant", model=~"$model"'
RATE = "[$__rate_interval]"
#: reasons of refusals that are a fault of the proxy's own; the same as in files/alerts.yaml
OURS = "bank_away|closed|directory_stale|limiter_away|overloaded|recorder_failed|recovery_needed|replica_clock|resolved|stood_still|unavailable"

NAMESPACE = Variable(name="namespace", label="Namespace", metric="tollhouse_calls_in_flight")
TENANTS = Variable(name="tenant", label="Tenant", metric="tollhouse_calls_total")
MODELS = Variable(name="model", label="Model", metric="tollhouse_calls_total")


def rate(metric: str, by: str = "", where: str = NS) -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}{RATE}))"


def quantiles(metric: str, where: str = NS) -> tuple[Query, ...]:
    """The last one brings the exemplars, which would be the same for each."""
    return tuple(
        Query(
            expr=f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{where}}}{RATE})))",
            legend=f"p{q * 100:g}",
            exemplars=q == 0.99,
        )
        for q in (0.5, 0.95, 0.99)
    )


def dollars(expr: str) -> str:
    """Nano-dollars as dollars."""
    return f"{expr} / 1e9"


def or_zero(expr: str) -> str:
    """Counters with labels do not exist before they first count: 0 in the place of nothing, not beside something."""
    return f"({expr}) or on() vector(0)"


def overview() -> Dashboard:
    refused = f"sum(rate(tollhouse_refusals_total{{{NS}}}{RATE}))"
    ours = f'sum(rate(tollhouse_refusals_total{{{NS}, reason=~"{OURS}"}}{RATE}))'
    calls = f"sum(rate(tollhouse_calls_total{{{NS}}}{RATE}))"
    every = f"(({calls}) + ({or_zero(refused)}))"
    return Dashboard(
        uid="tollhouse-overview",
        title="Tollhouse / Overview",
        about="Traffic, latency, refusals and spend.",
        variables=(NAMESPACE, TENANTS, MODELS),
        panels=(
            Panel(title="Calls", about="Calls that were admitted and have ended.", kind="stat", width=4, unit="reqps",
                  queries=(Query(expr=calls),)),
            Panel(title="Spend per hour", about="What tenants are charged at the present rate.", kind="stat", width=4,
                  unit="currencyUSD", queries=(Query(expr=dollars(rate("tollhouse_cost_nanodollars_total") + " * 3600")),)),
            Panel(title="Refused", about="Share of all requests that were refused, for whatever reason.", kind="stat",
                  width=4, unit="percentunit", queries=(Query(expr=f"({or_zero(refused)}) / {every}"),)),
            Panel(title="In flight", about="Calls between admission and settlement.", kind="stat", width=4,
                  runbook="down", queries=(Query(expr=f"sum(tollhouse_calls_in_flight{{{NS}}})"),)),
            Panel(title="Refused by our fault", about="Against the error budget of 0.1 %. A tenant's own refusals do not count.",
                  kind="stat", width=4, unit="percentunit", red_from=0.001, runbook="error-budget", decimals=3,
                  queries=(Query(expr=f"({or_zero(ours)}) / {every}"),)),
            Panel(title="Broken invariants", about="Must be 0.", kind="stat", width=4, red_from=1,
                  runbook="invariant-broken", queries=(Query(expr=f"max(tollhouse_invariant_violations{{{NS}}})"),)),
            Panel(title="Calls by outcome", about="POST: charged as used. VOID: never billed. CEILING: charged at its worst case. HIT: from the cache.",
                  unit="reqps", stacked=True, queries=(Query(expr=rate("tollhouse_calls_total", "outcome", MODEL), legend="{{outcome}}"),)),
            Panel(title="Refusals by reason", about="Calls refused before anything was spent.", unit="reqps", stacked=True,
                  runbook="bank-away", queries=(Query(expr=rate("tollhouse_refusals_total", "reason", TENANT), legend="{{reason}}"),)),
            Panel(title="Calls by model", about="The ten busiest.", unit="reqps", stacked=True,
                  queries=(Query(expr=f"topk(10, {rate('tollhouse_calls_total', 'model', MODEL)})", legend="{{model}}"),)),
            Panel(title="Spend per hour by model", about="The ten dearest.", unit="currencyUSD", stacked=True,
                  queries=(Query(expr=f"topk(10, {dollars(rate('tollhouse_cost_nanodollars_total', 'model', MODEL) + ' * 3600')})", legend="{{model}}"),)),
            Panel(title="First byte of streams", about="From a request's arrival to the first byte of its streamed answer.",
                  unit="s", queries=quantiles("tollhouse_first_byte_seconds")),
            Panel(title="Time upstream", about="One sending, from send to its last byte.", unit="s",
                  queries=quantiles("tollhouse_upstream_seconds", f'{NS}, model=~"$model"')),
            Panel(title="Tokens per second", about="As Bedrock reports them.", unit="short", stacked=True,
                  queries=(Query(expr=rate("tollhouse_tokens_total", "kind", MODEL), legend="{{kind}}"),)),
            Panel(title="Requests without a valid key", about="Wrong, expired or missing keys.", unit="reqps",
                  queries=(Query(expr=rate("tollhouse_authentication_failures_total"), legend="refused"),)),
            Panel(title="In flight by pod", about="Even when the load balancer is.", stacked=True,
                  queries=(Query(expr=f"sum by (instance) (tollhouse_calls_in_flight{{{NS}}})", legend="{{instance}}"),)),
            Panel(title="Rules", about="Calls for which a rule's condition held, and what came of it.", unit="reqps", stacked=True,
                  queries=(Query(expr=or_zero(rate("tollhouse_rule_decisions_total", "rule, effect, result")), legend="{{rule}} {{effect}} {{result}}"),)),
            Panel(title="Errors in changed policies", about="Changed policy files with errors are not in force. Must be 0.", red_from=1,
                  queries=(Query(expr=f"max by (instance) (tollhouse_policy_problems{{{NS}}})", legend="{{instance}}"),)),
            Panel(title="Budget alerts sent", about="Messages to webhooks: delivered, retried, failed.", unit="reqps", stacked=True,
                  queries=(Query(expr=or_zero(rate("tollhouse_alert_deliveries_total", "result")), legend="{{result}}"),)),
            Panel(title="Governance", about="What the proxy adds before a call is sent: from the request's last byte to its sending.",
                  unit="s", queries=quantiles("tollhouse_governance_seconds")),
            Panel(title="Keys that end", about="Keys that were used within a week and end within the named time.", runbook="keys-end",
                  queries=(Query(expr=f"max by (within) (tollhouse_keys_expiring{{{NS}}})", legend="within {{within}}"),)),
            Panel(title="Certificate", about="Time until the certificate ends that each pod serves; only where pods speak TLS.", unit="s", red_below=21 * 86400, runbook="certificate-ends",
                  queries=(Query(expr=f"min by (instance) (tollhouse_certificate_not_after_seconds{{{NS}}}) - time()", legend="{{instance}}"),)),
        ),
    )  # fmt: skip


def tenants() -> Dashboard:
    limit, reserved, settled = (
        f"max by (tenant, scope, budget) (tollhouse_budget_{part}_nanodollars{{{TENANT}}})"
        for part in ("limit", "reserved", "settled")
    )
    left = f"({limit} - {settled} - {reserved})"
    slope = f"max by (tenant, scope, budget) (deriv(tollhouse_budget_settled_nanodollars{{{TENANT}}}[1h]))"
    ahead = f"max by (tenant, scope, budget) (predict_linear(tollhouse_budget_settled_nanodollars{{{TENANT}}}[1h], 86400))"
    named = "{{tenant}} {{scope}}"
    return Dashboard(
        uid="tollhouse-tenants",
        title="Tollhouse / Tenants",
        about="Budgets, limits and use by tenant. The exact ledger is in Postgres: GET /admin/v1/reports/spend.",
        variables=(NAMESPACE, TENANTS, MODELS),
        panels=(
            Panel(title="Budget used", about="Settled and held, of the limit of the current period.", kind="bargauge",
                  unit="percentunit", red_from=0.9, maximum=1,
                  queries=(Query(expr=f"topk(20, ({settled} + {reserved}) / ({limit} > 0))", legend=named),)),
            Panel(title="Budget left", about="Free for new calls in the current period.", kind="bargauge", unit="currencyUSD",
                  queries=(Query(expr=f"bottomk(20, {dollars(left)})", legend=named),)),
            Panel(title="Burn-down", about="What is left of each budget.", unit="currencyUSD",
                  queries=(Query(expr=dollars(left), legend=named),)),
            Panel(title="Forecast: settled in 24 hours", about="At the rate of the last hour, with the limit; a budget's period may end before.",
                  unit="currencyUSD", queries=(Query(expr=dollars(ahead), legend=f"{named} in 24 h"),
                                               Query(expr=dollars(limit), legend=f"{named} limit"))),
            Panel(title="Forecast: time until spent", about="At the rate of the last hour; only budgets that are being spent.", unit="s",
                  queries=(Query(expr=f"{left} / ({slope} > 0)", legend=named),)),
            Panel(title="Held by running calls", about="The ceilings of open attempts; what they do not use comes back.", unit="currencyUSD",
                  queries=(Query(expr=dollars(reserved), legend=named),)),
            Panel(title="Spend per hour by tenant", about="The twenty dearest.", unit="currencyUSD", stacked=True,
                  queries=(Query(expr=f"topk(20, {dollars(rate('tollhouse_cost_nanodollars_total', 'tenant', MODEL) + ' * 3600')})", legend="{{tenant}}"),)),
            Panel(title="Calls by tenant", about="The twenty busiest.", unit="reqps", stacked=True,
                  queries=(Query(expr=f"topk(20, {rate('tollhouse_calls_total', 'tenant', MODEL)})", legend="{{tenant}}"),)),
            Panel(title="Refusals by tenant", about="And why.", unit="reqps", stacked=True,
                  queries=(Query(expr=f"topk(20, {rate('tollhouse_refusals_total', 'tenant, reason', TENANT)})", legend="{{tenant}} {{reason}}"),)),
            Panel(title="Tokens by tenant", about="All kinds, per second.", unit="short", stacked=True,
                  queries=(Query(expr=f"topk(20, {rate('tollhouse_tokens_total', 'tenant', MODEL)})", legend="{{tenant}}"),)),
            Panel(title="Limits in observe mode", about="Calls a limit would have refused if it were enforced.", unit="reqps",
                  queries=(Query(expr=or_zero(rate("tollhouse_limit_observed_total", "scope, dimension")), legend="{{scope}} {{dimension}}"),)),
            Panel(title="Tenants in all", about="Rates of calls with labels of their own against those that share `other`.", unit="reqps", stacked=True,
                  queries=(Query(expr=rate("tollhouse_calls_total", "", f'{NS}, tenant!="other"'), legend="named"),
                           Query(expr=or_zero(rate("tollhouse_calls_total", "", f'{NS}, tenant="other"')), legend="other"))),
        ),
    )  # fmt: skip


def capacity() -> Dashboard:
    return Dashboard(
        uid="tollhouse-capacity",
        title="Tollhouse / Capacity",
        about="What Bedrock and the proxy can take: throttles, targets, provisioned throughput, load per pod.",
        variables=(NAMESPACE, MODELS),
        panels=(
            Panel(title="Errors of Bedrock", about="Complete error answers by kind; throttling is our shared quota, not a tenant's limit.",
                  unit="reqps", stacked=True, queries=(Query(expr=or_zero(rate("tollhouse_upstream_errors_total", "kind")), legend="{{kind}}"),)),
            Panel(title="Time upstream by model, p95", about="One sending, from send to its last byte.", unit="s",
                  queries=(Query(expr=f'histogram_quantile(0.95, sum by (le, model) (rate(tollhouse_upstream_seconds_bucket{{{NS}, model=~"$model"}}{RATE})))', legend="{{model}}", exemplars=True),)),
            Panel(title="Calls never billed", about="Sendings that ended in VOID: errors of targets, by model.", unit="reqps",
                  queries=(Query(expr=or_zero(rate("tollhouse_calls_total", "model", f'{NS}, model=~"$model", outcome="VOID"')), legend="{{model}}"),)),
            Panel(title="In flight", about="Against TOLLHOUSE_MAX_CALLS per worker process, above which calls are refused as overload.", stacked=True,
                  queries=(Query(expr=f"sum by (instance) (tollhouse_calls_in_flight{{{NS}}})", legend="{{instance}}"),)),
            Panel(title="Read on after the client left", about="Bedrock bills whole answers, so they are read to their usage.", stacked=True,
                  queries=(Query(expr=f"sum by (instance) (tollhouse_calls_draining{{{NS}}})", legend="{{instance}}"),)),
            Panel(title="Rate limiter", about="Pods by mode. redis: exact; others: Redis is away.", stacked=True, runbook="limiter-not-redis",
                  queries=(Query(expr=f"sum by (mode) (tollhouse_limiter_mode{{{NS}}})", legend="{{mode}}"),)),
            Panel(title="Targets that failed", about="0 in use, 1 tried after the others, 2 left alone for a while. Only targets that have failed are listed.",
                  red_from=2, runbook="target-left-alone",
                  queries=(Query(expr=or_zero(f"max by (target) (tollhouse_target_state{{{NS}}})"), legend="{{target}}"),)),
            Panel(title="Targets left alone", about="How often, and what made them so.", unit="reqps", stacked=True, runbook="target-left-alone",
                  queries=(Query(expr=or_zero(rate("tollhouse_target_openings_total", "target, why")), legend="{{target}} {{why}}"),)),
            Panel(title="Spill", about="Sendings after a failed one of the same call: from one place to the next, or to a fallback model.", unit="reqps", stacked=True,
                  queries=(Query(expr=or_zero(rate("tollhouse_failovers_total", "model, served", f'{NS}, model=~"$model"')), legend="{{model}} by {{served}}"),)),
            Panel(title="Provisioned use: tokens per minute and model unit", about="Of what is paid by the hour. AWS tells each account what a unit takes; throttles above show when it is reached.",
                  queries=(Query(expr=or_zero(f"60 * sum by (target) (rate(tollhouse_provisioned_tokens_total{{{NS}}}{RATE})) / (max by (target) (tollhouse_provisioned_units{{{NS}}}) > 0)"),
                                 legend="{{target}}"),)),
            Panel(title="Model units", about="Provisioned throughputs in service, as the control plane says. Zero: it is gone, or no longer in service.",
                  queries=(Query(expr=or_zero(f"max by (target) (tollhouse_provisioned_units{{{NS}}})"), legend="{{target}}"),)),
            Panel(title="Models that end", about="Time until AWS ends a base model; calls to it fail from then on. The ten next.", unit="s",
                  queries=(Query(expr=or_zero(f"bottomk(10, max by (model) (tollhouse_model_end_of_life_seconds{{{NS}}}) - time() > 0)"), legend="{{model}}"),)),
            Panel(title="Inputs counted", about="Inputs whose exact size decided whether a budget suffices: exact; never: the model cannot count; later: too many at once.",
                  unit="reqps", stacked=True, queries=(Query(expr=or_zero(rate("tollhouse_counts_total", "result")), legend="{{result}}"),)),
            Panel(title="Spans of traces", about="What became of them: exported; export_failed: the collector did not take them; queue_full: it is too slow. Calls do not depend on it.",
                  unit="reqps", stacked=True, queries=(Query(expr=or_zero(rate("tollhouse_trace_spans_total", "result")), legend="{{result}}"),)),
        ),
    )  # fmt: skip


def money() -> Dashboard:
    return Dashboard(
        uid="tollhouse-money",
        title="Tollhouse / Money",
        about="The bank: what is held, settled and charged at its ceiling, and whether the invariants hold.",
        variables=(NAMESPACE, TENANTS, MODELS),
        panels=(
            Panel(title="Broken invariants", about="I1 reserved + settled ≤ limit, I2 reserved = open holds, I3 settled = entries, I4 one terminal entry. Must be 0.",
                  width=12, red_from=1, runbook="invariant-broken",
                  queries=(Query(expr=f"max by (invariant) (tollhouse_invariant_violations{{{NS}}})", legend="{{invariant}}"),)),
            Panel(title="Overrun", about="Cost above a ceiling. Must stay 0.", unit="currencyUSD", red_from=1e-9, runbook="overrun",
                  queries=(Query(expr=dollars(f"sum(tollhouse_overrun_nanodollars_total{{{NS}}})"), legend="overrun"),)),
            Panel(title="Held and settled", about="Over all budgets of the chosen tenants, current periods.", unit="currencyUSD",
                  queries=tuple(Query(expr=dollars(f"sum(max by (tenant, budget) (tollhouse_budget_{part}_nanodollars{{{TENANT}}}))"), legend=part)
                                for part in ("limit", "settled", "reserved"))),
            Panel(title="Charged at the ceiling", about="Attempts whose usage never arrived, by why. recovered and swept follow lost processes and pods: what was open on them.",
                  unit="reqps", stacked=True, runbook="unexplained-ceilings",
                  queries=(Query(expr=or_zero(rate("tollhouse_ceilings_total", "why")), legend="{{why}}"),)),
            Panel(title="Open attempts", about="Attempts without a terminal entry, and calls that proxies run. Open attempts that nobody runs belong to lost pods; the sweeper charges their ceilings after twice the longest call.",
                  runbook="sweeper-behind",
                  queries=(Query(expr=f"max(tollhouse_open_attempts{{{NS}}})", legend="open in the bank"),
                           Query(expr=f"sum(tollhouse_calls_in_flight{{{NS}}})", legend="in flight"))),
            Panel(title="Settlements waiting", about="In the flight recorders, not yet in the bank.", red_from=1, runbook="settlements-waiting",
                  queries=(Query(expr=f"sum by (instance) (tollhouse_settlements_waiting{{{NS}}})", legend="{{instance}}"),)),
            Panel(title="Admit", about="Time the bank took to admit one attempt.", unit="s", queries=quantiles("tollhouse_admit_seconds")),
            Panel(title="Settle", about="Time the bank took to settle one attempt: the ledger's lag.", unit="s", queries=quantiles("tollhouse_settle_seconds")),
            Panel(title="Partitions ahead", about="Days of ledger tables that exist ahead of now; an alert fires below 45.", unit="d", red_below=45, runbook="partitions-short",
                  queries=(Query(expr=f"max(tollhouse_partition_days_ahead{{{NS}}})", legend="days"),)),
            Panel(title="Recovered and swept", about="Attempts resolved from a dead process's flight recorder, and by the sweeper for lost pods.",
                  unit="reqps", queries=(Query(expr=or_zero(rate("tollhouse_recovered_total")), legend="recovered"),
                                         Query(expr=rate("tollhouse_swept_total"), legend="swept"))),
            Panel(title="Spend per hour", about="What tenants are charged; the twenty dearest.", unit="currencyUSD", stacked=True,
                  queries=(Query(expr=f"topk(20, {dollars(rate('tollhouse_cost_nanodollars_total', 'tenant', MODEL) + ' * 3600')})", legend="{{tenant}}"),)),
            Panel(title="Age of the keys", about="Since each pod last read keys and policies. Above a second, free routes refuse.", unit="s", red_from=1, runbook="directory-stale",
                  queries=(Query(expr=f"max by (instance) (tollhouse_directory_age_seconds{{{NS}}})", legend="{{instance}}"),)),
            Panel(title="Reports behind", about="How far the daily reports are behind the ledger.", unit="s",
                  queries=(Query(expr=f"time() - max(tollhouse_usage_rolled_to_seconds{{{NS}}} > 0)", legend="behind"),)),
            Panel(title="Oldest open attempt", about="Above twice the longest call the sweeper is behind.", unit="s", runbook="sweeper-behind",
                  queries=(Query(expr=f"max(tollhouse_oldest_open_attempt_seconds{{{NS}}})", legend="oldest"),)),
            Panel(title="Reconciliation", about="Tokens by which the ledger and CloudWatch differ without a known reason, by age of the day. The newest days may still move.",
                  queries=(Query(expr=or_zero(f"max by (age, kind) (tollhouse_reconciliation_unexplained_tokens{{{NS}}})"), legend="{{kind}}, {{age}}"),)),
            Panel(title="Ceilings without proof", about="Attempts charged their ceiling for which the invocation log has no proof (yet). 0 as well where no log is named.",
                  runbook="unexplained-ceilings", queries=(Query(expr=f"max(tollhouse_unproven_ceilings{{{NS}}})", legend="without proof"),)),
            Panel(title="Given back by evidence", about="Ceilings lowered to what the invocation log says was used, per hour.", unit="currencyUSD",
                  queries=(Query(expr=dollars(rate("tollhouse_refunded_nanodollars_total") + " * 3600"), legend="given back"),)),
            Panel(title="Refunds", about="How many ceilings evidence lowered.", unit="reqps",
                  queries=(Query(expr=rate("tollhouse_refunds_total"), legend="refunds"),)),
            Panel(title="Clamped", about="Calls whose output limit was lowered to what a budget affords.", unit="reqps", stacked=True,
                  queries=(Query(expr=or_zero(rate("tollhouse_clamped_total", "model", f'{NS}, model=~"$model"')), legend="{{model}}"),)),
            Panel(title="Invariants checked", about="How long ago a worker last checked them to the end. An alert fires after an hour.", unit="s", red_from=3600, runbook="invariants-unchecked",
                  queries=(Query(expr=f"time() - max(tollhouse_invariants_checked_seconds{{{NS}}} > 0)", legend="ago"),)),
        ),
    )  # fmt: skip


def cache() -> Dashboard:
    found = f'sum(rate(tollhouse_cache_calls_total{{{TENANT}, result=~"hit|joined"}}{RATE}))'
    asked = f'sum(rate(tollhouse_cache_calls_total{{{TENANT}, result!="bypass"}}{RATE}))'
    saved = dollars(rate("tollhouse_cache_saved_nanodollars_total", "tenant", MODEL) + " * 3600")
    return Dashboard(
        uid="tollhouse-cache",
        title="Tollhouse / Cache",
        about="Identical prompts answered again, within a tenant.",
        variables=(NAMESPACE, TENANTS, MODELS),
        panels=(
            Panel(title="Calls by result", about="hit; joined: a like call was under way; miss; bypass: not asked, by policy or by the client.",
                  unit="reqps", stacked=True, queries=(Query(expr=rate("tollhouse_cache_calls_total", "result", TENANT), legend="{{result}}"),)),
            Panel(title="Found", about="Share of the calls that asked the cache and paid nothing.", unit="percentunit", maximum=1,
                  queries=(Query(expr=f"({or_zero(found)}) / ({asked} > 0)", legend="found"),)),
            Panel(title="Saved per hour", about="What the answers from the cache would have cost.", unit="currencyUSD", stacked=True,
                  queries=(Query(expr=f"topk(20, {saved})", legend="{{tenant}}"),)),
            Panel(title="Tokens saved per second", about="Tokens that were not bought again.", stacked=True,
                  queries=(Query(expr=rate("tollhouse_cache_saved_tokens_total", "kind", MODEL), legend="{{kind}}"),)),
            Panel(title="Kept", about="Bytes of answers kept, by tenant; the twenty largest.", unit="bytes", stacked=True,
                  queries=(Query(expr=f"topk(20, max by (tenant) (tollhouse_cache_bytes{{{TENANT}}}))", legend="{{tenant}}"),)),
            Panel(title="Entries", about="Answers kept, by tenant; the twenty largest.", stacked=True,
                  queries=(Query(expr=f"topk(20, max by (tenant) (tollhouse_cache_entries{{{TENANT}}}))", legend="{{tenant}}"),)),
            Panel(title="Evicted", about="Answers that made room for others before their time was over.", unit="reqps",
                  queries=(Query(expr=or_zero(rate("tollhouse_cache_evictions_total", "tenant", TENANT)), legend="{{tenant}}"),)),
            Panel(title="Redis did not answer", about="Look-ups and stores that failed; such calls are sent as if there were no cache.", unit="reqps",
                  runbook="limiter-not-redis", queries=(Query(expr=rate("tollhouse_cache_failures_total"), legend="failures"),)),
        ),
    )  # fmt: skip


def all_dashboards() -> tuple[Dashboard, ...]:
    return (overview(), tenants(), capacity(), money(), cache())


def series() -> set[str]:
    """Names of every series that the proxy's metrics can have."""
    names = set()
    for variable, metric in vars(telemetry).items():
        if isinstance(metric, MetricWrapperBase) and variable in _counted():
            for family in metric.describe():
                suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
                    family.type, ("",)
                )
                names |= {family.name + suffix for suffix in suffixes}
    return names


@functools.cache
def _counted() -> frozenset[str]:
    """Variables of proxy/telemetry.py that some code uses: a metric that nobody counts is an empty panel."""
    found = set()
    for path in (REPOSITORY / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.add(node.id)
    return frozenset(found)


def shipped(known: set[str]) -> tuple[tuple[Dashboard, ...], set[str]]:
    """Dashboards whose every panel has its metrics, and the metrics that others lack."""
    lacking: set[str] = set()
    kept = []
    for spec in all_dashboards():
        lacking |= {name for panel in spec.panels for name in panel.metrics - known}
        panels = tuple(panel for panel in spec.panels if panel.metrics <= known)
        if panels:
            kept.append(replace(spec, panels=panels))
    others = tuple((spec.uid, spec.title) for spec in kept)
    return tuple(replace(spec, others=others) for spec in kept), lacking


def rendered() -> tuple[dict[str, str], set[str]]:
    """File name -> text, and the metrics that are lacking."""
    kept, lacking = shipped(series())
    files = {
        f"{spec.uid.removeprefix('tollhouse-')}.json": json.dumps(
            dashboard(spec), indent=1, ensure_ascii=False
        )
        + "\n"
        for spec in kept
    }
    return files, lacking


def main(arguments: list[str]) -> int:
    files, lacking = rendered()
    if arguments == ["--check"]:
        there = {path.name: path.read_text(encoding="utf-8") for path in TARGET.glob("*.json")}
        if there == files:
            return 0
        print(f"{TARGET} is not what the metrics say; run python helm/dashboards.py", file=sys.stderr)
        return 1
    for path in TARGET.glob("*.json"):
        path.unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text, encoding="utf-8")
    if lacking:
        print(f"left out, for want of: {', '.join(sorted(lacking))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
