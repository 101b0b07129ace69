"""Which route reaches which memory on which device, and what may be said about it. Pure.

The software device moves every byte with the CPU's own loads and stores, so its ladder has one rung, `cpu`, for every
kind (docs/contract.md, Routes). A CPU copy is never called peer-to-peer.
"""

from __future__ import annotations

from p2prw.engine.control.messages import Attempt, RouteInfo
from p2prw.engine.model import DeviceInfo, Route, RouteAttempt, RouteReport
from p2prw.errors import HostError

DEVICE_MEMORY_KINDS = frozenset({"p2pmem", "bar", "vfio", "dm", "cuda"})


def choose_route(info: DeviceInfo, memory_kind: str, *, staged: bool, wanted: Route | None = None) -> RouteReport:
    """Return the route `info` reaches `memory_kind` by; HostError when `wanted` cannot be had."""
    if wanted is not None and wanted is not Route.CPU:
        raise HostError(
            f"route {wanted.value!r} is not to be had on {info.name}",
            why="the software device moves bytes with the CPU's own loads and stores; its only route is cpu",
            fix="--route cpu, or leave --route away",
            code="route_unavailable",
        )
    return RouteReport(
        chosen=Route.CPU.value,
        mover=info.mover,
        peer_to_peer=info.mover == "nic" and memory_kind in DEVICE_MEMORY_KINDS,
        memory=memory_kind,
        device=info.name,
        driver=info.driver,
        staged=staged,
        attempts=(RouteAttempt(Route.CPU.value, ok=True),),
    )


def require_direct(report: RouteReport, side: str) -> None:
    """Raise HostError when device memory is not reached peer to peer; for `--require-direct`."""
    if report.memory not in DEVICE_MEMORY_KINDS or report.peer_to_peer:
        return
    raise HostError(
        f"{side} memory {report.memory!r} is not reached peer to peer",
        why=f"on {report.device} (driver {report.driver}) route {report.chosen!r} moves the bytes with the "
        f"{report.mover.upper()}" + (", through staging chunks" if report.staged else ""),
        fix="leave --require-direct away, or use a NIC that reaches this memory itself",
        code="not_direct",
        side=side,
    )


def to_wire(report: RouteReport) -> RouteInfo:
    """Return the route as the grant carries it."""
    attempts = tuple(Attempt(a.route, a.ok, a.errno, a.wc_status, a.why) for a in report.attempts)
    return RouteInfo(
        report.chosen,
        report.mover,
        report.peer_to_peer,
        report.memory,
        report.device,
        report.driver,
        report.staged,
        attempts,
    )


def from_wire(info: RouteInfo) -> RouteReport:
    """Return the peer's route as the result shows it.

    A peer that says its CPU moved the bytes peer to peer contradicts itself: the CPU wins.
    """
    return RouteReport(
        chosen=info.chosen,
        mover=info.mover,
        peer_to_peer=info.peer_to_peer and info.mover == "nic" and info.memory in DEVICE_MEMORY_KINDS,
        memory=info.memory,
        device=info.device,
        driver=info.driver,
        staged=info.staged,
        attempts=tuple(RouteAttempt(a.route, a.ok, a.errno, a.wc_status, a.why) for a in info.attempts),
    )
