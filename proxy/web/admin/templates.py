"""A plan's budget templates made into budgets of one scope."""

from __future__ import annotations

from fnmatch import fnmatchcase

from proxy.clock import uuid7
from proxy.domain.control import NewBudget, ScopeRef
from proxy.policyfile.plans import BudgetTemplate
from proxy.web.admin.core import Office
from proxy.web.admin.store import Session


async def materialise(db: Session, office: Office, plan_name: str, scope: ScopeRef) -> None:
    """In the caller's transaction. Raises `ConfigurationError` when there is no such plan."""
    policies = office.policies()
    plan = policies.plan(plan_name)
    for template in plan.budgets:
        if template.scope == scope.kind:
            new = NewBudget(
                period=template.period,
                limit_nano=template.limit,
                models=_expanded(template, policies.models),
                on_short=template.on_short,
                thresholds=[str(share) for share in template.thresholds],
                origin=f"{plan.name}@{plan.version}",
            )
            await db.materialise(uuid7(), scope, new)


def _expanded(template: BudgetTemplate, models: dict[str, object]) -> list[str] | None:
    """The base models that the template's patterns cover today; None for every model."""
    if template.models is None:
        return None
    return sorted(name for name in models if any(fnmatchcase(name, p) for p in template.models))
