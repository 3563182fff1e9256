"""Guesses at the bootstrap key, per address: the only secret of the REST that a person may have chosen.

Minted admin keys have 196 random bits; they are never guessed and never locked out, so that an
attacker who shares an address with an administrator (an ingress in front of both) locks out nobody
but the bootstrap key.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.web.admin.problems import Problem

GUESSES_MAX = 500
WINDOW_SECONDS = 60.0
#: addresses remembered; beyond it the oldest window is forgotten
_MOST = 10_000


class Lockout:
    """Counts wrong guesses in windows of a minute. Not shared between processes. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def check(self, address: str) -> None:
        """Raises a 429 `Problem` for an address that guessed too often; its guess is not even compared."""
        began, count = self._seen.get(address, (0.0, 0))
        left = began + WINDOW_SECONDS - self._clock()
        if count >= GUESSES_MAX and left > 0:
            raise Problem(
                429, "locked-out", "too many wrong admin keys from this address",
                headers={"Retry-After": str(int(left) + 1)},
            )  # fmt: skip

    def failed(self, address: str) -> None:
        now = self._clock()
        began, count = self._seen.get(address, (now, 0))
        if now - began > WINDOW_SECONDS:
            self._seen.pop(address, None)
            began, count = now, 0
        self._seen[address] = (began, count + 1)
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
