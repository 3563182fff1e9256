"""Broken on purpose: copies of the source tree in which one rule of the money protocol does not hold.

Each must be caught by the rounds that guard the rule, within a bounded number of kills. A mutant that
no longer applies, because the code it breaks was rewritten, is an error and must be written anew.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults import rounds
from tests.faults.plan import Job
from tests.faults.world import REPOSITORY, rng_of, world

KILLS_MAX = 200
_PARTS = ("proxy", "migrations", "policies")


@dataclass(frozen=True)
class Mutant:
    """`breaks` says which rule. `edits` are (file, text that stands there once or more, text instead)."""

    name: str
    breaks: str
    edits: tuple[tuple[str, str, str], ...]
    #: rounds that are to catch it, in order
    guards: tuple[str, ...]


_BANK = "proxy/postgres/sql/bank.sql"
MUTANTS = (
    Mutant(
        "release on expiry", "a reservation that may have been sent is never released by the clock",
        (("proxy/postgres/sql/sweep.sql", "s_state => array_fill(3::smallint", "s_state => array_fill(2::smallint"),),
        ("machine lost",),
    ),
    Mutant(
        "no unique key", "a retried admission meets its first try",
        (
            ("migrations/versions/0001_the_bank.py", "  PRIMARY KEY (attempt),\n  CONSTRAINT attempts_bounds",
             "  CONSTRAINT attempts_bounds"),
            ("migrations/versions/0001_the_bank.py", "length(upstream_request_id) <= 200)\n) PARTITION BY RANGE (attempt);",
             ("length(upstream_request_id) <= 200)\n) PARTITION BY RANGE (attempt);\n"
              "CREATE INDEX attempts_by_id ON attempts (attempt);")),
            (_BANK, "ON CONFLICT (attempt) DO NOTHING RETURNING attempt, ceiling, holds",
             "RETURNING attempt, ceiling, holds"),
        ),
        ("answers of Postgres lost",),
    ),
    Mutant(
        "hidden second send", "every sending is an attempt of its own",
        (("proxy/bedrock/client.py", "        connection = pool.reuse(place) or await _opened(pool, place)\n",
          ("        connection = pool.reuse(place) or await _opened(pool, place)\n        try:\n"
          "            return await _sent(pool, connection, head, request)\n        except UpstreamFailure:\n"
          "            connection = await _opened(pool, place)\n")),),
        ("kills at random",),
    ),
    Mutant(
        "check, then add", "admission decides on rows that it has locked",
        ((_BANK, "a.id = k.id FOR NO KEY UPDATE) AS l", "a.id = k.id) AS l"),
         (_BANK, "a.id = k.id FOR NO KEY UPDATE SKIP LOCKED) AS l", "a.id = k.id) AS l"),
         ("proxy/postgres/sql/swift.sql",
          "AND a.reserved + v_take[array_position(v_lock, a.id)] + a.settled + a.overrun\n",
          ("AND (SELECT b.reserved + b.settled + b.overrun FROM accounts b WHERE b.id = a.id)"
           " + v_take[array_position(v_lock, a.id)]\n"))),
        ("edge of a budget",),
    ),
    Mutant(
        "SENT after the send", "what is about to be sent is written down first",
        (("proxy/exchange.py", "                self.reservation.sending(attempt)\n", ""),
         ("proxy/exchange.py", "                self.first_byte_at = time.monotonic()\n",
          "                self.reservation.sending(attempt)\n                self.first_byte_at = time.monotonic()\n")),
        ("kills at random",),
    ),
    Mutant(
        "records kept in memory", "a record is in the kernel before the next step",
        (("proxy/recorder.py",
          "            window[at + 1 : end - self._base] = record[1:]\n            window[at] = kind\n",
          ("            _KEPT.append((window, at, record))\n            if len(_KEPT) > 40:\n"
          "                for kept, where, what in _KEPT:\n"
          "                    kept[where : where + len(what)] = what\n                _KEPT.clear()\n")),
         ("proxy/recorder.py", "            self._window.close()\n        self._window, self._base",
          "            pass\n        self._window, self._base"),
         ("proxy/recorder.py", 'SUFFIX = ".flight"\n', 'SUFFIX = ".flight"\n_KEPT: list[tuple[mmap.mmap, int, bytes]] = []\n')),
        ("kills at random",),
    ),
    Mutant(
        "the end before the money", "who has seen the end of an answer finds its row",
        (("proxy/exchange.py", "            await self.reservation.resolve(ending.settlement)\n",
          ("            await self._deliver(ending)\n            await asyncio.sleep(0.02)\n"
          "            await self.reservation.resolve(ending.settlement)\n            return\n")),),
        ("kills at random",),
    ),
    Mutant(
        "the wreck cleared away first", "a flight recorder is deleted when everything in it is settled",
        (("proxy/worker/recovery.py", "            resolved = await _resolve(bank, path, wreck)\n",
          ('            path.unlink(missing_ok=True)\n            failpoints.reach("recovery_settled")\n'
          "            resolved = await _resolve(bank, path, wreck)\n")),),
        ("recovery_settled",),
    ),
)  # fmt: skip


@contextmanager
def copy(mutant: Mutant, source: Path = REPOSITORY) -> Iterator[Path]:
    """A copy of the source tree with the mutant in it. Raises ValueError when it does not apply."""
    with tempfile.TemporaryDirectory(prefix="tollhouse-mutant-") as place:
        root = Path(place)
        for part in _PARTS:
            shutil.copytree(source / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name, old, new in mutant.edits:
            text = (root / name).read_text(encoding="utf-8")
            if old not in text:
                raise ValueError(f"the mutant {mutant.name!r} does not apply to {name} any more")
            (root / name).write_text(text.replace(old, new), encoding="utf-8")
        yield root


async def hunt(mutant: Mutant, seed: int, jobs: list[Job]) -> str | None:
    """What caught it, None when it lived through every guard or through 200 kills."""
    kills = 0
    with copy(mutant) as root:
        async with world(root) as made:
            for job in (job for name in mutant.guards for job in jobs if job.name.startswith(name)):
                try:
                    verdict = await rounds.play(made, rng_of(seed, job.name), job.turn(), job.storm, job.mix)
                except (AssertionError, OSError) as error:
                    return f"{job.name} did not end: {error}"[:150]
                kills += verdict.counts["kills"]
                if verdict.violations:
                    return f"{job.name} after {kills} kills: {verdict.violations[0]}"
                if kills >= KILLS_MAX:
                    break
    return None


async def hunt_all(seed: int, jobs: list[Job], only: str = "") -> tuple[int, int]:
    """(caught, put in). Prints one line for each."""
    caught = 0
    wanted = [mutant for mutant in MUTANTS if only.lower() in mutant.name.lower()]
    for mutant in wanted:
        how = await hunt(mutant, seed, jobs)
        caught += how is not None
        print(f"{'caught ' if how else 'MISSED '} {mutant.name:<28} {how or mutant.breaks}"[:220], flush=True)
        await asyncio.sleep(0)
    return caught, len(wanted)
