"""The README's table from the file of results.

    python -m benchmarks.table [--json benchmarks/results.json] [--write README.md]

A test holds that the README's table is what the checked-in file gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, LANES_CASES, QUEUE_PAIRS, Case
from p2prw.units import format_size

BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.table --write README.md) -->", "<!-- benchmarks: end -->"
HEAD = ("what", "p2prw", "other", "ratio (95 % interval)", "wanted", "")
LANES_HEAD = (f"{QUEUE_PAIRS} queue pairs, messages of", f"{QUEUE_PAIRS} together", "one", *HEAD[3:])
PERFTEST_HEAD = ("messages a second on the kernel's rxe", "p2prw", "perftest", *HEAD[3:])


def found(results: dict[str, Any], case: Case) -> dict[str, Any] | None:
    """Return the figures of a case, None where it was not measured."""
    figures: dict[str, Any] | None = results.get(case.part, {}).get(case.name)
    return figures


def reached(case: Case, figures: dict[str, Any]) -> bool:
    """Return whether the medians hold what the case wants."""
    if case.least_ratio is not None and figures["ratio"] < case.least_ratio:
        return False
    return case.least_bytes_per_s is None or figures["p2prw_median_bytes_per_s"] >= case.least_bytes_per_s


def missed(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each bar that was measured and not reached, saying by how much."""
    sentences = []
    for case in CASES:
        figures = found(results, case)
        if figures is None or reached(case, figures):
            continue
        if case.least_ratio is not None:
            sentences.append(f"{case.name}: ratio {figures['ratio']:.2f}, wanted {case.least_ratio:g}")
        else:
            rate, least = figures["p2prw_median_bytes_per_s"] / 1e9, (case.least_bytes_per_s or 0) / 1e9
            sentences.append(f"{case.name}: {rate:.2f} GB/s, wanted {least:g}")
    for lanes in LANES_CASES:
        figures = results.get("queue_pairs", {}).get(lanes.name)
        if figures is not None and not lanes.holds(ratio := figures["ratio_of_medians"]["ratio"]):
            sentences.append(
                f"{QUEUE_PAIRS} queue pairs, {lanes.name}: ratio {ratio:.2f}, wanted {lanes.least_ratio:g}"
            )
    for one in results.get("perftest", {}).get("cases", ()):
        if not one["holds"]:
            low = one["ratio_of_medians"]["low"]
            sentences.append(f"{_name(one)}: low end of the ratio {low:.2f}, wanted {one['least_ratio']:g}")
    return sentences


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table in Markdown and what it was measured on."""
    yield from _head(HEAD)
    for case in CASES:
        figures = found(results, case)
        if figures is None:
            yield _line((case.name, "not measured", "", "", _wanted(case), ""))
            continue
        ratio = other = ""
        if "ratio" in figures:
            ratio = _ratio(figures["ratio"], figures["ratio_low"], figures["ratio_high"])
            other = _rates(figures["other_bw_bytes_per_s"], figures["other_median_bytes_per_s"])
        own = _rates(figures["p2prw_bw_bytes_per_s"], figures["p2prw_median_bytes_per_s"])
        yield _line((case.name, own, other, ratio, _wanted(case), _verdict(reached(case, figures))))
    yield ""
    if ceiling := results.get("ceiling"):
        prebuilt = ceiling["prebuilt_median_bytes_per_s"]
        shares = ", ".join(
            f"{name} {ceiling[f'{kind}_median_bytes_per_s'] / prebuilt:.2f}"
            for name, kind in (("WRITE", "device"), ("READ", "read"))
            if f"{kind}_median_bytes_per_s" in ceiling
        )
        yield (
            "One prebuilt burst, sent again and again over the same sockets and thrown away, reached "
            f"{prebuilt / 1e9:.2f} GB/s; the device's share of that: {shares}."
        )
        yield ""
        if "walk_copied_median_bytes_per_s" in ceiling:
            yield _memory(ceiling)
            yield ""
    if lanes := results.get("queue_pairs"):
        yield from _lanes(lanes)
    if perftest := results.get("perftest"):
        yield from _perftest(perftest)
    setups = list(results.get("setup", {}).values())
    if setups:
        last = setups[0]
        codecs = {one.get("codec") for case in CASES if not case.pure and (one := found(results, case))}
        pairs = max((len(one["p2prw_bw_bytes_per_s"]) for case in CASES if (one := found(results, case))), default=0)
        yield (
            f"GB/s (10^9), medians and in brackets lowest and highest of {pairs} by turns; "
            f"packets by {' or '.join(sorted(filter(None, codecs)))}; "
            f"{last['cpus']} x {last['cpu']}, Linux {last['kernel']}, Python {last['python']}, {last['measured_at']}."
        )


def _name(case: dict[str, Any]) -> str:
    lanes = f", {case['queue_pairs']} queue pairs" if case["queue_pairs"] > 1 else ""
    tool = case["command"].partition(" ")[0]
    return f"{case['operation'].upper()} {format_size(case['size_bytes'])}{lanes} / {tool}"


def _memory(ceiling: dict[str, Any]) -> str:
    """Return what more memory than a cache holds costs the loop that has nothing to do, and the device."""

    def figure(kind: str) -> str:
        small, large = (ceiling[f"{much}{kind}_median_bytes_per_s"] for much in ("", "walk_"))
        return f"{large / 1e9:.2f} GB/s ({large / small:.2f})"

    return (
        "More memory than a cache holds: with each burst taken from 64 MiB and copied into 64 MiB at the other end "
        f"that loop reaches {figure('copied')}, the device's WRITE {figure('device')} and READ {figure('read')}; "
        "in brackets, the share of what each reaches within 1 MiB. So much is lost to memory, too, by 64 queue pairs "
        "that have a megabyte each."
    )


def _lanes(results: dict[str, Any]) -> Iterator[str]:
    """Yield the rows of many queue pairs against one."""
    yield from _head(LANES_HEAD)
    for case in LANES_CASES:
        if (figures := results.get(case.name)) is None:
            continue
        rates = (figures[f"{kind}_bw_bytes_per_s"] for kind in ("many", "one"))
        ratio = figures["ratio_of_medians"]
        yield _line(
            (
                case.name,
                *(_rates(values, statistics.median(values)) for values in rates),
                _ratio(**ratio),
                f"{case.least_ratio:g} x",
                _verdict(case.holds(ratio["ratio"])),
            )
        )
    yield ""


def _perftest(document: dict[str, Any]) -> Iterator[str]:
    """Yield the rows of perftest_pairs.py; what is wanted there is wanted of the lower end of the interval."""
    yield from _head(PERFTEST_HEAD)
    for case in document["cases"]:
        rates = [statistics.median(case[f"{tool}_msg_rate_per_s"]) for tool in ("p2prw", "perftest")]
        yield _line(
            (
                _name(case),
                *(f"{rate:,.0f}" for rate in rates),
                _ratio(**case["ratio_of_medians"]),
                f"{case['least_ratio']:g} x at the low end",
                _verdict(case["holds"]),
            )
        )
    yield ""
    kernel = document["environment"]["kernel"]
    yield (
        f"An emulated guest (lab/README.md, Linux {kernel}), {document['pairs']} pairs by turns, "
        f"{document['tx_depth']} outstanding, one in {document['signal_every']} signalled; the ratio counts."
    )
    yield ""


def _rates(values: list[float], median: float) -> str:
    digits = 2 if median >= 1e8 else 3
    low, middle, high = (f"{one / 1e9:.{digits}f}" for one in (min(values), median, max(values)))
    return f"{middle} ({low} to {high})"


def _ratio(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def _verdict(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _wanted(case: Case) -> str:
    if case.least_ratio is not None:
        return f"{case.least_ratio:g} x"
    return f"{case.least_bytes_per_s / 1e9:g} GB/s" if case.least_bytes_per_s is not None else ""


def _head(cells: tuple[str, ...]) -> Iterator[str]:
    yield _line(cells)
    yield _line(("---",) * len(cells))


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |".replace("  |", " |")


def rewritten(page: str, results: dict[str, Any]) -> str:
    """Return the page with its table made anew. ValueError where the page has no place for it."""
    head, _, rest = page.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"no lines {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n" + "\n".join(table(results)) + f"\n\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it between this page's two lines")
    args = parser.parse_args()
    results = json.loads(args.json.read_text())
    if args.write is None:
        print("\n".join(table(results)))
    else:
        args.write.write_text(rewritten(args.write.read_text(), results))


if __name__ == "__main__":
    main()
