"""Pictures of a topology for reports: Graphviz text, and SVG drawn here. Nothing is fetched, nothing else is needed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from p2prw.reporters.sanitise import clean
from p2prw.reporters.topology_rows import Row, cell, label, rows_of, verdict_lines

_FILLS = {"client": "#cfe3ff", "provider": "#f3d3f5", "path": "#d9f2d9", "redirects": "#ffd6d6", "plain": "#ffffff"}
_FONT = "font-family='DejaVu Sans Mono, Menlo, monospace'"
_BOX, _GAP, _LEVEL, _LINE = 250, 16, 34, 15
"""Pixels: width of a box, between boxes, between levels, of a line of text."""
_CHARACTERS = 36
"""In one line of a box."""


def dot(rows: Sequence[Row]) -> str:
    """Return the tree in Graphviz' language: `dot -Tpng` draws it."""
    lines = ["digraph p2pdma {", "  rankdir=TB;", '  node [shape=box, style="filled", fontname="monospace"];']
    for row in rows_of(rows, "host_bridge", "function"):
        shown = "\\n".join(_quote(line) for line in _texts(row))
        border = ", penwidth=3" if row["on_path"] else ""
        lines.append(f'  "{_quote(_id(row))}" [label="{shown}", fillcolor="{_fill(row)}"{border}];')
    paths = [row["path"] for row in rows_of(rows, "pair")]
    marked = {pair for path in paths[:1] for pair in pairwise(path)} if len(paths) == 1 else set()
    for row in rows_of(rows, "function"):
        ends = (row["parent"], row["address"])
        style = "penwidth=3" if ends in marked or ends[::-1] in marked else "color=gray"
        lines.append(f'  "{_quote(ends[0])}" -> "{_quote(ends[1])}" [dir=none, {style}];')
    caption = "\\l".join(_quote(line) for line in _caption(rows))
    return "\n".join([*lines, f'  label="{caption}\\l"; labelloc=b; fontname="monospace";', "}", ""])


def svg(rows: Sequence[Row]) -> str:
    """Return the tree as a picture, the way of the first pair in bold."""
    drawn = rows_of(rows, "host_bridge", "function")
    children: dict[str | None, list[Row]] = {}
    for row in drawn:
        children.setdefault(row.get("parent"), []).append(row)
    texts = {_id(row): _texts(row) for row in drawn}
    height = _LINE * max((len(text) for text in texts.values()), default=1) + 10
    places: dict[str, tuple[float, int]] = {}
    edge = 0.0

    def place(row: Row, level: int) -> float:
        """Leaves side by side, what is above them over their middle."""
        nonlocal edge
        below = [place(child, level + 1) for child in children.get(_id(row), ())]
        if below:
            middle = (below[0] + below[-1]) / 2
        else:
            middle = edge + _BOX / 2
            edge += _BOX + _GAP
        places[_id(row)] = (middle, level)
        return middle

    for root in children.get(None, ()):
        place(root, 0)
    caption = _caption(rows)
    top = {name: 10 + level * (height + _LEVEL) for name, (_, level) in places.items()}
    total = max(top.values(), default=0) + height + _LINE * (len(caption) + 2)
    wide = max(edge, _BOX, *(8 * len(line) for line in caption)) + 20
    parts = [f"<svg xmlns='http://www.w3.org/2000/svg' width='{wide:.0f}' height='{total:.0f}' {_FONT} font-size='11'>"]
    parts.append(f"<rect width='{wide:.0f}' height='{total:.0f}' fill='#ffffff'/>")
    for row in rows_of(rows, "function"):
        if row["parent"] in places:
            above, own = places[row["parent"]][0] + 10, places[_id(row)][0] + 10
            bold = "#2a7d2a' stroke-width='3" if row["on_path"] and _on_path(drawn, row["parent"]) else "#888888"
            y1, y2 = top[row["parent"]] + height, top[_id(row)]
            half = (y1 + y2) / 2
            parts.append(f"<path d='M{above:.0f} {y1} V{half:.0f} H{own:.0f} V{y2}' fill='none' stroke='{bold}'/>")
    for row in drawn:
        x = places[_id(row)][0] - _BOX / 2 + 10
        y = top[_id(row)]
        width = "3" if row["on_path"] else "1"
        parts.append(
            f"<rect x='{x:.0f}' y='{y}' width='{_BOX}' height='{height}' rx='4' fill='{_fill(row)}' stroke='#333333' "
            f"stroke-width='{width}'/>"
        )
        parts += [_text(x + 6, y + _LINE * (number + 1), line) for number, line in enumerate(texts[_id(row)])]
    below = max(top.values(), default=0) + height + _LINE
    parts += [_text(10, below + _LINE * (number + 1), line) for number, line in enumerate(caption)]
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, line: str) -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' xml:space='preserve'>{escape(clean(line))}</text>"


def _id(row: Row) -> str:
    return str(row["address"] if row["row"] == "function" else row["name"])


def _on_path(drawn: Sequence[Row], name: str) -> bool:
    return any(row["on_path"] for row in drawn if _id(row) == name)


def _fill(row: Row) -> str:
    if row["row"] == "function":
        if row["roles"]:
            return _FILLS[row["roles"][0]]
        if row["acs"] and row["acs"]["redirects"]:
            return _FILLS["redirects"]
    return _FILLS["path" if row["on_path"] else "plain"]


def _texts(row: Row) -> list[str]:
    """Return the lines of a box."""
    title, details = label(row)
    lines: list[str] = []
    for text in (title, *details):
        words = ""
        for word in text.split():
            if words and len(words) + 1 + len(word) > _CHARACTERS:
                lines.append(words)
                words = f"  {word}"
            else:
                words = f"{words} {word}" if words else word
        lines.append(words)
    return lines


def _caption(rows: Sequence[Row]) -> list[str]:
    pairs = rows_of(rows, "pair")
    if len(pairs) == 1:
        return [f"{head}{text}" for head, text in verdict_lines(pairs[0])]
    return [f"{row['client']} -> {row['provider']}: {cell(row)}" for row in pairs]


def _quote(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace('"', '\\"')
