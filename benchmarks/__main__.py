"""How fast is the software device, and how do other ways to move bytes do on the same wire? One command.

    python -m benchmarks [--json benchmarks/results.json] [--pairs 5] [--only p2prw,ucx]

Method, peers and what the figures are not: benchmarks/README.md. Parts that are not run keep what the file had. Exit 0:
all was measured and every bar reached; 5: a bar was missed; 3: something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, LANES_CASES, PARTS, QUEUE_PAIRS, USUAL, WALK, Case, LanesCase
from benchmarks.table import missed, table
from lab.errors import FetchError, MissingError
from lab.host import Need, ensure_host_packages
from p2prw import __version__
from p2prw.engine.bench.statistics import ratio_of_medians

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
RUN_LIMIT_S = 300
START_LIMIT_S = 60
P2PRW = (sys.executable, "-m", "p2prw")


@contextmanager
def serving(folder: Path, *more: str, size: str = "8MiB") -> Iterator[str]:
    """A server of one region, in a process of its own."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    words = ("serve", "--listen", "127.0.0.1:0", "--region", f"scratch=host,size={size}", "--quiet", *more)
    with (folder / "serve.txt").open("w+") as said:
        server = subprocess.Popen([*P2PRW, *words, "--ready-file", str(ready)], stdout=said, stderr=said, cwd=ROOT)
        try:
            limit_s = time.monotonic() + START_LIMIT_S
            while not ready.exists():
                if server.poll() is not None or time.monotonic() > limit_s:
                    said.seek(0)
                    raise RuntimeError(f"the server did not start: {said.read().strip()[-300:]}")
                time.sleep(0.05)
            yield f"{ready.read_text().strip()}/scratch"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def bench(target: str, *words: str) -> dict[str, Any]:
    """One `p2prw bench`, as its document; RuntimeError with what it said where it failed."""
    command = [*P2PRW, "bench", target, *words, "--json", "--quiet"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_LIMIT_S)
    document: dict[str, Any] = json.loads(run.stdout)
    if document["error"] is not None:
        raise RuntimeError(f"{document['error']['what']}: {document['error']['why']}")
    return document


def own_figures(cases: list[Case], pairs: int, folder: Path) -> dict[str, Any]:
    """Ours alone, all cases by turns."""
    found: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for _ in range(pairs):
        for case in cases:
            codec = ("--no-leaf",) if case.pure else ()
            with serving(folder, *codec) as target:
                found[case.name].append(bench(target, *case.words, *codec))
    return {
        name: {
            "p2prw_bw_bytes_per_s": [one["results"][0]["bw_bytes_per_s"] for one in documents],
            "p2prw_median_bytes_per_s": statistics.median(one["results"][0]["bw_bytes_per_s"] for one in documents),
            "device": documents[0]["environment"]["device"]["name"],
            "codec": documents[0]["environment"]["device"]["codec"],
            "path_mtu_bytes": documents[0]["environment"]["negotiated"]["path_mtu_bytes"],
        }
        for name, documents in found.items()
    }


def pair_figures(case: Case, pairs: int, folder: Path) -> dict[str, Any]:
    """Ours and another tool's by turns: what `--against` says."""
    with serving(folder) as target:
        document = bench(target, *case.words, "--pairs", str(pairs), "--against", case.against or "")
    against = document["against"]
    return {
        "codec": document["environment"]["device"]["codec"],
        "p2prw_bw_bytes_per_s": against["p2prw"]["bw_bytes_per_s"],
        "p2prw_median_bytes_per_s": against["p2prw"]["bw_median_bytes_per_s"],
        "other_bw_bytes_per_s": against["other"]["bw_bytes_per_s"],
        "other_median_bytes_per_s": against["other"]["bw_median_bytes_per_s"],
        **{name: against[name] for name in ("ratio", "ratio_low", "ratio_high", "client", "environ", "differs")},
    }


def ceiling(pairs: int, folder: Path) -> dict[str, Any]:
    """Our share of what a loop of prebuilt GSO sends reaches (loopback.py), in memory as small as bench's.

    And what that loop and ours reach when the bytes lie in much memory instead.
    """
    path = folder / "loopback.json"
    figures: dict[str, Any] = {}
    for region, prefix in (("1MiB", ""), (WALK, "walk_")):
        words = ("--runs", str(pairs), "--size", "1GiB", "--region", region, "--read", "--copied", "--json", str(path))
        command = [sys.executable, str(ROOT / "benchmarks" / "loopback.py"), *words]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_LIMIT_S)
        if run.returncode != 0:
            raise RuntimeError((run.stderr.strip().splitlines() or ["it said nothing"])[-1])
        medians = json.loads(path.read_text())["median_bw_bytes_per_s"]
        figures |= {f"{prefix}{kind}_median_bytes_per_s": rate for kind, rate in medians.items()}
    return figures


