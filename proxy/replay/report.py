"""Compare the ledger with the bill, call by call, and lay the result out. Pure: no I/O, no clock.

The join is on Bedrock's own request id, which the bill and the ledger learnt independently. Money
is compared as integer nano-dollars (1e-9 USD), tokens as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

_DIFFERENCES_SHOWN = 20
_USD = re.compile(r"-?[0-9]{1,12}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the ledger: one sending of a call upstream, or one cache hit."""

    call: str
    attempt: str
    tenant: str
    outcome: str
    #: Bedrock's request id, empty where none was seen
    request_id: str
    #: input, output, cache read, cache write
    tokens: tuple[int, int, int, int]
    #: what the tenant pays; 0 while OPEN
    cost_nano: int
    #: what AWS bills for it by the ledger's account
    upstream_nano: int


@dataclass(frozen=True, slots=True)
class Billed:
    """One generation on the simulator's bill."""

    request_id: str
    tokens: tuple[int, int, int, int]
    cost_nano: int
    #: ids that the proxy stamped as request metadata, empty where there are none
    call: str = ""
    attempt: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing on which ledger and bill do not agree."""

    kind: str
    #: the id to look it up by
    what: str
    detail: str
    tenant: str = ""


@dataclass(slots=True)
class Comparison:
    """The outcome of the join; `compared` calls were found on both sides."""

    compared: int = 0
    #: bill in nano-dollars by tenant, of the bill rows that belong to this run
    billed_nano: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)


def nano(usd: object) -> int:
    """Nano-dollars of a decimal string in USD of at most nine decimals, exactly.

    Raises ValueError for anything else, a JSON number included.
    """
    if not isinstance(usd, str) or not _USD.fullmatch(usd):
        raise ValueError(f"{usd!r} is not a decimal string of USD")
    return int(Decimal(usd).scaleb(9))


def entry(item: Mapping[str, Any]) -> Entry:
    """An item of `GET /admin/v1/calls`. Raises KeyError or ValueError when it is not of that shape."""
    usage = item["usage"]
    cost = 0 if item["cost_usd"] is None else nano(item["cost_usd"])
    upstream = item.get("upstream_cost_usd")
    return Entry(
        call=item["id"],
        attempt=item["attempt"],
        tenant=item["tenant"],
        outcome=item["outcome"],
        request_id=item["upstream_request_id"] or "",
        tokens=(
            usage["input_tokens"],
            usage["output_tokens"],
            usage["cache_read_tokens"],
            usage["cache_write_tokens"],
        ),
        cost_nano=cost,
        upstream_nano=cost if upstream is None else nano(upstream),
    )


def billed(item: Mapping[str, Any]) -> Billed:
    """A call of `GET /_bill`. Raises KeyError or ValueError when it is not of that shape."""
    metadata = item.get("metadata") or {}
    return Billed(
        request_id=item["request_id"],
        tokens=(
            item["input_tokens"],
            item["output_tokens"],
            item.get("cache_read_tokens", 0),
            item.get("cache_write_tokens", 0),
        ),
        cost_nano=nano(item["cost_usd"]),
        call=metadata.get("tollhouse-call", ""),
        attempt=metadata.get("tollhouse-attempt", ""),
    )


def compare(entries: Sequence[Entry], bill: Iterable[Billed]) -> Comparison:
    """Join the run's ledger with the bill since the run began.

    A bill row that no entry claims is a difference; the caller leaves out what other traffic owns.
    An entry without a bill row is one when it is charged: VOID and HIT cost AWS nothing.
    """
    result = Comparison()
    by_request = {e.request_id: e for e in entries if e.request_id and e.outcome != "HIT"}
    by_attempt = {e.attempt: e for e in entries if e.outcome != "HIT"}
    met: set[str] = set()
    for row in bill:
        found = by_request.get(row.request_id) or by_attempt.get(row.attempt)
        if found is None:
            result.differences.append(
                Difference("billed, not in the ledger", row.request_id, _money(row.cost_nano))
            )
        elif found.attempt in met:
            result.billed_nano[found.tenant] += row.cost_nano
            result.differences.append(
                Difference(
                    "billed twice for one attempt", row.request_id, _money(row.cost_nano), found.tenant
                )
            )
        else:
            met.add(found.attempt)
            result.compared += 1
            result.billed_nano[found.tenant] += row.cost_nano
            result.differences.extend(_differences(found, row))
    for e in entries:
        if e.outcome == "OPEN":
            result.differences.append(Difference("still open", e.attempt, e.request_id, e.tenant))
        elif e.outcome not in {"HIT", "VOID"} and e.attempt not in met:
            what = e.request_id or e.attempt
            detail = f"{e.outcome} {_money(e.upstream_nano)}"
            result.differences.append(Difference("in the ledger, not billed", what, detail, e.tenant))
    return result


def _differences(e: Entry, row: Billed) -> list[Difference]:
    if e.outcome == "OPEN":  # reported once, as still open
        return []
    found = []
    what = row.request_id
    if e.request_id != row.request_id:
        detail = f"{e.outcome}, the ledger has {e.request_id or 'none'}"
        found.append(Difference("different request id", what, detail, e.tenant))
    if e.tokens != row.tokens:
        detail = f"{e.outcome}, ledger {_units(e.tokens)}, bill {_units(row.tokens)}"
        found.append(Difference("different tokens", what, detail, e.tenant))
    if e.upstream_nano != row.cost_nano:
        detail = f"{e.outcome}, ledger {_money(e.upstream_nano)}, bill {_money(row.cost_nano)}"
        found.append(Difference("different cost", what, detail, e.tenant))
    return found


def unrecorded(answered: Mapping[str, str], entries: Iterable[Entry]) -> list[Difference]:
    """Whole answers that a client has seen (call id to tenant) and that have no row in the ledger."""
    known = {e.call for e in entries}
    return [
        Difference("answered, not in the ledger", call, "", tenant)
        for call, tenant in answered.items()
        if call not in known
    ]


def ledger_table(
    tenants: Sequence[str],
    counts: Mapping[str, Mapping[str, int]],
    entries: Iterable[Entry],
    billed_nano: Mapping[str, int] | None,
) -> list[str]:
    """One line a tenant and their sum. `counts`: tenant to `answered`, `refused`, `failed`.

    Tokens and money are those of the ledger; cache hits count as calls, not as tokens.
    """
    sums = {name: Counter[str](counts.get(name, {})) for name in tenants}
    for e in entries:
        row = sums.setdefault(e.tenant, Counter())
        row["rows"] += 1
        row["hits"] += e.outcome == "HIT"
        if e.outcome != "HIT":
            row["input"] += e.tokens[0] + e.tokens[2] + e.tokens[3]
            row["output"] += e.tokens[1]
        row["cost"] += e.cost_nano
        row["upstream"] += e.upstream_nano
    head = ["tenant", "calls", "answered", "refused", "failed", "cache hits", "input tokens", "output tokens",
            "ledger USD"]  # fmt: skip
    if billed_nano is not None:
        head += ["bill USD", "difference"]
    lines = [head]
    lines += [_line(name, row, (billed_nano or {}).get(name, 0), billed_nano) for name, row in sums.items()]
    total = sum(sums.values(), Counter[str]())
    lines.append(_line("all", total, sum((billed_nano or {}).values()), billed_nano))
    return aligned(lines)


def _line(name: str, row: Mapping[str, int], bill_nano: int, bill: object) -> list[str]:
    calls = row["answered"] + row["refused"] + row["failed"]
    numbers = (
        calls,
        row["answered"],
        row["refused"],
        row["failed"],
        row["hits"],
        row["input"],
        row["output"],
    )
    line = [
        name,
        *(f"{number:,}" for number in numbers),
        usd(row["upstream"] if bill is not None else row["cost"]),
    ]
    if bill is not None:
        line += [usd(bill_nano), usd(row["upstream"] - bill_nano)]
    return line


def difference_lines(differences: Sequence[Difference]) -> list[str]:
    """How many of each kind, then the first few with what is needed to look them up."""
    kinds = Counter(d.kind for d in differences)
    lines = [f"{count} {kind}" for kind, count in kinds.most_common()]
    shown = [[d.kind, d.tenant, d.what, d.detail] for d in differences[:_DIFFERENCES_SHOWN]]
    lines += [f"  {line}" for line in aligned(shown, numbers=False)]
    if len(differences) > len(shown):
        lines.append(f"  and {len(differences) - len(shown)} more")
    return lines


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = True) -> list[str]:
    """Columns of one width each; all but the first are right-aligned when they are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    out = []
    for row in rows:
        cells = [
            cell.rjust(width) if numbers and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return out


def usd(nano_dollars: int) -> str:
    """All nine decimals, so that what looks equal is equal."""
    sign, size = ("-", -nano_dollars) if nano_dollars < 0 else ("", nano_dollars)
    whole, part = divmod(size, 1_000_000_000)
    return f"{sign}{whole}.{part:09d}"


def _money(nano_dollars: int) -> str:
    return f"{usd(nano_dollars)} USD"


def _units(tokens: tuple[int, int, int, int]) -> str:
    return "/".join(map(str, tokens))
