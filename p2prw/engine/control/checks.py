"""What a field of a control message may hold: type, range, length, characters. Pure.

A check takes a value that `json.loads` made from a stranger's bytes, and the field's name; it returns the value to keep
or raises RemoteProtocolError. Dataclass fields carry their check (`required_field`, `optional_field`); `build` applies
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, TypeAlias

from p2prw.errors import RemoteProtocolError

Check: TypeAlias = Callable[[Any, str], Any]


def bad_field(name: str, value: Any, expected: str) -> RemoteProtocolError:
    """Return the error for a field `name` whose value is not what is expected."""
    # A list is not shown: str() of one nested as deep as the JSON parser allows would raise RecursionError.
    shown = f"{type(value).__name__}" if isinstance(value, (list, dict)) else repr(str(value)[:80])
    return RemoteProtocolError(f"control message field {name!r}: expected {expected}, got {shown}", code="bad_message")


def integer(low: int, high: int) -> Check:
    """Accept an int in [low, high]; bool is not an int here."""

    def check(value: Any, name: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise bad_field(name, value, f"an integer from {low} to {high}")
        return value

    return check


def one_of(*numbers: int) -> Check:
    """Accept one of these ints."""

    def check(value: Any, name: str) -> int:
        if type(value) is not int or value not in numbers:
            raise bad_field(name, value, f"one of {', '.join(map(str, numbers))}")
        return value

    return check


def printable(value: str) -> str:
    """Return `value` with what a terminal would act on (escapes, lone surrogates) replaced; new lines stay."""
    if value.isprintable():
        return value
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in value)


def text(pattern: str | None = None, max_chars: int = 1024) -> Check:
    """Accept a string of at most `max_chars` that matches `pattern` whole; free text is made printable."""
    compiled = re.compile(pattern) if pattern else None

    def check(value: Any, name: str) -> str:
        if type(value) is not str or len(value) > max_chars or (compiled and not compiled.fullmatch(value)):
            raise bad_field(
                name,
                value,
                f"a string{f' like {pattern}' if pattern else ''} of at most {max_chars} characters",
            )
        return value if compiled else printable(value)

    return check


def boolean(value: Any, name: str) -> bool:
    """Accept true or false."""
    if type(value) is not bool:
        raise bad_field(name, value, "true or false")
    return value


def optional(inner: Check) -> Check:
    """Accept null or what `inner` accepts."""

    def check(value: Any, name: str) -> Any:
        return None if value is None else inner(value, name)

    return check


def list_of(inner: Check, max_items: int) -> Check:
    """Accept a list of at most `max_items`; gives a tuple."""

    def check(value: Any, name: str) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > max_items:
            raise bad_field(name, value, f"a list of at most {max_items} items")
        return tuple(inner(item, name) for item in value)

    return check


def record(cls: type[Any]) -> Check:
    """Accept an object with exactly the fields of the dataclass `cls` (missing ones take their default)."""

    def check(value: Any, name: str) -> Any:
        if type(value) is not dict:
            raise bad_field(name, value, "an object")
        return build(cls, value, name)

    return check


def build(cls: type[Any], document: dict[str, Any], name: str) -> Any:
    """Return a `cls` from the fields of `document`, each one checked; `name` is for errors."""
    known = {item.name: item for item in fields(cls)}
    # Unknown fields are ignored: a newer peer of the same protocol version may say more.
    values: dict[str, Any] = {}
    for key, item in known.items():
        if key in document:
            values[key] = item.metadata["check"](document[key], f"{name}.{key}")
        elif "required" in item.metadata:
            raise RemoteProtocolError(f"control message {name!r} lacks {key!r}", code="bad_message")
    return cls(**values)


def required_field(check: Check) -> Any:
    """Declare a dataclass field that must be there."""
    return field(metadata={"check": check, "required": True})


def optional_field(check: Check, default: Any) -> Any:
    """Declare a dataclass field that may be missing."""
    return field(default=default, metadata={"check": check})
