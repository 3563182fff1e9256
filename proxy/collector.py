"""The garbage collector of a process that serves calls."""

from __future__ import annotations

import gc


def rest() -> None:
    """Take what a started process keeps out of the collector's sight, and let it look seldom.

    Calls make many objects and hardly a cycle: reference counting frees them. By its defaults the
    collector looks every 700 allocations, which cost calls a twentieth to an eighth of their CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
