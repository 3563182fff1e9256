"""The request, top to bottom:

    authenticate -> permit -> limit -> cache -> admit -> forward -> meter -> settle -> record

The first four are here and hold no money; from admit on an `Exchange` owns the call. A refusal at
any step spends nothing, writes no row, and is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from uuid import UUID

from proxy import telemetry
from proxy.advice import PrefixLog
from proxy.call import Call, Kit, Leg
from proxy.domain.bucket import Lease, rate_headers, spend_for
from proxy.domain.caching import terms_of
from proxy.domain.catalogue import Route
from proxy.domain.denial import limited, not_admitted
from proxy.domain.estimate import Estimator
from proxy.domain.fingerprint import fingerprint
from proxy.domain.ledger import Operation
from proxy.domain.request import Bound
from proxy.domain.tenant import Caller
from proxy.domain.usage import Usage
from proxy.errors import (
    BankAway,
    Forbidden,
    Invalid,
    Refusal,
    Unavailable,
    UpstreamAnswer,
    UpstreamUnavailable,
)
from proxy.exchange import Exchange
from proxy.keys import redacted
from proxy.offer import Menu, Offer, Sender, output_limit
from proxy.ports import PRICE, TAGS, Labels, Sink, Spoken
from proxy.reservation import unless_spent
from proxy.ruling import Asked, Ruler
from proxy.sharing import Lead
from proxy.sites import Book, Sites


class Endpoint(Protocol):
    """What a route says about a request (see `proxy.web.routes`)."""

    @property
    def operation(self) -> Operation: ...
    @property
    def wire(self) -> str: ...
    @property
    def stream(self) -> bool | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def guardrail(self) -> tuple[str, str] | None: ...


class Presented(Protocol):
    """A credential whose form and date are good; `verify` proves it over the body."""

    @property
    def caller(self) -> Caller: ...

    def verify(self, body: bytes) -> None:
        """Raises `Unauthenticated`."""
        ...


@dataclass(slots=True, kw_only=True)
class Request:
    """A request line and its headers; the body has not been read yet."""

    id: UUID
    endpoint: Endpoint
    method: str
    raw_path: bytes
    query: bytes
    raw_headers: list[tuple[bytes, bytes]]
    headers: Mapping[str, str]  # names in lower case
    #: reads at most so many bytes, or raises `TooLarge`
    read: Callable[[int], Awaitable[bytes]]
    began: float = field(default_factory=time.monotonic)


class Authenticator(Protocol):
    def present(
        self, method: str, raw_path: bytes, query: bytes, raw_headers: list[tuple[bytes, bytes]]
    ) -> Presented:
        """Raises `Unauthenticated`. Looks at nothing but the head, so that a large body with a bad
        key is never read.
        """
        ...


class Wires(Sender, Protocol):
    """Bedrock's wire formats, given by the composition root."""

    def speak(
        self, operation: Operation, route: Route, body: dict[str, Any], raw: bytes, headers: Mapping[str, str]
    ) -> Spoken:
        """The request in words that the route's model speaks. Raises `Invalid` or `UnknownModel`."""
        ...

    def parse(self, body: bytes) -> dict[str, Any]: ...

    def breaker(self, operation: Operation) -> Callable[[str], bytes]:
        """Makes the event that ends a stream of this operation that cannot be completed."""
        ...


class RefusalLog(Protocol):
    def count(
        self, caller: Caller | None, model: str | None, refusal: Refusal, call: UUID | None = None
    ) -> None:
        """`call`: one that was admitted before, and has a row in the ledger."""
        ...

    def label(self, caller: Caller | None) -> str:
        """A bounded metric label for the tenant."""
        ...


