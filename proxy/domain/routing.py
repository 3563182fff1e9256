"""In which order the places of a route are tried, and which of them are left alone for a while.

Pure: a target's `Health` is a value, time comes in as seconds of any steady clock. How a target is seen:

    READY ──fault or throttle──> RESTING ──a while──> READY
      │                             │
      └── so many failures in a row, or too many CEILINGs ──> OPEN ──a while──> PROBE: one call tries it
                                                               ^                  │
                                                               └──── it failed ───┴── it answered ──> READY

A *resting* target is tried after those that do not rest. An *open* one is not tried at all, because a
target that takes calls and does not answer them costs tenants their ceilings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeVar

from proxy.domain.catalogue import RoutePolicy, Target, TargetKind
from proxy.domain.ledger import Operation
from proxy.domain.request import Bound

Way = TypeVar("Way")


class Signal(Enum):
    """What one sending told about its target."""

    NEUTRAL = "neutral"  #: nothing: the client left, or the request itself was at fault
    GOOD = "good"  #: it answered, be it with a refusal of the request
    FAULT = "fault"  #: it cannot be reached or it fails
    THROTTLED = "throttled"  #: it is not ready, or has no capacity left for us
    CEILING = "ceiling"  #: it took a call and left it without an end


class Standing(Enum):
    """Whether a target may be tried."""

    READY = 0
    RESTING = 1
    PROBE = 2
    OPEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """When a target is left alone. Times are seconds."""

    #: failures in a row that open; 0: nothing ever opens or rests
    faults: int = 5
    #: calls left without an end that open, where they are at least half of all in a window
    ceilings: int = 10
    window: float = 60.0
    #: first time open; doubled each time a probe fails
    open_for: float = 5.0
    #: the same for a target that only throttles
    throttled_for: float = 1.0
    open_most: float = 60.0
    #: first rest after a throttle or a bad share; doubled with each in a row
    rest: float = 0.25
    rest_most: float = 5.0
    #: a probe that has not ended by then is not waited for
    probe: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is known of a target. The default is one that never failed."""

    #: failures since it last answered
    row: int = 0
    #: all of them were throttles
    throttled: bool = True
    #: answers, failures and CEILINGs of the window that began at `since`
    good: int = 0
    bad: int = 0
    ceilings: int = 0
    since: float = 0.0
    rests_until: float = 0.0
    #: None while it is closed
    open_until: float | None = None
    #: times it was opened since it last answered
    opened: int = 0
    probing: bool = False


WELL = Health()
#: share of failures above which a target rests, of at least so many calls: what is sent twice stays
#: under a fifth of all
_SHARE, _ENOUGH, _REMEMBERED = 5, 10, 40


def after(health: Health, signal: Signal, now: float, tolerance: Tolerance) -> Health:
    """The health once one more sending has ended."""
    if signal is Signal.NEUTRAL or not tolerance.faults:
        return health
    if signal is Signal.GOOD:
        return _answered(_counted(health, now, tolerance))
    health = _counted(health, now, tolerance)
    health = replace(
        health, row=health.row + 1, bad=health.bad + 1,
        ceilings=health.ceilings + (signal is Signal.CEILING),
        throttled=(health.throttled or not health.row) and signal is Signal.THROTTLED,
    )  # fmt: skip
    if health.open_until is not None:
        return _opened(health, now, tolerance) if health.probing else health
    if health.row >= tolerance.faults or _too_many_ceilings(health, tolerance):
        return _opened(health, now, tolerance)
    failing = health.bad * _SHARE > health.good + health.bad >= _ENOUGH
    if signal is Signal.THROTTLED or failing:
        rest = min(tolerance.rest * 2 ** min(health.row - 1, 16), tolerance.rest_most)
        return replace(health, rests_until=max(health.rests_until, now + rest))
    return health


