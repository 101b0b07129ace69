"""Plain lines: progress on stderr every few seconds, the result's facts on stdout. No colour, no cursor, no rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from p2prw.engine.events import Progress
from p2prw.engine.model import (
    Outcome,
    RouteReport,
    TransferRequest,
    TransferResult,
    TransferStats,
    VerifyReport,
    ViaReport,
)
from p2prw.reporters.output import Output
from p2prw.reporters.sanitise import clean
from p2prw.units import counted, format_duration, format_rate, format_size

INTERVAL_S = 2.0


def error_lines(error: Any) -> list[str]:
    """Return the block of a P2prwError or an ErrorReport: what, why, try; the fix stands last."""
    whose = " (from the peer)" if error.side == "remote" else ""
    lines = [f"Error{whose}: {clean(error.what)}"]
    if error.why:
        lines.append(f"  why:  {clean(error.why)}")
    if error.fix:
        lines.append(f"  try:  {clean(error.fix)}")
    return lines


def print_error(error: Any, stderr: Output) -> None:
    """Print the block; what is to be pasted stays one line however narrow the terminal is."""
    for line in error_lines(error):
        (stderr.line if line.startswith("  try:") else stderr.fact)(line)


class QuietView:
    """stderr with --quiet: errors only."""

    def __init__(self, stderr: Output) -> None:
        self.stderr = stderr

    def started(self, request: TransferRequest) -> None:
        """Say what is about to be done."""
        self.announce(describe_request(request))

    def announce(self, title: str) -> None:
        """Say nothing."""

    def retitle(self, title: str) -> None:
        """Say nothing: only moving lines have a title that changes."""

    def progress(self, progress: Progress) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Say nothing: the result lists warnings."""

    def waiting(self, text: str) -> None:
        """Say nothing: what is waited for is no error yet."""

    def above(self, write: Callable[[], None]) -> None:
        """Let `write` print to stdout: only moving lines would be in its way."""
        write()

    def finished(self, result: Any) -> None:
        """Print the error, if there is one."""
        if result.error is not None:
            print_error(result.error, self.stderr)

    def close(self) -> None:
        """Nothing to close."""


class TextView(QuietView):
    """stderr where it is no terminal: a line at the start and one every few seconds."""

    def __init__(
        self, stderr: Output, clock: Callable[[], float] = time.monotonic, interval_s: float = INTERVAL_S
    ) -> None:
        super().__init__(stderr)
        self.clock = clock
        self.interval_s = interval_s
        self.next_s = 0.0

    def announce(self, title: str) -> None:
        """Say what is about to be done."""
        self.next_s = self.clock() + self.interval_s
        self.stderr.line(title)

    def progress(self, progress: Progress) -> None:
        """Print at most one line in `interval_s`."""
        now = self.clock()
        if now < self.next_s:
            return
        self.next_s = now + self.interval_s
        self.stderr.line(progress_line(progress))

    def waiting(self, text: str) -> None:
        """Say what is waited for: nothing else is seen meanwhile."""
        self.stderr.line(text)

    def warning(self, text: str) -> None:
        """Print one warning."""
        self.stderr.line(f"warning: {text}")


