"""Climbs the route ladder of one end: registers by each rung in turn, proves it, and keeps the first that holds.

Which rungs there are, and which are refused by class, is pure and in `routes.py`. What is tried here is recorded with
errno or completion status and explained for this kind of memory on this driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

from p2prw.engine import routes
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.dm import NicMemory
from p2prw.engine.model import Access, DeviceInfo, Route, RouteAttempt, RouteReport
from p2prw.engine.p2p_path import PathReason
from p2prw.engine.providers.base import Device, Registration
from p2prw.engine.providers.verbs_explain import explain_proof
from p2prw.errors import HostError

if TYPE_CHECKING:
    from p2prw.engine.providers.verbs import VerbsDevice
    from p2prw.engine.providers.verbs_memory import VerbsRegistration

PAGE_BYTES = 4096


class DmabufMemory(Protocol):
    """Memory that can be exported as a dma-buf."""

    def dmabuf(self) -> tuple[int, int]:
        """Return (descriptor, offset of the memory's first byte in the dma-buf)."""


class NoRouteError(HostError):
    """No rung held. `report` has every attempt."""

    default_code = "no_route"

    def __init__(self, what: str, *, why: str, fix: str, errno: str | None, report: RouteReport) -> None:
        super().__init__(what, why=why, fix=fix, errno=errno)
        self.report = report


@dataclass(frozen=True, slots=True)
class Reach:
    """How an end reaches its memory: registered whole, or (`staged`) through a ring of registered chunks."""

    report: RouteReport
    staged: bool
    registration: Registration | None = None
    """None where `staged`: the ring is the caller's to make and to register."""


def climb(
    device: Device,
    memory: MemorySource,
    access: Access,
    *,
    offset: int = 0,
    length_bytes: int | None = None,
    staged: bool,
    kind: str | None = None,
    wanted: Route | None = None,
    force: bool = False,
    path_mtu_bytes: int | None = None,
    may_copy: bool = True,
) -> Reach:
    """Return how `device` reaches [offset, offset + length) of `memory`; the caller closes the registration.

    `wanted` is --route (that rung alone), `force` --force-route. `path_mtu_bytes` is the connected queue pair's: it
    decides where packets begin. Without `may_copy`, `bounce` is a rung only where it is `wanted`. NoRouteError when no
    rung holds.
    """
    kind = kind or memory.spec.kind
    preview = routes.choose_route(device.info, kind, staged=staged, wanted=wanted, offers=memory.offers, force=force)
    if device.info.provider != "verbs":
        if preview.staged:
            return Reach(preview, staged=True)
        whole = device.register(memory.buffers(), access, offset=offset, length_bytes=length_bytes)
        return Reach(preview, staged=False, registration=whole)
    if staged:
        return Reach(preview, staged=True)
    # libibverbs alone has more than one way to memory.
    routed = cast("VerbsDevice", device)
    path = PathReason(routed, memory)
    attempts: list[RouteAttempt] = []
    fixes: list[str] = []
    for rung in routes.rungs(kind, staged=staged, wanted=wanted):
        if rung is Route.BOUNCE and wanted is not rung and not may_copy:
            continue
        refused = None if force else routes.refuse_by_class(device.info, kind, memory.offers, rung)
        if refused is not None:
            attempts.append(RouteAttempt(rung.value, ok=False, why=refused))
            continue
        if rung is Route.BOUNCE:
            attempts.append(RouteAttempt(rung.value, ok=True, why=path.words()))
            return Reach(routes.report_of(device.info, kind, rung, attempts, staged=True), staged=True)
        try:
            registration = _register(routed, rung, kind, memory, access, offset, length_bytes)
        except HostError as error:
            why, fix = path.explain(error.errno, error.why, error.fix)
            attempts.append(RouteAttempt(rung.value, ok=False, errno=error.errno, why=why))
            fixes.append(fix or "")
            continue
        attempt = _prove(routed, registration, rung, kind, memory, path_mtu_bytes)
        attempts.append(attempt)
        if attempt.ok:
            report = routes.report_of(device.info, kind, rung, attempts, staged=False)
            return Reach(report, staged=False, registration=registration)
        registration.close()
    raise _no_route(device.info, kind, attempts, fixes)


def _register(
    device: VerbsDevice,
    rung: Route,
    kind: str,
    memory: MemorySource,
    access: Access,
    offset: int,
    length_bytes: int | None,
) -> VerbsRegistration:
    if rung is Route.DM:
        registration = cast("NicMemory", memory).register_on(device, access, offset, length_bytes)
        return cast("VerbsRegistration", registration)
    dmabuf = None
    if rung is Route.DMABUF:
        # The exporter's refusal is its own: nothing reaches the NIC's driver then.
        dmabuf = cast("DmabufMemory", memory).dmabuf()
    return device.register_by(
        rung, kind, memory.buffers(), access, offset=offset, length_bytes=length_bytes, dmabuf=dmabuf
    )


def _prove(
    device: VerbsDevice,
    registration: VerbsRegistration,
    rung: Route,
    kind: str,
    memory: MemorySource,
    path_mtu_bytes: int | None,
) -> RouteAttempt:
    if not memory.is_device_memory and rung is Route.PIN:
        # The kernel has pinned host pages: that is the proof.
        return RouteAttempt(rung.value, ok=True)
    if kind in ("bar", "vfio"):
        # Reading a BAR may change the device; its first real chunk proves the route.
        return RouteAttempt(rung.value, ok=True, why="not proven: the first real chunk proves it")
    proof = device.prove(registration)
    if proof.ok and rung is Route.ODP and not device.odp_keeps_offsets():
        aligned = all(segment.address % PAGE_BYTES == 0 for segment in registration.vec)
        if aligned and path_mtu_bytes == PAGE_BYTES:
            return RouteAttempt(rung.value, ok=True, why=routes.WHOLE_PAGES)
        found = f"path MTU {path_mtu_bytes}" if aligned else "an address inside a page"
        return RouteAttempt(
            rung.value,
            ok=False,
            why=f"{device.info.driver} on this kernel copies ODP memory from the start of each page: bytes would go "
            f"astray unless every packet begins on a page and holds one (here: {found})",
        )
    if proof.ok:
        return RouteAttempt(rung.value, ok=True, why=proof.why)
    why = explain_proof(rung.value, kind, device.info.driver, proof.wc_status)
    return RouteAttempt(
        rung.value, ok=False, wc_status=proof.wc_status, why=f"{why} ({proof.why})" if proof.why else why
    )


def _no_route(info: DeviceInfo, kind: str, attempts: Sequence[RouteAttempt], fixes: Sequence[str]) -> NoRouteError:
    last = attempts[-1]
    tried = "; ".join(
        f"{one.route}{f' {one.errno or one.wc_status}' if one.errno or one.wc_status else ''}: {one.why}"
        for one in attempts
    )
    report = routes.report_of(info, kind, Route(last.route), attempts, staged=False)
    return NoRouteError(
        f"no route from {info.name} ({info.driver}) to {kind} memory",
        why=tried,
        fix=next((fix for fix in reversed(fixes) if fix), "leave --route away: the bytes are then copied (bounce)"),
        errno=next((one.errno for one in reversed(attempts) if one.errno), None),
        report=replace(report, peer_to_peer=False),
    )
