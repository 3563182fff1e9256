"""What the path of a call needs to know of the places that a route names, worked out once.

It changes when policies are reloaded and when a price version comes into force, not from call to call.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from proxy.domain.catalogue import Model, Route, Target
from proxy.domain.pricing import Priced
from proxy.ports import MODEL, PRICE, TARGET, Labels

#: routes whose sites are remembered; rules make new ones, so the memory is bounded
_REMEMBERED = 2_000


class Book(Protocol):
    """The policies in force: models, routes and prices."""

    def resolve(self, name: str) -> Route: ...

    def guardrail(self, identifier: str, version: str) -> Route: ...

    def priced(self, model: Model, target: Target) -> Priced: ...


@dataclass(frozen=True, slots=True)
class Site:
    """A target with its prices, and with the ids by which the ledger names it."""

    target: Target
    #: `target.label`
    label: str
    priced: Priced
    #: the price version in force, and its id
    version: str
    model_label: int
    target_label: int
    price_label: int


class Sites:
    """The sites of every route in use, worked out once for a book and a price version. One per worker."""

    __slots__ = ("_book", "_known", "_labels")

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._book: Book | None = None
        #: by the route's identity; the route is kept, so that the number stays its own
        self._known: dict[int, tuple[Route, tuple[Site, ...]]] = {}

    def known(self, book: Book, route: Route) -> tuple[Site, ...] | None:
        """None when something has to be worked out first."""
        self._use(book)
        found = self._known.get(id(route))
        if found is None:
            return None
        now = time.time()
        for site in found[1]:
            if site.priced.version(now) != site.version:
                return None
        return found[1]

    def unnamed(self, book: Book, route: Route) -> tuple[Site, ...]:
        """With 0 for every name that has no id in memory. Raises `UnknownModel`."""
        known, now, sites = self._labels.known, time.time(), []
        for target in route.targets:
            priced = book.priced(route.model, target)
            version = priced.version(now)
            ids = [known(kind, name) or 0 for kind, name in _names(target, version)]
            sites.append(Site(target, target.label, priced, version, *ids))
        return tuple(sites)

    async def named(self, book: Book, route: Route) -> tuple[Site, ...]:
        """Raises `UnknownModel` or `BankAway`."""
        self._use(book)
        now, sites = time.time(), []
        for target in route.targets:
            priced = book.priced(route.model, target)
            version = priced.version(now)
            ids = [await self._labels.intern(kind, name) for kind, name in _names(target, version)]
            sites.append(Site(target, target.label, priced, version, *ids))
        if book is self._book:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[id(route)] = route, tuple(sites)
        return tuple(sites)

    def _use(self, book: Book) -> None:
        if book is not self._book:
            self._book = book
            self._known.clear()


def _names(target: Target, version: str) -> tuple[tuple[int, str], ...]:
    """What the ledger has ids for, in the order of a site's."""
    return (MODEL, target.model), (TARGET, target.label), (PRICE, version)
