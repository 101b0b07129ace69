"""Two result documents side by side: refused where the runs were not alike, else what became worse. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from p2prw.errors import RequestError
from p2prw.units import format_rate, format_size

LOWER_IS_BETTER = frozenset({"lat_p50_us", "lat_p99_us"})
# Below a page what counts is how many messages go through; at one size it says the same as the bandwidth.
_SMALL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one run, with what it depends on."""

    name: str
    """Of what was run: a row, a cell, the command; with size and operation where it measured several."""
    metric: str
    """As results name it, unit included: `bw_bytes_per_s`."""
    value: float
    conditions: Mapping[str, Any]
    """Word -> value of everything that makes a run another run."""
    run: str
    """What was run, without size and operation."""

    @property
    def key(self) -> tuple[str, str]:
        """Return what tells it from all others of its document."""
        return self.name, self.metric


@dataclass(frozen=True, slots=True)
class Change:
    """One figure then and now; `change` is (now - then) / then."""

    name: str
    metric: str
    before: float
    after: float
    change: float
    worse: bool

    def shown(self) -> str:
        """Return it as one line for people."""
        word = "worse" if self.worse else "ok"
        before, after = _shown(self.metric, self.before), _shown(self.metric, self.after)
        return f"{word:<6} {self.change * 100:+7.1f}%  {self.name}  {before} -> {after}"

    def row(self) -> dict[str, Any]:
        """Return its row of `results`."""
        return {
            "name": self.name,
            "metric": self.metric,
            f"before_{self.metric}": self.before,
            f"after_{self.metric}": self.after,
            "change": self.change,
            "worse": self.worse,
        }


def _shown(metric: str, value: float) -> str:
    if metric == "bw_bytes_per_s":
        return format_rate(value)
    if metric == "msg_rate_per_s":
        return f"{value:.0f} messages/s"
    return f"{metric.split('_')[1]} {value:.1f} us"


