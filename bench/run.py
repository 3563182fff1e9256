"""`make bench`: Tollhouse beside what people use, in one run, alternating, on the same two cores.

python -m bench.run [--quick | --smoke] [--only tollhouse,nginx] [--output FILE]

Starts everything it needs and ends it. Writes `bench/results/<time>.json`, and from it the table and the
plot next to it; the full form also fills the tables of docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import contestants as field_of
from bench import forms, install, machine, measure, processes, report, servers
from bench.contestants import Contestant, NotStartedError, Place
from bench.forms import Form
from bench.measure import Figures
from bench.world import Bank, Tollhouse

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(slots=True)
class Session:
    """One run of the benchmark."""

    form: Form
    place: Place
    tollhouse: Tollhouse
    entrants: list[Contestant] = field(default_factory=list)
    results: Figures = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", file=sys.stderr, flush=True)

    def note(self, measurement: str, contestant: Contestant, figures: Figures) -> None:
        runs = self.results["runs"].setdefault(measurement, {})
        runs.setdefault(contestant.name, []).append(figures)
        short = {k: v for k, v in figures.items() if k in {"rate", "p50", "p99", "cpu_us_proxy", "errors"}}
        self.say(f"{measurement:<12} {contestant.name:<24} {json.dumps(short)}")


def enter(session: Session, only: set[str]) -> None:
    """Start every contestant there is; the absent are recorded with their reason."""
    place, tollhouse = session.place, session.tollhouse
    key = tollhouse.governed("acme")
    ours = [field_of.Ours(place, tollhouse, key), field_of.OursSigned(place, tollhouse, key)]
    entrants: list[Contestant] = [field_of.Direct(place), field_of.Nginx(place), *ours]
    if session.form.others:
        entrants += [other(place) for other in field_of.OTHERS]
    for contestant in entrants:
        if only and contestant.name not in only | {"direct"}:
            continue
        described: Figures = {"about": contestant.about}
        session.results["contestants"][contestant.name] = described
        try:
            contestant.start()
            if wrong := measure.settled_down(contestant):
                raise NotStartedError(f"it does not answer: {wrong}")
        except NotStartedError as error:
            described["absent"] = str(error)
            contestant.stop()
            session.say(f"{contestant.name}: absent: {error}")
            continue
        described["version"] = contestant.version
        described["memory_idle"] = measure.memory(contestant)
        session.entrants.append(contestant)
        session.say(f"{contestant.name} is ready")


def closed_loops(session: Session) -> None:
    form, place = session.form, session.place
    for contestant in session.entrants:
        measure.closed(place, contestant, 16, form.warm_s)
    for turn in range(form.alternations):
        for level in form.levels:
            for contestant in _turn(session.entrants, turn):
                session.note(f"c{level}", contestant, measure.closed(place, contestant, level, form.closed_s))


def grown(session: Session) -> None:
    """Memory once many calls have passed."""
    for contestant in session.entrants:
        if contestant.pid is None or not session.form.calls:
            continue
        calls, began = 0, time.monotonic()
        while calls < session.form.calls and time.monotonic() - began < session.form.calls_s:
            calls += measure.closed(session.place, contestant, 32, 2)["calls"]
        about = session.results["contestants"][contestant.name]
        about["memory_after"] = measure.memory(contestant) | {"calls": calls}
        session.say(f"{contestant.name}: {about['memory_idle']} -> {about['memory_after']}")


def at_fixed_rate(session: Session) -> None:
    form = session.form
    session.place.upstream.paced(delay_ms=50)
    able = _able(session, stream=False)
    for turn in range(form.alternations):
        for contestant in _turn(able, turn):
            figures = measure.open_loop(session.place, contestant, rate=form.open_rate, seconds=form.open_s)
            session.note("open", contestant, figures)


def streaming(session: Session) -> None:
    form = session.form
    for count in form.streams:
        gap = forms.GAP_MS.get(count, forms.GAP_MS_DEFAULT)
        session.place.upstream.paced(events=forms.STREAM_EVENTS, gap_ms=gap)
        able = _able(session, stream=True)
        for turn in range(form.alternations):
            for contestant in _turn(able, turn):
                figures = measure.streams(
                    session.place, contestant, count=count, rounds=form.rounds if contestant.fast else 1, events=forms.STREAM_EVENTS,
                    spread=gap * forms.STREAM_EVENTS / 1000,
                )  # fmt: skip
                session.note(f"streams{count}", contestant, figures)


def denials(session: Session) -> None:
    """A tenant that has spent its budget asks on, c=16."""
    place = session.place
    spent = field_of.Ours(
        place, session.tollhouse, session.tollhouse.governed("spent", limit_usd="0.000000001")
    )
    spent.name = "tollhouse"
    spent.start()
    for _ in range(session.form.alternations):
        figures = measure.closed(place, spent, 16, session.form.special_s)
        figures["errors"] += figures["calls"] - 2 * figures["refused"]  # an answer 200 would be the error
        session.note("denials", spent, figures)


def hot_budget(session: Session) -> None:
    """One budget, two workers: how many calls a second, and whether the account is exact to the last one."""
    first = session.tollhouse
    pair = Tollhouse(
        first.bank, first.upstream, first.cores, session.place.home / "pair", workers=2,
        master_key=first.master_key, admin_key=first.admin_key,
    )  # fmt: skip
    pair.start()
    try:
        key = first.governed("hot")
        hot = field_of.Ours(session.place, pair, key)
        hot.start()
        if wrong := measure.settled_down(hot):
            raise RuntimeError(wrong)
        for _ in range(session.form.alternations):
            figures = measure.closed(session.place, hot, 64, session.form.special_s)
            figures["exact"] = _is_exact(first, key.budget)
            session.note("hot_budget", hot, figures)
    finally:
        pair.stop()


def _is_exact(tollhouse: Tollhouse, budget: str) -> bool:
    """The budget's settled money is that of the ledger's entries, and nothing is held any more."""
    deadline = time.monotonic() + 10
    while True:
        held, settled, entries = tollhouse.bank.account(budget)
        if held == 0 or time.monotonic() > deadline:
            return held == 0 and settled == entries > 0
        time.sleep(0.1)


def _able(session: Session, *, stream: bool) -> list[Contestant]:
    """Those who answer through the upstream as it is now; who does not is said."""
    able = []
    for contestant in session.entrants:
        wrong = measure.settled_down(contestant, stream=stream)
        if wrong:
            session.results["contestants"][contestant.name]["no_streams" if stream else "no_delay"] = wrong
            session.say(f"{contestant.name}: {wrong}")
        else:
            able.append(contestant)
    return able


def _turn(entrants: list[Contestant], turn: int) -> list[Contestant]:
    """Another one begins each time, so that nobody always follows the same neighbour. Who takes milliseconds
    a call takes part in the first alternations only.
    """
    at = turn % len(entrants)
    return [c for c in entrants[at:] + entrants[:at] if c.fast or turn < forms.SLOW_ALTERNATIONS]


def _stop_all(entrants: list[Contestant]) -> None:
    for contestant in entrants:
        contestant.stop()


@contextlib.contextmanager
def session_of(form: Form) -> Iterator[Session]:
    """Everything started, and ended at the end whatever happens."""
    cores = processes.Cores.found()
    os.sched_setaffinity(0, cores.rest)
    with contextlib.ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="tollhouse-bench-", dir=install.CACHE))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        upstream = servers.Upstream(home, cores.rest)
        stack.callback(upstream.stop)
        upstream.whole()
        bank = Bank.start(home)
        stack.callback(bank.stop)
        tollhouse = Tollhouse(bank, upstream.url, cores, home / "tollhouse")
        stack.callback(tollhouse.stop)
        tollhouse.start()
        session = Session(form, Place(upstream, bank, cores, home, install.CACHE), tollhouse)
        session.results = {
            "form": asdict(form),
            "began": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "machine": machine.describe(home) | {"cores_apart": cores.apart},
            "contestants": {},
            "runs": {},
        }
        stack.callback(_stop_all, session.entrants)
        yield session


def run(form: Form, only: set[str]) -> Figures:
    with session_of(form) as session:
        enter(session, only)
        closed_loops(session)
        if form.specials:
            denials(session)
            hot_budget(session)
        grown(session)
        at_fixed_rate(session)
        streaming(session)
        session.results["warnings"] = warned = session.tollhouse.warnings()
        for text, times in warned.items():
            session.say(f"the proxy warned {times} times: {text}")
        session.results["machine"]["load_average_at_end"] = list(os.getloadavg())
        session.results["seconds"] = round(time.monotonic() - session.began)
        results: Figures = session.results
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about three minutes, one alternation")
    parser.add_argument(
        "--smoke", action="store_true", help="under a minute: Tollhouse against nginx, pass or fail"
    )
    parser.add_argument("--only", default="", help="names of contestants, separated by commas")
    parser.add_argument("--output", type=Path, help="the JSON file; the table and the plot go beside it")
    options = parser.parse_args()
    form = forms.SMOKE if options.smoke else forms.QUICK if options.quick else forms.FULL
    wanted = ["tools", "tollhouse", *(["hardcap", "litellm", "portkey"] if form.others else [])]
    if not install.all_of(wanted)["tools"]:
        return 1
    results = run(form, set(filter(None, options.only.split(","))))
    stamp = results["began"].replace(":", "").partition("+")[0]
    output = options.output or RESULTS / f"{stamp}-{form.name}.json"
    report.write(results, output)
    print(report.markdown(results))
    if form.name == "smoke":
        return report.verdict(results)
    print(f"\nwritten: {output}, and .md and .svg beside it", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
