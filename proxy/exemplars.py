"""Exemplars: which call a bucket or a counter saw last, so that a slow or an odd one can be looked up.

OpenMetrics lets a sample name one example of what it counts. prometheus-client keeps examples in memory, and drops
them where several processes serve their metrics on one port. There each process keeps its newest in a file of its own
beside the library's, and `Collector`, in the process that serves the port, gives each sample the newest of all.

A file is a table that only grows: how many bytes are in use, then for each series its length, its name (the library's
own key) and a slot. One process rewrites its slots in place while another reads:

- A slot that is read half written fails its checksum; the series is without that process's exemplar in this scrape.
- Counts are brought before their exemplar and read after it: a bucket counts every call that it names.
- What is written while others are being read is in the next scrape.
- The file of a process that ended goes with it, so that an older exemplar may be told after a newer one; Prometheus
  drops such a one.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from prometheus_client import Metric, multiprocess
from prometheus_client.samples import Exemplar, Sample

log = logging.getLogger("tollhouse.exemplars")

#: of one process, some 1,000 series; those beyond have no exemplars
FILE_BYTES = 1 << 18

_PREFIX, _SUFFIX = "exemplar_", ".slots"
_USED = struct.Struct("<q")
_LENGTH = struct.Struct("<i")
#: unix time, value, call
_BODY = struct.Struct("<dd16s")
_CRC_BYTES = 4
_SLOT_BYTES = _BODY.size + _CRC_BYTES

#: a sample's name and its labels
Series = tuple[str, frozenset[tuple[str, str]]]


class Keep(Protocol):
    """Keeps the newest exemplar of a series, which is one of the library's values."""

    def __call__(self, series: Any, call: UUID, value: float, at: float) -> None:
        """`at`: unix seconds."""
        ...


def labels_of(call: UUID) -> dict[str, str]:
    """What an exemplar says: never a secret, and names and values of at most 128 characters together
    (https://prometheus.io/docs/specs/om/open_metrics_spec/#exemplars). The id of the call's trace has its place here,
    and 16 bytes of `_BODY`.
    """
    return {"call_id": str(call)}


def keeper(directory: str | None) -> Keep | None:
    """Keeps this process's exemplars: in a file in `directory`, where processes add up their metrics, or with the
    library when there is none. None when there is no room for the file: metrics go on without exemplars.
    """
    if directory is None:
        return _with_the_library
    try:
        return Slots(directory).keep
    except OSError as error:
        log.warning("no exemplars: %s", error)
        return None


def _with_the_library(series: Any, call: UUID, value: float, at: float) -> None:
    series.set_exemplar(Exemplar(labels_of(call), value, at))


class Slots:
    """The file of this process; one writer. Raises `OSError` when it cannot be had."""

    def __init__(self, directory: str) -> None:
        with (Path(directory) / f"{_PREFIX}{os.getpid()}{_SUFFIX}").open("w+b") as file:
            # all of it now: a page for which there is no room later would be a SIGBUS
            os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
            self._map = mmap.mmap(file.fileno(), FILE_BYTES)
        self._slots: dict[str, tuple[int, int] | None] = {}
        self._use(_USED.size)

    def keep(self, series: Any, call: UUID, value: float, at: float) -> None:
        """See `Keep`. A series for which there is no room has none. Whoever reads does the formatting."""
        key: str = series._key  # by it the library itself tells series of several files apart
        slot = self._slots[key] if key in self._slots else self._add(key)
        if slot is None:
            return
        place, seed = slot
        body = _BODY.pack(at, value, call.bytes)
        self._map[place : place + _SLOT_BYTES] = body + zlib.crc32(body, seed).to_bytes(_CRC_BYTES, "little")

    def _add(self, key: str) -> tuple[int, int] | None:
        name = key.encode()
        place = self._used + _LENGTH.size + len(name)
        slot = None
        if place + _SLOT_BYTES <= FILE_BYTES:
            self._map[self._used : place] = _LENGTH.pack(len(name)) + name
            self._use(place + _SLOT_BYTES)
            slot = place, zlib.crc32(name)
        self._slots[key] = slot
        return slot

    def _use(self, used: int) -> None:
        self._used = used
        self._map[: _USED.size] = _USED.pack(used)


class Collector:
    """The metrics of every process as the library adds them up, each sample with its newest exemplar.

    Only the OpenMetrics format shows them.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._library = multiprocess.MultiProcessCollector(None, path=directory)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        found = newest(self._directory)
        for metric in self._library.collect():  # type: ignore[no-untyped-call]
            if found and metric.type in {"counter", "histogram"}:
                metric.samples = [_marked(sample, found) for sample in metric.samples]
            yield metric


def _marked(sample: Sample, found: Mapping[Series, Exemplar]) -> Sample:
    exemplar = found.get((sample.name, frozenset(sample.labels.items())))
    return sample if exemplar is None else sample._replace(exemplar=exemplar)


def newest(directory: str) -> dict[Series, Exemplar]:
    """The newest exemplar of every series, over all processes that run."""
    found: dict[Series, Exemplar] = {}
    for path in Path(directory).glob(f"{_PREFIX}*{_SUFFIX}"):
        try:
            with path.open("rb") as file:
                head = file.read(_USED.size).ljust(_USED.size, b"\0")  # it may have just been made
                table = file.read(max(_USED.unpack(head)[0] - _USED.size, 0))
        except FileNotFoundError:  # its process has ended meanwhile
            continue
        for series, exemplar in _entries(table):
            known = found.get(series)
            if known is None or _at(known) <= _at(exemplar):
                found[series] = exemplar
    return found


def _at(exemplar: Exemplar) -> float:
    return float(exemplar.timestamp or 0)


def _entries(table: bytes) -> Iterator[tuple[Series, Exemplar]]:
    place = 0
    while place + _LENGTH.size < len(table):
        begin = place + _LENGTH.size
        body = begin + _LENGTH.unpack_from(table, place)[0]
        place = body + _SLOT_BYTES
        if not begin < body or place > len(table):
            return
        key, crc = table[begin:body], table[place - _CRC_BYTES : place]
        if int.from_bytes(crc, "little") != zlib.crc32(table[body : place - _CRC_BYTES], zlib.crc32(key)):
            continue
        at, value, call = _BODY.unpack_from(table, body)
        _, name, labels, _ = json.loads(key)
        yield (name, frozenset(labels.items())), Exemplar(labels_of(UUID(bytes=call)), value, at)


def drop_dead(directory: str) -> None:
    """Remove the files of processes that have ended, as `multiprocess.mark_process_dead` does with live gauges."""
    for path in Path(directory).glob(f"{_PREFIX}*{_SUFFIX}"):
        if not Path(f"/proc/{path.stem.removeprefix(_PREFIX)}").exists():
            path.unlink(missing_ok=True)
