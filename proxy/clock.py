"""Time and identity of calls.

UUIDv7 per RFC 9562: 48 bits of unix milliseconds, then random bits, so that ids sort by time and
ledger partitions can be ranges of ids.
"""

from __future__ import annotations

import os
import time
from uuid import UUID

#: a clock that goes back further was set, and the ids follow it
_STEPPED_BACK_MS = 1000

_pool = b""
_at = 0
_last_ms = 0
_counter = 0


def uuid7() -> UUID:
    """A new id, greater than every one this process made before: `rand_a` counts within a
    millisecond. Random bits come from the kernel in blocks, which saves a system call per id.
    """
    global _pool, _at, _last_ms, _counter
    if _at >= len(_pool):
        _pool, _at = os.urandom(1000), 0
    tail = int.from_bytes(_pool[_at : _at + 10])
    _at += 10
    now_ms = time.time_ns() // 1_000_000
    if now_ms > _last_ms or now_ms < _last_ms - _STEPPED_BACK_MS:
        _last_ms, _counter = now_ms, tail >> 69  # 11 random bits leave room to count
    else:
        _counter += 1
        if _counter > 0xFFF:
            _last_ms, _counter = _last_ms + 1, 0
    return UUID(
        int=(_last_ms << 80)
        | 0x7000_0000_0000_0000_0000
        | _counter << 64
        | 0x8000_0000_0000_0000
        | tail & 0x3FFF_FFFF_FFFF_FFFF
    )


def now_us() -> int:
    """Unix time in microseconds."""
    return time.time_ns() // 1000
