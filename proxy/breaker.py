"""The health of every target this worker sends to, and what its answers mean for it.

In memory and per worker: a worker that starts believes in every target, and finds out for itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from proxy import telemetry
from proxy.domain.routing import WELL, Health, Signal, Standing, Tolerance, after, probed, standing
from proxy.ports import Failure

log = logging.getLogger("tollhouse.breaker")

#: targets with a health of their own; ARNs can come from clients, so the memory is bounded
_TARGETS_MAX = 2_000
#: targets with a metric of their own
_SHOWN_MAX = 200
_THROTTLES = frozenset(
    {
        "ThrottlingException", "TooManyRequestsException", "ServiceQuotaExceededException",
        "ModelNotReadyException",
    }
)  # fmt: skip
_GAUGE = {Standing.READY: 0, Standing.RESTING: 1, Standing.PROBE: 2, Standing.OPEN: 2}


def signal_of(failure: Failure) -> Signal:
    """What a complete error answer says about the target. What the request may have caused itself says
    nothing: no tenant can open a breaker for the others.
    """
    if failure.kind in _THROTTLES or failure.status == 429:
        return Signal.THROTTLED
    if failure.ours:
        return Signal.FAULT
    return Signal.NEUTRAL if failure.elsewhere else Signal.GOOD


class Breakers:
    """One per worker; not shared between threads. Targets are named by their labels."""

    def __init__(self, tolerance: Tolerance | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.tolerance = tolerance or Tolerance()
        self._now = now
        self._health: dict[str, Health] = {}
        self._shown: set[str] = set()

    @property
    def well(self) -> bool:
        """Nothing ever failed: every target is READY."""
        return not self._health

    def standing(self, target: str) -> Standing:
        health = self._health.get(target)
        return Standing.READY if health is None else standing(health, self._now())

    def probe(self, target: str) -> None:
        """A call is about to try a target that is open."""
        health = self._health.get(target)
        if health is not None:
            self._health[target] = probed(health, self._now(), self.tolerance)

    def report(self, target: str, signal: Signal) -> None:
        """One sending to the target has ended."""
        health = self._health.get(target)
        if health is None:
            if signal in (Signal.GOOD, Signal.NEUTRAL):
                return  # as good as one that is not known
            self._make_room()
            health = WELL
        new = self._health[target] = after(health, signal, self._now(), self.tolerance)
        if new.open_until is not None and (health.open_until is None or new.opened > health.opened):
            telemetry.TARGET_OPENINGS.labels(self._label(target), signal.value).inc()
            log.warning("%s is left alone for %.1f s after %s", target,
                        new.open_until - self._now(), signal.value)  # fmt: skip
        elif new.open_until is None and health.open_until is not None:
            log.warning("%s is in use again", target)

    def retry_after_ms(self, targets: Iterable[str]) -> int:
        """How long until one of these may be tried again; at least a second."""
        now = self._now()
        found = (self._health[target].open_until for target in targets if target in self._health)
        wait = min((until - now for until in found if until is not None), default=1.0)
        return max(int(wait * 1000), 1000)

    def export(self) -> None:
        """Set the gauge of every target that ever failed."""
        now = self._now()
        for target, health in self._health.items():
            label = self._label(target)
            if label != "other":
                telemetry.TARGET_STATE.labels(label).set(_GAUGE[standing(health, now)])

    def _label(self, target: str) -> str:
        if target not in self._shown and len(self._shown) < _SHOWN_MAX:
            self._shown.add(target)
        return target if target in self._shown else "other"

    def _make_room(self) -> None:
        while len(self._health) >= _TARGETS_MAX:
            del self._health[next(iter(self._health))]
