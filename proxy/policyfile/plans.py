"""`plans/*.yaml`: what a tenant gets unless something of its own says otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from proxy.domain.policy import Limit
from proxy.policyfile.schema import Reader
from proxy.policyfile.strict import Node, Scalar

_CACHE = ("enabled", "ttl_seconds", "deterministic_only", "max_entry_bytes", "max_tenant_bytes")
_FIELDS = (
    *("models_allowed", "models_denied", "default_output_tokens", "max_output_tokens"),
    *("max_body_bytes", "arns_allowed", "cache"),
)
_LIMIT = (
    "scope",
    "requests_per_minute",
    "tokens_per_minute",
    "burst_seconds",
    "concurrency",
    "models",
    "mode",
)
_BUDGET = ("scope", "period", "limit_usd", "models", "on_short", "floor_output_tokens", "thresholds")
_SCOPES: tuple[Scope, ...] = ("tenant", "project", "key")
_PERIODS = ("day", "week", "month", "total")
#: largest body that can be configured; the frame that memory is planned for
MAX_BODY_BYTES = 100_000_000
MAX_MONEY = 2**62

Scope = Literal["tenant", "project", "key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitTemplate:
    """A rate that every tenant, project or key of the plan has."""

    scope: Scope
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    burst_seconds: int = 60
    concurrency: int | None = None
    models: frozenset[str] | None = None
    mode: Literal["enforce", "observe"] = "enforce"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTemplate:
    """A budget that every tenant, project or key of the plan is given. `limit` is nano-dollars."""

    scope: Scope
    period: Literal["day", "week", "month", "total"]
    limit: int
    #: base model ids or patterns, None for every model
    models: tuple[str, ...] | None = None
    on_short: Literal["reject", "clamp"] = "reject"
    #: fewest output tokens that `clamp` leaves an answer
    floor_output_tokens: int = 1
    #: shares of the limit at which somebody is told
    thresholds: tuple[Decimal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFields:
    enabled: bool | None = None
    ttl_seconds: int | None = None
    deterministic_only: bool | None = None
    max_entry_bytes: int | None = None
    max_tenant_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Policy fields that a plan or an override sets; None where it says nothing."""

    models_allowed: tuple[str, ...] | None = None
    models_denied: tuple[str, ...] | None = None
    default_output_tokens: int | None = None
    max_output_tokens: int | None = None
    max_body_bytes: int | None = None
    arns_allowed: tuple[str, ...] | None = None
    cache: CacheFields = field(default_factory=CacheFields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A named bundle. Equal plans have equal versions, whatever the file looks like."""

    name: str
    version: str
    description: str = ""
    fields: Fields = field(default_factory=Fields)
    limits: tuple[LimitTemplate, ...] = ()
    budgets: tuple[BudgetTemplate, ...] = ()

    def limits_for(self, tenant: UUID, project: UUID | None, key: UUID) -> tuple[Limit, ...]:
        """The plan's limits as limits of this caller's scopes; ids are stable over restarts."""
        subjects = {"tenant": tenant, "project": project, "key": key}
        found = []
        for index, template in enumerate(self.limits):
            subject = subjects[template.scope]
            if subject is not None:
                name = uuid5(NAMESPACE_URL, f"tollhouse:plan:{self.name}:{index}:{subject}")
                found.append(Limit(id=name, subject=subject, **_values(template)))
        return tuple(found)


def _values(template: LimitTemplate) -> dict[str, Any]:
    return {name: getattr(template, name) for name in LimitTemplate.__dataclass_fields__}


def read_plan(node: Node, reader: Reader, name: str, models: Iterable[str]) -> Plan:
    """The plan in a file named `<name>.yaml`."""
    known = ("plan", "description", *_FIELDS, "limits", "budgets")
    top = reader.table(node, known, ("plan",))
    items = top.items
    said = reader.name(items.get("plan"))
    if said is not None and said != name:
        reader.fail(items["plan"], f"the plan is named {said!r}, but its file {name!r}; they must agree")
    maker = _Maker(reader, tuple(models))
    fields = maker.fields(items)
    limits = tuple(maker.limit(row) for row in reader.rows(items.get("limits")))
    budgets = tuple(maker.budget(row) for row in reader.rows(items.get("budgets")))
    about = reader.text(items.get("description"), 2000) or ""
    plan = Plan(name=name, version="", description=about, fields=fields, limits=limits, budgets=budgets)
    return Plan(
        name=name, version=digest(plan), description=about, fields=fields, limits=limits, budgets=budgets
    )


def read_fields(node: Node, reader: Reader, models: Iterable[str]) -> Fields:
    """An override: the same fields a plan has, without limits and budgets."""
    return _Maker(reader, tuple(models)).fields(reader.table(node, _FIELDS).items)


def digest(value: Any) -> str:
    """Twelve hex digits that are equal exactly when the dataclass values are."""
    text = json.dumps(asdict(value), sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


class _Maker:
    def __init__(self, reader: Reader, models: tuple[str, ...]) -> None:
        self._reader = reader
        self._models = models

    def fields(self, items: Mapping[str, Node]) -> Fields:
        reader = self._reader
        cache = items.get("cache")
        cached = {} if cache is None else reader.table(cache, _CACHE).items
        return Fields(
            models_allowed=self._models_in(items.get("models_allowed")),
            models_denied=self._models_in(items.get("models_denied")),
            default_output_tokens=reader.integer(items.get("default_output_tokens"), 1, 10_000_000),
            max_output_tokens=reader.integer(items.get("max_output_tokens"), 1, 10_000_000),
            max_body_bytes=reader.integer(items.get("max_body_bytes"), 1, MAX_BODY_BYTES),
            arns_allowed=reader.many(items["arns_allowed"], reader.glob) if "arns_allowed" in items else None,
            cache=CacheFields(
                enabled=reader.boolean(cached.get("enabled")),
                ttl_seconds=reader.integer(cached.get("ttl_seconds"), 1, 30 * 86_400),
                deterministic_only=reader.boolean(cached.get("deterministic_only")),
                max_entry_bytes=reader.integer(cached.get("max_entry_bytes"), 0, 67_108_864),
                max_tenant_bytes=reader.integer(cached.get("max_tenant_bytes"), 0, 2**40),
            ),
        )

    def _models_in(self, node: Node | None) -> tuple[str, ...] | None:
        if node is None or self._reader.is_null(node):
            return None
        return self._reader.many(node, self._model)

    def _model(self, node: Node) -> str | None:
        """A base model id, or a pattern of them; an id that is no model is a mistake worth telling."""
        word = self._reader.glob(node)
        if word is not None and "*" not in word and word not in self._models:
            self._reader.fail(node, f"there is no base model {word!r}{self._reader.hint(word, self._models)}")
            return None
        return word

    def limit(self, node: Node) -> LimitTemplate:
        reader = self._reader
        items = reader.table(node, _LIMIT, ("scope",)).items
        counts = ("requests_per_minute", "tokens_per_minute", "concurrency")
        if items and not any(name in items for name in counts):
            reader.fail(node, f"this limit limits nothing; give one of {', '.join(counts)}")
        models = self._models_in(items.get("models"))
        mode = reader.choice(items.get("mode"), ("enforce", "observe"))
        burst = reader.integer(items.get("burst_seconds"), 1, 86_400)
        return LimitTemplate(
            scope=self._scope(items),
            requests_per_minute=reader.integer(items.get("requests_per_minute"), 0, 10**9),
            tokens_per_minute=reader.integer(items.get("tokens_per_minute"), 0, 10**12),
            burst_seconds=60 if burst is None else burst,
            concurrency=reader.integer(items.get("concurrency"), 0, 10**6),
            models=None if models is None else frozenset(models),
            mode="observe" if mode == "observe" else "enforce",
        )

    def budget(self, node: Node) -> BudgetTemplate:
        reader = self._reader
        items = reader.table(node, _BUDGET, ("scope", "period", "limit_usd")).items
        period = reader.choice(items.get("period"), _PERIODS) or "month"
        on_short = reader.choice(items.get("on_short"), ("reject", "clamp"))
        return BudgetTemplate(
            scope=self._scope(items),
            period=period,  # type: ignore[arg-type]
            limit=reader.rate(items.get("limit_usd")) or 0,
            models=self._models_in(items.get("models")),
            on_short="clamp" if on_short == "clamp" else "reject",
            floor_output_tokens=reader.integer(items.get("floor_output_tokens"), 1, 10_000_000) or 1,
            thresholds=tuple(sorted(reader.many(items.get("thresholds"), self._share))),
        )

    def _scope(self, items: Mapping[str, Node]) -> Scope:
        word = self._reader.choice(items.get("scope"), _SCOPES)
        return next((scope for scope in _SCOPES if scope == word), "tenant")

    def _share(self, node: Node) -> Decimal | None:
        rate = self._reader.rate(node)
        if rate is None or not isinstance(node, Scalar):
            return None
        share = Decimal(node.value)
        if not 0 < share <= 1:
            self._reader.fail(node, f"{node.value} is no share of a budget: above 0, at most 1")
            return None
        return share
