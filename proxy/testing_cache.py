"""An honest cache in memory, for tests of whatever uses `proxy.ports.Cache`.

It passes the same contract tests as the one over Redis. `away = True` makes it one that does not
answer; several users of one object are several workers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from uuid import UUID

from proxy.errors import Unavailable
from proxy.ports import NOT_FOUND, Answer, Found, Shelf

Place = tuple[UUID, bytes]


class MemoryCache:
    """A `proxy.ports.Cache`. `clock` gives seconds; turns last until they are given back."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.away = False
        #: in the order of their last use, with the second at which each ends
        self.answers: OrderedDict[Place, tuple[Answer, float]] = OrderedDict()
        self.turns: dict[Place, bytes] = {}
        self.promises: dict[Place, bytes] = {}

    async def find(self, tenant: UUID, key: bytes, owner: bytes) -> Found:
        if self.away:
            return NOT_FOUND
        place = tenant, key
        answer, ends = self.answers.get(place, (None, 0.0))
        if answer is not None and self.clock() < ends:
            self.answers.move_to_end(place)
            return Found(answer)
        if owner and self.turns.setdefault(place, owner) != owner:
            return Found(busy=True)
        return NOT_FOUND

    def announce(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        if not self.away:
            self.turns.setdefault((tenant, key), owner)

    async def store(
        self, tenant: UUID, key: bytes, owner: bytes, answer: Answer, ttl_seconds: int, budget_bytes: int
    ) -> Shelf | None:
        if self.away:
            return None
        self.leave(tenant, key, owner)
        self.answers.pop((tenant, key), None)
        evicted, stored = 0, len(answer.body) <= budget_bytes
        while stored and self._bytes(tenant) + len(answer.body) > budget_bytes:
            del self.answers[self._of(tenant)[0]]
            evicted += 1
        if stored:
            self.answers[tenant, key] = answer, self.clock() + ttl_seconds
        return Shelf(stored, evicted, len(self._of(tenant)), self._bytes(tenant))

    def leave(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        if self.turns.get((tenant, key)) == owner:
            del self.turns[tenant, key]

    def renew(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        """Turns do not end here."""

    async def promise(self, tenant: UUID, key: bytes, request: bytes) -> bool:
        return self.away or self.promises.setdefault((tenant, key), request) == request

    async def purge(self, tenant: UUID, model: str | None = None) -> int:
        if self.away:
            raise Unavailable("Redis did not answer", reason="cache_away")
        gone = [p for p in self._of(tenant) if model in {None, self.answers[p][0].model}]
        for place in gone:
            del self.answers[place]
        return len(gone)

    def _of(self, tenant: UUID) -> list[Place]:
        return [place for place in self.answers if place[0] == tenant]

    def _bytes(self, tenant: UUID) -> int:
        return sum(len(self.answers[place][0].body) for place in self._of(tenant))
