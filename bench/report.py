"""Results as tables: medians over the alternations, beside what must be and what is striven for.

python -m bench.report FILE [--docs]: prints the tables of a results file; with `--docs` also writes them into
docs/performance.md, between its markers.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import plot

Results = dict[str, Any]
DOCS = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
OURS = "tollhouse"
#: CPU per call of the proxy over that of nginx at c=16 that the smoke form lets pass
SMOKE_RATIO = 120.0


# ---- medians ---------------------------------------------------------------------------------


def median(results: Results, run: str, name: str, *path: str) -> float | None:
    """Over all alternations; None when it was not measured."""
    values = [_at(figures, path) for figures in results["runs"].get(run, {}).get(name, [])]
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def added(results: Results, run: str, name: str, *path: str) -> float | None:
    """Median of the differences to `direct` of the same alternation."""
    mine = results["runs"].get(run, {}).get(name, [])
    direct = results["runs"].get(run, {}).get("direct", [])
    pairs = [(_at(a, path), _at(b, path)) for a, b in zip(mine, direct, strict=False)]
    found = [a - b for a, b in pairs if a is not None and b is not None]
    return statistics.median(found) if found else None


def errors(results: Results, run: str, name: str) -> int:
    return sum(figures.get("errors", 0) for figures in results["runs"].get(run, {}).get(name, []))


def _at(figures: Any, path: Sequence[str]) -> float | None:
    for step in path:
        figures = figures.get(step) if isinstance(figures, dict) else None
    return None if figures is None else float(figures)


def _plus(*values: float | None) -> float | None:
    return None if any(value is None for value in values) else sum(value or 0.0 for value in values)


# ---- figures to reach ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure with its bounds. `most`: larger is worse."""

    what: str
    unit: str
    must: float
    strive: float
    read: Callable[[Results], float | None]
    most: bool = True
    #: it goes up or down with the speed of the processor alone
    speed: bool = False

    def word(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        for bound, word in ((self.strive, "strive"), (self.must, "must")):
            if (value <= bound) if self.most else (value >= bound):
                return f"meets {word}"
        return "**misses**"


def _of(run: str, *path: str) -> Callable[[Results], float | None]:
    return lambda results: median(results, run, OURS, *path)


def _added(run: str, *path: str) -> Callable[[Results], float | None]:
    return lambda results: added(results, run, OURS, *path)


def _others_cpu(results: Results) -> float | None:
    return _plus(
        median(results, "c16", OURS, "cpu_us_postgres"), median(results, "c16", OURS, "cpu_us_redis")
    )


def _memory(kind: str, part: str = "rss_largest") -> Callable[[Results], float | None]:
    return lambda results: _at(results["contestants"].get(OURS, {}).get(kind, {}), (part,))


def _grown(results: Results) -> float | None:
    before, after = _memory("memory_idle")(results), _memory("memory_after")(results)
    return None if before is None or after is None else (after / before - 1) * 100


def _share_of(other: str) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        mine, theirs = (median(results, "c16", name, "cpu_us_proxy") for name in (OURS, other))
        return None if mine is None or not theirs else mine / theirs

    return read


#: hardcap's CPU per call at c=16, µs, on the machine for which the figures to reach were set: 2 vCPU of an AMD EPYC,
#: Python 3.11.7, its release of November 2026
REFERENCE_US = 352.0


def slowness(results: Results) -> float | None:
    """How many times the CPU that the same program took on that machine it took here, in this run."""
    here = median(results, "c16", "hardcap", "cpu_us_proxy")
    return here / REFERENCE_US if here else None


def scaled(figure: Figure, value: float | None, times: float | None) -> float | None:
    """What the figure would be there, as far as it is the processor's; None where it is not."""
    if value is None or times is None or not figure.speed:
        return None
    return value / times if figure.most else value * times


FIGURES = (
    Figure("proxy CPU per whole call, c=16", "µs", 350, 220, _of("c16", "cpu_us_proxy"), speed=True),
    Figure("... over hardcap's in the same run", "×", 1, 1, _share_of("hardcap")),
    Figure("... over LiteLLM's in the same run", "×", 0.04, 0.04, _share_of("litellm")),
    Figure("Postgres and Redis CPU per call, c=16", "µs", 250, 140, _others_cpu, speed=True),
    Figure("calls/s per proxy core, c=64", "/s", 2500, 4000, _of("c64", "rate"), most=False, speed=True),
    Figure("added latency p50, c=1", "ms", 2.5, 1.5, _added("c1", "p50")),
    Figure("added latency p99, c=1", "ms", 8, 4, _added("c1", "p99")),
    Figure("added p50 at a fixed rate, 50 ms upstream", "ms", 3, 2, _added("open", "p50")),
    Figure("added p99 at a fixed rate, 50 ms upstream", "ms", 8, 5, _added("open", "p99")),
    Figure("denials, c=16", "/s", 5000, 12000, _of("denials", "rate"), most=False, speed=True),
    Figure("denials p99, c=16", "ms", 20, 20, _of("denials", "p99")),
    Figure(
        "proxy CPU per 50-event stream, 100 at once",
        "ms",
        3.5,
        2.5,
        _of("streams100", "cpu_ms_proxy"),
        speed=True,
    ),
    Figure("... first event later than direct, p50", "ms", 2, 2, _added("streams100", "first", "p50")),
    Figure("500 streams of 20 events/s: event delay p99", "ms", 50, 50, _of("streams500", "delay", "p99")),
    Figure("500 streams: memory of the tree", "MiB", 250, 250, _of("streams500", "memory", "pss")),
    Figure("memory of the worker, fresh (RSS)", "MiB", 130, 95, _memory("memory_idle")),
    Figure("... more after many calls", "%", 10, 10, _grown),
    Figure("one hot budget, 2 workers", "/s", 2000, 3000, _of("hot_budget", "rate"), most=False, speed=True),
)


# ---- tables ----------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """Everything, as Markdown."""
    parts = [_machine(results), figures_table(results), *_contestants(results)]
    parts += [_closed(results, f"c{level}") for level in results["form"]["levels"]]
    parts += [_open(results)]
    parts += [_streams(results, count) for count in results["form"]["streams"]]
    return "\n\n".join(filter(None, parts)) + "\n"


def figures_table(results: Results) -> str:
    times = slowness(results)
    rows = [
        [f.what, f"{'≤' if f.most else '≥'} {_n(f.must)} {f.unit}", f"{_n(f.strive)} {f.unit}",
         f"{_n(value)} {f.unit}" if value is not None else "–", f.word(value),
         f"{_n(there)} {f.unit}" if there is not None else ""]
        for f in FIGURES for value in [f.read(results)] for there in [scaled(f, value, times)]
    ]  # fmt: skip
    exact = [run["exact"] for run in results["runs"].get("hot_budget", {}).get(OURS, [])]
    if exact:
        rows.append(["... exact to the last call", "yes", "yes", "yes" if all(exact) else "no",
                     "meets strive" if all(exact) else "**misses**", ""])  # fmt: skip
    wrong = sum(errors(results, run, OURS) for run in results["runs"])
    rows.append(["errors in all runs", "0", "0", str(wrong), "**misses**" if wrong else "meets strive", ""])
    table = _table(["figure", "must", "strive", "measured", "", "at reference speed"], rows)
    return "### Figures to reach\n\n" + table + (f"\n\n{_REFERENCE.format(times=times)}" if times else "")


_REFERENCE = (
    "hardcap took {times:.2f} times the CPU per call here, in the same run, that it took on the machine for which the "
    "figures to reach were set. The last column is what is measured divided by that, for figures that go with the "
    "processor's speed alone: an estimate, not a measurement."
)


def _machine(results: Results) -> str:
    m, form = results["machine"], results["form"]
    versions = ", ".join(f"{v}" for v in m["versions"].values() if v)
    return (
        f"{results['began']}, form *{form['name']}*: medians of {form['alternations']} alternations. {m['cpu']}, "
        f"{m['cores']} cores, {m['memory_mib'] // 1024} GiB, Linux {m['kernel']}, Python {m['python']}, {versions}. "
        f"fdatasync of 4 KiB: p50 {m['fsync_us']['p50']} µs, p99 {m['fsync_us']['p99']} µs. Load average when it "
        f"began: {m['load_average'][0]:.2f}"
        + (
            "."
            if m["load_average"][0] < 0.7
            else ": **not a quiet machine, the figures are not to be quoted**."
        )
        + ("" if m["cores_apart"] else " Only one core: proxy and load share it.")
    )


def _contestants(results: Results) -> list[str]:
    rows, absent = [], []
    for name, about in results["contestants"].items():
        if "absent" in about:
            absent.append(f"- **{name}** is absent: {about['absent']}")
            continue
        idle, after = about.get("memory_idle", {}), about.get("memory_after", {})
        rows.append(
            [name, about.get("version") or "–", about["about"], _n(idle.get("rss_largest")), _n(idle.get("pss")),
             f"{_n(after.get('rss_largest'))} ({after['calls']:,} calls)" if after else "–"]
        )  # fmt: skip
        absent += [f"- **{name}**: {about[k]}" for k in ("no_streams", "no_delay") if k in about]
    head = ["contestant", "version", "what is on", "RSS MiB idle", "PSS MiB idle", "RSS MiB after"]
    absent += [
        f"- Tollhouse warned {times} times: {text}" for text, times in results.get("warnings", {}).items()
    ]
    return ["### Contestants\n\n" + _table(head, rows), "\n".join(absent)]


def _closed(results: Results, run: str) -> str:
    if run not in results["runs"]:
        return ""
    rows = []
    for name in results["runs"][run]:
        latencies = " / ".join(_n(added(results, run, name, at), signed=True) for at in ("p50", "p95", "p99"))
        cpu = [_n(median(results, run, name, f"cpu_us_{part}")) for part in ("proxy", "postgres", "redis")]
        busy = " / ".join(_percent(median(results, run, name, "busy", core)) for core in ("proxy", "rest"))
        rate = _n(median(results, run, name, "rate"))
        rows.append([name, rate, latencies, *cpu, busy, str(errors(results, run, name))])
    head = [
        "",
        "calls/s",
        "added p50 / p95 / p99 ms",
        "proxy µs",
        "Postgres µs",
        "Redis µs",
        "cores busy",
        "errors",
    ]
    return f"### {run[1:]} at once, upstream answers at once\n\n" + _table(head, rows)


def _open(results: Results) -> str:
    runs = results["runs"].get("open")
    if not runs:
        return ""
    rows = []
    for name in runs:
        plus = " / ".join(_n(added(results, "open", name, at), signed=True) for at in ("p50", "p95", "p99"))
        cpu = [_n(median(results, "open", name, f"cpu_us_{part}")) for part in ("proxy", "postgres", "redis")]
        rows.append([name, plus, *cpu, str(errors(results, "open", name))])
    rate = results["form"]["open_rate"]
    head = ["", "added p50 / p95 / p99 ms", "proxy µs", "Postgres µs", "Redis µs", "errors"]
    return f"### {rate} calls/s whatever happens, upstream answers after 50 ms\n\n" + _table(head, rows)


def _streams(results: Results, count: int) -> str:
    run = f"streams{count}"
    if run not in results["runs"]:
        return ""
    rows = []
    for name in results["runs"][run]:
        first = " / ".join(
            _n(added(results, run, name, "first", at), signed=True) for at in ("p50", "p95", "p99")
        )
        delay = " / ".join(_n(median(results, run, name, "delay", at)) for at in ("p50", "p99"))
        cpu = [_n(median(results, run, name, f"cpu_ms_{part}")) for part in ("proxy", "postgres", "redis")]
        memory = _n(median(results, run, name, "memory", "pss"))
        rows.append([name, first, delay, *cpu, memory, str(errors(results, run, name))])
    head = ["", "first event later p50 / p95 / p99 ms", "event delay p50 / p99 ms", "proxy ms per stream",
            "Postgres ms", "Redis ms", "PSS MiB", "errors"]  # fmt: skip
    return f"### {count} streams of 50 events at once\n\n" + _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _n(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits are what such figures are worth."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return text.removesuffix(".00").removesuffix(".0")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.0f} %"


# ---- files -----------------------------------------------------------------------------------


def write(results: Results, path: Path) -> None:
    """The JSON, and beside it the tables and the plot. The full form fills the documentation's tables too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    path.with_suffix(".svg").write_text(picture(results))
    if results["form"]["name"] == "full" and results["machine"]["load_average"][0] < 0.7:
        document(results)


def picture(results: Results) -> str:
    """CPU per call and added latency of every contestant, as SVG."""
    names = [n for n, about in results["contestants"].items() if "absent" not in about and n != "direct"]
    wanted: list[tuple[str, str, str, Callable[[str], float | None]]] = [
        ("CPU of the proxy per call, 16 at once", "µs", "c16", lambda n: median(results, "c16", n, "cpu_us_proxy")),
        ("added latency p50, 1 at once", "ms", "c1", lambda n: added(results, "c1", n, "p50")),
        ("added latency p99, 1 at once", "ms", "c1", lambda n: added(results, "c1", n, "p99")),
        ("CPU of the proxy per 50-event stream, 100 at once", "ms", "streams100",
         lambda n: median(results, "streams100", n, "cpu_ms_proxy")),
    ]  # fmt: skip
    panels = [
        (heading, unit, [(name, read(name)) for name in names])
        for heading, unit, run, read in wanted
        if run in results["runs"]
    ]
    when, form = results["began"][:10], results["form"]["name"]
    return plot.draw(f"What governance costs ({when}, {form} form; logarithmic, shorter is better)", panels)


def document(results: Results) -> None:
    """Put the tables between the markers of docs/performance.md, and the plot beside it."""
    begin, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    text = DOCS.read_text()
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    DOCS.write_text(f"{before}{begin}\n\n{markdown(results)}\n{end}{after}")
    DOCS.with_suffix(".svg").write_text(picture(results))


def verdict(results: Results) -> int:
    """0 when the smoke form found no error and no tenfold slip, else 1; says why."""
    nginx, ours = (median(results, "c16", name, "cpu_us_proxy") for name in ("nginx", OURS))
    wrong = {run: errors(results, run, OURS) for run in results["runs"]}
    if not nginx or ours is None:
        print("bench-smoke: FAILED: nothing was measured")
        return 1
    ratio = ours / nginx
    print(
        f"bench-smoke: {ours:.0f} µs of CPU a call, {ratio:.1f} times nginx's; at most {SMOKE_RATIO:.0f} times"
    )
    print(f"bench-smoke: errors: {wrong}")
    good = ratio <= SMOKE_RATIO and not any(wrong.values())
    print(f"bench-smoke: {'passed' if good else 'FAILED'}")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", action="store_true", help="fill docs/performance.md")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    print(markdown(results))
    if options.docs:
        document(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
