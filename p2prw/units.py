"""Sizes, times and rates: text to numbers and back. K = 1024; rates are shown as MiB/s and Gb/s side by side."""

from __future__ import annotations

import math
import re

from p2prw.errors import RequestError

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024**4}
_SIZE = re.compile(r"(0x[0-9a-f]+|\d+(?:\.\d+)?)\s*(?:([kmgt]?)(?:ib|b)?)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h)?", re.IGNORECASE)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)(B|b|bit)(?:/s|ps)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def parse_size(text: str | int, name: str = "size") -> int:
    """Return the bytes meant by `64K`, `64KiB`, `1M`, `4G`, `0x1000` or a plain number; `name` is for the error."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise _bad_size(str(text), name)
        return text
    match = _SIZE.fullmatch(str(text).strip())
    if not match:
        raise _bad_size(str(text), name)
    digits, suffix = match.group(1), (match.group(2) or "").lower()
    if digits.lower().startswith("0x"):
        # "0x1B" is hexadecimal 27, never "1 byte": the digits take what they can.
        return int(digits, 16) * _FACTORS[suffix]
    value = float(digits) * _FACTORS[suffix] if "." in digits else int(digits) * _FACTORS[suffix]
    if value != int(value):
        raise _bad_size(str(text), name, why="it is not a whole number of bytes")
    return int(value)


def _bad_size(
    text: str, name: str, why: str = "a size is a number with an optional K, M, G or T (1024-based)"
) -> RequestError:
    return RequestError(
        f"{name}: cannot read {text!r} as a size",
        why=why,
        fix="64K, 64KiB, 1M, 4G or 0x1000",
        code="bad_size",
    )


def parse_duration(text: str | float, name: str = "time") -> float:
    """Return the seconds meant by `10`, `10s`, `500ms`, `2m` or `1h`."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if text < 0:
            what = f"{name}: a time cannot be negative: {text}"
            raise RequestError(what, why="it bounds a wait", fix="10s", code="bad_duration")
        return float(text)
    match = _DURATION.fullmatch(str(text).strip())
    if not match:
        raise RequestError(
            f"{name}: cannot read {text!r} as a time",
            why="a time is a number with us, ms, s, m or h",
            fix="10s, 500ms or 2m",
            code="bad_duration",
        )
    unit = match.group(2)
    return float(match.group(1)) * _SECONDS[unit.lower() if unit else None]


def parse_rate(text: str, name: str = "rate") -> float:
    """Return the bytes per second meant by `1 GiB/s` (2^30), `1GB/s` (10^9), `10Gb/s` or `10Gbps` (10^9 bit)."""
    match = _RATE.fullmatch(text.strip())
    if not match:
        raise RequestError(
            f"{name}: cannot read {text!r} as a rate",
            why="a rate is a number with MiB/s or GiB/s (2^20, 2^30), MB/s or GB/s (10^6, 10^9), Mb/s or Gb/s (bits)",
            fix='"1 GiB/s" or 10Gb/s',
            code="bad_rate",
        )
    digits, prefix, binary, unit = match.groups()
    factor: int = (KIB if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
    return float(digits) * factor / (1 if unit == "B" else 8)


def format_size(length_bytes: int) -> str:
    """Return `64 MiB`, `1.5 GiB`, `4097 B`: exact where short, else two decimals."""
    for power, unit in ((6, "EiB"), (5, "PiB"), (4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if length_bytes >= KIB**power:
            value = length_bytes / KIB**power
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.2f} {unit}"
    return f"{length_bytes} B"


def exact_size(length_bytes: int) -> str:
    """Return `64 MiB` where that is all of it, else `4097 bytes`: never rounded."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if length_bytes and length_bytes % KIB**power == 0:
            return f"{length_bytes >> 10 * power} {unit}"
    return counted(length_bytes, "byte")


def typed_size(length_bytes: int) -> str:
    """Return a size as options take it: `64MiB`, `4097`."""
    return exact_size(length_bytes).partition(" byte")[0].replace(" ", "")


def format_rate(bytes_per_s: float | None) -> str:
    """Return MiB/s (2^20) and Gb/s (10^9 bit) side by side, as the field reads them."""
    if bytes_per_s is None:
        return "-"
    return f"{format_figure(bytes_per_s / MIB, 1)} MiB/s ({format_figure(bytes_per_s * 8 / 1e9, 2)} Gb/s)"


def format_figure(value: float, decimals: int) -> str:
    """Return `12.3`; a figure too small for its decimals keeps two digits (`0.00015`): it never looks like nothing."""
    if value <= 0 or value >= 10**-decimals:
        return f"{value:.{decimals}f}"
    return f"{value:.{min(12, 1 - math.floor(math.log10(value)))}f}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return `1 block`, `2 blocks`; `plural` where an s does not make it."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def format_duration(seconds: float) -> str:
    """Return `1.24 s`, `12.3 ms`, `85 us` or `2m05s`."""
    if seconds >= 60:
        return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} us"
