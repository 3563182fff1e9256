"""The words of reports: what usage is grouped by, what is summed, and statements.

Money is integer nano-dollars. A day is a local day of its tenant.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: prefix of the key that groups by the value of one tag of the calls
TAG = "tag:"
GROUPS = (*("tenant", "project", "key", "model", "target", "tags", "operation", "outcome", "day", "month"),)
#: of `cost`, the terminal entries are what `refunded`, `adjusted` and `overrun` leave
SUMS = (
    *("attempts", "cost", "upstream_cost", "saved", "refunded", "adjusted", "overrun"),
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "images"),
    "guardrail_units",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A tenant's calendar month: its first day, and its bounds as moments."""

    first: dt.date
    since: dt.datetime
    until: dt.datetime
    #: it has ended by the database's clock
    over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A statement as it was issued. `total` = `usage` + `corrections`."""

    month: dt.date
    issued_at: dt.datetime
    issued_by: str
    usage: int
    corrections: int
    total: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A statement of a month as the ledger stands now.

    `corrections` are changes to earlier issued months since they were issued: so the totals of all
    issued statements are what the ledger says of their months, though no statement ever changes.
    """

    month: Month
    #: sums by project, key and model
    lines: Sequence[Mapping[str, Any]]
    usage: int
    corrections: int
    #: attempts of the month that are not resolved yet, and the most they can still cost
    open_attempts: int
    open_ceiling: int

    @property
    def total(self) -> int:
        return self.usage + self.corrections
