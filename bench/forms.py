"""How much is measured: the full form, a quick one of minutes, and a smoke test of less than one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    name: str
    alternations: int
    #: connections of the closed loop
    levels: tuple[int, ...]
    closed_s: float
    warm_s: float
    #: calls per second of the open loop, and for how long
    open_rate: float
    open_s: float
    #: streams at once
    streams: tuple[int, ...]
    rounds: int
    #: calls before memory is looked at again, at most so many seconds of them
    calls: int
    calls_s: float
    special_s: float
    others: bool = True
    specials: bool = True


FULL = Form(
    name="full", alternations=5, levels=(1, 16, 64, 256), closed_s=5, warm_s=3, open_rate=300, open_s=10,
    streams=(100, 500), rounds=4, calls=50_000, calls_s=90, special_s=5,
)  # fmt: skip
QUICK = Form(
    name="quick", alternations=1, levels=(1, 16, 64), closed_s=2, warm_s=1, open_rate=300, open_s=3,
    streams=(100, 500), rounds=1, calls=3_000, calls_s=3, special_s=2,
)  # fmt: skip
SMOKE = Form(
    name="smoke", alternations=2, levels=(16,), closed_s=2, warm_s=1, open_rate=50, open_s=1,
    streams=(20,), rounds=1, calls=0, calls_s=0, special_s=1, others=False, specials=False,
)  # fmt: skip
#: of a contestant that takes milliseconds a call
SLOW_ALTERNATIONS = 2
#: the streams of the 50-event figure come so fast that all of them are busy; the others at speaking pace
STREAM_EVENTS = 50
GAP_MS = {20: 10.0, 100: 10.0}
GAP_MS_DEFAULT = 50.0
