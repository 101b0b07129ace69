"""`expect:` as a small closed grammar: METRIC OPERATOR VALUE. Pure: text in, verdicts out; nothing is run as code.

    figures     bw >= 1 GiB/s      bw >= 90% of link     elapsed <= 2 s     bytes == 64K     lat_p99 <= 50 us
    facts       route == odp       remote_route != cpu   mover == nic       peer_to_peer == true
    outcomes    error == RemoteAccess     exit_code == 7     status == failed     verify == mismatch

A missed figure or fact is a missed threshold (5); a missed outcome is a failure of its own (1). A figure that the
result does not have is *unknown*, never met.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from p2prw.config_values import nearest
from p2prw.errors import RequestError
from p2prw.units import format_duration, format_rate, parse_duration, parse_rate, parse_size

RATES = ("bw",)
TIMES = ("elapsed", "lat_avg", "lat_p50", "lat_p90", "lat_p99", "lat_p999", "lat_max")
COUNTS = ("bytes", "retransmitted_packets", "timeouts", "rnr_naks", "sequence_naks", "exit_code")
WORDS = ("route", "remote_route", "mover", "remote_mover", "peer_to_peer", "remote_peer_to_peer", "memory", "device",
         "error", "status", "verify")  # fmt: skip
METRICS = (*RATES, *TIMES, *COUNTS, *WORDS)
OUTCOMES = frozenset({"error", "exit_code", "status", "verify"})
"""What a command ended with, and not how fast: a failure that is expected stands here."""

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_FORM = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*")
_LINK = re.compile(r"(\d+(?:\.\d+)?)\s*%\s+of\s+link", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
EXAMPLES = "bw >= 1 GiB/s, bw >= 90% of link, lat_p99 <= 50 us, route == odp, error == RemoteAccess"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One checked expectation. `value` is bytes/s, seconds, a count or a word; a share of the link where `of_link`."""

    text: str
    metric: str
    operator: str
    value: float | int | str
    of_link: bool = False

    @property
    def is_outcome(self) -> bool:
        """Return True where it is about how the command ended."""
        return self.metric in OUTCOMES


@dataclass(frozen=True, slots=True)
class Judgement:
    """`met`, `missed`, or `unknown` with the reason."""

    expectation: Expectation
    outcome: str
    measured: float | int | str | None = None
    why: str | None = None

    def shown(self) -> str:
        """Return it as one line for people."""
        tail = f" ({self.why})" if self.why else f", measured {_show(self.expectation.metric, self.measured)}"
        return f"{self.expectation.text}: {self.outcome}{tail}"


def parse_expectation(text: str, name: str = "expect") -> Expectation:
    """Return what `text` expects; RequestError with the nearest metric or a form that works."""
    match = _FORM.fullmatch(text)
    if not match:
        raise RequestError(
            f"{name}: cannot read {text!r} as METRIC OPERATOR VALUE",
            why=f"operators are {', '.join(_OPERATORS)}",
            fix=EXAMPLES,
            code="bad_expectation",
        )
    metric, sign, value = match.groups()
    if metric not in METRICS:
        near = nearest(metric, METRICS)
        raise RequestError(
            f"{name}: unknown metric {metric!r}",
            why=f"metrics: {', '.join(METRICS)}",
            fix=f"did you mean {near!r}?" if near else EXAMPLES,
            code="bad_expectation",
        )
    if metric in WORDS and sign not in ("==", "!="):
        raise RequestError(
            f"{name}: {metric} is a word, and {sign} compares numbers",
            why="words are equal or they are not",
            fix=f"{metric} == {value}",
            code="bad_expectation",
        )
    clean = f"{metric} {sign} {value}"
    if metric in RATES and (link := _LINK.fullmatch(value)):
        return Expectation(clean, metric, sign, float(link.group(1)) / 100, of_link=True)
    return Expectation(clean, metric, sign, _parse_value(metric, value, name))


