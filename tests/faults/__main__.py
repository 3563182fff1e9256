"""`python -m tests.faults`: plays a form and prints what came of it. Exit 1 when anything was wrong.

--form ci|full|soak what to play (see plan.py and soak.py)
--hours H           how long the soak lasts
--seed N            the schedule; the same seed plays the same schedule
--only TEXT         only rounds whose name contains it
--root DIR          the source tree under test
--mutants           break the program in every known way instead: each must be caught, by the rounds that
                    guard the rule, with --form ci in the size that CI plays
--json FILE         the result as JSON, for the table in docs/reliability.md
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults import mutants, plan, rounds, soak
from tests.faults.oracle import Verdict
from tests.faults.plan import Job
from tests.faults.world import REPOSITORY, World, rng_of, world

_SHOWN = 12


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="Faults, and what must survive them."
    )
    parser.add_argument("--form", choices=[*plan.FORMS, "soak"], default="full")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--root", type=Path, default=REPOSITORY)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mutants", action="store_true")
    options = parser.parse_args()
    if options.mutants:
        jobs = plan.ci() if options.form == "ci" else plan.guards()
        caught, put_in = asyncio.run(mutants.hunt_all(options.seed, jobs, options.only))
        print(f"{caught} of {put_in} mutants were caught")
        return int(caught < put_in)
    if options.form != "soak" and not wanted(options):
        parser.error(f"no round is called {options.only!r}")
    return asyncio.run(run(options))


def wanted(options: argparse.Namespace) -> list[Job]:
    """The rounds of a form, less those that `--only` leaves out."""
    return [job for job in plan.FORMS[options.form]() if options.only.lower() in job.name.lower()]


async def run(options: argparse.Namespace) -> int:
    began, total, results = time.monotonic(), Verdict(), []
    async with world(options.root) as made:
        rounds_of = soak_of(made, options, total) if options.form == "soak" else each_of(made, options)
        async for result in rounds_of:
            results.append(result)
            total.add(result["verdict"])
        total.violations += await whole_ledger(made)
        facts = await versions(made)
        for note in made.notes:
            print(f"note: {note}")
    seconds = time.monotonic() - began
    summary = {
        "form": options.form,
        "seed": options.seed,
        "seconds": round(seconds),
        **facts,
        **shown(total.counts),
    }
    print(json.dumps(summary, indent=1))
    if options.json is not None:
        told = [
            {"round": r["name"], "violations": r["verdict"].violations, **shown(r["verdict"].counts)}
            for r in results
        ]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"summary": summary, "rounds": told}, indent=1) + "\n")
    if total.violations:
        print(f"{len(total.violations)} violations", file=sys.stderr)
    return 1 if total.violations else 0


async def each_of(made: World, options: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    for job in wanted(options):
        yield await one(made, job, options)


async def soak_of(made: World, options: argparse.Namespace, total: Verdict) -> AsyncIterator[dict[str, Any]]:
    """Round after round until the time is over, with a look at memory and files after each."""
    schedule, growth, number = soak.Schedule(options), soak.Growth(), 0
    while not schedule.over:
        job, number = schedule.next(), number + 1
        yield await one(made, replace(job, name=f"{job.name} #{number}"), options)
        growth.look(made)
        total.violations += await whole_ledger(made)
    print("\n".join(growth.told()))
    total.violations += growth.wrong()


async def one(made: World, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Plays one round and tells what came of it; a crash of the round itself is a violation too."""
    began = time.monotonic()
    try:
        verdict = await rounds.play(made, rng_of(options.seed, job.name), job.turn(), job.storm, job.mix)
    except Exception as error:
        verdict = Verdict([f"the round did not end: {type(error).__name__}: {error}"])
        await recover(made)
    counts = verdict.counts
    print(
        f"{'ok  ' if not verdict.violations else 'FAIL'} {job.name:<28} {time.monotonic() - began:6.1f} s  "
        f"kills {counts['kills']:>4}  calls {counts['calls']:>6}  POST {counts['POST']:>6}  VOID {counts['VOID']:>4}  "
        f"CEILING {counts['CEILING']:>4}", flush=True,
    )  # fmt: skip
    for violation in verdict.violations[:_SHOWN]:
        print(f"     {violation}")
    if len(verdict.violations) > _SHOWN:
        print(f"     and {len(verdict.violations) - _SHOWN} more")
    if verdict.violations:
        print(
            f"     replay: python -m tests.faults --form {options.form} --seed {options.seed} --only '{job.name}'"
        )
    return {"name": job.name, "verdict": verdict}


async def recover(made: World) -> None:
    """A tree that serves, whatever the last round left."""
    await made.tree.kill(look=False)
    for server in (made.postgres, made.valkey):
        if server.running:
            server.resume()
        else:
            await asyncio.to_thread(server.restart)
    await made.tree.start()


async def whole_ledger(made: World) -> list[str]:
    """The product's own invariants over everything at the end."""
    rows = await made.rows("SELECT * FROM check_invariants('-infinity')")
    return [f"check_invariants: {row['invariant']} {row['subject']}: {row['detail']}" for row in rows]


async def versions(made: World) -> dict[str, Any]:
    postgres = (await made.rows("SHOW server_version"))[0][0]
    starts = sorted(made.tree.starts)
    return {
        "python": platform.python_version(),
        "postgres": postgres,
        "valkey": await asyncio.to_thread(made.valkey_version),
        "kernel": platform.release().partition("-")[0],
        "restart_seconds_median": round(starts[len(starts) // 2], 2),
        "restart_seconds_longest": round(starts[-1], 2),
    }


def shown(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts)}


if __name__ == "__main__":
    sys.exit(main())
