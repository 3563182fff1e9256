"""Which calls are traced: decided from the head of a request, before anything is done for it.

A client that sends W3C Trace Context decides for its own calls by its sampled flag. Of all others a share
is taken, by the random end of the call's id, as the consistent sampling of OpenTelemetry does it, so that
a collector that thins out by trace id takes the same side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

#: the random bits of a trace id (W3C Trace Context level 2, "random-trace-id"); a UUIDv7 has them, too
_RANDOM = (1 << 56) - 1
#: version, trace id, parent id, flags; a later version may add more behind them
_TRACEPARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<parent>[0-9a-f]{16})"
    rb"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
    re.DOTALL,
)
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a traced call belongs. `parent` is the id of the client's span, 0 without one."""

    trace: int
    parent: int = 0
    #: in our share, whatever the client says; one that is not is traced only for a key that was proven
    own: bool = True


class Sampler:
    """One per worker. `share` of the calls without a parent are traced, 0 to 1."""

    def __init__(self, share: float) -> None:
        self._from = round((1 - share) * (_RANDOM + 1))

    def origin(self, call: UUID, raw_headers: list[tuple[bytes, bytes]]) -> Origin | None:
        """None: the call is not traced. Names of headers are in lower case. A call without a parent has
        its own id as the id of its trace.
        """
        own = call.int & _RANDOM >= self._from
        for name, _ in raw_headers:
            if name == b"traceparent":
                return _child(call, own, [v for n, v in raw_headers if n == name])
        return Origin(call.int) if own else None


def _child(call: UUID, own: bool, values: list[bytes]) -> Origin | None:
    """By what the client says; what is no trace context is as if it were not there."""
    said = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if said is None or (said["version"] == b"00" and said["more"] is not None):
        return Origin(call.int) if own else None
    if not int(said["flags"], 16) & _SAMPLED:
        return None
    return Origin(int(said["trace"], 16), int(said["parent"], 16), own)
