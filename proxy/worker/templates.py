"""Budget templates of changed plans brought to the tenants that have them: made where there is none like
it, raised where one came from a template before, never lowered, never made again where it was deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol
from uuid import UUID

from proxy.domain.control import ConflictError, ScopeRef
from proxy.policyfile import PolicySet
from proxy.policyfile.materialising import Budgets, materialise, origin

log = logging.getLogger("tollhouse.templates")

_AT_ONCE = 500


class TemplateStore(Protocol):
    """Everything raises `BankAway`."""

    async def scopes(
        self, wanted: Sequence[tuple[str, str]], origins: Mapping[str, str], *, after: UUID, most: int
    ) -> list[tuple[str, ScopeRef]]:
        """Plan and scope of what never had a budget of its plan's version, by subject."""
        ...

    def leading(self) -> AbstractAsyncContextManager[Budgets | None]:
        """A transaction, or None while another worker leads."""
        ...


class Gardener:
    """`policies` gives those in force; a round does nothing while they are the ones of the last."""

    def __init__(self, store: TemplateStore, policies: Callable[[], PolicySet]) -> None:
        self._store = store
        self._policies = policies
        self._done = ""

    async def round(self) -> int:
        """Returns how many budgets were made or raised."""
        policies = self._policies()
        if policies.version == self._done:
            return 0
        plans = [plan for plan in policies.plans.values() if plan.budgets]
        wanted = [(plan.name, kind) for plan in plans for kind in {t.scope: None for t in plan.budgets}]
        origins = {plan.name: origin(plan) for plan in plans}
        made, after = 0, UUID(int=0)
        while wanted:
            found = await self._store.scopes(wanted, origins, after=after, most=_AT_ONCE)
            for plan, scope in found:
                made += await self._reach(policies, plan, scope)
            if len(found) < _AT_ONCE:
                break
            after = found[-1][1].subject
        self._done = policies.version
        if made:
            log.info("%d budgets were made or raised by changed plans", made)
        return made

    async def _reach(self, policies: PolicySet, plan: str, scope: ScopeRef) -> int:
        try:
            async with self._store.leading() as db:
                return 0 if db is None else len(await materialise(db, policies, plan, scope))
        except ConflictError:
            return 0  # an administrator made one like it at this very moment
