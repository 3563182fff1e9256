"""The flight recorder: what one worker was about to do, in a local file that outlives its process.

A record is in the kernel's page cache before the method returns, so SIGKILL of the process loses nothing.
A power cut may: the header holds the kernel's boot id, and a file from another boot proves only what it
contains, never what is absent.

The file is mapped into memory and grows by reserved steps, so that recording needs no system call; where
the file system does not hold what was reserved, each record is one write(2) (`_reserves`).

Records are fixed-layout: one byte of kind, sixteen of attempt id, two of payload length, the
payload (a settlement as JSON, for DONE), four of CRC-32. A kind of zero ends them: it is what a step is
filled with, and a record's kind is stored last, so one that a kill interrupts was never made. The header
is a JSON line, fsynced before the first attempt. `resolve` says what a restarted worker may conclude:

    END                  resolved, nothing to do
    DONE                 POST exactly as recorded
    SENT without DONE    CEILING
    OPENED without SENT  VOID, but only under the same boot and with no torn record; else CEILING
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from uuid import UUID

import orjson

from proxy import failpoints
from proxy.clock import uuid7
from proxy.domain.ledger import Settlement, State, Why
from proxy.domain.usage import Usage

log = logging.getLogger("tollhouse.recorder")

OPENED, SENT, DONE, END = 1, 2, 3, 4
_HEAD = Struct(">B16sH")
_CRC = Struct(">I")
SUFFIX = ".flight"
#: still that of files that were only written to: an older reader takes the zeros for a torn record, which is
#: the dearer reading, never the cheaper one
FORMAT = 1
#: bytes by which a file grows
STEP_BYTES = 32 * 1024
#: bytes of a record that was never finished; what is not zero further on is damage
_UNFINISHED_MAX = 1024
#: file systems that never need more room for bytes that were reserved, and so never fail a store to them
_RESERVING = frozenset({"ext4", "xfs", "tmpfs"})


def boot_id() -> str:
    """The kernel's boot id: another value means the page cache did not survive."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""  # unknown: then nothing may be concluded from absence


def _reserves(directory: Path) -> bool:
    """Whether a store to reserved bytes cannot fail there for lack of room, which would be SIGBUS. Those that
    copy on write promise less, and of an overlay it is not known.
    """
    device = directory.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    found = [mount.partition(" - ")[2].split(" ")[0] for mount in mounts if mount.split(" ")[2] == name]
    return bool(found) and found[-1] in _RESERVING


@dataclass(slots=True)
class FlightRecorder:
    """One worker's files. A new file is begun when the current one has grown large; a file is
    deleted when every attempt in it has ended.
    """

    directory: Path
    rotate_bytes: int = 32 * 1024 * 1024
    _file: _File = field(init=False)
    _older: dict[UUID, _File] = field(init=False, default_factory=dict)
    #: by the integer of the attempt's id, which is quicker to hash
    _home: dict[int, _File] = field(init=False, default_factory=dict)
    _mapped: bool = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._mapped = _reserves(self.directory)
        try:
            self._file = _File.create(self.directory, mapped=self._mapped)
        except OSError as error:
            if not self._mapped:
                raise
            log.warning("flight recorder: nothing can be reserved (%s), every record is a write", error)
            self._mapped = False
            self._file = _File.create(self.directory, mapped=False)

    @property
    def id(self) -> UUID:
        return self._file.id

    def opened(self, attempt: UUID) -> UUID:
        if self._file.size > self.rotate_bytes:
            self._rotate()
        self._file.append(OPENED, attempt)
        self._file.open += 1
        self._home[attempt.int] = self._file
        failpoints.reach("after_opened", attempt)
        return self._file.id

    def sent(self, attempt: UUID) -> None:
        failpoints.reach("before_sent", attempt)
        self._home[attempt.int].append(SENT, attempt)
        failpoints.reach("after_sent", attempt)

    def done(self, settlement: Settlement) -> None:
        failpoints.reach("before_done", settlement.attempt)
        self._home[settlement.attempt.int].append(DONE, settlement.attempt, encode(settlement))
        failpoints.reach("after_done", settlement.attempt)

    def closed(self, attempt: UUID) -> None:
        file = self._home.pop(attempt.int, None)
        if file is None:
            return
        failpoints.reach("before_closed", attempt)
        try:
            file.append(END, attempt)
        except OSError as error:
            # The bank has it; the file stays, and its recovery will be told that it was settled.
            log.critical("%s", error)
            return
        failpoints.reach("after_closed", attempt)
        file.open -= 1
        if file.open == 0 and file is not self._file:
            del self._older[file.id]
            file.remove()

    def shut(self) -> None:
        """Leave. A file with nothing open in it is deleted; any other stays to be resolved."""
        for file in [*self._older.values(), self._file]:
            if file.open == 0:
                file.remove()
            else:
                file.release()

    def _rotate(self) -> None:
        following = _File.create(self.directory, mapped=self._mapped)
        if self._file.open:
            self._older[self._file.id] = self._file
        else:
            self._file.remove()
        self._file = following


