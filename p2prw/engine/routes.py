"""Which routes reach which memory on which device, in order, and what may be said about them. Pure.

The software device moves every byte with the CPU's own loads and stores, so its ladder has one rung, `cpu`, for every
kind (docs/contract.md, Routes). A verbs device has several; `ladder.py` climbs them. A CPU copy is never called
peer-to-peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from p2prw.engine.control.messages import Attempt, RouteInfo, Via
from p2prw.engine.model import DeviceInfo, Offer, Route, RouteAttempt, RouteReport, ViaReport
from p2prw.engine.providers.verbs_explain import NEEDS_PAGES, explain, needs_pages, no_device_memory, no_import
from p2prw.engine.providers.verbs_sysfs import DMABUF_DRIVERS
from p2prw.engine.topology.memory_devices import DM_DRIVERS
from p2prw.errors import HostError

DEVICE_MEMORY_KINDS = frozenset({"p2pmem", "bar", "vfio", "dm", "cuda"})

# Memory kind -> rungs on a verbs device, in the order of docs/contract.md's table.
_LADDERS: dict[str, tuple[Route, ...]] = {
    "host": (Route.PIN,),
    "p2pmem": (Route.PIN, Route.ODP, Route.BOUNCE),
    "bar": (Route.BOUNCE,),
    "vfio": (Route.DMABUF, Route.BOUNCE),
    "udmabuf": (Route.DMABUF, Route.BOUNCE),
    "dmaheap": (Route.DMABUF, Route.BOUNCE),
    "dm": (Route.DM,),
    "cuda": (Route.DMABUF, Route.PIN),
}
# Rungs that only --route takes: known dead, or of no use but to compare.
_BY_NAME: dict[str, tuple[Route, ...]] = {
    "host": (Route.ODP, Route.BOUNCE),
    "bar": (Route.PIN, Route.ODP),
    "vfio": (Route.PIN, Route.ODP),
    "udmabuf": (Route.PIN, Route.ODP),
    "dmaheap": (Route.PIN, Route.ODP),
}
_DEFAULT_OFFERS: dict[str, frozenset[Offer]] = {
    "host": frozenset({Offer.PAGES, Offer.CPU_MAPPING}),
    "file": frozenset({Offer.STAGED}),
    "p2pmem": frozenset({Offer.PAGES, Offer.CPU_MAPPING}),
    "bar": frozenset({Offer.CPU_MAPPING}),
    "vfio": frozenset({Offer.DMABUF, Offer.CPU_MAPPING}),
    "udmabuf": frozenset({Offer.DMABUF, Offer.CPU_MAPPING, Offer.PAGES}),
    "dmaheap": frozenset({Offer.DMABUF, Offer.CPU_MAPPING}),
    "dm": frozenset(),
    "cuda": frozenset({Offer.DMABUF}),
}
WHOLE_PAGES = "whole pages only: this driver's ODP ignores the offset in a page"
"""Said of an attempt that holds for work requests of whole pages, see `check_whole_pages`."""
_PAGE_BYTES = 4096


def rungs(kind: str, *, staged: bool, wanted: Route | None = None) -> tuple[Route, ...]:
    """Return the routes to try on a verbs device, in order; empty where `wanted` is none for this kind."""
    usual = (Route.PIN,) if staged else _LADDERS.get(kind, (Route.PIN, Route.BOUNCE))
    if wanted is None:
        return usual
    known = usual if staged else (*usual, *_BY_NAME.get(kind, ()))
    return (wanted,) if wanted in known else ()


def refuse_by_class(info: DeviceInfo, kind: str, offers: frozenset[Offer], route: Route) -> str | None:
    """Return why `route` cannot work though nothing was tried; None where it may.

    What the device needs against what the memory offers: the 2019 wish of the kernel list, that page-less memory is
    refused with a reason on the drivers that touch it with the CPU.
    """
    if route is Route.BOUNCE:
        return None if Offer.CPU_MAPPING in offers else f"{kind} memory has no CPU mapping to copy from"
    if Offer.STAGED in offers:
        return None
    if route is Route.DM:
        return None if info.limits.max_dm_bytes else no_device_memory(info.name, info.driver, info.binding)
    if info.driver in NEEDS_PAGES:
        if Offer.PAGES not in offers:
            return needs_pages(kind, info.driver)
        if route is Route.DMABUF:
            return no_import(info.driver)
    return None


def _no_cpu_mapping(info: DeviceInfo, kind: str) -> HostError:
    return HostError(
        f"{info.name} cannot reach {kind} memory",
        why="the software device moves bytes with the CPU's own loads and stores, and this memory has no CPU mapping",
        fix="--device mlx5_0 (a NIC of this host: p2prw devices), or host,size=64MiB and copy it there first",
        code="route_unavailable",
    )


def choose_route(
    info: DeviceInfo,
    memory_kind: str,
    *,
    staged: bool,
    wanted: Route | None = None,
    offers: frozenset[Offer] | None = None,
    force: bool = False,
) -> RouteReport:
    """Return the route `info` reaches `memory_kind` by, as far as it can be told before anything is tried.

    HostError `route_unavailable` when `wanted` is no route for this kind here, or none is left after the refusals by
    class (which `force` skips). On a verbs device the first rung left is what is said; climbing may end on a later one.
    """
    if info.provider != "verbs":
        if wanted is not None and wanted is not Route.CPU:
            raise HostError(
                f"route {wanted.value!r} is not to be had on {info.name}",
                why="the software device moves bytes with the CPU's own loads and stores; its only route is cpu",
                fix="--route cpu, or leave --route away",
                code="route_unavailable",
            )
        known = _offers(memory_kind, offers)
        if not known & {Offer.CPU_MAPPING, Offer.STAGED}:
            raise _no_cpu_mapping(info, memory_kind)
        return report_of(info, memory_kind, Route.CPU, [RouteAttempt(Route.CPU.value, ok=True)], staged=staged)
    ladder = rungs(memory_kind, staged=staged, wanted=wanted)
    if not ladder:
        assert wanted is not None
        usual = (*rungs(memory_kind, staged=staged), *(() if staged else _BY_NAME.get(memory_kind, ())))
        raise HostError(
            f"route {wanted.value!r} does not lead from {info.name} to {memory_kind} memory",
            why=f"routes for it on a verbs device: {', '.join(usual)}",
            fix=f"--route {usual[0].value}, or leave --route away",
            code="route_unavailable",
        )
    known = _offers(memory_kind, offers)
    attempts: list[RouteAttempt] = []
    for route in ladder:
        refused = None if force else refuse_by_class(info, memory_kind, known, route)
        if refused is None:
            attempts.append(RouteAttempt(route.value, ok=True))
            return report_of(info, memory_kind, route, attempts, staged=staged or route is Route.BOUNCE)
        attempts.append(RouteAttempt(route.value, ok=False, why=refused))
    raise HostError(
        f"{info.name} ({info.driver}) cannot reach {memory_kind} memory",
        why="; ".join(f"{one.route}: {one.why}" for one in attempts),
        fix=_way_out(memory_kind, known),
        code="route_unavailable",
    )


@dataclass(frozen=True, slots=True)
class KindRoutes:
    """What a device may be able to do for one kind of memory, before anything is tried."""

    kind: str
    routes: tuple[str, ...]
    """In the order in which they are tried; empty where none is left."""
    refused: tuple[RouteAttempt, ...] = ()


def routes_by_kind(info: DeviceInfo, unfit: str | None = None) -> tuple[KindRoutes, ...]:
    """Return the routes of `info` to every kind of memory; `unfit` is why there is none at all.

    What is known by class only: kernel, rights and the path between two PCI devices can still say no.
    """
    rows = []
    for kind, offers in _DEFAULT_OFFERS.items():
        if info.provider != "verbs":
            # The CPU needs an address, or a file.
            reached = bool(offers & {Offer.CPU_MAPPING, Offer.STAGED})
            rows.append(KindRoutes(kind, (Route.CPU.value,) if reached else ()))
            continue
        ladder = rungs(kind, staged=Offer.STAGED in offers)
        refusals = {route: unfit or _refuse_for_list(info, kind, offers, route) for route in ladder}
        rows.append(
            KindRoutes(
                kind,
                tuple(route.value for route, why in refusals.items() if why is None),
                tuple(RouteAttempt(route.value, ok=False, why=why) for route, why in refusals.items() if why),
            )
        )
    return tuple(rows)


def _refuse_for_list(info: DeviceInfo, kind: str, offers: frozenset[Offer], route: Route) -> str | None:
    if route is Route.DMABUF and info.driver not in DMABUF_DRIVERS:
        return explain(route, kind, info.driver, "EOPNOTSUPP")[0]
    if route is Route.DM and not info.opened and info.driver in DM_DRIVERS:
        # Nobody could ask how much there is.
        return None
    return refuse_by_class(info, kind, offers, route)


def _offers(kind: str, offers: frozenset[Offer] | None) -> frozenset[Offer]:
    return _DEFAULT_OFFERS.get(kind, frozenset({Offer.CPU_MAPPING})) if offers is None else offers


def _way_out(kind: str, offers: frozenset[Offer]) -> str:
    """Return what to type where no rung is left: there is nothing to bounce from without a CPU mapping."""
    instead = (
        "leave --route away (bounce)"
        if Offer.CPU_MAPPING in offers
        else "a NIC that has such memory (p2prw devices), or host,size=64MiB"
        if kind == "dm"
        else "a NIC that imports dma-bufs, or host,size=64MiB and copy it there first"
    )
    return f"{instead}; --force-route shows the kernel's errno"


def report_of(
    info: DeviceInfo, memory_kind: str, route: Route, attempts: Sequence[RouteAttempt], *, staged: bool
) -> RouteReport:
    """Return the report of a chosen route. Bounced device memory is carried by the CPU, whatever the NIC does then."""
    device_memory = memory_kind in DEVICE_MEMORY_KINDS
    mover = "cpu" if route is Route.BOUNCE and device_memory else info.mover
    return RouteReport(
        chosen=route.value,
        mover=mover,
        peer_to_peer=mover == "nic" and device_memory,
        memory=memory_kind,
        device=info.name,
        driver=info.driver,
        staged=staged,
        attempts=tuple(attempts),
    )


def require_direct(report: RouteReport, side: str) -> None:
    """Raise HostError when device memory is not reached peer to peer; for `--require-direct`."""
    if report.peer_to_peer or (report.memory not in DEVICE_MEMORY_KINDS and report.via is None):
        return
    memory = report.memory if report.via is None else report.via.memory
    raise HostError(
        f"{side} memory {memory!r} is not reached peer to peer",
        why=f"on {report.device} (driver {report.driver}) route {report.chosen!r} moves the bytes with the "
        f"{report.mover.upper()}" + (", through staging chunks" if report.staged else ""),
        fix="leave --require-direct away, or use a NIC that reaches this memory itself",
        code="not_direct",
        side=side,
    )


def staged_via(report: RouteReport, via: ViaReport) -> RouteReport:
    """Return the report of a file behind a ring, from the report of how the ring itself is reached."""
    return replace(report, memory="file", staged=True, via=via)


def check_whole_pages(report: RouteReport, side: str, *piece_bytes: int | None) -> None:
    """Raise HostError where `report` holds for whole pages only and transfers are cut into other pieces."""
    if not any(one.ok and one.why == WHOLE_PAGES for one in report.attempts):
        return
    for size in piece_bytes:
        if size is not None and size % _PAGE_BYTES:
            raise HostError(
                f"pieces of {size} bytes would go astray in {side} {report.memory} memory",
                why=f"route {report.chosen} on {report.device} ({report.driver}) takes {WHOLE_PAGES}",
                fix="--chunk and --staging-chunk in multiples of 4K",
                code="not_whole_pages",
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
        None if report.via is None else Via(**asdict(report.via)),
    )


def from_wire(info: RouteInfo) -> RouteReport:
    """Return the peer's route as the result shows it.

    A peer that says its CPU moved the bytes peer to peer contradicts itself: the CPU wins.
    """
    return RouteReport(
        chosen=info.chosen,
        mover=info.mover,
        peer_to_peer=info.peer_to_peer
        and info.mover == "nic"
        and (info.memory in DEVICE_MEMORY_KINDS or info.via is not None),
        memory=info.memory,
        device=info.device,
        driver=info.driver,
        staged=info.staged,
        attempts=tuple(RouteAttempt(a.route, a.ok, a.errno, a.wc_status, a.why) for a in info.attempts),
        via=None if info.via is None else ViaReport(**asdict(info.via)),
    )
