"""`p2prw doctor` on a terminal: marks, folded, nothing cut, no markup from outside."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from p2prw.reporters.doctor_page import doctor_page

ROWS: list[dict[str, Any]] = [
    {"id": "a", "theme": "RDMA", "subject": None, "status": status, "title": f"{status} " + "word " * 30,
     "why": "because", "try": "sudo [bold]x\x1b[2J", "details": {}}
    for status in ("ok", "warn", "fail", "unknown")
]  # fmt: skip


def show(width=80, **options):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=False, markup=False, highlight=False)
    for part in doctor_page(ROWS, **options):
        console.print(part)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_nothing_is_cut(width):
    text = show(width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("word") == 120 and text.count("because") == 3
    assert "1 ok, 1 warn, 1 fail, 1 unknown" in text


def test_names_from_outside_are_no_markup_and_no_escapes():
    assert "sudo [bold]x\\x1b[2J" in show() and "\x1b" not in show()


@pytest.mark.parametrize(("encoding", "ok", "fail"), [("utf-8", "✔", "✘"), ("ascii", "+", "x"), (None, "+", "x")])
def test_marks_fit_the_terminal(encoding, ok, fail):
    text = show(encoding=encoding)
    assert f"  {ok} ok" in text and f"  {fail} fail" in text