class TextPrinter:
    """stdout for people: what moved, how fast, by which route, and whether it was verified."""

    def __init__(self, stdout: Output) -> None:
        self.stdout = stdout
        self.request: TransferRequest | None = None

    def started(self, request: TransferRequest) -> None:
        """Keep the names for the result."""
        self.request = request

    def progress(self, progress: Progress) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Say nothing: the result lists warnings."""

    def finished(self, result: TransferResult) -> None:
        """Print the facts; a dry run prints its plan."""
        for line in result_lines(result, self.request):
            self.stdout.fact(line)

    def close(self) -> None:
        """Nothing to close."""


def describe_request(request: TransferRequest) -> str:
    """Return one line: `write host,size=64MiB -> 10.0.0.1:18515/scratch`."""
    memory = request.memory.text or request.memory.kind
    offset = f"+{request.region_offset}" if request.region_offset else ""
    target = f"{request.peer}/{request.region}{offset}"
    return f"write {memory} -> {target}" if request.operation == "write" else f"read {target} -> {memory}"


def progress_line(progress: Progress) -> str:
    """Return one sample as a plain line."""
    left = time_left_s(progress)
    parts = [
        f"{progress.phase:<10} {format_size(progress.bytes_done)} of {format_size(progress.bytes_total)}",
        format_rate(progress.bw_bytes_per_s),
        f"{progress.wqes_in_flight} in flight",
        *((f"route {progress.route}",) if progress.route else ()),
        counted(progress.retries, "retry", "retries"),
    ]
    if left is not None:
        parts.insert(2, f"{format_duration(left)} left")
    if progress.reconnects:
        parts.append(reconnects_text(progress.reconnects))
    return "  ".join(parts)


def reconnects_text(count: int) -> str:
    """Return `2 reconnects`."""
    return counted(count, "reconnect")


def time_left_s(progress: Progress) -> float | None:
    """Return the seconds left at the present rate; None where that says nothing."""
    left_bytes = progress.bytes_total - progress.bytes_done
    if left_bytes <= 0 or progress.bw_bytes_per_s <= 0:
        return None
    return left_bytes / progress.bw_bytes_per_s


def route_text(route: RouteReport | None) -> str:
    """Return `cpu (not peer-to-peer), host memory, soft0`; the truth about the path in every result."""
    if route is None:
        return "not reached"
    if route.peer_to_peer:
        path = "(peer-to-peer)"
    elif route.mover == "nic":
        path = "(moved by the NIC, not peer-to-peer)"
    else:
        path = "(not peer-to-peer)"
    staged = ", staged" if route.staged else ""
    if route.via is not None:
        staged += f" via {via_text(route.via)}"
    return f"{route.chosen} {path}, {route.memory} memory{staged}, {route.device} [{route.driver}]"


def via_text(via: ViaReport) -> str:
    """Return `p2pmem:0000:01:00.0 (DMA by drive 0000:02:00.0, peer-to-peer)`: the leg between a file and its ring."""
    drive = f"drive {via.drive}" if via.drive else "the drive"
    path = "peer-to-peer" if via.peer_to_peer else "not peer-to-peer"
    through_host = f", the last {via.host_bytes} bytes through host memory" if via.host_bytes else ""
    return f"{via.memory}:{via.pci_address} (DMA by {drive}, {path}{through_host})"


def result_lines(result: TransferResult, request: TransferRequest | None) -> Iterator[str]:
    """Return the facts of one result, one to a line, most wanted first."""
    if result.plan is not None:
        # Imported here: only a dry run has a plan, and its words belong to the engine.
        from p2prw.engine.plan import plan_lines

        yield from plan_lines(dict(result.plan))
        return
    if nothing_moved(result):
        yield from attempt_lines(result)
        return
    for stats in result.results:
        yield from _stats_lines(stats, result, request)
    yield from fact_lines(result)


def nothing_moved(result: Outcome[Any]) -> bool:
    """Tell whether a failure left nothing to be told but itself."""
    return result.error is not None and not any(row.bytes or getattr(row, "skipped_bytes", 0) for row in result.results)


def attempt_lines(result: Outcome[Any]) -> Iterator[str]:
    """Return what a failure without a byte moved has beside itself: routes that were tried in vain, warnings."""
    for side, route in (("local", result.local_route), ("remote", result.remote_route)):
        for attempt in route.attempts if route else ():
            if not attempt.ok:
                reason = attempt.why or attempt.errno or attempt.wc_status or "failed"
                yield f"route     {side}: {attempt.route} was not taken: {reason}"
    for warning in result.warnings:
        yield f"warning   {warning}"


def fact_lines(result: Outcome[Any]) -> Iterator[str]:
    """Return what any result has beside its rows: routes, verification, phases, warnings."""
    if result.local_route or result.remote_route:
        yield f"route     local   {route_text(result.local_route)}"
        yield f"          remote  {route_text(result.remote_route)}"
        for side, route in (("local", result.local_route), ("remote", result.remote_route)):
            for attempt in route.attempts if route else ():
                if not attempt.ok:
                    reason = attempt.why or attempt.errno or attempt.wc_status or "failed"
                    yield f"          {side}: {attempt.route} was not taken: {reason}"
    if result.results:
        yield _verify_line(result.verify)
    if result.phases:
        yield "phases    " + ", ".join(f"{name} {format_duration(s)}" for name, s in result.phases.items())
    for warning in result.warnings:
        yield f"warning   {warning}"


def _stats_lines(stats: TransferStats, result: TransferResult, request: TransferRequest | None) -> Iterator[str]:
    verb = "wrote" if stats.operation == "write" else "read"
    is_whole = stats.bytes + stats.skipped_bytes >= stats.size_bytes
    whole = "" if is_whole else f" of {format_size(stats.size_bytes)}, partial"
    names = f"  {describe_request(request).partition(' ')[2]}" if request else ""
    yield f"{verb:<9} {format_size(stats.bytes)} ({stats.bytes} bytes){whole}{names}"
    if stats.skipped_bytes:
        yield f"resumed   {format_size(stats.skipped_bytes)} ({stats.skipped_bytes} bytes) had arrived before"
    limit = stats.rate_limit_bytes_per_s
    by = " by the server" if stats.rate_limit_by == "server" else ""
    limited = f", limited to {format_rate(limit)}{by}" if limit is not None else ""
    if not stats.wqes_posted and is_whole:
        # Size 0, or all of it had arrived before: there is no rate, and no work to count.
        return
    yield f"rate      {format_rate(stats.bw_bytes_per_s)} over {format_duration(stats.elapsed_s)}{limited}"
    yield (
        f"work      {counted(stats.wqes_posted, 'WQE')}, {stats.wqes_signalled} signalled, {stats.kernel_wqes} by the "
        f"kernel's count, chunk {format_size(stats.chunk_bytes)}"
    )
    yield (
        f"retries   {counted(stats.retransmitted_packets, 'packet')} sent again, "
        f"{counted(stats.sequence_naks, 'sequence NAK')}, {counted(stats.rnr_naks, 'RNR NAK')}, "
        f"{counted(stats.timeouts, 'timeout')}" + (f", {reconnects_text(stats.reconnects)}" if stats.reconnects else "")
    )


def _verify_line(verify: VerifyReport) -> str:
    if verify.status == "verified" and not verify.blocks:
        return "verified  nothing to compare: 0 bytes"
    if verify.status == "verified":
        return (
            f"verified  {verify.algorithm} {verify.local_digest} by {verify.method}, "
            f"{counted(verify.blocks, 'block')}"
            + (f", of the source {verify.blocks_ahead} meanwhile" if verify.blocks_ahead else "")
            + f", {format_duration(verify.elapsed_s)}"
        )
    if verify.status == "unverified":
        return "unverified" + (f": {verify.why.removeprefix('unverified: ')}" if verify.why else "")
    where = "" if verify.first_bad_offset is None else f" at offset {verify.first_bad_offset}"
    what = f": {verify.classification}" if verify.classification else ""
    return f"{verify.status.upper()}{where}{what}; local {verify.local_digest}, remote {verify.remote_digest}"
