"""Text to value for every kind of setting: one parser whatever layer (file, environment, line) the text came from.

Each parser takes the text and the name to use in messages, and raises RequestError. Nothing here knows where the text
came from; `p2prw.config` puts the place in front.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2prw.engine.affinity import MOST_CPUS
from p2prw.errors import RequestError
from p2prw.units import parse_duration, parse_rate, parse_size

Parser = Callable[[str, str], Any]

_WORDS: dict[Parser, tuple[str | int, ...]] = {}
"""choice() parser -> its words."""

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def text(value: str, name: str) -> str:
    """Accept any text but an empty one."""
    if not value:
        raise RequestError(
            f"{name}: needs a value", why="an empty text was given", fix=f"{name} VALUE", code="bad_value"
        )
    return value


def pair(value: str, name: str) -> tuple[str, str]:
    """Accept two words: what does DMA, and whose memory."""
    words = value.split()
    if len(words) != 2:
        raise RequestError(
            f"{name}: expected a NIC and memory, got {value!r}",
            why="two names are needed, and neither holds a space",
            fix=f"{name} mlx5_0 p2pmem:0000:01:00.0",
            code="bad_value",
        )
    return words[0], words[1]


def fingerprint(value: str, name: str) -> str:
    """Accept a SHA-256 in hex as `serve` or openssl prints it; return 64 digits in lower case."""
    digits = value.strip().lower().rpartition("=")[2].removeprefix("sha256:").replace(":", "")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise RequestError(
            f"{name}: expected the SHA-256 of a certificate, got {value!r}",
            why="it has 64 hex digits, with or without colons",
            fix="openssl x509 -in cert.pem -noout -fingerprint -sha256",
            code="bad_value",
        )
    return digits


def networks(value: str, name: str) -> tuple[str, ...]:
    """Accept CIDRs separated by commas; an address alone is a network of one."""
    from ipaddress import ip_network

    found = []
    for word in value.split(","):
        try:
            found.append(str(ip_network(word.strip())))
        except ValueError as error:
            raise RequestError(
                f"{name}: {word.strip()!r} is no network",
                why=str(error),
                fix=f"{name} 10.0.0.0/8,192.168.1.7   (host bits must be 0)",
                code="bad_value",
            ) from error
    return tuple(found)


def flag(value: str, name: str) -> bool:
    """Accept true/false, yes/no, on/off, 1/0."""
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise RequestError(
        f"{name}: expected true or false, got {value!r}",
        why="true, yes, on and 1 are true; false, no, off and 0 are false",
        fix=f"{name} true",
        code="bad_value",
    )


def integer(low: int, high: int, *, why: str | None = None) -> Parser:
    """Accept a decimal or 0x number in [low, high]."""

    def parse(value: str, name: str) -> int:
        try:
            number = int(value.strip(), 0 if value.strip().lower().startswith("0x") else 10)
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise RequestError(
                f"{name}: expected a number from {low} to {high}, got {value!r}",
                why=why or ("it is no whole number" if number is None else "it is out of range"),
                fix=f"{name} {low}   (or up to {high})",
                code="bad_value",
            )
        return number

    return parse


def size(low: int = 0, high: int = (1 << 63) - 1) -> Parser:
    """Accept a size (K = 1024) of `low` to `high` bytes."""

    def parse(value: str, name: str) -> int:
        length_bytes = parse_size(value, name)
        if not low <= length_bytes <= high:
            raise RequestError(
                f"{name}: {value} is {length_bytes} bytes",
                why=f"from {low} to {high} bytes are possible",
                fix=f"{name} {low if length_bytes < low else high}",
                code="bad_size",
            )
        return length_bytes

    return parse


def duration(value: str, name: str) -> float:
    """Accept `10`, `10s`, `500ms`, `2m`; the result is seconds."""
    return parse_duration(value, name)


def rate(value: str, name: str) -> float:
    """Accept `1 GiB/s`, `10Gb/s`; the result is bytes per second."""
    return parse_rate(value, name)


def rate_limit(value: str, name: str) -> float:
    """Accept a rate that is more than nothing."""
    limit = parse_rate(value, name)
    if limit <= 0:
        raise RequestError(
            f"{name}: {value} moves nothing",
            why="a limit is more than nothing; without the option there is none",
            fix=f"{name} 500MiB/s",
            code="bad_rate",
        )
    return limit


def cpu_list(value: str, name: str) -> tuple[int, ...]:
    """Accept CPUs as the kernel lists them: `0,2-3`."""
    cpus: set[int] = set()
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        low = int(first) if first.isdecimal() else -1
        high = (int(last) if last.isdecimal() else -1) if dash else low
        if low < 0 or not low <= high < MOST_CPUS:
            raise RequestError(
                f"{name}: cannot read {part!r} as a CPU",
                why="CPUs are numbers from 0, or ranges of them, with commas between",
                fix=f"{name} 0,2-3",
                code="bad_value",
            )
        cpus.update(range(low, high + 1))
    return tuple(sorted(cpus))


def size_list(value: str, name: str) -> tuple[int, ...]:
    """Accept sizes with commas between them, each at least one byte."""
    one = size(1)
    return tuple(one(part, name) for part in value.split(","))


def latency_bounds(value: str, name: str) -> dict[str, float]:
    """Accept `p99=50us,p50=20us`; the result is figure -> microseconds."""
    bounds = {}
    for part in value.split(","):
        figure, equals, limit = part.partition("=")
        if not equals:
            raise RequestError(
                f"{name}: cannot read {part!r} as FIGURE=TIME",
                why="a figure (p50, p90, p99, p99.9, min, avg, max), '=', then the longest time",
                fix=f"{name} p99=50us",
                code="bad_value",
            )
        bounds[_FIGURE(figure, name)] = parse_duration(limit, name) * 1e6
    return bounds


def share(value: str, name: str) -> float:
    """Accept `5%` or `0.05`: a part below the whole."""
    text = value.strip()
    try:
        part = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        part = -1.0
    if not 0.0 <= part < 1.0:
        raise RequestError(
            f"{name}: cannot read {value!r} as a share below 100%",
            why="it is a percentage, or a fraction from 0 to 1",
            fix=f"{name} 5%",
            code="bad_value",
        )
    return part


def choice(*words: str) -> Parser:
    """Accept one of `words`."""

    def parse(value: str, name: str) -> str:
        word = value.strip().lower()
        if word not in words:
            raise RequestError(
                f"{name}: {value!r} is none of its words",
                why=f"expected one of {', '.join(words)}",
                fix=f"{name} {nearest(word, words) or words[0]}",
                code="bad_value",
            )
        return word

    _WORDS[parse] = words
    return parse


_FIGURE = choice("p50", "p90", "p99", "p99.9", "min", "avg", "max")


def number_choice(*numbers: int) -> Parser:
    """Accept one of `numbers`."""

    def parse(value: str, name: str) -> int:
        if value.strip() not in {str(number) for number in numbers}:
            word = value.strip()
            below = max((number for number in numbers if word.isdecimal() and number <= int(word)), default=numbers[0])
            raise RequestError(
                f"{name}: {value!r} is none of its values",
                why=f"expected one of {', '.join(map(str, numbers))}",
                fix=f"{name} {below}",
                code="bad_value",
            )
        return int(value)

    _WORDS[parse] = numbers
    return parse


def auto_or(inner: Parser, word: str = "auto") -> Parser:
    """Accept `word` as None, else what `inner` accepts."""

    def parse(value: str, name: str) -> Any:
        return None if value.strip().lower() == word else inner(value, name)

    if inner in _WORDS:
        _WORDS[parse] = (word, *_WORDS[inner])
    return parse


def words_of(parse: Parser) -> tuple[str | int, ...]:
    """Return the words that a `choice` accepts; nothing for any other parser. For schemas and completion."""
    return _WORDS.get(parse, ())


def nearest(word: str, known: Any, cutoff: float = 0.6) -> str | None:
    """Return the known word that is most like `word`, or None when nothing is near."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def written_as(error: RequestError, name: str, written: str) -> RequestError:
    """Have a fix that begins with `name` (`mtu 4096`) begin as it is written where the value stands (`mtu: 4096`)."""
    if error.fix is not None and error.fix.startswith(f"{name} "):
        error.fix = written + error.fix[len(name) + 1 :]
    return error


def at_place(place: str, error: RequestError) -> RequestError:
    """Return the error with `place` in front, its code kept."""
    return RequestError(f"{place}: {error.what}", why=error.why, fix=error.fix, code=error.code)