def queue_pairs(pairs: int, folder: Path) -> dict[str, Any]:
    """Many queue pairs at once against one, all cases by turns, on one server."""
    found: dict[LanesCase, tuple[list[float], list[float]]] = {case: ([], []) for case in LANES_CASES}
    with serving(folder, "--max-clients", str(2 * QUEUE_PAIRS), size="64MiB") as target:
        for number in range(pairs):
            for case, (many, one) in found.items():
                kinds = [(many, ("-q", str(QUEUE_PAIRS), "-s", case.size)), (one, ("-s", case.size, *case.walk))]
                for rates, words in kinds if number % 2 else kinds[::-1]:
                    document = bench(target, "--op", case.operation, "-D", "1", *words)
                    rates.append(document["results"][0]["bw_bytes_per_s"])
    return {
        case.name: {
            "queue_pairs": QUEUE_PAIRS,
            "many_bw_bytes_per_s": many,
            "one_bw_bytes_per_s": one,
            "ratio_of_medians": asdict(ratio_of_medians(many, one, seed=1)),
        }
        for case, (many, one) in found.items()
    }


def perftest(folder: Path) -> dict[str, Any]:
    """Over the kernel's rxe, against ib_write_bw and ib_read_bw: benchmarks/perftest_pairs.py in the lab's guest."""
    # Thirty pairs, twenty minutes: fifteen leave intervals of a tenth around a ratio.
    program = "python benchmarks/perftest_pairs.py --pairs 30 --json $LAB_SHARED/pairs.json"
    options = ("--rxe", "--timeout", "3000", "--folder", str(folder))
    command = [str(ROOT / "lab" / "run"), *options, "--", "bash", "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    found = next(folder.rglob("pairs.json"), None)
    if run.returncode != 0 or found is None:
        raise RuntimeError((run.stderr.strip().splitlines() or ["it said nothing"])[-1])
    document: dict[str, Any] = json.loads(found.read_text())
    return document


def setup() -> dict[str, Any]:
    """What the figures depend on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "p2prw": __version__,
        "measured_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def measure(parts: list[str], pairs: int, results: dict[str, Any], path: Path) -> list[str]:
    """Fill `results` and the file, case by case, and return what failed; it costs itself only."""
    failed: list[str] = []

    def attempt(part: str, name: str, work: Any) -> None:
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        try:
            results.setdefault(part, {}).update(work())
            results.setdefault("setup", {})[part] = setup()
            # Now, so that who ends us keeps what was measured.
            path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        except (RuntimeError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            failed.append(f"{name}: {error}")
            print(f"  {failed[-1]}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="p2prw-bench-") as name:
        folder = Path(name)
        for part in parts:
            cases = [case for case in CASES if case.part == part]
            if part == "p2prw":
                attempt(part, "p2prw alone", lambda cases=cases: own_figures(cases, pairs, folder))
            elif part == "ceiling":
                attempt(part, "share of the ceiling", lambda: ceiling(pairs, folder))
            elif part == "queue_pairs":
                attempt(part, f"{QUEUE_PAIRS} queue pairs against one", lambda: queue_pairs(pairs, folder))
            elif part == "perftest":
                attempt(part, "perftest over rxe, in the lab", lambda: perftest(folder))
            for case in cases if part in ("ucx", "libfabric") else ():
                attempt(part, case.name, lambda case=case: {case.name: pair_figures(case, pairs, folder)})
    return failed


def ensure_peers(parts: list[str]) -> None:
    """Install ucx-utils where it is wanted and root may; Debian has no package of fabtests."""
    if "ucx" in parts:
        try:
            ensure_host_packages([Need("ucx-utils", program="ucx_perftest")])
        except (FetchError, MissingError) as error:
            print(error, file=sys.stderr)
    if "libfabric" in parts and not shutil.which("fi_rma_bw"):
        print("fi_rma_bw is not in PATH: benchmarks/README.md says how to build it", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="the file of results (default: benchmarks/results.json)"
    )
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each side")
    parser.add_argument("--only", default=",".join(USUAL), help=f"parts, with commas between: {', '.join(PARTS)}")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    ensure_peers(parts)
    failed = measure(parts, args.pairs, results, args.json)
    print("\n".join(table(results)))
    for text in (*failed, *missed(results)):
        print(text, file=sys.stderr)
    return 3 if failed else 5 if missed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
