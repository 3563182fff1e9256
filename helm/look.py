"""Draws the dashboards with the figures of a running Prometheus, to be looked at without a Grafana.

    python helm/look.py http://127.0.0.1:9090 FOLDER [SECONDS]    one SVG a dashboard, of the last so many seconds

It draws what a panel asks, in its place, with its title, unit, thresholds and legend; the looks are not Grafana's.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).resolve().parent / "tollhouse" / "dashboards"
COLUMN, ROW, GAP = 70, 34, 6
COLOURS = (
    "#73bf69",
    "#f2cc0c",
    "#8ab8ff",
    "#ff780a",
    "#f2495c",
    "#5794f2",
    "#b877d9",
    "#705da0",
    "#37872d",
    "#fade2a",
)
INK, DIM, PAPER, CARD, RED = "#d8d9da", "#8e8e8e", "#111217", "#181b1f", "#f2495c"
#: lines of a legend that have room
LEGENDS = 6

Series = tuple[str, list[tuple[float, float]]]


def shown(value: float, unit: str) -> str:
    """A value as Grafana would write it, nearly."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "currencyUSD":
        return f"${value:,.4g}" if abs(value) < 1000 else f"${value:,.0f}"
    if unit in {"s", "d"}:
        return _duration(value * (86_400 if unit == "d" else 1))
    base, words = (
        (1024.0, ("B", "KiB", "MiB", "GiB", "TiB")) if unit == "bytes" else (1000.0, ("", "K", "M", "G", "T"))
    )
    step = 0
    while abs(value) >= base and step < len(words) - 1:
        value, step = value / base, step + 1
    return f"{value:.3g} {words[step]}".strip() + (" req/s" if unit == "reqps" else "")


def _duration(seconds: float) -> str:
    for size, word in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {word}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"