def _parse_value(metric: str, value: str, name: str) -> float | int | str:
    if metric in RATES:
        return parse_rate(value, f"{name}: {metric}")
    if metric in TIMES:
        return parse_duration(value, f"{name}: {metric}")
    if metric == "bytes":
        return parse_size(value, f"{name}: {metric}")
    if metric in COUNTS:
        if not value.isascii() or not value.isdigit():
            raise RequestError(
                f"{name}: {metric}: {value!r} is no whole number",
                why="it counts",
                fix=f"{metric} == 0",
                code="bad_expectation",
            )
        return int(value)
    if not _WORD.fullmatch(value):
        raise RequestError(
            f"{name}: {metric}: {value!r} is no word",
            why="a word is letters, digits and _",
            fix=EXAMPLES,
            code="bad_expectation",
        )
    return snake(value)


def snake(word: str) -> str:
    """Return `remote_access` for RemoteAccess, remote-access and remote_access: codes may be written in any way."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word)
    return spaced.replace("-", "_").lower()


def judge(expectation: Expectation, exit_code: int, document: Mapping[str, Any] | None) -> Judgement:
    """Hold one expectation against what a command ended with: its exit code, and its document where it left one."""
    found, why = _measure(expectation.metric, exit_code, document or {})
    if found is None:
        return Judgement(expectation, "unknown", None, why)
    wanted: float | int | str = expectation.value
    if expectation.of_link:
        link = link_bytes_per_s(document or {})
        if link is None:
            return Judgement(expectation, "unknown", found, "the link speed of this device is not known")
        wanted = float(expectation.value) * link
    met = _OPERATORS[expectation.operator](found, wanted)
    return Judgement(expectation, "met" if met else "missed", found)


def link_bytes_per_s(document: Mapping[str, Any]) -> float | None:
    """Return the speed of the NIC's link; None where there is none to speak of.

    The software device has no link, and rxe always says 2.5 or 100 Gb/s: where the CPU moves the bytes there is no such
    figure.
    """
    local = document.get("route", {}).get("local")
    if not isinstance(local, Mapping) or local.get("mover") != "nic":
        return None
    device = document.get("environment", {}).get("device")
    rate = device.get("rate_gbit_per_s") if isinstance(device, Mapping) else None
    return rate * 1e9 / 8 if isinstance(rate, (int, float)) and rate > 0 else None


def _measure(metric: str, exit_code: int, document: Mapping[str, Any]) -> tuple[float | int | str | None, str | None]:
    """Return (value, None) or (None, why it is not known)."""
    if metric == "exit_code":
        return exit_code, None
    if metric == "error":
        error = document.get("error")
        return (error["code"] if error else "none"), None
    if not document:
        return None, "the command left no result"
    if metric in ("status", "verify"):
        return snake(document["status"] if metric == "status" else document["verify"]["status"]), None
    if metric in WORDS:
        return _route_word(metric, document)
    rows = [row for row in document["results"] if isinstance(row, Mapping)]
    key = {"bw": "bw_bytes_per_s", "elapsed": "elapsed_s"}.get(metric, metric)
    key = f"{key}_us" if metric.startswith("lat_") else key
    values = [row[key] for row in rows if isinstance(row.get(key), (int, float))]
    if not values:
        return None, f"{document['command']} reports no {metric}"
    # Several rows: a rate is as good as the worst of them, anything else as bad as the most of them.
    value = min(values) if metric in RATES else max(values)
    return (value / 1e6 if metric.startswith("lat_") else value), None


def _route_word(metric: str, document: Mapping[str, Any]) -> tuple[str | None, str | None]:
    side, word = ("remote", metric.removeprefix("remote_")) if metric.startswith("remote_") else ("local", metric)
    route = document["route"][side]
    if route is None:
        return None, f"the {side} end was not reached"
    value = route["chosen" if word == "route" else word]
    return (str(value).lower() if isinstance(value, bool) else snake(str(value))), None


def _show(metric: str, value: float | int | str | None) -> str:
    if isinstance(value, (int, float)) and metric in RATES:
        return format_rate(float(value))
    if isinstance(value, (int, float)) and metric in TIMES:
        return format_duration(float(value))
    return str(value)
