"""`--retries`: which failures pass by themselves, how long to wait, and one result of several attempts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from p2prw.engine.model import TransferResult, TransferStats
from p2prw.errors import worst_exit_code
from p2prw.units import format_duration

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0

# The way to the peer, or the peer, was lost after bytes were on their way.
_LOST = frozenset(
    {
        "peer_lost",
        "peer_not_reading",
        "deadline",
        "idle_timeout",
        "retry_exceeded",
        "rnr_retry_exceeded",
        "flushed",
        "remote_access",
        "remote_operation",
        "server_stopped",
    }
)
# What a reconnect meets while the peer starts again, or has not yet noticed that the old connection is dead.
_NOT_YET = frozenset(
    {
        "connect_refused",
        "connect_unreachable",
        "connect_timeout",
        "resolve_failed",
        "busy",
        "idle",
        "too_many_clients",
        "stopping",
    }
)


def may_pass(attempts: Sequence[TransferResult]) -> bool:
    """Return True when the last failure is one that another attempt can get past.

    The first attempt is retried only once it had reached the peer: a wrong address does not pass.
    """
    error = attempts[-1].error
    if error is None:
        return False
    return error.code in _LOST or (error.code in _NOT_YET and (len(attempts) > 1 or error.code == "idle"))


def wait_s(attempt: int) -> float:
    """Return how long to wait after the `attempt`-th failure (from 1): twice as long each time, at most 30 s.

    Five of them outlast the 30 seconds after which a server gives up a silent client and its lease.
    """
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt - 1, 16)))


def merge(attempts: Sequence[TransferResult]) -> TransferResult:
    """Return one result: the last attempt's outcome where it is good, else the worst error; counts are summed."""
    last = attempts[-1]
    if len(attempts) == 1:
        return last
    outcome = last
    if last.error is not None:
        worst = worst_exit_code([attempt.exit_code for attempt in attempts])
        outcome = next(attempt for attempt in reversed(attempts) if attempt.exit_code == worst)
    rows = [row for attempt in attempts for row in attempt.results]
    phases: dict[str, float] = {}
    warnings: list[str] = []
    for number, attempt in enumerate(attempts, 1):
        for name, seconds in attempt.phases.items():
            phases[name] = phases.get(name, 0.0) + seconds
        warnings += attempt.warnings
        if attempt.error is not None and attempt is not last:
            waited = format_duration(wait_s(number))
            warnings.append(f"attempt {number}: {attempt.error.what}; tried again after {waited}")
    return replace(
        last,
        status=outcome.status,
        exit_code=outcome.exit_code,
        error=outcome.error,
        verify=outcome.verify,
        results=(_sum(rows, reconnects=len(attempts) - 1),) if rows else (),
        local_route=last.local_route or outcome.local_route,
        remote_route=last.remote_route or outcome.remote_route,
        phases=phases,
        warnings=tuple(dict.fromkeys(warnings)),
        partial=outcome.error is not None and any(row.bytes for row in rows),
    )


def _sum(rows: Sequence[TransferStats], *, reconnects: int) -> TransferStats:
    """Return one row: everything that was done, over the time in which it was done; skipped is what came before."""
    moved, elapsed_s = sum(row.bytes for row in rows), sum(row.elapsed_s for row in rows)
    return replace(
        rows[-1],
        bytes=moved,
        elapsed_s=elapsed_s,
        bw_bytes_per_s=moved / elapsed_s if elapsed_s > 0 else None,
        wqes_posted=sum(row.wqes_posted for row in rows),
        wqes_signalled=sum(row.wqes_signalled for row in rows),
        kernel_wqes=sum(row.kernel_wqes for row in rows),
        retransmitted_packets=sum(row.retransmitted_packets for row in rows),
        rnr_naks=sum(row.rnr_naks for row in rows),
        sequence_naks=sum(row.sequence_naks for row in rows),
        timeouts=sum(row.timeouts for row in rows),
        skipped_bytes=rows[0].skipped_bytes,
        reconnects=reconnects,
    )
