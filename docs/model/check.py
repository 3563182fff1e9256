"""Check the model of the money protocol: the protocol passes, and every mutant of it is caught.

    python docs/model/check.py               the usual scopes
    python docs/model/check.py --deep        larger ones, minutes and gigabytes
    python docs/model/check.py --show NAME   the steps by which a mutant loses money

Needs Spin (Debian's `spin`) and a C compiler. Exit code 0: all as it must be; 1: something is not;
2: a tool is missing. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("admit.pml")
_SECONDS = 600
#: pan's options: a search deeper than this would be an error, not an omission
_DEPTH = "-m10000"
_OPTIMIZE = {True: "-O1", False: "-O0"}
_CC_FLAGS = ("-w", "-DSAFETY", "-DNOFAIR", "-DNOCOMP")

SAFE, MUTANT, WITNESS = "protocol", "mutant", "witness"


@dataclass(frozen=True, slots=True)
class Case:
    """One run of Spin: flags of the model, and what it shows."""

    name: str
    kind: str
    about: str
    attempts: int = 2
    faults: int = 2

    @property
    def flags(self) -> list[str]:
        scope = [f"-DATTEMPTS={self.attempts}", f"-DFAULTS={self.faults}"]
        if self.kind == SAFE:
            return scope
        return [*scope, f"-D{self.name}", *(["-DMONEY_ONLY"] if self.kind == MUTANT else [])]


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    #: it came out as it must
    good: bool
    #: what was violated, or what went wrong
    found: str
    states: int
    seconds: float


def _safe(attempts: int, faults: int) -> Case:
    return Case(f"{attempts} attempts, {faults} faults", SAFE, "every rule holds", attempts, faults)


PROTOCOL = (_safe(2, 2), _safe(3, 0))
DEEP = (_safe(3, 1), _safe(2, 3))
MUTANTS = tuple(
    Case(name, MUTANT, about, *scope)
    for name, about, *scope in (
        ("RELEASE_ON_EXPIRY", "the sweeper gives a reservation back"),
        ("CHECK_THEN_ADD", "admit looks for room first and takes it later", 3, 0),
        ("NO_UNIQUE_ATTEMPT", "a repeated admit reserves again"),
        ("NO_UNIQUE_ENTRY", "a repeated settle charges again"),
        ("SDK_RETRY", "the client library sends a second time"),
        ("SENT_AFTER_SEND", "SENT is recorded after sending"),
        ("SEND_WITHOUT_OK", "it is sent before admit has answered"),
        ("VOID_ON_SILENCE", "a call without an answer is voided"),
        ("LOST_TAIL", "a recorder that lost records voids by absence"),
        ("FRESH_FILE", "a recorder voids what another one recorded"),
        ("LATE_COMMIT", "a recovered worker's late admit is not swept"),
        ("REFUND_BY_ABSENCE", "a call that is not in the log is refunded"),
    )
)
WITNESSES = tuple(
    Case(name, WITNESS, about)
    for name, about in (
        ("WITNESS_DENIED", "a budget denies"),
        ("WITNESS_DUPLICATE", "an admit finds itself there, open"),
        ("WITNESS_LATE_COMMIT", "an admit commits after its worker's recovery"),
        ("WITNESS_REFUND", "a POST finds a CEILING"),
        ("WITNESS_END", "everything comes to an end"),
    )
)


def missing() -> list[str]:
    """The tools that are not here."""
    return [tool for tool in ("spin", "cc") if shutil.which(tool) is None]


def breaches() -> dict[int, str]:
    """What each numbered assertion of the model says, read from the model."""
    found = re.findall(r"assert\(0 == (\d+)\)\s*/\* (.*?) \*/", MODEL.read_text(encoding="utf-8"))
    return {int(number): words for number, words in found}


def run(case: Case) -> Result:
    """Search one case exhaustively, in a folder of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        try:
            text = _search(case, Path(folder))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = error.output or error.stderr or b""
            return Result(case, False, f"{error}\n{said.decode(errors='replace')}", 0, 0.0)
    states = re.search(r"(\d+) states, stored", text)
    return _judged(case, text, int(states[1]) if states else 0, time.monotonic() - began)


def _search(case: Case, folder: Path) -> str:
    _command(folder, "spin", "-a", *case.flags, str(MODEL))
    _command(folder, "cc", _OPTIMIZE[case.kind == SAFE], *_CC_FLAGS, "-o", "pan", "pan.c")
    return _command(folder, "./pan", _DEPTH)


def _command(folder: Path, *command: str) -> str:
    done = subprocess.run(  # noqa: S603 (fixed tools, our own flags)
        command, cwd=folder, capture_output=True, timeout=_SECONDS, check=True
    )
    return done.stdout.decode(errors="replace")


def _judged(case: Case, text: str, states: int, seconds: float) -> Result:
    whole = (
        "errors: 0" in text
        and "max search depth too small" not in text
        and "Search not completed" not in text
    )
    if case.kind == SAFE:
        return Result(case, whole, "" if whole else _breach(text), states, seconds)
    breach = _breach(text)
    proper = breach in breaches().values() if case.kind == MUTANT else breach == "reached"
    return Result(case, proper, breach or "NOT CAUGHT", states, seconds)


def _breach(text: str) -> str:
    """The violation in words, empty when there was none."""
    numbered = re.search(r"assertion violated \(0==(\d+)\)", text)
    if numbered:
        return breaches()[int(numbered[1])]
    if re.search(r"assertion violated 0 ", text):
        return "reached"
    other = re.search(r"pan:\d+: (.*)", text)
    return other[1] if other else ""


def check(cases: Sequence[Case], workers: int | None = None) -> Iterator[Result]:
    """Results in the order of the cases, as they come in."""
    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        yield from pool.map(run, cases)


def row(result: Result) -> str:
    case = result.case
    verdict = {SAFE: "passes", MUTANT: "caught", WITNESS: "seen"}[case.kind] if result.good else "FAILS"
    words = case.about if not result.found or result.found == "reached" else f"{case.about}: {result.found}"
    return f"{case.kind:<9} {case.name:<21} {verdict:<7} {result.states:>9,} states {result.seconds:>6.1f} s  {words}"


def show(name: str) -> int:
    """Print the steps of one counterexample."""
    case = next((c for c in (*MUTANTS, *WITNESSES) if c.name == name), None)
    if case is None:
        print(f"no mutant {name}; there are {', '.join(c.name for c in MUTANTS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        _search(case, Path(folder))
        shutil.copy(MODEL, folder)
        trail = Path(folder, f"{MODEL.name}.trail")
        print(_command(Path(folder), "spin", "-p", "-g", "-k", str(trail), *case.flags, MODEL.name))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the model of the money protocol.")
    parser.add_argument("--deep", action="store_true", help="larger scopes too: minutes, gigabytes")
    parser.add_argument("--show", metavar="MUTANT", help="print the steps by which it loses money")
    options = parser.parse_args(arguments)
    if absent := missing():
        print(
            f"the model was NOT checked: {' and '.join(absent)} not found (Debian: spin, gcc)",
            file=sys.stderr,
        )
        return 2
    if options.show:
        return show(options.show)
    good = True
    for result in check((*PROTOCOL, *(DEEP if options.deep else ()), *MUTANTS, *WITNESSES)):
        print(row(result), flush=True)
        good = good and result.good
    print("the protocol passes and every mutant is caught" if good else "NOT as it must be")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
