"""p2prw over verbs against perftest on the same RDMA device, in alternating pairs.

    lab/run --rxe --folder pairs -- bash -c 'python benchmarks/perftest_pairs.py --json $LAB_SHARED/pairs.json'
    python benchmarks/perftest_pairs.py --device mlx5_0 --address 10.0.0.1 --gid-index 3 --pairs 15

Both ends are on this host. A case is OPERATION:SIZE:ITERATIONS[:QUEUE_PAIRS]; size, depth, iterations, signalling (one
in `--signal-every`), READs outstanding and path MTU are equal, neither side warms up, and both measure from the first
post to the last completion (perftest's -N: no peak). perftest runs as its users run it, a server and a client process
for each measurement; p2prw's server is one process, and its client is this one, with fresh queue pairs for each
measurement, so that a pair takes seconds also where a Python start alone takes ten. Odd pairs begin with perftest.

The figure of a case is the ratio of medians (p2prw / perftest) of the message rate, with a 95 % bootstrap interval over
pairs. JSON on stdout or in `--json`; lines on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2prw import api
from p2prw.engine.bench.statistics import ratio_of_medians
from p2prw.engine.model import Operation, QueuePairOptions
from p2prw.units import KIB, MIB, format_size, parse_size

CASES = tuple(
    f"{operation}:{rest}"
    for operation in ("write", "read")
    for rest in ("64:60000", "4K:20000", "64K:1600", "1M:192", "64K:500:4")
)
"""A second or two each on rxe under emulation: in a quarter of one, which processor the kernel chose is most of it."""
TOOLS = {Operation.WRITE: "ib_write_bw", Operation.READ: "ib_read_bw"}
PERFTEST_PORT = 18615
START_LIMIT_S = 150.0
RUN_LIMIT_S = 120.0
SEED = 1


@dataclass(frozen=True)
class Case:
    operation: Operation
    size_bytes: int
    iterations: int
    queue_pairs: int = 1

    def __str__(self) -> str:
        lanes = f" x {self.queue_pairs} queue pairs" if self.queue_pairs > 1 else ""
        return f"{self.operation.value} {format_size(self.size_bytes)}{lanes}"

    @property
    def least_ratio(self) -> float:
        """What p2prw sets itself: level from 64 KiB up, where the device is the limit, less where Python is."""
        return 0.95 if self.size_bytes >= 64 * KIB else 0.90 if self.size_bytes >= 4 * KIB else 0.75


def parse_case(text: str) -> Case:
    operation, size, iterations, *rest = text.split(":")
    return Case(Operation(operation), parse_size(size), int(iterations), int(rest[0]) if rest else 1)


@contextmanager
def p2prw_server(args: argparse.Namespace, region_bytes: int) -> Iterator[str]:
    """`p2prw serve` as a process of its own; yields HOST:PORT."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = [sys.executable, "-m", "p2prw", "serve", "--region", f"mem=host,size={region_bytes}"]
        command += ["--device", args.device, "--gid-index", str(args.gid_index), "--verbs-binding", args.binding]
        command += ["--listen", f"{args.address}:0", "--insecure", "--ready-file", str(ready), "--quiet"]
        server = subprocess.Popen([*command, "--max-rd-atomic", str(args.max_rd_atomic)])
        try:
            wait_until(lambda: ready.exists() and ready.read_text().endswith("\n"), server, "p2prw serve")
            yield ready.read_text().strip()
        finally:
            server.terminate()
            server.wait(30)


def wait_until(happened: Any, process: subprocess.Popen[Any], what: str) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit(f"{what} did not start (exit code {process.poll()})")
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    """By /proc: a connection made to find out would be taken for the client."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(wanted) and fields[3] == "0A":
                return True
    return False


def perftest_command(args: argparse.Namespace, case: Case) -> list[str]:
    words = [TOOLS[case.operation], "-d", args.device, "-x", str(args.gid_index), "-p", str(PERFTEST_PORT)]
    words += ["-s", str(case.size_bytes), "-n", str(case.iterations), "-q", str(case.queue_pairs)]
    words += ["-t", str(args.depth), "-Q", str(args.signal_every), "-N", "-F"]
    return words + (["-o", str(args.max_rd_atomic)] if case.operation is Operation.READ else [])


def run_perftest(args: argparse.Namespace, case: Case) -> float:
    """Messages per second. In an emulated guest perftest now and then calls its own time 0 and prints a rate of 0."""
    for _ in range(3):
        if rate := run_perftest_once(args, case):
            return rate
        print(f"{TOOLS[case.operation]} printed a rate of 0: again", file=sys.stderr)
    raise SystemExit(f"{TOOLS[case.operation]} printed a rate of 0 three times")


def run_perftest_once(args: argparse.Namespace, case: Case) -> float:
    command = perftest_command(args, case)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: is_listening(PERFTEST_PORT), server, command[0])
        client = subprocess.run(
            [*command, args.address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_LIMIT_S
        )
        server.communicate(timeout=RUN_LIMIT_S)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    return messages_per_s(case, client.stdout)


def messages_per_s(case: Case, printed: str) -> float:
    """Of perftest's columns: bytes, iterations of all queue pairs, peak, average in MiB/s, million messages/s."""
    for line in printed.splitlines():
        fields = line.split()
        if len(fields) == 5 and fields[0] == str(case.size_bytes):
            if int(fields[1]) != case.iterations * case.queue_pairs:
                raise SystemExit(f"{TOOLS[case.operation]} counted {fields[1]} messages")
            # Two decimals of MiB/s or six of millions: whichever has more digits here.
            return float(fields[3]) * MIB / case.size_bytes if case.size_bytes >= 4 * KIB else float(fields[4]) * 1e6
    raise SystemExit(f"{TOOLS[case.operation]} printed no figures:\n{printed}")


