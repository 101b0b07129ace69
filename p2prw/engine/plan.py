"""What a transfer would post, as data and as text: the body of `--dry-run`. Pure; it decides nothing itself.

The document is plain JSON: every number has its unit in its name, addresses and keys are hexadecimal strings because a
64-bit address does not survive a JSON number.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from p2prw.engine.model import DmaSegment, Operation, RemoteSegment
from p2prw.engine.rw import RwContext, RwLimits, build_contexts
from p2prw.units import format_size

MAX_LISTED_SEGMENTS = 32
"""Local segments listed in a plan; `segments` says how many there are."""

MAX_LISTED_CONTEXTS = 16
"""Contexts written out by `plan_lines`; the document has them all (at most 256)."""

LINE_COLUMNS = 100


def describe_plan(
    dma_vec: Sequence[DmaSegment],
    remote_segments: Sequence[RemoteSegment],
    direction: Operation,
    limits: RwLimits,
    *,
    depth: int,
    signal_every: int,
    offset: int = 0,
    length: int | None = None,
    remote_offset: int = 0,
) -> dict[str, Any]:
    """Return the plan of moving [offset, offset + length) of `dma_vec`; raises what `build_contexts` raises.

    One WR in `signal_every` is signalled, counted over the whole transfer, and the last one always.
    """
    contexts = build_contexts(dma_vec, remote_segments, direction, limits, offset, length, remote_offset=remote_offset)
    # An unsignalled WR is retired only by a later signalled one: no more than a queue full may go without.
    signal_every = max(1, min(signal_every, depth))
    wrs_total = sum(context.nr_wqes for context in contexts)
    wrs_before = 0
    described = []
    for context in contexts:
        wrs_after = wrs_before + context.nr_wqes
        signalled = _signalled(wrs_after, wrs_total, signal_every) - _signalled(wrs_before, wrs_total, signal_every)
        described.append(_describe_context(context, signalled))
        wrs_before = wrs_after
    local = [segment for context in contexts for segment in context.segments]
    return {
        "direction": direction.value,
        "opcode": "RDMA_READ" if direction is Operation.READ else "RDMA_WRITE",
        "local_offset_bytes": offset,
        "remote_offset_bytes": remote_offset,
        "length_bytes": sum(context.length_bytes for context in contexts),
        "limits": {
            "max_sge": limits.max_read_sge if direction is Operation.READ else limits.max_write_sge,
            "max_wr_bytes": limits.max_bytes_per_wr,
            "max_sgl_rd_segments": limits.max_sgl_rd,
            "force_mr": limits.force_mr,
            "iwarp": limits.iwarp,
            "pages_per_mr": limits.pages_per_mr,
            "depth_wqes": depth,
            "signal_every_wqes": signal_every,
        },
        "local": {
            "segments": len(local),
            "listed": [
                {"address": hex(address), "length_bytes": length_bytes, "lkey": hex(lkey)}
                for address, length_bytes, lkey in local[:MAX_LISTED_SEGMENTS]
            ],
        },
        "contexts": described,
        "totals": {
            "contexts": len(contexts),
            "wrs": wrs_total,
            "sges": sum(item["sges"] for item in described),
            "nr_wqes": wrs_total,
            "kernel_wqes": sum(context.kernel_wqes for context in contexts),
            "kernel_wqes_reused": sum(context.kernel_wqes_reused for context in contexts),
            "signalled_wqes": sum(item["signalled_wqes"] for item in described),
            "wr_min_bytes": min((item["wr_min_bytes"] for item in described), default=0),
            "wr_max_bytes": max((item["wr_max_bytes"] for item in described), default=0),
            "most_in_flight_wqes": min(depth, wrs_total),
        },
    }


def _signalled(wrs: int, wrs_total: int, signal_every: int) -> int:
    """Return how many of the first `wrs` work requests of the transfer are signalled."""
    return wrs // signal_every + (1 if wrs == wrs_total and wrs % signal_every else 0)


def _describe_context(context: RwContext, signalled: int) -> dict[str, Any]:
    fewest, most = context.wr_bytes_range()
    return {
        "remote_address": hex(context.remote_addr),
        "rkey": hex(context.rkey),
        "length_bytes": context.length_bytes,
        "local_segments": len(context.segments),
        "type": context.type.value,
        "reason": context.reason,
        "kernel_function": context.kernel_function,
        "split_by_bytes": context.nr_wqes > -(-len(context.segments) // context.max_sge),
        "wrs": context.nr_wqes,
        "sges": context.sge_count(),
        "wr_min_bytes": fewest,
        "wr_max_bytes": most,
        "nr_wqes": context.nr_wqes,
        "kernel_ops": context.kernel_ops,
        "kernel_wqes": context.kernel_wqes,
        "kernel_wqes_reused": context.kernel_wqes_reused,
        "kernel_problem": context.kernel_mr_problem(),
        "signalled_wqes": signalled,
    }


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return the plan as lines of at most `LINE_COLUMNS` columns.

    A session that moves through staging describes one chunk and adds `staging` (`chunk_bytes`, `chunks`) and
    `transfer_bytes`; one line then says how often the plan repeats.
    """
    limits, local, totals = plan["limits"], plan["local"], plan["totals"]
    cap = limits["max_wr_bytes"]
    lines = _wrapped(
        f"plan: {plan['direction']} {format_size(plan['length_bytes'])} as {plan['opcode']},"
        f" {_count(totals['wrs'], 'WR')} to {_count(totals['contexts'], 'remote segment')}"
    )
    lines += _wrapped(
        f"limits: {_count(limits['max_sge'], 'SGE')} a WR,"
        f" {'no byte limit' if cap is None else 'at most ' + format_size(cap) + ' a WR'}, depth {limits['depth_wqes']},"
        f" one in {limits['signal_every_wqes']} signalled",
        1,
    )
    staging = plan.get("staging")
    if staging:
        lines += _wrapped(
            f"staged: this is one chunk of {format_size(staging['chunk_bytes'])}; {_count(staging['chunks'], 'chunk')}"
            f" make {format_size(plan['transfer_bytes'])}",
            1,
        )
    lines += _wrapped(f"local: {_count(local['segments'], 'segment')}", 1)
    for segment in local["listed"]:
        lines += _wrapped(f"{segment['address']}  {format_size(segment['length_bytes'])}  lkey {segment['lkey']}", 2)
    if local["segments"] > len(local["listed"]):
        lines += _wrapped(f"... and {_count(local['segments'] - len(local['listed']), 'more segment')}", 2)
    for index, context in enumerate(plan["contexts"][:MAX_LISTED_CONTEXTS]):
        lines += _context_lines(index, context)
    if len(plan["contexts"]) > MAX_LISTED_CONTEXTS:
        lines += _wrapped(f"... and {_count(len(plan['contexts']) - MAX_LISTED_CONTEXTS, 'more remote segment')}", 1)
    lines += _wrapped(
        f"total: {_count(totals['wrs'], 'WR')}, {_count(totals['sges'], 'SGE')},"
        f" {_count(totals['signalled_wqes'], 'signalled WR')}, at most {totals['most_in_flight_wqes']} in flight;"
        f" {_kernel_count(totals)}"
    )
    return lines


