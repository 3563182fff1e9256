"""What the pipeline needs from the world, one narrow protocol each.

Obligations of every implementer: no method blocks for ever (each has its own deadline), none
retries a non-idempotent act, none raises anything but what its docstring names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from proxy.domain.bucket import Decision, Spend
from proxy.domain.catalogue import Model, Target
from proxy.domain.ledger import Admission, Attempt, Operation, Settled, Settlement
from proxy.domain.request import Bound
from proxy.domain.tenant import Caller
from proxy.domain.usage import Usage


class Bank(Protocol):
    """The money. Raises `BankAway` when Postgres did not answer in time; the caller may ask again
    with the same attempt id, and must not send before it has an OK (or a DUPLICATE that is OPEN).
    """

    async def admit(self, attempt: Attempt) -> Admission: ...

    async def settle(self, settlement: Settlement) -> Settled: ...

    async def settle_and_admit(self, settlement: Settlement, attempt: Attempt) -> Admission:
        """Resolve one sending and take the reservation of the next, in one statement."""
        ...

    async def record_hit(self, attempt: Attempt, settlement: Settlement, saved: int) -> Admission:
        """Ledger an answer that cost nothing: `settlement.usage` is the original's, `saved` its cost.
        OK, DUPLICATE, REVOKED or STALE; no budget is asked.
        """
        ...


class Limiter(Protocol):
    """Token buckets and concurrency leases of one tenant. Never raises: when Redis is away the
    declared mode decides and the decision says so.
    """

    async def spend(self, spend: Spend) -> Decision:
        """Take from every bucket and lease every slot, or from none."""
        ...

    async def settle(self, spend: Spend, actual_tokens: int | None) -> None:
        """Give the leases back and correct the token buckets to what was used.
        `None`: the call was refused later; every token comes back.
        """
        ...

    async def renew(self, spends: Sequence[Spend]) -> None:
        """Keep the leases of calls that still run."""
        ...


class Directory(Protocol):
    """The issued credentials and the policies behind them, from an in-memory snapshot."""

    def by_token(self, token: str) -> Caller | None: ...

    def by_access_key_id(self, access_key_id: str) -> tuple[Caller, str] | None:
        """The caller and the secret access key to verify a signature with."""
        ...

    @property
    def stale(self) -> bool:
        """True when the snapshot may miss a revocation that is more than one second old."""
        ...


@dataclass(slots=True, kw_only=True)
class UpstreamRequest:
    """One sending. `path` is the raw, already encoded path; it is signed and sent as it is."""

    target: Target
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    #: seconds until the first byte of the answer
    first_byte_timeout: float
    #: seconds between two reads of the answer
    read_timeout: float
    #: unix seconds of the signature, taken before the deadline is checked: a process that stood still
    #: since then sends what AWS refuses as too old. 0: when it is sent
    signed_at: float = 0.0
    #: the tenant whose role session signs it, "" for the proxy's own credentials
    tenant: str = ""


class UpstreamResponse(Protocol):
    """An answer whose body is read once. `close` gives the connection back or drops it."""

    status: int
    headers: Mapping[str, str]  # names in lower case

    async def read(self) -> bytes:
        """The whole body. Raises `UpstreamFailure` when it breaks off."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `UpstreamFailure` when it breaks off."""
        ...

    def close(self) -> None: ...


