"""What a permitted call asks for, and what each way of serving it could cost at most.

The output limit is the one thing in it that may still change: when a budget is short and says
`clamp`, the same request is offered again with the largest limit that fits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from proxy.breaker import Breakers
from proxy.call import Leg, Question
from proxy.domain.catalogue import Model, Route, Target, TargetKind
from proxy.domain.evidence import ATTEMPT_TAG, CALL_TAG, TERMS_TAG, spelled
from proxy.domain.ledger import Operation
from proxy.domain.policy import Policy
from proxy.domain.request import Bound
from proxy.domain.routing import Standing, asked_of, by_policy, tried
from proxy.errors import BankAway, Forbidden, Invalid, UpstreamUnavailable
from proxy.ports import MODEL, PRICE, TARGET, Dialect, Labels, Spoken, UpstreamRequest
from proxy.sites import Book, Site, Sites

_NATIVE = frozenset({Operation.INVOKE_MODEL, Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM})


#: bytes a token has at most, on average, in any text worth sending: for guesses about what a count may say
_BYTES_PER_TOKEN_MAX = 16


class Sender(Protocol):
    """Makes one sending out of a body."""

    def counting(
        self, operation: Operation, model: Model, body: dict[str, Any], raw: bytes, headers: Mapping[str, str]
    ) -> Spoken | None:
        """The same input as a CountTokens request; None where Bedrock counts no such request."""
        ...

    def counted(self, body: bytes) -> int | None:
        """The tokens in an answer of CountTokens, None when it has none."""
        ...

    def request(
        self, operation: Operation, target: Target, body: bytes, headers: Mapping[str, str], bound: Bound,
        pairs: Mapping[str, str],
    ) -> UpstreamRequest: ...  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Offer:
    """One call in the words of one model, for every target of its route. `limit` is the output limit
    of one choice, tokens.
    """

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
    #: whose role session signs what is sent, "" for the proxy's own credentials
    tenant: str = ""
    #: where sites are remembered
    sites: Sites | None = None
    #: those of the route, once `intern` has named them
    at: tuple[Site, ...] | None = None

    async def intern(self) -> None:
        """Make sure every name the ledger will hold has an id. Raises `UnknownModel` or `BankAway`."""
        sites = self.sites or Sites(self.labels)
        self.at = sites.known(self.book, self.route) or await sites.named(self.book, self.route)

    def ways(self, *, spare: bool = False) -> list[Way]:
        """Its targets as its route's policy orders them. One that cannot be bounded is left out, and if
        that leaves none, it is the reason why the call is refused, unless it is `spare`.
        """
        ways: list[Way] = []
        unbounded: list[Invalid] = []
        for site in self.at or Sites(self.labels).unnamed(self.book, self.route):
            try:
                ways.append(self.way(site))
            except Invalid as error:
                unbounded.append(error)
        if unbounded and not ways and not spare:
            raise unbounded.pop(0)
        return by_policy(self.route.policy, ways, _kind, _ceiling)

    def way(self, site: Site) -> Way:
        """Raises `UnboundedCost`."""
        bound = asked_of(site.target, self.operation, self.bound)
        ceiling = site.priced.ceiling(bound, self.limit, time.time(), self.horizon)
        return Way(self, site, bound, ceiling)

    def within(self, model: Model) -> Offer:
        """The same with an output limit that the model takes: what was asked of a larger one."""
        most = model.max_output_tokens
        if not most or self.limit <= most:
            return self
        return replace(self, limit=most, raw=self.dialect.with_output_limit(self.body, self.raw, most))

    def at_best(self) -> Bound:
        """Its bound with less input than any count could make of it."""
        given = self.bound.input_tokens
        whole = given >= self.route.model.context_tokens  # images, documents: nothing is known of their size
        return replace(self.bound, input_tokens=0 if whole else given // _BYTES_PER_TOKEN_MAX)

    def counted(self, tokens: int) -> Offer:
        """The same with at most so many input tokens."""
        return replace(self, bound=replace(self.bound, input_tokens=min(tokens, self.bound.input_tokens)))

    async def question(self, where: Target) -> Question | None:
        """How many input tokens it has, asked where it would be served; None when Bedrock does not count
        it. A guardrail's price depends on the bytes, so its bound stays. Raises `BankAway`.
        """
        model = self.route.model
        if self.bound.guardrail or self.operation.probe:
            return None
        asked = self.sender.counting(self.operation, model, self.body, self.raw, self.headers)
        if asked is None:
            return None
        target = Target(model=model.id, model_id=model.id, region=where.region)
        now, known = time.time(), self.labels.known
        priced = self.book.priced(model, where)

        def build(_: UUID) -> UpstreamRequest:
            bound = Bound(input_tokens=0, output_limit=0)
            made = self.sender.request(asked.operation, target, asked.raw, asked.headers, bound, {})
            made.tenant = self.tenant
            return made

        leg = Leg(
            target=target,
            priced=priced,
            ceiling=0,
            model_label=known(MODEL, model.id) or 0,
            target_label=await self.labels.intern(TARGET, target.label),
            price_label=known(PRICE, priced.version(now)) or 0,
            request=build,
        )
        return Question(leg=leg, operation=asked.operation, body=asked.raw, read=self.sender.counted)

    def request(self, target: Target, raw: bytes, bound: Bound, attempt: UUID) -> UpstreamRequest:
        """One sending of `raw` there."""
        pairs = {ATTEMPT_TAG: str(attempt)}
        terms = spelled(bound)
        if terms is not None:
            pairs[TERMS_TAG] = terms
        pairs[CALL_TAG] = str(self.call)
        named = self.dialect.with_model(self.body, raw, target.model_id)
        made = self.sender.request(self.operation, target, named, self.headers, bound, pairs)
        made.tenant = self.tenant
        return made


@dataclass(slots=True)
class Way:
    """One place that can serve a call, in the words it is asked in."""

    offer: Offer
    site: Site
    #: the request as it is sent there
    bound: Bound
    #: what the request can cost there at most, nano-dollars
    ceiling: int

    def limited(self, limit: int | None) -> int:
        """The most it can cost there with an output limited to so many tokens. Raises `UnboundedCost`."""
        offer = self.offer
        if limit is None or limit >= offer.limit:
            return self.ceiling
        return self.site.priced.ceiling(self.bound, limit, time.time(), offer.horizon)

    def leg(self, limit: int | None = None) -> Leg:
        """One sending there; with `limit`, as if the request had asked for that many tokens at most.
        Raises `UnboundedCost`.
        """
        offer, site, bound = self.offer, self.site, self.bound
        raw, tokens, told = offer.raw, offer.limit, offer.bound
        if limit is not None and limit < tokens:
            raw, tokens = offer.dialect.with_output_limit(offer.body, raw, limit), limit
        more = told.guardrail or told.image_variant
        return Leg(
            target=site.target, priced=site.priced, ceiling=self.limited(limit), limit=tokens,
            model_label=site.model_label, target_label=site.target_label, price_label=site.price_label,
            request=partial(offer.request, site.target, raw, bound), asked=(bound.tier, bound.latency),
            completed=partial(site.priced.completed, told) if more else None, guardrail=told.guardrail_id,
        )  # fmt: skip


def _kind(way: Way) -> TargetKind:
    return way.site.target.kind


def _ceiling(way: Way) -> int:
    return way.ceiling


class Menu:
    """Every way of serving one call, in the order in which they are tried."""

    __slots__ = ("_ways",)

    def __init__(self, offers: Sequence[Offer], breakers: Breakers) -> None:
        """The targets of the first offer as its route's policy orders them, then those of the others.
        Raises `UnboundedCost` when no target can be bounded, `UpstreamUnavailable` when every target is
        left alone.
        """
        self._ways: list[Way] = []
        shut: list[str] = []
        for offer in offers:
            ways = offer.ways(spare=bool(self._ways))
            if breakers.well:
                self._ways += ways
                continue
            seen = [(way, breakers.standing(way.site.label)) for way in ways]
            self._ways += tried(seen)
            shut += [way.site.label for way, standing in seen if standing is Standing.OPEN]
        if not self._ways:
            raise UpstreamUnavailable(
                f"Bedrock does not serve {offers[0].route.name} at present: every place it can run in failed "
                "too often and is left alone for a while; please retry",
                reason="target_down",
                retry_after_ms=breakers.retry_after_ms(shut),
            )
        if breakers.well:
            return
        first = self._ways[0].site.label
        if breakers.standing(first) is Standing.PROBE:
            breakers.probe(first)

    def legs(self, limit: int | None = None) -> tuple[Leg, ...]:
        """One leg per way; with `limit`, as if the request had asked for that many tokens at most."""
        return tuple([way.leg(limit) for way in self._ways])

    def floor(self, tokens: int) -> int:
        """The ceiling of the first way if the output were limited to so many tokens, nano-dollars."""
        return self._ways[0].limited(tokens)

    def at_best(self, tokens: int | None = None) -> int:
        """Less than the ceiling of the first way could be if its input were counted."""
        way = self._ways[0]
        offer, site = way.offer, way.site
        bound = asked_of(site.target, offer.operation, offer.at_best())
        limit = offer.limit if tokens is None else min(tokens, offer.limit)
        return site.priced.ceiling(bound, limit, time.time(), offer.horizon)

    async def question(self) -> Question | None:
        """How many input tokens the first way has, None when Bedrock does not count it."""
        way = self._ways[0]
        try:
            return await way.offer.question(way.site.target)
        except BankAway:
            return None

    def counted(self, tokens: int) -> None:
        """From now on every way of the model that was asked has at most so many input tokens."""
        model = self._ways[0].site.target.model
        self._ways = [
            way.offer.counted(tokens).way(way.site) if way.site.target.model == model else way
            for way in self._ways
        ]

    def clamp(self, headroom: int, floor: int) -> tuple[Leg, ...] | None:
        """Legs with the largest output limit whose ceiling fits `headroom` nano-dollars; None when
        not even `floor` tokens do, or when the request has no output to limit.
        """
        most = self._ways[0].offer.limit
        low, high = min(floor, most), most
        if most <= 0 or self.floor(low) > headroom:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if self.floor(middle) <= headroom:
                low = middle
            else:
                high = middle - 1
        return self.legs(low)


def output_limit(policy: Policy, model: Model, spoken: Spoken, bound: Bound) -> tuple[int, bytes]:
    """The output limit of one choice that is in force, and the body that carries it. A request that names none gets the
    plan's default, because the model's own maximum would hold far too much budget. Raises `Forbidden`.
    """
    raw = spoken.raw
    limit = bound.output_limit
    if limit is None:
        most = [policy.default_output_tokens, model.max_output_tokens]
        if spoken.operation in _NATIVE:
            most += [
                n for n in (model.default_output_tokens, model.native_max_output_tokens) if n is not None
            ]
        if policy.max_output_tokens is not None:
            most.append(policy.max_output_tokens)
        limit = min(most)
        if limit > 0:
            raw = spoken.dialect.with_output_limit(spoken.body, raw, limit)
        return limit, raw
    if policy.max_output_tokens is not None and limit > policy.max_output_tokens:
        raise Forbidden(
            f"an output limit of {limit} tokens is above the {policy.max_output_tokens} this key may ask for",
            reason="output_limit",
        )
    return limit, raw
