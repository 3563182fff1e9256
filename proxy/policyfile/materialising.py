"""A plan's budget templates made into budgets of one scope."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Protocol
from uuid import UUID

from proxy.clock import uuid7
from proxy.domain.control import NewBudget, ScopeRef
from proxy.policyfile.plans import BudgetTemplate, Plan


class Plans(Protocol):
    """The policy files in force."""

    @property
    def models(self) -> Any: ...

    def plan(self, name: str) -> Plan:
        """Raises `ConfigurationError` when there is no such plan."""
        ...


class Budgets(Protocol):
    """An open transaction."""

    async def materialise(self, ident: UUID, scope: ScopeRef, new: NewBudget) -> UUID | None:
        """The budget that was made or raised, None for neither."""
        ...


def origin(plan: Plan) -> str:
    """What a budget remembers of the template it came from."""
    return f"{plan.name}@{plan.version}"


async def materialise(db: Budgets, policies: Plans, plan_name: str, scope: ScopeRef) -> list[UUID]:
    """In the caller's transaction; returns the budgets that were made or raised. Raises
    `ConfigurationError` when there is no such plan.
    """
    plan = policies.plan(plan_name)
    made = []
    for template in plan.budgets:
        if template.scope == scope.kind:
            new = NewBudget(
                period=template.period,
                limit_nano=template.limit,
                models=_expanded(template, policies.models),
                on_short=template.on_short,
                floor_output_tokens=template.floor_output_tokens,
                thresholds=[str(share) for share in template.thresholds],
                origin=origin(plan),
            )
            made.append(await db.materialise(uuid7(), scope, new))
    return [ident for ident in made if ident is not None]


def _expanded(template: BudgetTemplate, models: Iterable[str]) -> list[str] | None:
    """The base models that the template's patterns cover today; None for every model."""
    if template.models is None:
        return None
    return sorted(name for name in models if any(fnmatchcase(name, p) for p in template.models))
