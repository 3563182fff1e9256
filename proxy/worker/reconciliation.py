"""Once a day: the ledger's tokens against what CloudWatch metered, with what explains the differences."""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy import telemetry
from proxy.domain.reconciling import KINDS, Booked, Line, Metered, by_age, compare

log = logging.getLogger("tollhouse.reconciliation")

_COLUMNS = ("day", "region", "model id", "kind", "ledger", "CloudWatch", "difference", "unknown", "verdict")


class Ledger(Protocol):
    async def booked(self, first: dt.date, last: dt.date) -> list[Booked]:
        """Tokens by target and UTC day, both days included. Raises `BankAway`."""
        ...


class Meter(Protocol):
    async def tokens(
        self, region: str, models: Sequence[str], since: dt.datetime, until: dt.datetime
    ) -> list[Metered]:
        """Sums by UTC day in [since, until). Raises `EvidenceAwayError`."""
        ...


@dataclass(slots=True)
class Reconciler:
    """Compares the last `days` whole UTC days."""

    ledger: Ledger
    meter: Meter
    days: int
    clock: Callable[[], dt.datetime] = field(default=lambda: dt.datetime.now(dt.UTC))

    async def report(self) -> list[Line]:
        """Raises `BankAway` and `EvidenceAwayError`. Models that never went through the proxy are not asked
        for: they have no line.
        """
        today = self.clock().date()
        first, last = today - dt.timedelta(days=self.days), today - dt.timedelta(days=1)
        booked = await self.ledger.booked(first, last)
        models: dict[str, set[str]] = defaultdict(set)
        for one in booked:
            models[one.region].add(one.model_id)
        since = dt.datetime.combine(first, dt.time(), dt.UTC)
        until = dt.datetime.combine(today, dt.time(), dt.UTC)
        metered: list[Metered] = []
        for region, names in sorted(models.items()):
            metered += await self.meter.tokens(region, sorted(names), since, until)
        return compare(booked, metered, today)

    async def nightly(self) -> None:
        """Report to the log and the metrics."""
        lines = await self.report()
        for age, kinds in by_age(lines).items():
            for kind, tokens in kinds.items():
                telemetry.UNEXPLAINED.labels(age, kind).set(tokens)
        odd = [line for line in lines if line.verdict == "unexplained"]
        for line in odd:
            log.warning(
                "%s %s in %s: the ledger has %d %s tokens, CloudWatch %d",
                line.day, line.model_id, line.region, line.ledger, line.kind, line.cloudwatch,
            )  # fmt: skip
        log.info("reconciled %d sums, %d differ without a reason", len(lines), len(odd))


def as_json(lines: Sequence[Line]) -> str:
    rows = [
        {
            "day": str(line.day), "age_days": line.age_days, "region": line.region, "model_id": line.model_id,
            "kind": line.kind, "ledger": line.ledger, "cloudwatch": line.cloudwatch,
            "difference": line.difference, "unknown_attempts": line.unknown,
            "unexplained": line.unexplained, "verdict": line.verdict,
        }
        for line in lines
    ]  # fmt: skip
    body: dict[str, Any] = {"lines": rows, "unexplained_by_age": by_age(lines)}
    return json.dumps(body, indent=2)


def as_table(lines: Sequence[Line]) -> str:
    rows: list[Sequence[str]] = [_COLUMNS]
    rows += [
        (str(x.day), x.region, x.model_id, x.kind, f"{x.ledger:,}", f"{x.cloudwatch:,}", f"{x.difference:+,}",
         str(x.unknown), x.verdict)
        for x in lines
    ]  # fmt: skip
    widths = [max(len(row[n]) for row in rows) for n in range(len(_COLUMNS))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    text += ["", "unexplained tokens by age"]
    for age, kinds in by_age(lines).items():
        text.append(f"{age:<10}" + "".join(f"  {kind} {kinds[kind]:,}" for kind in KINDS))
    return "\n".join(text)
