"""`--plot FILE.svg`: one line for each test and operation over the message sizes. Pure; the file is the command's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from p2prw.engine.bench.model import BenchRow
from p2prw.reporters.bench_text import chart_value
from p2prw.units import format_size

_WIDTH, _PANEL_HEIGHT = 800, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 40, 50
_COLOURS = {"write": "#1f6fb2", "read": "#c2571a"}
_TITLES = {"bw": "Bandwidth, MiB/s (average of the run)", "lat": "Latency, us (median and p99; post to completion)"}


def svg_plot(rows: Sequence[BenchRow], title: str) -> str:
    """Return the whole file: a panel for each test, sizes on a logarithmic axis, values from zero."""
    tests = [test for test in _TITLES if any(row.test == test and chart_value(row) is not None for row in rows)]
    height = max(1, len(tests)) * _PANEL_HEIGHT + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for index, test in enumerate(tests):
        chosen = [row for row in rows if row.test == test and chart_value(row) is not None]
        parts += _panel(test, chosen, 30 + index * _PANEL_HEIGHT)
    return "\n".join((*parts, "</svg>", ""))


def _panel(test: str, rows: Sequence[BenchRow], y0: int) -> list[str]:
    sizes = sorted({row.size_bytes for row in rows})
    low, high = math.log2(sizes[0]), math.log2(sizes[-1])
    highest = max(max(chart_value(row) or 0.0, row.lat_p99_us or 0.0) for row in rows)
    top = nice_top(highest)
    bottom, height = y0 + _PANEL_HEIGHT - _BOTTOM, _PANEL_HEIGHT - _TOP - _BOTTOM

    def x(size: int) -> float:
        span = _WIDTH - _LEFT - _RIGHT
        return _LEFT + (span / 2 if high == low else (math.log2(size) - low) / (high - low) * span)

    def y(value: float) -> float:
        return bottom - value / top * height

    parts = [f'<text x="{_LEFT}" y="{y0 + 25}">{_TITLES[test]}</text>']
    for step in range(5):
        value = top * step / 4
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts += [
        f'<text x="{x(size):.1f}" y="{bottom + 18}" text-anchor="middle">{format_size(size)}</text>'
        for size in sizes[:: -(-len(sizes) // 12)]
    ]
    for index, operation in enumerate(dict.fromkeys(row.operation for row in rows)):
        mine = sorted((row for row in rows if row.operation == operation), key=lambda row: row.size_bytes)
        colour = _COLOURS[operation]
        parts += _line([(x(row.size_bytes), y(chart_value(row) or 0.0)) for row in mine], colour)
        if test == "lat":
            parts += _line([(x(row.size_bytes), y(row.lat_p99_us or 0.0)) for row in mine], colour, dashed=True)
        parts.append(f'<text x="{_WIDTH - _RIGHT - 120 + index * 60}" y="{y0 + 25}" fill="{colour}">{operation}</text>')
    return parts


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> list[str]:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return [
        f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points),
    ]


def nice_top(highest: float) -> float:
    """Return the smallest of 1, 2, 4, 8 or 10 times a power of ten that is not below `highest`."""
    if highest <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(highest))
    return next((factor * power for factor in (1, 2, 4, 8, 10) if factor * power >= highest), 10 * power)
