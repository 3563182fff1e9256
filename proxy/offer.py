"""What a permitted call asks for, and what each way of serving it could cost at most.

The output limit is the one thing in it that may still change: when a budget is short and says
`clamp`, the same request is offered again with the largest limit that fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from proxy.call import Leg
from proxy.domain.catalogue import Model, Route, Target
from proxy.domain.ledger import Operation
from proxy.domain.pricing import Priced
from proxy.domain.request import Bound
from proxy.ports import MODEL, PRICE, TARGET, Dialect, Labels, UpstreamRequest


class Book(Protocol):
    """The policies in force: models, routes and prices."""

    def resolve(self, name: str) -> Route: ...

    def guardrail(self, identifier: str, version: str) -> Route: ...

    def priced(self, model: Model, target: Target) -> Priced: ...


class Sender(Protocol):
    """Makes one sending out of a body."""

    def request(
        self, operation: Operation, target: Target, body: bytes, headers: Mapping[str, str], bound: Bound,
        pairs: Mapping[str, str],
    ) -> UpstreamRequest: ...  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One call on every target of its route. `limit` is the output limit of one choice, tokens."""

    call: UUID
    #: what is called upstream, and everything below in its words
    operation: Operation
    route: Route
    book: Book
    dialect: Dialect
    bound: Bound
    body: dict[str, Any]
    raw: bytes
    limit: int
    headers: Mapping[str, str]
    sender: Sender
    labels: Labels
    #: seconds: prices that come into force within it count for ceilings
    horizon: int

    async def intern(self) -> None:
        """Make sure every name the ledger will hold has an id. Raises `BankAway`."""
        now = time.time()
        for target in self.route.targets:
            version = self.book.priced(self.route.model, target).version(now)
            for kind, value in ((MODEL, target.model), (TARGET, target.label), (PRICE, version)):
                if self.labels.known(kind, value) is None:
                    await self.labels.intern(kind, value)

    def legs(self, limit: int | None = None) -> tuple[Leg, ...]:
        """Every target with its ceiling; with `limit`, as if the request had asked for that many
        tokens. Raises `UnboundedCost`.
        """
        raw = self.raw if limit is None else self.dialect.with_output_limit(self.body, self.raw, limit)
        tokens = self.limit if limit is None else limit
        return tuple(self._leg(target, tokens, raw) for target in self.route.targets)

    def _leg(self, target: Target, limit: int, raw: bytes) -> Leg:
        now = time.time()
        priced = self.book.priced(self.route.model, target)
        known = self.labels.known
        return Leg(
            target=target,
            priced=priced,
            ceiling=priced.ceiling(self.bound, limit, now, self.horizon),
            model_label=known(MODEL, target.model) or 0,
            target_label=known(TARGET, target.label) or 0,
            price_label=known(PRICE, priced.version(now)) or 0,
            request=self._builder(target, raw),
            completed=partial(priced.completed, self.bound)
            if self.bound.guardrail or self.bound.image_variant
            else None,
        )

    def _builder(self, target: Target, raw: bytes) -> Callable[[UUID], UpstreamRequest]:
        def build(attempt: UUID) -> UpstreamRequest:
            pairs = {"tollhouse-attempt": str(attempt), "tollhouse-call": str(self.call)}
            named = self.dialect.with_model(self.body, raw, target.model_id)
            return self.sender.request(self.operation, target, named, self.headers, self.bound, pairs)

        return build

    def floor(self, tokens: int) -> int:
        """The ceiling on the first target if the output were limited to so many tokens, nano-dollars."""
        return self._ceiling(min(tokens, self.limit))

    def clamp(self, headroom: int, floor: int) -> tuple[Leg, ...] | None:
        """Legs with the largest output limit whose ceiling fits `headroom` nano-dollars; None when
        not even `floor` tokens do, or when the request has no output to limit.
        """
        low, high = min(floor, self.limit), self.limit
        if self.limit <= 0 or self._ceiling(low) > headroom:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if self._ceiling(middle) <= headroom:
                low = middle
            else:
                high = middle - 1
        return self.legs(low)

    def _ceiling(self, limit: int) -> int:
        priced = self.book.priced(self.route.model, self.route.targets[0])
        return priced.ceiling(self.bound, limit, time.time(), self.horizon)