class Upstream(Protocol):
    """Bedrock. Signs and sends once; never retries."""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Raises `UpstreamFailure`; `sent=False` only when no byte of the request left."""
        ...


class Recorder(Protocol):
    """The flight recorder. Every method has reached the kernel when it returns."""

    @property
    def id(self) -> UUID: ...

    def opened(self, attempt: UUID) -> UUID:
        """Before admit: the attempt may be in the bank from now on. Returns the id of the
        recording, which the attempt's row stores.
        """
        ...

    def sent(self, attempt: UUID) -> None:
        """Before the first byte goes upstream."""
        ...

    def done(self, settlement: Settlement) -> None:
        """Usage is known; a restart posts exactly this."""
        ...

    def closed(self, attempt: UUID) -> None:
        """The bank has a terminal entry (or never took the attempt)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer that others may get: a body, or everything that was streamed, its end included."""

    status: int
    #: those of the answer itself: its content type and what Bedrock says of it
    headers: tuple[tuple[str, str], ...]
    body: bytes
    stream: bool
    usage: Usage
    #: what it was charged when it was new, nano-dollars
    cost: int
    #: base model
    model: str
    #: unix seconds
    made_at: float


@dataclass(frozen=True, slots=True)
class Found:
    """`busy`: there is no answer yet, but another worker is making it now."""

    answer: Answer | None = None
    busy: bool = False


NOT_FOUND = Found()


@dataclass(frozen=True, slots=True)
class Shelf:
    """What one store did, and what a tenant has afterwards."""

    stored: bool
    evicted: int
    entries: int
    bytes: int


class Cache(Protocol):
    """Answers kept for one tenant at a time, and whose turn it is to make a missing one.

    Keys and owners are opaque bytes. No method raises and none waits longer than its client's
    deadline: while Redis is away nothing is found, nobody else is busy, and nothing is kept.
    """

    async def find(self, tenant: UUID, key: bytes, owner: bytes) -> Found:
        """The answer; or, when it is neither there nor being made, the turn for `owner`."""
        ...

    def announce(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        """Take the turn if nobody has it, without waiting to learn."""
        ...

    async def store(
        self, tenant: UUID, key: bytes, owner: bytes, answer: Answer, ttl_seconds: int, budget_bytes: int
    ) -> Shelf | None:
        """Keep the answer within the tenant's budget of bytes, evicting what was used longest ago,
        and give the turn back. None when nothing is known.
        """
        ...

    def leave(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        """Give the turn back without an answer, without waiting."""
        ...

    def renew(self, tenant: UUID, key: bytes, owner: bytes) -> None:
        """The turn is still in use."""
        ...

    async def promise(self, tenant: UUID, key: bytes, request: bytes) -> bool:
        """Bind an idempotency key to a request for a day. False when it is bound to another one."""
        ...

    async def purge(self, tenant: UUID, model: str | None = None) -> int:
        """Delete what is kept, of one base model or of all; returns how many answers. Raises
        `Unavailable` when not all of it could be reached.
        """
        ...


class Labels(Protocol):
    """Interned names (models, targets, price versions, tags): Postgres rows hold their ids."""

    def known(self, kind: int, value: str) -> int | None:
        """The id, when it is in memory."""
        ...

    async def intern(self, kind: int, value: str) -> int:
        """The id, made if need be. Raises `BankAway`."""
        ...


#: kinds of labels
MODEL, TARGET, PRICE, TAGS = 1, 2, 3, 4


class Sink(Protocol):
    """Where an answer goes: the client's connection. Nothing here raises because a client left."""

    @property
    def gone(self) -> bool: ...

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    async def send(self, data: bytes) -> None:
        """A part of the body; waits while the client reads slowly."""
        ...

    async def finish(self, data: bytes = b"") -> None:
        """The last part of the body."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A complete answer of Bedrock's that is not 2xx, classified."""

    #: status and exception name that the client may see, account ids masked
    status: int
    kind: str
    message: str
    #: proven never billed
    void: bool
    #: our shared quota or a target's health, not the tenant's doing: the client gets 503
    ours: bool
    #: another target may serve it
    elsewhere: bool
    retry_after_ms: int | None = None


class Echo(Protocol):
    """Service tier and latency mode that an answer says it was served with, None where silent."""

    @property
    def tier(self) -> str | None: ...
    @property
    def latency(self) -> str | None: ...


class StreamMeter(Protocol):
    """Reads a streamed answer as it passes. `feed` returns the complete frames that may go on now
    and keeps back the end, which carries the usage. Raises `UpstreamFailure` on broken framing.
    """

    usage: Usage | None
    #: the ending event, or an error event, was seen
    ended: bool
    #: the error that ended the answer, as the wire names it
    failure: str | None

    @property
    def served(self) -> Echo: ...

    def feed(self, chunk: bytes) -> bytes: ...

    def finish(self) -> None:
        """At the regular end of the upstream's body. Raises `UpstreamFailure`."""
        ...

    def held(self) -> bytes: ...


class Dialect(Protocol):
    """One wire format: what bounds a request, what did it use, how does a broken stream end."""

    @property
    def name(self) -> str: ...

    def bound(self, body: dict[str, Any], raw: bytes, model: Model, headers: Mapping[str, str]) -> Bound:
        """Raises `Invalid` or `UnboundedCost`."""
        ...

    def with_output_limit(self, body: dict[str, Any], raw: bytes, limit: int) -> bytes:
        """The body with its output limit injected, or lowered to `limit`."""
        ...

    def prepared(self, body: dict[str, Any], raw: bytes) -> bytes:
        """The body with what must be forced so that the call can be metered and bounded."""
        ...

    def with_model(self, body: dict[str, Any], raw: bytes, model_id: str) -> bytes:
        """The body naming another model, where it is the body that names it."""
        ...

    def usage(self, headers: Mapping[str, str], body: bytes) -> Usage | None: ...

    def served(self, headers: Mapping[str, str], body: bytes) -> Echo: ...

    def heads(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers of an answer as the client's route says them."""
        ...

    def answer(self, body: bytes) -> bytes:
        """A whole answer in the words of the client's route."""
        ...

    def meter(self, body: Mapping[str, Any] | None = None) -> StreamMeter:
        """A meter for one streamed answer to `body`."""
        ...


@dataclass(slots=True, kw_only=True)
class Spoken:
    """A request in the words of the operation that serves it: as received, or translated where the
    model does not speak the route's own. `dialect` bounds this body and turns its answer back.
    """

    operation: Operation
    dialect: Dialect
    body: dict[str, Any]
    raw: bytes
    #: the headers that bound it and may go along, names in lower case
    headers: Mapping[str, str]