@dataclass(slots=True)
class _File:
    """`size` counts the header and the records; what is reserved beyond is zeros."""

    path: Path
    id: UUID
    descriptor: int
    mapped: bool
    size: int = 0
    open: int = 0
    #: the part of the file that is mapped: from `_base` up to `_end`
    _window: mmap.mmap | None = None
    _base: int = 0
    _end: int = 0

    @classmethod
    def create(cls, directory: Path, *, mapped: bool) -> _File:
        """Raises `OSError`; then nothing is left of it."""
        recorder = uuid7()
        path = directory / f"{recorder}{SUFFIX}"
        unfinished = path.with_suffix(".new")  # no recovery looks at it before it is locked and whole
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        file = cls(path, recorder, os.open(unfinished, flags, 0o600), mapped)
        try:
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = {"recorder": str(recorder), "boot": boot_id(), "format": FORMAT}
            file.size = os.write(file.descriptor, json.dumps(header).encode() + b"\n")
            if mapped:
                file._grow(file.size)
            os.fsync(file.descriptor)
            unfinished.rename(path)
            folder = os.open(directory, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError:
            unfinished.unlink(missing_ok=True)
            file.remove()
            raise
        return file

    def append(self, kind: int, attempt: UUID, payload: bytes = b"") -> None:
        """Raises `OSError` when there is no room; then the record was not made."""
        record = _HEAD.pack(kind, attempt.bytes, len(payload)) + payload
        record += _CRC.pack(zlib.crc32(record))
        end = self.size + len(record)
        if end > self._end:
            self._grow(end)
        window = self._window
        if window is None:
            self._write(record)
        else:
            at = self.size - self._base
            window[at + 1 : end - self._base] = record[1:]
            window[at] = kind
        self.size = end

    def _grow(self, end: int) -> None:
        """Have room up to `end`, and a step more. Raises `OSError`, and then has what it had."""
        if not self.mapped:
            return
        base = self.size - self.size % mmap.ALLOCATIONGRANULARITY
        length = -(-(end - base) // STEP_BYTES) * STEP_BYTES
        os.posix_fallocate(self.descriptor, base, length)
        window = mmap.mmap(self.descriptor, length, offset=base)
        if self._window is not None:
            self._window.close()
        self._window, self._base, self._end = window, base, base + length

    def _write(self, record: bytes) -> None:
        written = os.write(self.descriptor, record)
        if written != len(record):
            os.ftruncate(self.descriptor, self.size)  # what comes after must stay readable
            raise OSError(f"flight recorder {self.path.name}: short write, the disk is full")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """From here on appending fails: the number may be another file's."""
        if self._window is not None:
            self._window.close()  # it holds the file, and with it the lock
            self._window, self._end = None, 0
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Wreck:
    """What a recorder file says about attempts that had not ended."""

    recorder: UUID
    same_boot: bool
    torn: bool
    #: attempt -> its recorded settlement, or None when it has only been sent
    sent: dict[UUID, Settlement | None]
    #: attempts that were opened and never sent
    unsent: frozenset[UUID]


def read(path: Path) -> Wreck:
    """Read a file whose lock the caller holds. Raises ValueError for a file of another format."""
    data = path.read_bytes()
    line, separator, body = data.partition(b"\n")
    if not separator:
        raise ValueError("no header")
    header = json.loads(line)
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')!r} is not {FORMAT}")
    states: dict[UUID, int] = {}
    settlements: dict[UUID, Settlement] = {}
    at, torn = 0, False
    while at < len(body) and body[at]:
        if at + _HEAD.size > len(body):
            torn = True
            break
        kind, raw, length = _HEAD.unpack_from(body, at)
        end = at + _HEAD.size + length
        if end + 4 > len(body) or _CRC.unpack_from(body, end)[0] != zlib.crc32(body[at:end]):
            torn = True
            break
        attempt = UUID(bytes=raw)
        states[attempt] = max(kind, states.get(attempt, 0))
        if kind == DONE:
            settlements[attempt] = decode(attempt, body[at + _HEAD.size : end])
        at = end + 4
    torn = torn or any(body[at + _UNFINISHED_MAX :])
    boot = boot_id()
    return Wreck(
        recorder=UUID(header["recorder"]),
        same_boot=bool(boot) and header["boot"] == boot,
        torn=torn,
        sent={a: settlements.get(a) for a, kind in states.items() if kind in {SENT, DONE}},
        unsent=frozenset(a for a, kind in states.items() if kind == OPENED),
    )


def resolve(wreck: Wreck) -> list[Settlement]:
    """The settlements a wreck proves, one per attempt that had not ended."""
    may_void = wreck.same_boot and not wreck.torn
    out = [
        recorded or Settlement(attempt=attempt, state=State.CEILING, why=Why.RECOVERED)
        for attempt, recorded in wreck.sent.items()
    ]
    for attempt in wreck.unsent:
        if may_void:
            out.append(
                Settlement(attempt=attempt, state=State.VOID, why=Why.NEVER_SENT, recorder=wreck.recorder)
            )
        else:
            out.append(Settlement(attempt=attempt, state=State.CEILING, why=Why.RECOVERED))
    return out


def orphans(directory: Path) -> list[tuple[Path, int]]:
    """Files whose owner is gone, each with an open descriptor that holds its exclusive lock."""
    found = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        if path.exists():
            found.append((path, descriptor))
        else:
            os.close(descriptor)
    return found


def encode(s: Settlement) -> bytes:
    """A settlement as compact JSON; `decode` is its inverse."""
    u = s.usage
    values = [
        int(s.state), int(s.why), s.cost, s.upstream_cost, s.price, s.upstream_request_id, s.status,
        s.latency_ms, s.first_byte_ms, u.input_tokens, u.output_tokens, u.cache_read_tokens,
        u.cache_write_5m_tokens, u.cache_write_1h_tokens, u.images, u.guardrail_units, u.exact,
    ]  # fmt: skip
    try:
        return orjson.dumps(values)
    except TypeError:  # a count beyond 64 bits, a request id with bytes that are no UTF-8
        return json.dumps(values, separators=(",", ":")).encode()


def decode(attempt: UUID, payload: bytes) -> Settlement:
    state, why, cost, upstream, price, request_id, status, latency, first, *units = json.loads(payload)
    i, o, read_, w5, w1, images, guardrail, exact = units
    return Settlement(
        attempt=attempt, state=State(state), why=Why(why), cost=cost, upstream_cost=upstream, price=price,
        upstream_request_id=request_id, status=status, latency_ms=latency, first_byte_ms=first,
        usage=Usage(
            input_tokens=i, output_tokens=o, cache_read_tokens=read_, cache_write_5m_tokens=w5,
            cache_write_1h_tokens=w1, images=images, guardrail_units=guardrail, exact=exact,
        ),
    )  # fmt: skip
