"""What is remembered of a route's targets, and when it is worked out again."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy import policyfile
from proxy import sites as module
from proxy.errors import BankAway
from proxy.policyfile import PolicySet
from proxy.ports import MODEL, PRICE, TARGET
from proxy.sites import Sites

POLICIES = Path(__file__).parents[2] / "policies"
LLAMA = "meta.llama3-1-405b-instruct-v1:0"


class Labels:
    """Forgets what it was told to, and counts how often it was asked to make an id."""

    def __init__(self) -> None:
        self.ids: dict[tuple[int, str], int] = {}
        self.made = 0
        self.forgets = False
        self.away = False

    def known(self, kind: int, value: str) -> int | None:
        return None if self.forgets else self.ids.get((kind, value))

    async def intern(self, kind: int, value: str) -> int:
        if self.away:
            raise BankAway("away")
        self.made += 1
        return self.ids.setdefault((kind, value), len(self.ids) + 1)


@pytest.fixture(scope="module")
def book() -> PolicySet:
    return policyfile.load(POLICIES)


async def test_names_are_made_once_and_then_remembered(book: PolicySet) -> None:
    labels = Labels()
    sites, route = Sites(labels), book.resolve(LLAMA)
    assert sites.known(book, route) is None
    [site] = await sites.named(book, route)
    assert (site.model_label, site.target_label, site.price_label) == (
        labels.ids[MODEL, LLAMA],
        labels.ids[TARGET, site.target.label],
        labels.ids[PRICE, site.version],
    )
    assert sites.known(book, route) == (site,)
    assert labels.made == 3


async def test_labels_that_forget_at_once_leave_no_site_without_an_id(book: PolicySet) -> None:
    labels = Labels()
    labels.forgets = True
    sites, route = Sites(labels), book.resolve(LLAMA)
    [site] = await sites.named(book, route)
    assert 0 not in (site.model_label, site.target_label, site.price_label)
    assert sites.known(book, route) == (site,)


async def test_nothing_is_remembered_of_what_could_not_be_named(book: PolicySet) -> None:
    labels = Labels()
    labels.away = True
    sites, route = Sites(labels), book.resolve(LLAMA)
    assert sites.known(book, route) is None
    with pytest.raises(BankAway):
        await sites.named(book, route)
    assert sites.known(book, route) is None


async def test_another_book_is_asked_anew(book: PolicySet) -> None:
    sites, other = Sites(Labels()), policyfile.load(POLICIES)
    route = book.resolve(LLAMA)
    await sites.named(book, route)
    assert sites.known(other, route) is None
    [site] = await sites.named(other, route)
    assert site.priced is other.priced(route.model, site.target)


async def test_a_price_that_comes_into_force_is_seen(
    book: PolicySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, route = Sites(Labels()), book.resolve(LLAMA)
    [site] = await sites.named(book, route)
    monkeypatch.setattr(type(site.priced), "version", lambda _, at: "tomorrow's")
    assert sites.known(book, route) is None
    [later] = await sites.named(book, route)
    assert later.version == "tomorrow's"
    assert later.price_label != site.price_label


async def test_the_memory_is_bounded(book: PolicySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    sites = Sites(Labels())
    for name in book.ids[:10]:
        route = book.resolve(name)
        await sites.named(book, route)
    assert len(sites._known) <= 3