def ask(url: str, target: dict[str, Any], seconds: float) -> Iterator[Series]:
    """(legend, points) of every series that one of a panel's queries finds."""
    query = re.sub(r"\$(?!__)(\w+)", ".*", target["expr"].replace("$__rate_interval", "20s"))
    now = time.time()
    parameters = {"query": query, "start": now - seconds, "end": now, "step": max(1, seconds // 120)}
    address = f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=20) as answer:  # noqa: S310 (what the caller names)
        found = json.load(answer)["data"]["result"]
    for series in found:
        points = [(float(at), float(value)) for at, value in series["values"]]
        points = [point for point in points if math.isfinite(point[1])]
        labels = series["metric"]
        legend = re.sub(r"\{\{(\w+)\}\}", lambda m, of=labels: of.get(m[1], ""), target["legendFormat"])  # type: ignore[misc]
        if points:
            yield ("" if legend == "__auto" else legend).strip() or "value", points


def text(x: float, y: float, words: str, size: int = 12, colour: str = INK, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'


def drawn(panel: dict[str, Any], series: list[Series]) -> str:
    """The panel's SVG, in its place."""
    at, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
    x, y = at["x"] * COLUMN + GAP, at["y"] * ROW + GAP + 40
    width, height = at["w"] * COLUMN - GAP, at["h"] * ROW - GAP
    out = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{CARD}" stroke="#2c3235"/>']
    out.append(text(x + 8, y + 18, panel["title"], 13))
    inside = (x + 8, y + 28, width - 16, height - 36)
    if not series:
        out.append(
            text(x + width / 2, y + height / 2, str(defaults.get("noValue", "No data")), 16, DIM, "middle")
        )
    elif panel["type"] == "stat":
        value = series[0][1][-1][1]
        out.append(
            text(
                x + width / 2,
                y + height - 22,
                shown(value, defaults["unit"]),
                30,
                _colour(value, defaults),
                "middle",
            )
        )
    elif panel["type"] == "bargauge":
        out += _bars(series, defaults, *inside)
    else:
        out += _lines(series, defaults, *inside)
    return "".join(out)


def _colour(value: float, defaults: dict[str, Any]) -> str:
    colour = "green"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return RED if colour == "red" else COLOURS[0]


def _bars(
    series: list[Series], defaults: dict[str, Any], x: float, y: float, width: float, height: float
) -> Iterator[str]:
    most = defaults.get("max") or max(points[-1][1] for _, points in series) or 1
    for number, (legend, points) in enumerate(series[: int(height // 26)]):
        value, top = points[-1][1], y + number * 26
        yield text(x, top + 15, legend[:40], 11)
        left, room = x + width * 0.42, width * 0.4
        yield f'<rect x="{left}" y="{top + 3}" width="{room}" height="16" fill="#22252b"/>'
        share = max(0.0, min(1.0, value / most))
        yield f'<rect x="{left}" y="{top + 3}" width="{room * share:.1f}" height="16" fill="{_colour(value, defaults)}"/>'
        yield text(x + width, top + 15, shown(value, defaults["unit"]), 11, INK, "end")


def _lines(
    series: list[Series], defaults: dict[str, Any], x: float, y: float, width: float, height: float
) -> Iterator[str]:
    left, bottom = x + 70, y + height - 22
    lines = _stacked(series) if defaults["custom"]["stacking"]["mode"] == "normal" else series
    values = [value for _, points in lines for _, value in points]
    low, high = min(defaults.get("min", values[0]), *values), max(values)
    high = high if high > low else low + 1
    begin, end = min(p[0][0] for _, p in lines), max(p[-1][0] for _, p in lines)

    def place(point: tuple[float, float]) -> str:
        across = (point[0] - begin) / ((end - begin) or 1)
        up = (point[1] - low) / (high - low)
        return f"{left + across * (x + width - left):.1f},{bottom - up * (bottom - y):.1f}"

    for share in (0.0, 0.5, 1.0):
        level = bottom - share * (bottom - y)
        yield f'<line x1="{left}" x2="{x + width}" y1="{level:.1f}" y2="{level:.1f}" stroke="#2c3235"/>'
        yield text(left - 6, level + 4, shown(low + share * (high - low), defaults["unit"]), 10, DIM, "end")
    for number, (_, points) in enumerate(lines):
        path = " ".join(map(place, points))
        yield f'<polyline points="{path}" fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="1.5"/>'
    names = [legend for legend, _ in series]
    told = names[:LEGENDS] + ([f"and {len(names) - LEGENDS} more"] if len(names) > LEGENDS else [])
    for number, name in enumerate(told):
        spot = x + number * width / max(len(told), 2)
        yield text(
            spot, y + height, name[: int(width / max(len(told), 2) / 6)], 10, COLOURS[number % len(COLOURS)]
        )


def _stacked(series: list[Series]) -> list[Series]:
    total: dict[float, float] = {}
    out = []
    for legend, points in series:
        for at, value in points:
            total[at] = total.get(at, 0.0) + value
        out.append((legend, [(at, total[at]) for at, _ in points]))
    return out


def page(board: dict[str, Any], url: str, seconds: float) -> str:
    """One dashboard's SVG."""
    panels = [drawn(p, [s for t in p["targets"] for s in ask(url, t, seconds)]) for p in board["panels"]]
    depth = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) * ROW + 60
    width = 24 * COLUMN + GAP
    head = text(12, 28, board["title"], 20) + text(width - 12, 28, board["description"], 12, DIM, "end")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{depth}" font-family="DejaVu Sans, sans-serif">'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>{head}{"".join(panels)}</svg>\n'
    )


def main(arguments: list[str]) -> int:
    if len(arguments) not in {2, 3}:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[1])
    folder.mkdir(parents=True, exist_ok=True)
    seconds = float(arguments[2]) if len(arguments) == 3 else 3600.0
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text(encoding="utf-8"))
        (folder / f"{path.stem}.svg").write_text(page(board, arguments[0], seconds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