class Sharers(Protocol):
    """Answers without a sending (see `proxy.sharing.Sharing`)."""

    async def enter(self, call: Call, sink: Sink) -> Lead | None: ...

    def landed(self, lead: Lead) -> None: ...


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """One per worker. `handle` returns when the answer is complete, or raises `Refusal`."""

    kit: Kit
    sharing: Sharers
    authenticator: Authenticator
    book: Callable[[], Book]
    wires: Wires
    labels: Labels
    estimator: Estimator
    refusals: RefusalLog
    #: longest possible call, seconds: prices that come into force within it count for ceilings
    horizon: int
    max_calls: int
    #: why no call may be admitted now (recovery, clock skew, draining), None when open
    closed: Callable[[], str | None]
    #: rules over single calls, None without any
    rules: Ruler | None = None
    #: measures how prompts repeat, None when nobody wants to know
    prefixes: PrefixLog | None = None
    #: every tenant's calls are signed by a role session of its own
    by_tenant: bool = False
    #: what is known of the routes in use
    sites: Sites = field(init=False)

    def __post_init__(self) -> None:
        self.sites = Sites(self.labels)

    async def handle(self, request: Request, sink: Sink) -> None:
        caller: Caller | None = None
        call: Call | None = None
        try:
            presented = self.authenticator.present(
                request.method, request.raw_path, request.query, request.raw_headers
            )
            caller = presented.caller
            self._open_for_business()
            body = await request.read(caller.policy.max_body_bytes)
            presented.verify(body)
            call = await self._permit(request, caller, body)
            self._hopeless(call)
            await self._limit(call)
            await asyncio.shield(asyncio.create_task(self._answer(call, sink)))
        except Refusal as refusal:
            self._refused(request, caller, call, refusal)
            raise

    def _open_for_business(self) -> None:
        why = self.closed()
        if why is not None:
            raise Unavailable(f"{why}; please retry", reason="closed")
        if len(self.kit.running) >= self.max_calls:
            raise Unavailable("the proxy is busy; please retry", reason="overloaded")

    # ---- permit ------------------------------------------------------------------------------

    async def _permit(self, request: Request, caller: Caller, received: bytes) -> Call:
        """Resolve the model, bound the request, price its worst case. Pure but for interning."""
        endpoint = request.endpoint
        body = self.wires.parse(received)
        book = self.book()
        route = _route(book, endpoint, caller, body)
        said = (body, received)
        offer = self._offer(request, caller, book, route, said)
        asked = Asked(name=endpoint.model or str(body.get("model") or route.name), size=len(received),
                      operation=endpoint.operation, stream=_streams(endpoint, offer.bound))  # fmt: skip
        if self.rules is not None:
            offer = self.rules(
                caller, offer, asked, lambda other: self._offer(request, caller, book, other, said)
            )
        model = offer.route.model
        dialect, bound, limit = offer.dialect, offer.bound, offer.limit
        stream = _streams(endpoint, bound)
        if stream and not model.streaming:
            raise Invalid(f"{model.id} does not support streaming")
        offers = [offer]
        if offer.route.fallbacks and not endpoint.operation.probe:
            others = self._fallbacks(request, caller, offer, said, stream)
            offers += others if self.rules is None else self.rules.stand_ins(caller, others, asked)
        menu, legs, tags = await self._interned(offers)
        tokens = self.estimator.tokens(model.id, bound.input_tokens) + limit * bound.choices
        terms = terms_of(caller.policy.cache, endpoint.operation, bound, request.headers)
        if legs[0].target.model != model.id:
            terms = replace(terms, keep=False)  # a stand-in's answer is not what was asked for
        return Call(
            id=request.id, caller=caller, operation=endpoint.operation, wire=endpoint.wire, dialect=dialect,
            meter=lambda: dialect.meter(offer.body), broken=self.wires.breaker(endpoint.operation), stream=stream,
            legs=legs, clamp=menu.clamp, floor=menu.floor, countable=menu,
            spend=spend_for(caller, model.id, tokens, request.id), estimate=tokens, tags=tags,
            label=self.refusals.label(caller), began=request.began,
            headers=[(b"x-tollhouse-call-id", str(request.id).encode())],
            learn=self._lesson(caller, model.id, bound, body, len(received)),
            price_label=lambda version: self.labels.known(PRICE, version),
            deny=lambda admission, ceiling, floor: not_admitted(admission, ceiling, floor, caller.tenant_slug),
            terms=terms, fingerprint=_fingerprint(caller, offer, request, body, received) if terms.any else b"",
        )  # fmt: skip

    def _lesson(
        self, caller: Caller, model: str, bound: Bound, body: dict[str, Any], size: int
    ) -> Callable[[Usage], None]:
        """What is learned from the usage of a call, once it is known."""
        learn, prefixes = self.estimator.lesson(model, bound.input_tokens), self.prefixes
        if prefixes is None:
            return learn

        def lesson(usage: Usage) -> None:
            learn(usage)
            prefixes.observe(caller.tenant, model, body, size, usage)

        return lesson

    def _offer(
        self, request: Request, caller: Caller, book: Book, route: Route, said: tuple[dict[str, Any], bytes]
    ) -> Offer:
        """The request in the words of the route's model, bounded. Raises `Invalid` or `Forbidden`."""
        spoken = self.wires.speak(request.endpoint.operation, route, *said, request.headers)
        dialect = spoken.dialect
        bound = dialect.bound(spoken.body, spoken.raw, route.model, spoken.headers)
        _arns_allowed(caller, bound.arns)
        limit, raw = output_limit(caller.policy, route.model, spoken, bound)
        return Offer(
            call=request.id, operation=spoken.operation, route=route, book=book, dialect=dialect, bound=bound,
            body=spoken.body, raw=dialect.prepared(spoken.body, raw), limit=limit, headers=spoken.headers,
            sender=self.wires, labels=self.labels, horizon=self.horizon,
            sites=self.sites, tenant=caller.tenant_slug if self.by_tenant else "",
        )  # fmt: skip

    def _fallbacks(
        self, request: Request, caller: Caller, first: Offer, said: tuple[dict[str, Any], bytes], stream: bool
    ) -> Iterator[Offer]:
        """The same request to the models that the route falls back to on error: those that the key may
        call and that take and give the same words. The others are left out.
        """
        for name in first.route.fallbacks:
            with contextlib.suppress(Invalid, Forbidden):
                route = first.book.resolve(name)
                _allowed(caller, route)
                offer = self._offer(request, caller, first.book, route, said)
                alike = (offer.operation, offer.dialect.name) == (first.operation, first.dialect.name)
                if alike and (route.model.streaming or not stream):
                    yield offer.within(route.model)

    async def _interned(self, offers: list[Offer]) -> tuple[Menu, tuple[Leg, ...], int]:
        try:
            for offer in offers:
                await offer.intern()
            menu, tags = Menu(offers, self.kit.breakers), _tags(offers[0].bound)
            return menu, menu.legs(), await self.labels.intern(TAGS, tags) if tags else 0
        except BankAway:
            raise Unavailable("the ledger does not answer; please retry", reason="bank_away") from None

    def _hopeless(self, call: Call) -> None:
        """A spent budget says no again at once, unless the call may be answered for nothing."""
        if not call.terms.any:
            unless_spent(self.kit, call)

    # ---- limit -------------------------------------------------------------------------------

    async def _limit(self, call: Call) -> None:
        spend = call.spend
        if spend is None:
            return
        try:
            decision = await self.kit.limiter.spend(spend)
        except asyncio.CancelledError:
            await self.kit.limiter.settle(spend, None)
            raise
        call.headers += rate_headers(decision)
        for seen in decision.observed:
            dimension = "concurrency" if isinstance(seen, Lease) else seen.dimension
            telemetry.LIMIT_OBSERVED.labels(seen.scope, dimension).inc()
        if not decision.allowed:
            raise limited(decision)

    # ---- cache, then admit to settle ---------------------------------------------------------

    async def _answer(self, call: Call, sink: Sink) -> None:
        """In a task of its own: whoever leaves or cancels cannot decide about money."""
        lead = await self._cache(call, sink)
        if lead is None:
            return
        try:
            await Exchange(self.kit, call, lead.sink).run()
        finally:
            self.sharing.landed(lead)

    async def _cache(self, call: Call, sink: Sink) -> Lead | None:
        """None when the call was answered for nothing: it counts as a request, its tokens come back."""
        lead = None
        try:
            lead = await self.sharing.enter(call, sink)
            return lead
        finally:
            if lead is None and call.spend is not None:
                await self.kit.limiter.settle(call.spend, None)

    # ---- record ------------------------------------------------------------------------------

    def _refused(self, request: Request, caller: Caller | None, call: Call | None, refusal: Refusal) -> None:
        refusal.headers.extend(call.headers if call else [(b"x-tollhouse-call-id", str(request.id).encode())])
        if caller is None:
            telemetry.AUTHENTICATION_FAILURES.inc()
        model = call.legs[0].target.model if call else None
        sent = call is not None and isinstance(refusal, UpstreamAnswer | UpstreamUnavailable)
        self.refusals.count(caller, model, refusal, request.id if sent else None)


