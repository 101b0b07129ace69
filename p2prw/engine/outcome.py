"""From what happened to a `TransferResult`: parameters, environment, rows, errors."""

from __future__ import annotations

import os
import platform
from typing import Any

from p2prw import __version__
from p2prw.engine.affinity import current_cpus
from p2prw.engine.model import (
    DeviceInfo,
    ErrorReport,
    Operation,
    QueuePairAttributes,
    QueuePairOptions,
    TransferRequest,
    TransferStats,
)
from p2prw.engine.pace import RateLimit
from p2prw.engine.progress import LoopStats
from p2prw.engine.providers.base import QueuePairCounters
from p2prw.errors import InterruptedTransfer, P2prwError


def error_report(error: P2prwError) -> ErrorReport:
    """Return an exception as the result carries it."""
    return ErrorReport(
        code=error.code,
        what=error.what,
        why=error.why,
        fix=error.fix,
        wc_status=error.wc_status,
        errno=error.errno,
        side=error.side,
    )


def status_of(error: P2prwError | None, *, planned: bool) -> str:
    """Return the `status` word of a result."""
    if error is None:
        return "planned" if planned else "ok"
    return "interrupted" if isinstance(error, InterruptedTransfer) else "failed"


def parameters(request: TransferRequest, length_bytes: int | None) -> dict[str, Any]:
    """Return what was asked for; never the token."""
    queue_pair = request.queue_pair
    return {
        "peer": str(request.peer),
        "region": request.region,
        "region_offset": request.region_offset,
        "memory": request.memory.text or request.memory.kind,
        "size_bytes": length_bytes if length_bytes is not None else request.size_bytes,
        "device": request.device,
        "tx_depth": queue_pair.depth,
        "chunk_bytes": request.chunk_bytes,
        "rate_limit_bytes_per_s": request.rate_limit_bytes_per_s,
        "mtu_bytes": queue_pair.mtu_bytes,
        "timeout": queue_pair.timeout,
        "retry_cnt": queue_pair.retry_cnt,
        "rnr_retry": queue_pair.rnr_retry,
        "max_rd_atomic": queue_pair.max_rd_atomic,
        "staging_bytes": request.staging_bytes,
        "via": request.via.text if request.via is not None else None,
        "verify": request.verify,
        "shared": request.shared,
        "resume": request.resume,
        "retries": request.retries,
        "require_direct": request.require_direct,
        "inject": request.inject,
    }


def environment(info: DeviceInfo | None) -> dict[str, Any]:
    """Return what the figures depend on."""
    facts: dict[str, Any] = {
        "p2prw": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_affinity": current_cpus(),
    }
    if info is not None:
        facts["device"] = {
            "name": info.name,
            "provider": info.provider,
            "driver": info.driver,
            "address": info.address,
            "udp_port": info.udp_port,
            "netdev": info.netdev,
            "binding": info.binding,
            "codec": info.codec,
            "active_mtu_bytes": info.active_mtu_bytes,
            "rate_gbit_per_s": info.rate_gbit_per_s,
        }
    return facts


def negotiated(
    local: QueuePairAttributes, remote: QueuePairAttributes, options: QueuePairOptions, window_bytes: int
) -> dict[str, Any]:
    """Return what both sides agreed on."""
    return {
        "path_mtu_bytes": min(local.mtu_bytes, remote.mtu_bytes),
        "max_rd_atomic": min(local.max_rd_atomic, remote.max_dest_rd_atomic),
        "timeout": options.timeout,
        "retry_cnt": options.retry_cnt,
        "rnr_retry": options.rnr_retry,
        "window_bytes": window_bytes,
        "local_qpn": local.qpn,
        "remote_qpn": remote.qpn,
        "remote_udp_port": remote.udp_port,
    }


def stats_row(
    operation: Operation,
    length_bytes: int,
    chunk_bytes: int,
    stats: LoopStats,
    counters: QueuePairCounters,
    skipped_bytes: int = 0,
    rate_limit: RateLimit | None = None,
) -> TransferStats:
    """Return the row of `results`: rate is bytes / (first post to last completion)."""
    elapsed_s = stats.elapsed_s
    return TransferStats(
        operation=operation.value,
        size_bytes=length_bytes,
        bytes=stats.bytes_done,
        elapsed_s=elapsed_s,
        bw_bytes_per_s=stats.bytes_done / elapsed_s if elapsed_s > 0 else None,
        wqes_posted=stats.wqes_posted,
        wqes_signalled=stats.wqes_signalled,
        kernel_wqes=stats.kernel_wqes,
        chunk_bytes=chunk_bytes,
        retransmitted_packets=counters.retransmitted_packets,
        rnr_naks=counters.rnr_naks,
        sequence_naks=counters.sequence_naks,
        timeouts=counters.timeouts,
        skipped_bytes=skipped_bytes,
        rate_limit_bytes_per_s=rate_limit.bytes_per_s if rate_limit is not None else None,
        rate_limit_by=rate_limit.by if rate_limit is not None else None,
    )
