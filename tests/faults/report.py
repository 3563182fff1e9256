"""`python -m tests.faults.report FILE...`: results of runs (`--json`) as the table of docs/reliability.md."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

#: first words of round names -> how the table calls them, in its order
KINDS = (
    ("kills at random", "SIGKILL of a worker at random, its recorder read first"),
    ("kills unseen", "SIGKILL of a worker at random, unseen"),
    ("whole server", "SIGKILL of the whole server"),
    ("fail points", "SIGKILL at named steps of a call"),
    ("recovery_", "SIGKILL in the middle of a recovery"),
    ("replay killed", "SIGKILL while settlements wait for Postgres"),
    ("exactly 100", "500 callers, room for exactly 100"),
    ("edge", "40 callers, room for 8, all the time"),
    ("limit lowered", "limit lowered below what is committed"),
    ("period turns", "period ends with calls open"),
    ("price turns", "price changes with calls open"),
    ("clients leave", "clients leave at every byte"),
    ("retry storm", "retry storm on a spent budget"),
    ("clock", "clock of a replica ±1 h, ±40 d"),
    ("start with a wrong", "start with a wrong clock"),
    ("disk full", "flight recorder's disk full"),
    ("hot row", "one row, four workers, locks and a long snapshot"),
    ("upstream", "Bedrock: every class of failure, cut, unreachable"),
    ("machine lost", "machine lost with its disk"),
    ("zombies", "SIGSTOP past the sweeper, then SIGCONT"),
    ("Redis", "Redis killed, frozen, emptied, set back"),
    ("Postgres", "Postgres restarted, frozen, gone, slow, sessions ended"),
    ("answers of Postgres", "Postgres commits, its answer is lost"),
)
FAILING = " fails"
COLUMNS = ("kills", "calls", "attempts", "POST", "VOID", "CEILING")


def kind_of(name: str) -> str:
    if name.endswith(FAILING):
        return "named steps fail with an I/O error"
    return next((title for start, title in KINDS if name.startswith(start)), name)


def table(results: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: one row a kind of fault, and the sum."""
    sums: dict[str, Counter[str]] = {}
    for result in results:
        for played in result["rounds"]:
            row = sums.setdefault(kind_of(played["round"]), Counter())
            row["rounds"] += 1
            row["wrong"] += len(played["violations"])
            for column in COLUMNS:
                row[column] += played.get(column, 0)
    order = [title for _, title in KINDS]
    titles = sorted(sums, key=lambda title: order.index(title) if title in order else len(order))
    lines = [
        "| fault | rounds | kills | calls | attempts | POST | VOID | CEILING | violations |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    total: Counter[str] = Counter()
    for title in titles:
        total.update(sums[title])
        lines.append(_line(title, sums[title]))
    return [*lines, _line("**sum**", total)]


def _line(title: str, row: Counter[str]) -> str:
    numbers = [row["rounds"], *(row[column] for column in COLUMNS), row["wrong"]]
    return f"| {title} | " + " | ".join(f"{number:,}" for number in numbers) + " |"


def facts(results: list[dict[str, Any]]) -> str:
    """Seeds, versions and time."""
    summaries = [result["summary"] for result in results]
    seeds = sorted({str(s["seed"]) for s in summaries})
    starts = [s["restart_seconds_median"] for s in summaries]
    first = summaries[0]
    return (
        f"Seeds {', '.join(seeds)}; Python {first['python']}, Postgres {first['postgres']}, Valkey {first['valkey']}, "
        f"Linux {first['kernel']}; {sum(s['seconds'] for s in summaries) / 60:.0f} minutes; start of the whole "
        f"server to ready {min(starts):.1f} to {max(starts):.1f} s (medians of its runs)."
    )


def main() -> int:
    results = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    if not results:
        print(__doc__, file=sys.stderr)
        return 2
    print("\n".join([facts(results), "", *table(results)]))
    return int(any(played["violations"] for result in results for played in result["rounds"]))


if __name__ == "__main__":
    sys.exit(main())