def _route(book: Book, endpoint: Endpoint, caller: Caller, body: Mapping[str, Any]) -> Route:
    """Where the request goes. A guardrail is no model: its identifier is among the bound's ARNs."""
    if endpoint.guardrail is not None:
        return book.guardrail(*endpoint.guardrail)
    route = book.resolve(endpoint.model or _model_of(body))
    _allowed(caller, route)
    return route


def _allowed(caller: Caller, route: Route) -> None:
    if not caller.policy.allows(route.model.id):
        raise Forbidden(
            f"You don't have access to the model with the specified model ID: {route.name} "
            f"is not allowed for this key.",
            reason="model_not_allowed",
        )
    _arns_allowed(caller, [route.name] if route.opaque else ())


def _streams(endpoint: Endpoint, bound: Bound) -> bool:
    return bound.stream if endpoint.stream is None else endpoint.stream


def _arns_allowed(caller: Caller, arns: Iterable[str]) -> None:
    for arn in arns:
        if not caller.policy.allows_arn(arn):
            raise Forbidden(f"{arn} is not on this tenant's allow-list", reason="arn_not_allowed")


def _model_of(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Invalid("`model` is required and must be a string")
    return model


def _fingerprint(
    caller: Caller, offer: Offer, request: Request, body: dict[str, Any], received: bytes
) -> bytes:
    """Of what the client said, in whatever words it was sent on."""
    route = offer.route
    return fingerprint(
        tenant=caller.tenant, policy_version=caller.policy.version, operation=request.endpoint.operation,
        model=route.model.id, targets=[target.label for target in route.targets], limit=offer.limit,
        body=body, raw=received, headers=request.headers,
    )  # fmt: skip


def _tags(bound: Bound) -> str:
    if not bound.metadata:
        return ""
    pairs = (f"{name}={value}" for name, value in sorted(bound.metadata))
    return redacted("&".join(pairs))[:4096]