def _context_lines(index: int, context: Mapping[str, Any]) -> list[str]:
    lines = _wrapped(
        f"remote {index}: {context['remote_address']}  {format_size(context['length_bytes'])}  rkey {context['rkey']}",
        1,
    )
    lines += _wrapped(f"{context['type']}: {context['reason']} (kernel: {context['kernel_function']})", 2)
    sizes = format_size(context["wr_max_bytes"])
    if context["wr_min_bytes"] != context["wr_max_bytes"]:
        sizes = f"{format_size(context['wr_min_bytes'])} to {sizes}"
    lines += _wrapped(
        f"{_count(context['wrs'], 'WR')} of {sizes}{', split by bytes,' if context['split_by_bytes'] else ''} with"
        f" {_count(context['sges'], 'SGE')}, {context['signalled_wqes']} signalled; {_kernel_count(context)}",
        2,
    )
    if context["kernel_problem"]:
        lines += _wrapped(f"in the kernel this would fail: {context['kernel_problem']}", 2)
    return lines


def _kernel_count(counts: Mapping[str, Any]) -> str:
    first, reused = counts["kernel_wqes"], counts["kernel_wqes_reused"]
    again = f" ({reused} with recycled MRs)" if reused != first else ""
    return f"rdma_rw_ctx_init would count {_count(first, 'WQE')}{again}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _wrapped(text: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        LINE_COLUMNS,
        initial_indent="  " * indent,
        subsequent_indent="  " * (indent + 2),
        break_on_hyphens=False,
    )
