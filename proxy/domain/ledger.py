"""The words of the bank: attempts, how they end, and what the bank answers.

An attempt is one sending of a call upstream. It is OPEN from the moment the bank admitted it
until exactly one terminal entry resolves it. Integers here are nano-dollars (1e-9 USD).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum as _IntEnum
from uuid import UUID

from proxy.domain.usage import NOTHING, Usage


class IntEnum(_IntEnum):
    """Members hash as the integers they equal: an enum's own hash is a call of Python code, and every look
    into a table by one of them would pay it.
    """

    __hash__ = int.__hash__


class State(IntEnum):
    """State of an attempt, as stored. POST, VOID, CEILING and HIT are terminal."""

    OPEN = 0
    POST = 1  #: charged what Bedrock reported
    VOID = 2  #: proven never billed
    CEILING = 3  #: charged its worst case, until evidence lowers it
    HIT = 4  #: answered from the cache, cost 0


class EntryKind(IntEnum):
    """Kinds of ledger entries. Terminal kinds share slot 0 of an attempt, so there can be one."""

    POST = 1
    VOID = 2
    CEILING = 3
    HIT = 4
    REFUND = 5  #: lowers a CEILING (amount is negative)
    ADJUST = 6  #: a corrected price (either sign)
    OVERRUN = 7  #: cost above the ceiling; must never happen, is never hidden


class Operation(IntEnum):
    """What was called, as stored; the names are those of the API (see `LABELS`)."""

    INVOKE_MODEL = 1
    INVOKE_MODEL_WITH_RESPONSE_STREAM = 2
    CONVERSE = 3
    CONVERSE_STREAM = 4
    COUNT_TOKENS = 5
    APPLY_GUARDRAIL = 6
    CHAT_COMPLETIONS = 7
    RESPONSES = 8
    MESSAGES = 9
    MESSAGES_COUNT_TOKENS = 10

    @property
    def label(self) -> str:
        return _LABELS[self]

    @property
    def probe(self) -> bool:
        """It only asks: no model runs."""
        return self in _PROBES


_LABELS = {
    Operation.INVOKE_MODEL: "InvokeModel",
    Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM: "InvokeModelWithResponseStream",
    Operation.CONVERSE: "Converse",
    Operation.CONVERSE_STREAM: "ConverseStream",
    Operation.COUNT_TOKENS: "CountTokens",
    Operation.APPLY_GUARDRAIL: "ApplyGuardrail",
    Operation.CHAT_COMPLETIONS: "ChatCompletions",
    Operation.RESPONSES: "Responses",
    Operation.MESSAGES: "Messages",
    Operation.MESSAGES_COUNT_TOKENS: "MessagesCountTokens",
}


_PROBES = frozenset({Operation.COUNT_TOKENS, Operation.APPLY_GUARDRAIL, Operation.MESSAGES_COUNT_TOKENS})


class Why(IntEnum):
    """Why an attempt was resolved as it was; kept on the terminal entry."""

    USAGE = 0  #: Bedrock reported usage
    NEVER_SENT = 1
    UPSTREAM_ERROR = 2  #: a complete modelled error before any 2xx byte
    CUT = 3  #: the answer broke off, or ended without usage
    SILENCE = 4  #: no answer within the deadline
    RECOVERED = 5  #: resolved by a restarted worker from its flight recorder
    SWEPT = 6  #: resolved by the sweeper
    DRAIN_LIMIT = 7  #: the client left and the drain bound was reached
    LOG = 8  #: the model invocation log
    OPERATOR = 9
    CACHE = 10


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One sending to be admitted. Uuids and bounded integers only: nothing a client can write.

    `model`, `target` and `price` are ids of interned names (`labels` in Postgres).
    """

    attempt: UUID  #: UUIDv7, minted once; reused on every retry of admit
    call: UUID
    tenant: UUID
    project: UUID | None
    key: UUID
    credential: UUID
    recorder: UUID  #: the flight recorder file that will know what became of it
    operation: Operation
    model: int  #: the resolved base model
    target: int  #: the model id or ARN it is sent to, with its region
    price: int  #: the price version the ceiling was computed with
    ceiling: int  #: worst case, nano-dollars, >= 0
    #: metadata tags of the call, an interned JSON object, 0 for none
    tags: int = 0
    #: the smallest ceiling a call of this shape could have, to tell "spent" from "held"
    floor: int = 0


class Verdict(IntEnum):
    """The bank's answer to one attempt."""

    OK = 0
    DUPLICATE = 1  #: already there; `state` says how it stands
    DENIED = 2  #: a budget has no room
    REVOKED = 3  #: the credential, key or tenant may not spend (any more)
    CLOSED = 5  #: the database failed over and may have lost commits; `tollhouse recover` opens it
    STALE = 4  #: the attempt id's time is more than five minutes off the database's clock


@dataclass(slots=True, kw_only=True)
class Admission:
    """Answer to one attempt. The money fields describe the tightest denying budget."""

    verdict: Verdict
    state: State = State.OPEN
    budget: UUID | None = None
    settled: int = 0  #: overruns included
    reserved: int = 0
    limit: int = 0
    #: unix seconds at which the denying budget's period ends, 0 for never
    resets_at: int = 0
    #: smallest output limit, in tokens, that the denying budget lets a call be clamped to; 0: none
    clamp_floor: int = 0
    #: an earlier try of this attempt was cut off and may still commit, whatever this answer says
    undecided: bool = False
    #: the database's clock at admission, unix microseconds
    admitted_at_us: int = 0


@dataclass(slots=True, kw_only=True)
class Settlement:
    """How one attempt ended. `cost` is what the tenant pays, `upstream_cost` what AWS bills.

    For VOID both are 0; for CEILING the bank uses the row's own ceiling and ignores both.
    """

    attempt: UUID
    state: State
    why: Why
    cost: int = 0
    upstream_cost: int = 0
    usage: Usage = NOTHING
    price: int = 0  #: price version in force when sent
    upstream_request_id: str | None = None
    status: int = 0  #: HTTP status seen from Bedrock, 0 for none
    latency_ms: int = 0
    first_byte_ms: int = 0
    #: required to VOID a row by absence from a flight recorder; None elsewhere
    recorder: UUID | None = None
    #: for metrics only; None where just the attempt is known
    call: UUID | None = field(default=None, compare=False)


class Outcome(IntEnum):
    """The bank's answer to one settlement."""

    SETTLED = 0
    ALREADY = 1  #: another terminal entry was first; nothing changed
    REFUNDED = 2  #: a CEILING was first; the difference came back as a REFUND entry
    UNKNOWN = 3  #: no such attempt
    REFUSED = 4  #: a VOID by absence whose row belongs to another recorder


@dataclass(slots=True, kw_only=True)
class Settled:
    outcome: Outcome
    state: State = State.OPEN
    #: nano-dollars above the ceiling; 0 unless our bound was wrong
    overrun: int = 0
    #: budgets whose row moved, with their committed money after the move
    budgets: tuple[UUID, ...] = field(default=())
