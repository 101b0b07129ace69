from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from p2prw.engine.control.checks import (
    Check,
    boolean,
    build,
    integer,
    list_of,
    one_of,
    optional,
    optional_field,
    printable,
    record,
    required_field,
    text,
)
from p2prw.errors import RemoteProtocolError


@dataclass(frozen=True)
class Point:
    x: int = required_field(integer(0, 9))
    name: str = optional_field(text(r"[a-z]+", 3), "o")


@pytest.mark.parametrize(
    ("check", "value", "kept"),
    [
        (integer(0, 5), 0, 0),
        (integer(0, 5), 5, 5),
        (one_of(1, 4), 4, 4),
        (text(), "", ""),
        (text(max_chars=2), "ab", "ab"),
        (text(r"\w+"), "ab", "ab"),
        (text(), "\x1b[2J", "\ufffd[2J"),
        (boolean, False, False),
        (optional(boolean), None, None),
        (optional(boolean), True, True),
        (list_of(integer(0, 5), 2), [1, 2], (1, 2)),
        (list_of(integer(0, 5), 2), [], ()),
        (record(Point), {"x": 1}, Point(1)),
        (record(Point), {"x": 1, "name": "ab", "more": []}, Point(1, "ab")),
    ],
)
def test_kept(check: Check, value: Any, kept: Any) -> None:
    assert check(value, "field") == kept


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (integer(0, 5), -1),
        (integer(0, 5), 6),
        (integer(0, 5), True),
        (integer(0, 5), 1.0),
        (integer(0, 5), "1"),
        (integer(0, 5), None),
        (one_of(1, 4), 2),
        (one_of(1, 4), True),
        (one_of(1, 4), 1.0),
        (text(max_chars=2), "abc"),
        (text(), b"x"),
        (text(r"\w+"), "ab\n"),
        (text(r"\w+"), ""),
        (boolean, 0),
        (boolean, None),
        (optional(boolean), 1),
        (list_of(boolean, 1), [True, True]),
        (list_of(boolean, 1), (True,)),
        (list_of(boolean, 1), [1]),
        (record(Point), []),
        (record(Point), {}),
        (record(Point), {"x": 10}),
        (record(Point), {"x": 1, "name": None}),
    ],
)
def test_refused(check: Check, value: Any) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check(value, "field")
    assert caught.value.code == "bad_message"
    assert "field" in caught.value.what


def test_an_error_names_the_inner_field() -> None:
    with pytest.raises(RemoteProtocolError, match=r"'point\.x': expected an integer from 0 to 9, got '77'"):
        build(Point, {"x": 77}, "point")


def test_a_nested_value_is_not_shown() -> None:
    """Showing a list nested as deep as the JSON parser allows would overflow the stack."""
    with pytest.raises(RemoteProtocolError, match="got list"):
        integer(0, 1)([[[]]], "field")


def test_printable_text_is_left_alone() -> None:
    assert printable("plain: ünïcode 漢字 🐍\nnext") == "plain: ünïcode 漢字 🐍\nnext"
