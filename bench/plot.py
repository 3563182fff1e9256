"""The plot: bars on logarithmic scales, as SVG by hand."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

#: heading, unit, and each contestant with its value; None where it was not measured
Panel = tuple[str, str, list[tuple[str, float | None]]]
WIDTH, ROW, LEFT, TOP, GAP = 860, 26, 190, 54, 70
_COLOURS = {"tollhouse": "#0b6e4f", "tollhouse, SigV4 client": "#5aa786", "nginx": "#8d99ae"}
_OTHER = "#c8553d"


def draw(title: str, panels: list[Panel]) -> str:
    """Bars in the order given; longer is worse."""
    height = TOP + sum(GAP + ROW * len(bars) for _, _, bars in panels)
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="16" y="28" font-size="17" font-weight="bold">{escape(title)}</text>',
    ]
    y = TOP
    for heading, unit, bars in panels:
        out += _panel(heading, unit, bars, y)
        y += GAP + ROW * len(bars)
    return "\n".join([*out, "</svg>"]) + "\n"


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _panel(title: str, unit: str, bars: list[tuple[str, float | None]], y: int) -> list[str]:
    values = [value for _, value in bars if value is not None and value > 0]
    low = 10 ** math.floor(math.log10(min(values, default=1.0)))
    high = 10 ** math.ceil(math.log10(max(values, default=10.0) * 1.001))
    span = WIDTH - LEFT - 110

    def place(value: float) -> float:
        return span * (math.log10(value / low) / max(1e-9, math.log10(high / low)))

    out = [f'<text x="16" y="{y + 18}" font-weight="bold">{escape(title)}, {unit}</text>']
    bottom = y + 30 + ROW * len(bars)
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        x = LEFT + place(10.0**power)
        out.append(f'<line x1="{x:.1f}" y1="{y + 28}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>')
        out.append(
            f'<text x="{x:.1f}" y="{bottom + 14}" fill="#777" text-anchor="middle">{10.0**power:g}</text>'
        )
    for number, (name, value) in enumerate(bars):
        at = y + 30 + ROW * number
        out.append(f'<text x="{LEFT - 8}" y="{at + 17}" text-anchor="end">{escape(name)}</text>')
        if value is None or value <= 0:
            said = "not measured" if value is None else f"{value:.2f}"
            out.append(f'<text x="{LEFT + 6}" y="{at + 17}" fill="#777">{said}</text>')
            continue
        length = max(2.0, place(value))
        colour = _COLOURS.get(name, _OTHER)
        out.append(f'<rect x="{LEFT}" y="{at + 4}" width="{length:.1f}" height="{ROW - 8}" fill="{colour}"/>')
        out.append(f'<text x="{LEFT + length + 6:.1f}" y="{at + 17}">{_said(value)}</text>')
    return out
