"""Two result documents side by side: refused where the runs were not alike, else what became worse. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2prw.errors import RequestError
from p2prw.units import format_rate


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one run, with what it depends on."""

    name: str
    bw_bytes_per_s: float
    conditions: Mapping[str, Any]
    """Word -> value of everything that makes a run another run."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure then and now; `change` is (now - then) / then."""

    name: str
    before_bytes_per_s: float
    after_bytes_per_s: float
    change: float
    worse: bool

    def shown(self) -> str:
        """Return it as one line for people."""
        word = "worse" if self.worse else "ok"
        before, after = format_rate(self.before_bytes_per_s), format_rate(self.after_bytes_per_s)
        return f"{word:<6} {self.change * 100:+7.1f}%  {self.name}  {before} -> {after}"


def compare(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> list[Change]:
    """Return the change of every figure that both have. RequestError: unlike runs, or nothing to compare.

    What only one of them has (a row that was skipped here) is left out; `only_in` names it.
    """
    old = {figure.name: figure for figure in figures(before)}
    new = {figure.name: figure for figure in figures(after)}
    common = [name for name in old if name in new]
    if not common:
        raise RequestError(
            "the two results have no figure in common",
            why=f"the first has {_some(old)}, the second {_some(new)}",
            fix="compare two results of the same scenario, of smoke, or of one write or read",
            code="nothing_to_compare",
        )
    changes = []
    for name in common:
        _refuse_unlike(old[name], new[name])
        then, now = old[name].bw_bytes_per_s, new[name].bw_bytes_per_s
        change = (now - then) / then
        changes.append(Change(name, then, now, change, worse=change < -tolerance))
    return changes


def only_in(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of figures that only the first, and only the second, has."""
    old, new = [figure.name for figure in figures(before)], [figure.name for figure in figures(after)]
    return [name for name in old if name not in new], [name for name in new if name not in old]


def figures(document: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield the rates of a document of write, read, run or smoke."""
    command = document.get("command")
    if command in ("write", "read"):
        yield from _of_transfer(str(command), document)
        return
    for row in document.get("results", ()):
        if command == "run":
            inner = row.get("result")
            if row.get("status") in ("pass", "fail") and inner and inner.get("command") in ("write", "read"):
                yield from _of_transfer(row["name"], inner)
        elif command == "smoke" and row.get("status") == "pass" and row.get("bw_bytes_per_s"):
            yield _of_cell(row)


def _of_transfer(name: str, document: Mapping[str, Any]) -> Iterator[Figure]:
    if document.get("exit_code") != 0 or not document["results"]:
        return
    row, params = document["results"][0], document["params"]
    environment = document["environment"]
    device = environment.get("device")
    device = device if isinstance(device, Mapping) else {}
    conditions: dict[str, Any] = {
        "operation": row["operation"],
        "size in bytes": row["size_bytes"],
        "device kind": f"{device.get('provider')} {device.get('driver')}",
        "path MTU in bytes": (environment.get("negotiated") or {}).get("path_mtu_bytes"),
        "depth": params.get("tx_depth"),
        "chunk in bytes": row["chunk_bytes"],
        "faults": params.get("inject"),
    }
    for side in ("local", "remote"):
        route = document["route"][side] or {}
        conditions |= {f"{side} {word}": route.get(word) for word in ("memory", "mover", "driver")}
        conditions[f"{side} route"] = route.get("chosen")
    if row["bw_bytes_per_s"]:
        yield Figure(name, row["bw_bytes_per_s"], conditions)


def _of_cell(row: Mapping[str, Any]) -> Figure:
    words = ("device", "memory", "region", "operation", "size_class")
    route = row["route"]
    conditions = {"size in bytes": row["size_bytes"], "offset in bytes": row["region_offset_bytes"]}
    for side in ("local", "remote"):
        end = route[side] or {}
        conditions |= {f"{side} {word}": end.get(word) for word in ("memory", "mover", "driver")}
        conditions[f"{side} route"] = end.get("chosen")
    return Figure("/".join(str(row[word]) for word in words), row["bw_bytes_per_s"], conditions)


def _refuse_unlike(old: Figure, new: Figure) -> None:
    for word, value in old.conditions.items():
        if new.conditions.get(word) != value:
            raise RequestError(
                f"{old.name}: the runs are not alike: {word} was {value} and is {new.conditions.get(word)}",
                why="a rate means something beside one that was measured in the same way",
                fix="run the same command again on both; p2prw --help shows what each option sets",
                code="unlike_runs",
            )


def _some(named: Mapping[str, Figure] | Sequence[str]) -> str:
    names = list(named)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
