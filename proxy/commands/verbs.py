"""Every verb that asks the admin REST, as data: what it is called, what it sends, what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["path", "body", "query"]
Kind = Literal["text", "int", "list", "json", "yes", "no", "clear"]


@dataclass(frozen=True, slots=True)
class Argument:
    """`name` as people type it; `field` as the REST calls it. `null` is sent for the word `none`. A
    positional of the query may be left out.
    """

    name: str
    place: Place
    about: str = ""
    kind: Kind = "text"
    positional: bool = False
    required: bool = False
    field: str = ""

    @property
    def key(self) -> str:
        return self.field or self.name.replace("-", "_")


@dataclass(frozen=True, slots=True)
class Verb:
    noun: str
    name: str
    about: str
    method: str
    path: str
    arguments: tuple[Argument, ...] = ()
    columns: tuple[str, ...] = ()
    #: asked with an issued key, about itself; all others with an admin key
    own: bool = False

    @property
    def lists(self) -> bool:
        return bool(self.columns) and self.method == "GET"


def _in_path(*names: str) -> tuple[Argument, ...]:
    return tuple(Argument(name, "path", positional=True) for name in names)


def _must(*names: str) -> tuple[Argument, ...]:
    return tuple(Argument(name, "body", positional=True) for name in names)


def _may(*names: str) -> tuple[Argument, ...]:
    return tuple(Argument(name, "body") for name in names)


def _query(*names: str) -> tuple[Argument, ...]:
    return tuple(Argument(name, "query") for name in names)


_OVERRIDES = Argument("overrides", "body", "JSON, `none` for none", "json")
_MODELS = Argument("models", "body", "base model ids, with commas between", "list")
_FLOOR = Argument("floor-output-tokens", "body", "fewest output tokens of a clamped answer", "int")
_SPAN = (
    Argument("since", "body", "RFC 3339", required=True),
    Argument("until", "body", "RFC 3339", required=True),
    *_may("tenant", "model", "target"),
    Argument("dry-run", "body", "only say what it would do", "yes"),
)
_CALLS = (*_query("tenant", "project", "key", "model", "outcome", "since", "until"),)
_RATES = (
    Argument("requests-per-minute", "body", kind="int"),
    Argument("tokens-per-minute", "body", kind="int"),
    Argument("burst-seconds", "body", kind="int"),
    Argument("concurrency", "body", kind="int"),
    _MODELS,
    Argument("mode", "body", "enforce or observe"),
)
_TENANT = ("id", "name", "plan", "time_zone", "status", "created_at")
_KEY = ("id", "tenant", "project", "name", "status", "expires_at", "created_at")
_LIMIT = ("id", "scope", "requests_per_minute", "tokens_per_minute", "concurrency", "models", "mode")
_BUDGET = (
    *("id", "scope", "period", "effective_limit_usd", "settled_usd", "reserved_usd", "remaining_usd"),
    *("resets_at", "models"),
)
_CALL = (
    *("attempt", "admitted_at", "tenant", "project", "model", "operation", "outcome"),
    *("usage.input_tokens", "usage.output_tokens", "cost_usd", "ceiling_usd"),
)
_SPEND = (
    *("tenant", "project", "key", "model", "target", "tags", "tag", "operation", "outcome", "day", "month"),
    *("cost_usd", "saved_usd", "attempts", "hits", "input_tokens", "output_tokens"),
)
_ADVICE = (
    *("tenant", "model", "calls", "input_tokens", "repeated_share_5m", "repeated_share_1h"),
    *("best.saved_usd", "advice"),
)
_ADJUSTMENT = ("id", "amount_usd", "until", "reason", "created_at", "created_by")
_STATEMENT = ("month", "status", "usage_usd", "corrections_usd", "total_usd", "issued_at", "issued_by")

_PEOPLE = (
    Verb("tenants", "create", "make a tenant", "POST", "/tenants",
         (*_must("id", "name"), *_may("plan", "time-zone"), _OVERRIDES)),
    Verb("tenants", "list", "list tenants", "GET", "/tenants", (), _TENANT),
    Verb("tenants", "show", "show a tenant", "GET", "/tenants/{tenant}", _in_path("tenant")),
    Verb("tenants", "change", "change a tenant", "PATCH", "/tenants/{tenant}",
         (*_in_path("tenant"), *_may("name", "status", "plan"), _OVERRIDES)),
    Verb("tenants", "delete", "delete a tenant; its money stays in the ledger", "DELETE", "/tenants/{tenant}",
         _in_path("tenant")),
    Verb("tenants", "purge-cache", "forget a tenant's cached answers", "POST",
         "/tenants/{tenant}/cache/purge",
         (*_in_path("tenant"), Argument("model", "body", "only the answers of this base model"))),
    Verb("projects", "create", "make a project", "POST", "/tenants/{tenant}/projects",
         (*_in_path("tenant"), *_must("id", "name"))),
    Verb("projects", "list", "list projects", "GET", "/tenants/{tenant}/projects", _in_path("tenant"),
         ("id", "name", "created_at")),
    Verb("projects", "show", "show a project", "GET", "/tenants/{tenant}/projects/{project}",
         _in_path("tenant", "project")),
    Verb("keys", "issue", "issue a key; its secrets are shown once", "POST", "/keys",
         (*_must("tenant", "name"), *_may("project", "expires-at"), _OVERRIDES,
          Argument("no-sigv4", "body", "without an AWS access key pair", "no", field="sigv4"))),
    Verb("keys", "list", "list keys", "GET", "/keys", _query("tenant", "project", "status"), _KEY),
    Verb("keys", "show", "show a key", "GET", "/keys/{key}", _in_path("key")),
    Verb("keys", "change", "change a key", "PATCH", "/keys/{key}",
         (*_in_path("key"), *_may("name", "expires-at"), _OVERRIDES)),
    Verb("keys", "rotate", "make new secrets; the old ones work until the grace ends", "POST",
         "/keys/{key}/rotate", (*_in_path("key"), Argument("grace-seconds", "body", kind="int"))),
    *(Verb("keys", act, f"{act} a key", "POST", f"/keys/{{key}}/{act}", _in_path("key"))
      for act in ("disable", "enable", "revoke")),
    Verb("admins", "create", "make an admin key; it is shown once", "POST", "/admins",
         (*_must("name", "role"), *_may("tenant"))),
    Verb("admins", "list", "list administrators", "GET", "/admins", (),
         ("id", "name", "role", "tenant", "created_at")),
    Verb("admins", "revoke", "revoke an admin key", "DELETE", "/admins/{admin}", _in_path("admin")),
)  # fmt: skip

_MONEY = (
    Verb("limits", "create", "make a limit", "POST", "/limits", (*_must("scope"), *_RATES)),
    Verb("limits", "list", "list limits", "GET", "/limits", _query("scope", "tenant"), _LIMIT),
    Verb("limits", "show", "show a limit", "GET", "/limits/{limit}", _in_path("limit")),
    Verb("limits", "change", "change a limit", "PATCH", "/limits/{limit}", (*_in_path("limit"), *_RATES)),
    Verb("limits", "delete", "delete a limit", "DELETE", "/limits/{limit}", _in_path("limit")),
    Verb("budgets", "create", "make a budget", "POST", "/budgets",
         (*_must("scope", "period", "limit-usd"), _MODELS, *_may("on-short"), _FLOOR,
          Argument("thresholds", "body", "shares with commas between", "list"))),
    Verb("budgets", "list", "list budgets as the bank has them", "GET", "/budgets", _query("scope", "tenant"),
         _BUDGET),
    Verb("budgets", "show", "show a budget", "GET", "/budgets/{budget}", _in_path("budget")),
    Verb("budgets", "change", "change a budget", "PATCH", "/budgets/{budget}",
         (*_in_path("budget"), *_may("limit-usd", "on-short"), _FLOOR, Argument("thresholds", "body", kind="list"))),
    Verb("budgets", "delete", "end a budget", "DELETE", "/budgets/{budget}", _in_path("budget")),
    Verb("budgets", "adjust", "add to a budget, for its period or until a time", "POST",
         "/budgets/{budget}/adjustments", (*_in_path("budget"), *_must("amount-usd", "reason"), *_may("until"))),
    Verb("budgets", "adjustments", "list adjustments", "GET", "/budgets/{budget}/adjustments",
         _in_path("budget"), _ADJUSTMENT),
    Verb("budgets", "transfer", "move money from one budget to another", "POST", "/transfers",
         _must("source", "target", "amount-usd", "reason")),
    Verb("ceilings", "release", "refund the ceilings of an incident", "POST", "/ceilings/release",
         (*_must("incident"), *_SPAN, *_may("keep-share"))),
    Verb("prices", "list", "list versions of the price book", "GET", "/policies/prices", (),
         ("id", "effective_from", "prices")),
    Verb("prices", "recalculate", "price resolved calls again", "POST", "/prices/recalculate",
         (*_must("reason"), *_SPAN)),
)  # fmt: skip

_RECORDS = (
    Verb("calls", "list", "list calls, newest first", "GET", "/calls", (*_CALLS, *_query("call")), _CALL),
    Verb("calls", "show", "show one attempt with its entries", "GET", "/calls/{attempt}", _in_path("attempt")),
    Verb("calls", "refund", "lower a call that was charged its ceiling", "POST", "/calls/{attempt}/refund",
         (*_in_path("attempt"), *_must("amount-usd", "reason"))),
    Verb("calls", "price", "say why one attempt cost what it did", "GET", "/calls/{attempt}/price",
         _in_path("attempt")),
    Verb("refusals", "list", "count refused calls", "GET", "/refusals",
         _query("tenant", "group-by", "since", "until"),
         ("tenant", "key", "reason", "model", "day", "count", "last_message")),
    Verb("reports", "spend", "sum what calls cost", "GET", "/reports/spend",
         (*_query("group-by"), *_CALLS, *_query("time-zone"),
          Argument("format", "query", "json, csv or focus")), _SPEND),
    Verb("reports", "prompt-caching", "say what prompt cache points would have saved, and where to put them",
         "GET", "/reports/prompt-caching",
         (Argument("tenant", "query", "every tenant when absent", positional=True),), _ADVICE),
    Verb("statements", "list", "list issued statements", "GET", "/tenants/{tenant}/statements",
         _in_path("tenant"), _STATEMENT),
    Verb("statements", "show", "show a month's statement", "GET", "/tenants/{tenant}/statements/{month}",
         (*_in_path("tenant", "month"), Argument("format", "query", "json or csv"))),
    Verb("statements", "issue", "issue a month's statement", "POST", "/tenants/{tenant}/statements/{month}",
         _in_path("tenant", "month")),
    Verb("audit", "list", "list administrators' writes", "GET", "/audit", _query("object"),
         ("seq", "at", "actor", "action", "object")),
    Verb("audit", "verify", "check the hash chain of the audit trail", "GET", "/audit/verify",
         (Argument("head", "query", "<seq>:<hash> of a record that was kept elsewhere"),)),
    Verb("webhooks", "create", "make a webhook; its secret is shown once", "POST", "/webhooks",
         (*_must("name", "url"), *_may("tenant", "format"), Argument("events", "body", kind="list"))),
    Verb("webhooks", "list", "list webhooks", "GET", "/webhooks", _query("tenant"),
         ("id", "tenant", "name", "url", "format", "events", "status")),
    Verb("webhooks", "show", "show a webhook", "GET", "/webhooks/{webhook}", _in_path("webhook")),
    Verb("webhooks", "change", "change a webhook", "PATCH", "/webhooks/{webhook}",
         (*_in_path("webhook"), *_may("name", "url", "format", "status"), Argument("events", "body", kind="list"))),
    Verb("webhooks", "delete", "delete a webhook", "DELETE", "/webhooks/{webhook}", _in_path("webhook")),
    Verb("webhooks", "test", "send a test alert", "POST", "/webhooks/{webhook}/test", _in_path("webhook")),
    Verb("webhooks", "deliveries", "list deliveries", "GET", "/webhooks/{webhook}/deliveries",
         _in_path("webhook"), ("alert", "kind", "status", "tries", "next_at", "done_at", "last_error")),
    Verb("alerts", "list", "list alerts, newest first", "GET", "/alerts", _query("tenant", "kind"),
         ("at", "kind", "tenant", "message")),
    Verb("plans", "list", "list plans", "GET", "/plans", (), ("id", "version", "description")),
    Verb("me", "show", "show what an issued key is and may do", "GET", "/me", own=True),
    Verb("me", "usage", "show what an issued key used, by model", "GET", "/me/usage",
         _query("since", "until"), own=True),
    Verb("me", "limits", "list limits in force for an issued key", "GET", "/me/limits", (),
         ("id", "scope", "requests_per_minute", "tokens_per_minute", "concurrency", "models", "mode"), own=True),
    Verb("policies", "show", "show which policies are in force", "GET", "/policies"),
    Verb("policies", "rules", "list rules in force", "GET", "/policies/rules", (),
         ("name", "effect", "mode", "when", "file", "line")),
)  # fmt: skip

VERBS = (*_PEOPLE, *_MONEY, *_RECORDS)
NOUNS = {
    "tenants": "who is charged",
    "projects": "parts of a tenant",
    "keys": "what callers prove themselves with",
    "admins": "who may use this REST",
    "limits": "requests, tokens and calls at a time",
    "budgets": "money per calendar period",
    "ceilings": "calls that were charged their worst case",
    "calls": "the ledger",
    "refusals": "calls that were refused",
    "reports": "what was spent on what",
    "statements": "what a tenant owes for a month",
    "audit": "who changed what",
    "webhooks": "who is told",
    "alerts": "what was noticed",
    "plans": "what tenants get",
    "policies": "policy files",
    "me": "an issued key about itself (TOLLHOUSE_API_KEY)",
}
