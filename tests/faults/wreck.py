"""Reads flight recorder files as a stranger would, from the format alone: it shares no code with the proxy.

Format: a JSON line, then records of one byte of kind (1 opened, 2 sent, 3 done, 4 end), sixteen of attempt id,
two of payload length (big endian), the payload, four of CRC-32 over all that. A kind of zero ends them: the
file is longer than its records, and of one that was not finished everything but its kind may be there.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

_HEAD = struct.Struct(">B16sH")
_UNFINISHED_MAX = 1024
_STATES = {1: "POST", 2: "VOID", 3: "CEILING"}


@dataclass(frozen=True)
class Remains:
    """What is certain about one attempt of a dead process, by its last record.

    `last`: opened, sent, done or end. `done` is the recorded state and its cost in nano-dollars.
    """

    attempt: UUID
    last: str
    done: tuple[str, int] | None = None


def read(data: bytes) -> list[Remains]:
    """Raises ValueError for a record that is torn or wrong: SIGKILL must never make one."""
    head, newline, body = data.partition(b"\n")
    if not newline:
        if body or head:
            raise ValueError("a torn header")
        return []
    json.loads(head)
    seen: dict[UUID, tuple[int, tuple[str, int] | None]] = {}
    at = 0
    while at < len(body) and body[at]:
        if at + _HEAD.size > len(body):
            raise ValueError(f"torn at {at} of {len(body)}")
        kind, raw, length = _HEAD.unpack_from(body, at)
        end = at + _HEAD.size + length
        if end + 4 > len(body) or int.from_bytes(body[end : end + 4]) != zlib.crc32(body[at:end]):
            raise ValueError(f"torn or wrong at {at} of {len(body)}")
        attempt = UUID(bytes=raw)
        before, done = seen.get(attempt, (0, None))
        if kind == 3:
            fields = json.loads(body[at + _HEAD.size : end])
            done = (_STATES[fields[0]], fields[2])
        seen[attempt] = (max(kind, before), done)
        at = end + 4
    if any(body[at + _UNFINISHED_MAX :]):
        raise ValueError(f"something follows the end at {at} of {len(body)}")
    names = {1: "opened", 2: "sent", 3: "done", 4: "end"}
    return [Remains(attempt, names[kind], done) for attempt, (kind, done) in seen.items()]


def used(data: bytes) -> int:
    """Bytes of the header and the records."""
    return len(data.rstrip(b"\0"))


def files_of(pid: int, *, own: bool = False) -> list[Path]:
    """Flight recorder files that this process holds open: its own, which it appends to, and those of the dead
    that it recovers.
    """
    found: dict[Path, None] = {}  # a file that is mapped is held twice
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(link.readlink())
                flags = int(
                    Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().partition("flags:")[2].split()[0], 8
                )
            except OSError:
                continue
            if target.endswith(".flight") and (not own or flags & os.O_APPEND):
                found[Path(target)] = None
    except OSError:
        pass
    return list(found)
