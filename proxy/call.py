"""A permitted call: what governance decided about it, and what its exchange will need.

Values only. A `Call` holds no money; from admit on an `Exchange` owns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol
from uuid import UUID

from proxy.answer import Headers
from proxy.breaker import Breakers
from proxy.domain.bucket import Spend
from proxy.domain.caching import ALONE, Terms
from proxy.domain.catalogue import Target
from proxy.domain.ledger import Admission, Operation, Settlement
from proxy.domain.pricing import Priced
from proxy.domain.routing import Signal
from proxy.domain.tenant import Caller
from proxy.domain.usage import Usage
from proxy.errors import Refusal
from proxy.ports import Bank, Dialect, Failure, Limiter, Recorder, StreamMeter, Upstream, UpstreamRequest
from proxy.settler import HeldQueue, Settler
from proxy.spent import Spent


@dataclass(slots=True, kw_only=True)
class Leg:
    """One possible sending of a call: where to, what it can cost, and how it looks on the wire."""

    target: Target
    priced: Priced
    ceiling: int
    model_label: int
    target_label: int
    price_label: int
    #: builds the request for an attempt id, which it carries as signed request metadata
    request: Callable[[UUID], UpstreamRequest]
    #: output limit of one choice, tokens
    limit: int = 0
    #: tier and latency asked for there, which are charged where the answer does not say
    asked: tuple[str, str] = ("default", "standard")
    #: adds to usage what an answer does not tell, given when it was sent; None where it tells all
    completed: Callable[[Usage, float], Usage] | None = None
    #: guardrail that the request names, None for none
    guardrail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that asks how many input tokens a call has. It costs nothing."""

    leg: Leg
    operation: Operation
    #: what is asked, the same for every call with the same input
    body: bytes
    #: the number in an answer, None when it has none
    read: Callable[[bytes], int | None]


class Countable(Protocol):
    """A call whose input is bounded by its bytes and may be counted instead."""

    def at_best(self, tokens: int | None = None) -> int:
        """Less than its ceiling could be, nano-dollars, if its input were counted and its output limited
        to so many tokens.
        """
        ...

    async def question(self) -> Question | None:
        """None when Bedrock does not count it."""
        ...

    def counted(self, tokens: int) -> None:
        """Its input is at most so many tokens: `legs`, `clamp` and `floor` say so from now on."""
        ...

    def legs(self) -> tuple[Leg, ...]: ...


@dataclass(slots=True, kw_only=True)
class Call:
    """A permitted call, before any money is held for it."""

    id: UUID
    caller: Caller
    operation: Operation
    wire: str
    dialect: Dialect
    #: meters one streamed answer
    meter: Callable[[], StreamMeter]
    #: what ends a stream that has begun and cannot be completed
    broken: Callable[[str], bytes]
    stream: bool
    legs: tuple[Leg, ...]
    #: legs with the largest output limit that fits so much money, None when not even `floor` tokens do
    clamp: Callable[[int, int], tuple[Leg, ...] | None]
    #: the dearest a call limited to so many output tokens could be
    floor: Callable[[int], int]
    spend: Spend | None
    #: tokens the limiter was charged
    estimate: int
    tags: int
    #: bounded metric label of the tenant
    label: str
    #: monotonic seconds
    began: float
    #: headers that every answer of this call carries
    headers: Headers = field(default_factory=list)
    #: told the tokens that were really used, to learn bytes per token
    learn: Callable[[Usage], None] | None = None
    #: the interned id of a price version, None when it is not in memory
    price_label: Callable[[str], int | None]
    #: turns a denial into the refusal the client reads, given the ceiling and the least it could be
    deny: Callable[[Admission, int, int], Refusal]
    #: for when only the byte bound keeps it from fitting a budget; None: it stands
    countable: Countable | None = None
    #: what may be shared of it, and the name under which
    terms: Terms = ALONE
    fingerprint: bytes = b""
    #: told how the call ended and on which leg, once that is settled and before its end is delivered
    concluded: Callable[[Ending, Leg], None] | None = None
    #: the sink keeps the answer for others, so it is written on after its client has left
    kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Time and number bounds of one worker's exchanges, in seconds."""

    call: float
    first_byte: float
    idle: float
    drain: float
    drain_calls: int
    #: longest time the end of an answer waits for its settlement
    hold: float
    #: longest time a call waits for running calls to free budget
    held_wait: float


class Running(Protocol):
    """An exchange, as the worker that drains and renews sees it."""

    @property
    def call(self) -> Call: ...


class Counted(Enum):
    """What came of counting a call's input."""

    EXACT = auto()  #: the call's ceilings are those of the count now
    NEVER = auto()  #: Bedrock does not count it
    LATER = auto()  #: too many are being counted


class Counts(Protocol):
    """Counts the input of calls."""

    async def count(self, kit: Kit, call: Call) -> Counted: ...


@dataclass(slots=True)
class Kit:
    """What every exchange of a worker shares."""

    bank: Bank
    recorder: Recorder
    upstream: Upstream
    limiter: Limiter
    settler: Settler
    queue: HeldQueue
    bounds: Bounds
    classify: Callable[[int, Mapping[str, str], bytes], Failure]
    breakers: Breakers = field(default_factory=Breakers)
    #: None: every call keeps its byte bound
    counts: Counts | None = None
    spent: Spent = field(default_factory=Spent)
    running: set[Running] = field(default_factory=set)
    #: those whose client has left
    draining: set[Running] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Ending:
    """How one sending ended, and what the client is still owed."""

    settlement: Settlement
    #: what it says about its target
    signal: Signal = Signal.GOOD
    #: the client hears this instead of an answer
    refusal: Refusal | None = None
    #: another target may be tried: no output was seen and this one is settled as VOID
    try_next: bool = False
    #: a whole answer not yet begun
    whole: tuple[int, Headers, bytes] | None = None
    #: the held-back end of a stream that has begun
    tail: bytes | None = None
