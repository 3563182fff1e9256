"""The long form of the fuzzers: `make fuzz`, or `python -m tests.fuzz.run --executions 1000000 sse keys`.

With `atheris` in the interpreter (it need not be in the lock) a target is driven by coverage, otherwise by
our own mutations of the corpus. Inputs that break a promise are kept in the corpus of their target, so that
the tests run them from then on. Ends with a line of counts per target, and with 1 when something was found.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import multiprocessing
import random
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

from tests.fuzz.targets import CORPUS, TARGETS, Target

HANG_SECONDS = 1.0
FINDINGS_MAX = 20


@dataclass(slots=True)
class Count:
    name: str
    executions: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    findings: int = 0

    def __str__(self) -> str:
        rate = self.executions / self.seconds if self.seconds else 0
        return (
            f"{self.name:<13}{self.executions:>12,} executions in {self.seconds:>7.1f} s ({rate:>9,.0f}/s), "
            f"slowest {self.slowest * 1000:6.1f} ms, {self.findings} findings"
        )


def keep(target: Target, data: bytes) -> None:
    name = hashlib.sha256(data).hexdigest()[:16]
    (CORPUS / target.name / f"found-{name}").write_bytes(data)


def drive(name: str, executions: int, seconds: float, seed: int) -> Count:
    """Until so many executions or seconds are over."""
    target, chance, count = TARGETS[name], random.Random(seed), Count(name)
    seeds, began = target.seeds(), time.monotonic()
    seen: set[tuple[str, int | None]] = set()
    for _ in range(executions):
        if count.executions % 256 == 0 and time.monotonic() - began > seconds:
            break
        data = target.mutate(chance, seeds)
        count.executions += 1
        started = time.thread_time()
        try:
            target.run(data)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            if (place.filename, place.lineno) not in seen and len(seen) < FINDINGS_MAX:
                seen.add((place.filename, place.lineno))
                keep(target, data)
                print(
                    f"{name}: {type(error).__name__} at {place.filename}:{place.lineno}: {error}\n  {data!r}",
                    file=sys.stderr,
                )
        taken = time.thread_time() - started
        count.slowest = max(count.slowest, taken)
        if taken > HANG_SECONDS:
            seen.add(("hang", 0))
            keep(target, data)
    count.findings, count.seconds = len(seen), time.monotonic() - began
    return count


def drive_atheris(atheris: Any, name: str, executions: int, seconds: float) -> None:
    """Does not return: libFuzzer ends the process."""
    target = TARGETS[name]
    arguments = [
        "fuzz",
        f"-runs={executions}",
        f"-max_total_time={int(seconds)}",
        "-timeout=2",
        str(CORPUS / name),
    ]
    atheris.instrument_all()
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=[], help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="most time of one target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--atheris", action="store_true", help="by coverage, one target; needs the package atheris"
    )
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")
    if options.atheris:
        drive_atheris(importlib.import_module("atheris"), names[0], options.executions, options.seconds)
    print(f"seed {options.seed}")
    jobs = [(name, options.executions, options.seconds, options.seed) for name in names]
    findings = 0
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        for result in [pool.apply_async(drive, job) for job in jobs]:
            count = result.get()
            findings += count.findings
            print(count, flush=True)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
