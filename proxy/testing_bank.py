"""An honest bank in memory, for tests of whatever uses `proxy.ports.Bank`.

It passes the same contract tests as the Postgres bank. It keeps no promise across processes, and
`away = True` makes it behave like a bank that does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

from proxy.clock import now_us
from proxy.domain import admission
from proxy.domain.admission import Account, Amendment, Book, Budget, Spender
from proxy.domain.ledger import Admission, Attempt, Outcome, Settled, Settlement
from proxy.errors import BankAway


class MemoryBank:
    """A `proxy.ports.Bank`. The methods below the port set the stage; `book` shows what happened."""

    def __init__(self, clock: Callable[[], int] = now_us) -> None:
        self.book = Book()
        self.clock = clock
        self.away = False
        #: every attempt that was asked for, admitted or not
        self.asked: list[Attempt] = []

    # ---- proxy.ports.Bank --------------------------------------------------------------------

    async def admit(self, attempt: Attempt) -> Admission:
        self._reach()
        self.asked.append(attempt)
        answer = admission.admit(self.book, attempt, self.clock())
        if answer is None:
            raise BankAway("a budget has no account for this period")
        return answer

    async def settle(self, settlement: Settlement) -> Settled:
        self._reach()
        return admission.settle(self.book, settlement, self.clock())

    async def settle_and_admit(self, settlement: Settlement, attempt: Attempt) -> Admission:
        await self.settle(settlement)
        return await self.admit(attempt)

    async def record_hit(self, attempt: Attempt, settlement: Settlement, saved: int) -> Admission:
        self._reach()
        return admission.record_hit(self.book, attempt, settlement.usage, saved, self.clock())

    async def amend(self, amendments: Sequence[Amendment]) -> list[Outcome]:
        self._reach()
        return [admission.amend(self.book, a, self.clock()) for a in amendments]

    def _reach(self) -> None:
        if self.away:
            raise BankAway("the bank is away")

    # ---- the stage ---------------------------------------------------------------------------

    def add_spender(
        self,
        tenant: UUID,
        project: UUID | None,
        key: UUID,
        credential: UUID,
        *,
        expires_at_us: int | None = None,
    ) -> None:
        self.book.spenders[credential] = Spender(
            tenant=tenant, project=project, key=key, expires_at_us=expires_at_us
        )

    def revoke(self, credential: UUID) -> None:
        self.book.spenders[credential].active = False

    def add_budget(
        self,
        scope: str,
        subject: UUID,
        limit: int,
        *,
        models: frozenset[int] | None = None,
        period_us: tuple[int, int | None] | None = (0, None),
    ) -> UUID:
        """A budget with one account for `period_us` (start, end; None for no end), or with none at all."""
        budget = Budget(id=uuid4(), scope=scope, subject=subject, limit=limit, models=models)
        self.book.budgets[budget.id] = budget
        if period_us is not None:
            self.add_account(budget.id, *period_us)
        return budget.id

    def add_account(self, budget: UUID, starts_at_us: int, ends_at_us: int | None) -> int:
        number = len(self.book.accounts) + 1
        limit = self.book.budgets[budget].limit
        self.book.accounts[number] = Account(
            id=number, budget=budget, starts_at_us=starts_at_us, ends_at_us=ends_at_us,
            target=limit, limit_effective=limit,
        )  # fmt: skip
        return number
