"""Rules applied to one call: its variables, and what is left of it when they have spoken.

`budget.used` comes from a snapshot that is taken every second while some rule reads it; when it is
missing or too old the variable has no value, and a rule that needs it fails closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol
from uuid import UUID

from proxy import telemetry
from proxy.domain.catalogue import Route
from proxy.domain.control import BudgetShare
from proxy.domain.ledger import Operation
from proxy.domain.request import Bound
from proxy.domain.rules import Rule, RuleError, Ruling, decide
from proxy.domain.tenant import Caller
from proxy.errors import BankAway, Forbidden, Unavailable
from proxy.offer import Offer

log = logging.getLogger("tollhouse.rules")

BUDGET = "budget.used"
SNAPSHOT_SECONDS = 1.0
#: older, and nothing is known about budgets
STALE_SECONDS = 5.0


class ShareSource(Protocol):
    async def shares(self) -> Sequence[BudgetShare]:
        """Of every live budget. Raises `BankAway`."""
        ...


class Shares:
    """The snapshot. `wanted` says whether any rule in force reads it."""

    def __init__(
        self,
        source: ShareSource,
        wanted: Callable[[], bool],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._monotonic = monotonic
        self._by_subject: dict[UUID, list[BudgetShare]] = {}
        self._taken_at: float | None = None

    def used(self, caller: Caller, model: str) -> float | None:
        """The largest share of the budgets that apply, 0.0 without one; None when it is not known."""
        if self._taken_at is None or self._monotonic() - self._taken_at > STALE_SECONDS:
            return None
        found = 0.0
        for subject in (caller.tenant, caller.project, caller.key):
            for share in self._by_subject.get(subject, ()) if subject is not None else ():
                if share.used > found and (share.models is None or model in share.models):
                    found = share.used
        return found

    async def refresh(self) -> None:
        """Raises `BankAway`; the snapshot then stays and grows old."""
        asked_at = self._monotonic()
        fresh: dict[UUID, list[BudgetShare]] = {}
        for share in await self._source.shares():
            fresh.setdefault(share.subject, []).append(share)
        self._by_subject, self._taken_at = fresh, asked_at

    async def run(self) -> None:
        while True:
            if self._wanted():
                try:
                    await self.refresh()
                except BankAway as error:
                    log.warning("budgets for rules not read: %s", error)
                except Exception:
                    log.exception("budgets for rules not read")
            await asyncio.sleep(SNAPSHOT_SECONDS)


def reads_budgets(rules: Sequence[Rule]) -> bool:
    return any(BUDGET in rule.reads for rule in rules)


@dataclass(slots=True, kw_only=True)
class Asked:
    """What an offer does not say about its request. `size` in bytes."""

    name: str
    operation: Operation
    stream: bool
    size: int


class Ruler:
    """Decides for one call. `rules` gives those in force; `clock` unix seconds."""

    def __init__(
        self,
        rules: Callable[[], Sequence[Rule]],
        used: Callable[[Caller, str], float | None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._used = used
        self._clock = clock

    def __call__(self, caller: Caller, offer: Offer, asked: Asked, again: Callable[[Route], Offer]) -> Offer:
        """What the rules make of an offer; `again` makes the offer of another route.

        Raises `Forbidden` for a denied call, `Unavailable` when an enforced rule has no answer.
        """
        rules = self._rules()
        if not rules:
            return offer
        ruling = self._ruling(rules, caller, offer, asked)
        _enforce(ruling, offer.bound)
        if ruling.model is not None and not asked.operation.probe:
            route = offer.book.resolve(ruling.model)
            if not caller.policy.allows(route.model.id):
                raise Forbidden(f"{ruling.model} stands in by the rule {ruling.by['substitute']}, but is not "
                                "allowed for this key", reason="model_not_allowed")  # fmt: skip
            offer = again(route)
        return _bounded(offer, ruling)

    def stand_ins(self, caller: Caller, offers: Iterable[Offer], asked: Asked) -> Iterator[Offer]:
        """The offers of fallbacks that the rules allow as they are, capped and routed like any other.
        Raises `Unavailable` when an enforced rule has no answer.
        """
        for offer in offers:
            ruling = self._ruling(self._rules(), caller, offer, asked)
            with contextlib.suppress(Forbidden):
                _enforce(ruling, offer.bound)
                if ruling.model is None:
                    yield _bounded(offer, ruling)

    def _ruling(self, rules: Sequence[Rule], caller: Caller, offer: Offer, asked: Asked) -> Ruling:
        try:
            ruling = decide(rules, self._values(caller, offer, asked))
        except RuleError as error:
            telemetry.RULE_DECISIONS.labels(error.rule, "none", "error").inc()
            log.error("%s", error)
            raise Unavailable(f"the rule {error.rule!r} cannot be decided now; please retry",
                              reason="rule_error") from None  # fmt: skip
        for failed in ruling.unanswered:
            telemetry.RULE_DECISIONS.labels(failed.rule, "none", "error").inc()
        for result, held in (("enforced", ruling.enforced), ("observed", ruling.observed)):
            for rule in held:
                telemetry.RULE_DECISIONS.labels(rule.name, rule.effect, result).inc()
        return ruling

    def _values(self, caller: Caller, offer: Offer, asked: Asked) -> Mapping[str, Any]:
        bound, model = offer.bound, offer.route.model
        values: dict[str, Any] = {
            "request.model": model.id, "request.name": asked.name, "request.family": model.family,
            "request.operation": asked.operation.label, "request.output_limit": offer.limit,
            "request.input_bytes": asked.size, "request.stream": asked.stream, "request.tools": bound.tools,
            "request.tier": bound.tier, "request.latency": bound.latency,
            "request.guardrail": bound.guardrail_id or "", "request.tags": dict(bound.metadata),
            "plan": caller.policy.plan, "tenant": caller.tenant_slug, "project": caller.project_slug or "",
            "key": str(caller.key), "key.name": caller.key_name,
            "time": dt.datetime.fromtimestamp(self._clock(), dt.UTC),
        }  # fmt: skip
        used = self._used(caller, model.id)
        return values if used is None else values | {BUDGET: used}


def _bounded(offer: Offer, ruling: Ruling) -> Offer:
    if ruling.targets:
        offer = replace(offer, route=routed(offer.route, ruling))
    if ruling.tokens is not None and ruling.tokens < offer.limit:
        raw = offer.dialect.with_output_limit(offer.body, offer.raw, ruling.tokens)
        offer = replace(offer, limit=ruling.tokens, raw=raw)
    return offer


def _enforce(ruling: Ruling, bound: Bound) -> None:
    if ruling.deny is not None:
        raise Forbidden(f"{ruling.deny} (rule {ruling.by['deny']})", reason="rule_denied")
    for rule, pattern in ruling.guardrails:
        if not fnmatchcase(bound.guardrail_id or "", pattern):
            raise Forbidden(f"this request must name the guardrail {pattern} (rule {rule})",
                            reason="guardrail_required")  # fmt: skip


def routed(route: Route, ruling: Ruling) -> Route:
    """The route with the targets that the ruling picks, in its order. Raises `Forbidden` for none."""
    picked = dict.fromkeys(
        target
        for pattern in ruling.targets
        for target in route.targets
        if fnmatchcase(target.label, pattern) or fnmatchcase(target.model_id, pattern)
    )
    if not picked:
        raise Forbidden(f"no target of {route.name} fits the rule {ruling.by['route']}", reason="rule_route")
    return replace(route, targets=tuple(picked))