def standing(health: Health, now: float) -> Standing:
    """Whether it may be tried at `now`."""
    if health.open_until is not None:
        return Standing.OPEN if now < health.open_until else Standing.PROBE
    return Standing.RESTING if now < health.rests_until else Standing.READY


def probed(health: Health, now: float, tolerance: Tolerance) -> Health:
    """A call goes out to see whether it is well again; until that ends no other does."""
    return replace(health, probing=True, open_until=now + tolerance.probe)


def _counted(health: Health, now: float, tolerance: Tolerance) -> Health:
    """A window that is over is forgotten, and one that is full counts half."""
    if now - health.since > tolerance.window:
        return replace(health, since=now, good=0, bad=0, ceilings=0)
    if health.good + health.bad >= _REMEMBERED:
        return replace(health, good=health.good // 2, bad=health.bad // 2, ceilings=health.ceilings)
    return health


def _answered(health: Health) -> Health:
    if health.open_until is not None:  # a call that was under way when it was shut proves nothing
        return WELL if health.probing else health
    return replace(health, row=0, throttled=True, good=health.good + 1, opened=0)


def _opened(health: Health, now: float, tolerance: Tolerance) -> Health:
    first = tolerance.throttled_for if health.throttled else tolerance.open_for
    seconds = min(first * 2 ** min(health.opened, 16), tolerance.open_most)
    return replace(
        health, open_until=now + seconds, opened=health.opened + 1, probing=False, ceilings=0, good=0, bad=0
    )


def _too_many_ceilings(health: Health, tolerance: Tolerance) -> bool:
    if not tolerance.ceilings or health.ceilings < tolerance.ceilings:
        return False
    return health.ceilings * 2 >= health.good + health.bad


# ---- what a target asks for ------------------------------------------------------------------

_LATENCY = frozenset(
    {
        Operation.INVOKE_MODEL, Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM, Operation.CONVERSE,
        Operation.CONVERSE_STREAM,
    }
)  # fmt: skip
_TIERED = _LATENCY | {Operation.CHAT_COMPLETIONS, Operation.RESPONSES}


def asked_of(target: Target, operation: Operation, bound: Bound) -> Bound:
    """The request as it is sent there: with the target's service tier and latency mode where it names
    none itself and the operation has a word for them.
    """
    tier = target.tier if bound.tier == "default" and operation in _TIERED else None
    latency = target.latency if bound.latency == "standard" and operation in _LATENCY else None
    if tier is None and latency is None:
        return bound
    return replace(bound, tier=tier or bound.tier, latency=latency or bound.latency)


# ---- order -----------------------------------------------------------------------------------

#: kinds that are paid by the hour, used or not
CAPACITY: frozenset[TargetKind] = frozenset({"provisioned", "imported"})


def by_policy(
    policy: RoutePolicy | Literal["order"],
    ways: Sequence[Way],
    kind: Callable[[Way], TargetKind],
    ceiling: Callable[[Way], int],
) -> list[Way]:
    """The ways a route's policy allows, in the order it wants them tried.

    `order`: as written. `spill`: capacity that is paid anyway first. `provisioned_only`: nothing else
    than that. `cheapest`: by `ceiling`, what this request can cost there at most, in nano-dollars.
    """
    if policy == "provisioned_only":
        return [way for way in ways if kind(way) == "provisioned"]
    if policy == "spill":
        return sorted(ways, key=lambda way: kind(way) not in CAPACITY)
    if policy == "cheapest":
        return sorted(ways, key=ceiling)
    return list(ways)


def tried(ways: Iterable[tuple[Way, Standing]]) -> list[Way]:
    """The ways of one model that are tried, in order. Where all of them rest, only the first is: a
    second sending that is likely to be throttled too helps nobody.
    """
    ready: list[Way] = []
    resting: list[Way] = []
    for way, seen in ways:
        if seen is Standing.RESTING:
            resting.append(way)
        elif seen is not Standing.OPEN:
            ready.append(way)
    return [*ready, *resting] if ready else resting[:1]