def compare(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> list[Change]:
    """Return the change of every figure that both have. RequestError: unlike runs, or nothing to compare.

    What only one of them has (a row that was skipped here) is left out; `only_in` names it.
    """
    old, new = _by_key(before), _by_key(after)
    common = [key for key in old if key in new]
    _refuse_other_sizes(old.values(), new.values(), {old[key].run for key in common})
    if not common:
        raise RequestError(
            "the two results have no figure in common",
            why=f"the first has {_some(old.values())}, the second {_some(new.values())}",
            fix="compare two results of the same scenario, of smoke, of bench, or of one write or read",
            code="nothing_to_compare",
        )
    changes = []
    for key in common:
        _refuse_unlike(old[key], new[key])
        then, now = old[key].value, new[key].value
        change = (now - then) / then
        loss = change if old[key].metric in LOWER_IS_BETTER else -change
        changes.append(Change(*key, then, now, change, worse=loss > tolerance))
    return changes


def _by_key(document: Mapping[str, Any]) -> dict[tuple[str, str], Figure]:
    """Return the figures; of one that was measured several times (`--pairs`) the median."""
    found: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures(document):
        found.setdefault(figure.key, []).append(figure)
    return {key: replace(all_[0], value=median(one.value for one in all_)) for key, all_ in found.items()}


def only_in(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of what only the first, and only the second, has figures of."""
    old, new = (dict.fromkeys(figure.name for figure in figures(document)) for document in (before, after))
    return [name for name in old if name not in new], [name for name in new if name not in old]


def figures(document: Mapping[str, Any], prefix: str = "") -> Iterator[Figure]:
    """Yield the figures of a document of write, read, bench, smoke, or of a run of them."""
    command = document.get("command")
    if command in ("write", "read"):
        yield from _of_transfer(prefix or str(command), document)
    elif command == "bench":
        yield from _of_bench(prefix or "bench", document)
    elif command == "smoke":
        for row in document["results"]:
            if row.get("status") == "pass" and row.get("bw_bytes_per_s"):
                yield _of_cell(row, f"{prefix}/" if prefix else "")
    elif command == "run":
        for row in document["results"]:
            if row.get("status") in ("pass", "fail") and row.get("result"):
                yield from figures(row["result"], row["name"])


def _of_transfer(name: str, document: Mapping[str, Any]) -> Iterator[Figure]:
    if document.get("exit_code") != 0 or not document["results"]:
        return
    row = document["results"][0]
    conditions = {
        "operation": row["operation"],
        "size in bytes": row["size_bytes"],
        "chunk in bytes": row["chunk_bytes"],
        "depth": document["params"].get("tx_depth"),
        "rate limit": row.get("rate_limit_bytes_per_s"),
        **_of_ends(document),
    }
    if row["bw_bytes_per_s"]:
        yield Figure(name, "bw_bytes_per_s", row["bw_bytes_per_s"], conditions, name)


def _of_bench(name: str, document: Mapping[str, Any]) -> Iterator[Figure]:
    # A threshold that was missed (5) is a figure like any other.
    for row in document["results"] if document.get("exit_code") in (0, 5) else ():
        conditions = {
            "test": row["test"],
            "operation": row["operation"],
            "size in bytes": row["size_bytes"],
            "queue pairs": row["queue_pairs"],
            "depth": row["tx_depth"],
            "signal interval": row["signal_every"],
            "post list": row["post_list"],
            "latency by": row["lat_by"],
            # Not in results from before these were.
            "both ways": row.get("both_ways", False),
            "walk in bytes": row.get("walk_bytes"),
            "rate limit": row.get("rate_limit_bytes_per_s"),
            **_of_ends(document),
        }
        metrics = ["lat_p50_us", "lat_p99_us"]
        if row["test"] == "bw":
            metrics = ["msg_rate_per_s" if row["size_bytes"] < _SMALL_BYTES else "bw_bytes_per_s"]
        what = f"{name} {row['test']} {row['operation']} {format_size(row['size_bytes'])}"
        for metric in metrics:
            if row["complete"] and row[metric]:
                yield Figure(what, metric, row[metric], conditions, name)


def _of_ends(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a rate depends on beside what was asked for: device, wire, routes, faults on purpose."""
    environment = document["environment"]
    device = environment.get("device")
    device = device if isinstance(device, Mapping) else {}
    return {
        "device kind": f"{device.get('provider')} {device.get('driver')}",
        "path MTU in bytes": (environment.get("negotiated") or {}).get("path_mtu_bytes"),
        "faults": document["params"].get("inject"),
        **_of_routes(document["route"]),
    }


def _of_routes(route: Mapping[str, Any]) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    for side in ("local", "remote"):
        end = route[side] or {}
        conditions |= {f"{side} {word}": end.get(word) for word in ("memory", "mover", "driver")}
        conditions[f"{side} route"] = end.get("chosen")
    return conditions


def _of_cell(row: Mapping[str, Any], prefix: str) -> Figure:
    words = ("device", "memory", "region", "operation", "size_class")
    conditions = {
        "size in bytes": row["size_bytes"],
        "offset in bytes": row["region_offset_bytes"],
        **_of_routes(row["route"]),
    }
    name = prefix + "/".join(str(row[word]) for word in words)
    return Figure(name, "bw_bytes_per_s", row["bw_bytes_per_s"], conditions, name)


def _refuse_other_sizes(old: Iterable[Figure], new: Iterable[Figure], compared: Set[str]) -> None:
    """Refuse what was run in both and has measured nothing twice: other sizes, another operation or test."""
    then = {figure.run: figure for figure in reversed(list(old))}
    now = {figure.run: figure for figure in reversed(list(new))}
    for run in then.keys() & now.keys() - compared:
        _refuse_unlike(then[run], now[run])


def _refuse_unlike(old: Figure, new: Figure) -> None:
    for word, value in old.conditions.items():
        if new.conditions.get(word) != value:
            raise RequestError(
                f"{old.run}: the runs are not alike: {word} was {value} and is {new.conditions.get(word)}",
                why="a rate means something beside one that was measured in the same way",
                fix="run the same command for both: params in the two documents hold what was set",
                code="unlike_runs",
            )


def _some(found: Iterable[Figure]) -> str:
    names = list(dict.fromkeys(figure.name for figure in found))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
