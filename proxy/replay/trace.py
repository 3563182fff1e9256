"""Read a trace: when each request came, and how large it and its answer were."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from proxy.errors import ConfigurationError

REQUIRED = ("t_s", "input_tokens", "output_tokens")
_TOKENS_MAX = 10_000_000
_PROBLEMS_SHOWN = 5
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a trace."""

    #: seconds since the first request of the trace
    at_s: float
    input_tokens: int
    output_tokens: int
    #: the trace's own name of the model, empty where it has none
    model: str = ""
    #: who sent it, empty where the trace does not say
    client: str = ""
    #: rows with the same one have the same text, empty where every text is its own
    prompt_id: str = ""


def read(path: Path, limit: int | None = None) -> list[Row]:
    """The first `limit` rows (None: all) in the order of time, the first at 0 s.

    CSV with a header, gzip or plain; columns it does not know are ignored. Raises
    `ConfigurationError` naming the file and the line of every row that makes no sense (the first
    few), a missing column, an empty trace or a file that cannot be read.
    """
    try:
        text = _text(path)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    reader = csv.DictReader(text, skipinitialspace=True)
    missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
    if missing:
        raise ConfigurationError(f"{path}:1: no column {', '.join(missing)}")
    rows: list[Row] = []
    problems: list[str] = []
    for line, record in islice(_records(path, reader), limit):
        try:
            rows.append(_row(record))
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
            if len(problems) == _PROBLEMS_SHOWN:
                break
    if problems:
        raise ConfigurationError("\n".join(problems))
    if not rows:
        raise ConfigurationError(f"{path}: no requests in it")
    rows.sort(key=lambda row: row.at_s)
    first = rows[0].at_s
    return [
        Row(r.at_s - first, r.input_tokens, r.output_tokens, r.model, r.client, r.prompt_id) for r in rows
    ]


def _text(path: Path) -> io.StringIO:
    data = path.read_bytes()
    if data.startswith(_GZIP):
        data = gzip.decompress(data)
    return io.StringIO(data.decode("utf-8-sig"), newline="")


def _records(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    try:
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise ConfigurationError(f"{path}:{reader.line_num}: {error}") from None


def _row(record: dict[str, str | None]) -> Row:
    """Raises ValueError saying what is wrong."""
    given = record.get("t_s") or ""
    try:
        at = float(given)
    except ValueError:
        raise ValueError(f"t_s is {given!r}, not a number of seconds") from None
    if not math.isfinite(at) or at < 0:
        raise ValueError(f"t_s is {given!r}, not a time after the first request")
    return Row(
        at,
        _tokens(record, "input_tokens"),
        _tokens(record, "output_tokens"),
        record.get("model") or "",
        record.get("client") or "",
        record.get("prompt_id") or "",
    )


def _tokens(record: dict[str, str | None], name: str) -> int:
    given = (record.get(name) or "").strip()
    if not (given.isascii() and given.isdigit()):
        raise ValueError(f"{name} is {given!r}, not a whole number of tokens")
    if len(given) > len(str(_TOKENS_MAX)) or int(given) > _TOKENS_MAX:
        raise ValueError(f"{name} is {given}, more than {_TOKENS_MAX}")
    return int(given)
