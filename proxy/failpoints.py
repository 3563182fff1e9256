"""Named places in the life of a call where a fault harness stops this process; for tests only.

A place is one call of `reach`, which does nothing until `arm` was given an order (the setting
TOLLHOUSE_FAIL_POINT). An order is `name[:which][:action]`:

    after_sent             SIGKILL at the first time the place is reached
    after_sent:7           at the seventh time
    after_admit:*5:error   at every fifth time, as an I/O error instead
    mid_stream:3:stop      SIGSTOP: whoever ordered it looks at what was written, then kills
    before_done:1:sleep=2  the whole process stands still for two seconds

Before it acts it says on standard error which place was reached by which attempt.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from proxy.errors import ConfigurationError

#: Every place, in the order in which a call passes them. Those of a statement stand before it is
#: sent to Postgres and after it was answered, when only this process knows that it committed.
POINTS = (
    "after_opened",
    "before_admit",
    "after_admit",
    "admitted",
    "before_sent",
    "after_sent",
    "after_first_byte",
    "mid_stream",
    "after_usage",
    "before_failover",
    "before_done",
    "after_done",
    "before_move",
    "after_move",
    "before_settle",
    "after_settle",
    "settle_later",
    "before_closed",
    "after_closed",
    "before_end",
    "recovery_read",
    "recovery_waits",
    "recovery_settled",
    "recovery_removed",
)
ACTIONS = ("kill", "stop", "error", "sleep")


class Moving(Protocol):
    """An item of a bank statement: what it settles, what it admits, or both."""

    @property
    def settlement(self) -> object | None: ...
    @property
    def attempt(self) -> object | None: ...
    @property
    def ids(self) -> tuple[UUID, ...]: ...


@dataclass(slots=True)
class _Order:
    point: str
    which: int
    every: bool
    action: str
    seconds: float
    reached: int = 0

    def strike(self, attempt: UUID | None) -> None:
        self.reached += 1
        if self.reached % self.which if self.every else self.reached != self.which:
            return
        os.write(2, f"fail point {self.point} reached by {attempt} in {os.getpid()}\n".encode())
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.action == "sleep":
            time.sleep(self.seconds)
        else:
            raise OSError(errno.EIO, f"fail point {self.point}")


_order: _Order | None = None


def arm(spec: str) -> None:
    """Obey `spec` from now on; nothing any more when it is empty. Raises `ConfigurationError`."""
    global _order
    _order = _parse(spec) if spec else None


def reach(point: str, attempt: UUID | None = None) -> None:
    """Says that a place is reached. Raises `OSError` when ordered to fail."""
    if _order is not None and _order.point == point:
        _order.strike(attempt)


def reach_statement(moment: str, moves: Iterable[Moving]) -> None:
    """`moment` ("before" or "after") of a statement that carries these moves: places `<moment>_admit`,
    `_settle` and `_move`, each reached once for every move of its kind.
    """
    if _order is None:
        return
    for move in moves:
        kind = "settle" if move.attempt is None else "admit" if move.settlement is None else "move"
        reach(f"{moment}_{kind}", move.ids[-1])


def _parse(spec: str) -> _Order:
    point, _, rest = spec.partition(":")
    which, _, action = rest.partition(":")
    every, count = which.startswith("*"), which.removeprefix("*") or "1"
    action, _, seconds = (action or "kill").partition("=")
    if point not in POINTS:
        raise ConfigurationError(f"TOLLHOUSE_FAIL_POINT: {point!r} is none of {', '.join(POINTS)}")
    if action not in ACTIONS:
        raise ConfigurationError(f"TOLLHOUSE_FAIL_POINT: {action!r} is none of {', '.join(ACTIONS)}")
    try:
        order = _Order(point, int(count), every, action, float(seconds or 1))
    except ValueError:
        raise ConfigurationError(f"TOLLHOUSE_FAIL_POINT: {spec!r} has a number that is none") from None
    if order.which < 1:
        raise ConfigurationError("TOLLHOUSE_FAIL_POINT: the first time is 1")
    return order