def run_p2prw(args: argparse.Namespace, case: Case, server: str) -> tuple[float, dict[str, Any]]:
    """Messages per second, and what the run says of itself."""
    queue_pair = QueuePairOptions(
        depth=args.depth, gid_index=args.gid_index, max_rd_atomic=args.max_rd_atomic, timeout=18
    )
    connection = {
        "device": args.device, "verbs_binding": args.binding, "queue_pair": queue_pair,
        "signal_every": args.signal_every,
    }  # fmt: skip
    result = api.bench(
        f"{server}/mem",
        operations=(case.operation,),
        sizes=(case.size_bytes,),
        iterations=case.iterations,
        queue_pairs=case.queue_pairs,
        warm_up=0,
        connection=connection,
    )
    if result.error is not None:
        raise SystemExit(f"p2prw bench: {result.error.what}: {result.error.why}")
    (row,) = result.results
    assert row.msg_rate_per_s is not None
    asked = (case.iterations * case.queue_pairs, args.signal_every)
    if (row.messages, row.signal_every) != asked or row.retransmitted_packets:
        raise SystemExit(f"p2prw ran {row.messages} messages, one signalled in {row.signal_every}; asked: {asked}")
    return row.msg_rate_per_s, dict(result.environment)


def measure(args: argparse.Namespace, cases: Sequence[Case], server: str) -> dict[str, Any]:
    """All cases once, then again: whatever drifts while this runs drifts for all of them."""
    ours: dict[Case, list[float]] = {case: [] for case in cases}
    theirs: dict[Case, list[float]] = {case: [] for case in cases}
    environment: dict[str, Any] = {}
    began_s = time.monotonic()
    for number in range(args.pairs):
        if args.time_limit and time.monotonic() - began_s > args.time_limit:
            print(f"stopped after {number} pairs (--time-limit)", file=sys.stderr)
            break
        for case in cases:
            if number % 2:
                theirs[case].append(run_perftest(args, case))
            rate, environment = run_p2prw(args, case, server)
            ours[case].append(rate)
            if not number % 2:
                theirs[case].append(run_perftest(args, case))
            pair = f"p2prw {rate:10.1f}/s  {TOOLS[case.operation]} {theirs[case][-1]:10.1f}/s"
            print(f"{number + 1:2} {case!s:28} {pair}  {rate / theirs[case][-1]:.3f}", file=sys.stderr)
    return {
        "benchmark": "perftest_pairs",
        "pairs": min(len(rates) for rates in ours.values()),
        "tx_depth": args.depth,
        "signal_every": args.signal_every,
        "max_rd_atomic": args.max_rd_atomic,
        "elapsed_s": time.monotonic() - began_s,
        "cases": [row(args, case, ours[case], theirs[case]) for case in cases],
        "environment": {**environment, "perftest": perftest_version(), "kernel": platform.release()},
    }


def row(args: argparse.Namespace, case: Case, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    ratio = ratio_of_medians(ours, theirs, seed=SEED)
    median = statistics.median(ours)
    print(
        f"{case!s:28} {ratio.ratio:.3f}  95 % [{ratio.low:.3f}, {ratio.high:.3f}]  least {case.least_ratio:.2f}  "
        f"{'holds' if ratio.low >= case.least_ratio else 'MISSED'}  {median:.0f} messages/s, "
        f"{median * case.size_bytes / MIB:.1f} MiB/s",
        file=sys.stderr,
    )
    return {
        "operation": case.operation.value,
        "size_bytes": case.size_bytes,
        "iterations": case.iterations,
        "queue_pairs": case.queue_pairs,
        "command": " ".join(perftest_command(args, case)),
        "ratio_of_medians": asdict(ratio),
        "least_ratio": case.least_ratio,
        "holds": ratio.low >= case.least_ratio,
        "p2prw_msg_rate_per_s": ours,
        "perftest_msg_rate_per_s": theirs,
    }


def perftest_version() -> str:
    shown = subprocess.run([TOOLS[Operation.WRITE], "--version"], capture_output=True, text=True).stdout
    return shown.strip().removeprefix("Version: ")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="rxe0")
    parser.add_argument("--address", default="10.9.0.1", help="an address of its netdev (the lab's by default)")
    parser.add_argument("--gid-index", type=int, default=1)
    parser.add_argument("--binding", default="auto", help="p2prw's --verbs-binding")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--case", action="append", type=parse_case, help=f"default: {' '.join(CASES)}")
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--signal-every", type=int, default=32)
    parser.add_argument("--max-rd-atomic", type=int, default=16)
    parser.add_argument("--time-limit", type=float, help="seconds after which no further pair begins")
    parser.add_argument("--json", type=Path, help="write the figures here, not to stdout")
    return parser


def main() -> None:
    args = options().parse_args()
    cases = args.case or [parse_case(text) for text in CASES]
    with p2prw_server(args, max(case.size_bytes * case.queue_pairs for case in cases)) as server:
        document = measure(args, cases, server)
    document["environment"]["cpus"] = os.cpu_count()
    text = json.dumps(document, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
