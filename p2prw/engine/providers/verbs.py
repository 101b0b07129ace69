"""The verbs device: one port of one libibverbs device, over whichever binding imports.

Polling drives it like every provider: `pump` rings the doorbell for what was posted and once a second looks at port
state and packet counters in sysfs (asynchronous events block with the GIL held in pyverbs). Completions tell queue pair
errors; a port or device that is lost shows at the next `poll`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from p2prw.engine.model import Access, DeviceInfo, DeviceLimits, QueuePairOptions, Route
from p2prw.engine.providers.base import DeviceUsage
from p2prw.engine.providers.verbs_binding import (
    LOCAL_WRITE,
    ON_DEMAND,
    REMOTE_READ,
    REMOTE_WRITE,
    BindingError,
    BoundContext,
    BoundDm,
    BoundRegion,
    HcaFacts,
    PortFacts,
    VerbsBinding,
)
from p2prw.engine.providers.verbs_dm import VerbsDm
from p2prw.engine.providers.verbs_explain import explain
from p2prw.engine.providers.verbs_memory import VerbsRegistration, cut_buffers
from p2prw.engine.providers.verbs_proof import Proof, odp_keeps_offsets, prove_by_loopback
from p2prw.engine.providers.verbs_queue_pair import VerbsQueuePair
from p2prw.engine.providers.verbs_sysfs import HcaSysfs, PortSysfs, read_counters
from p2prw.engine.providers.verbs_sysfs import read_state as read_port_state
from p2prw.engine.topology.pairs import Topology
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.engine.topology.verdict import Verdict
from p2prw.errors import HostError, TransferError

if TYPE_CHECKING:
    from p2prw.engine.memory.base import MappedBuffer
    from p2prw.engine.providers.base import QueuePair, QueuePairCounters, Registration

ROCE_UDP_PORT = 4791
LOOK_INTERVAL_S = 1.0
SPIN_S = 0.0002
"""So long after the last completion an empty queue is polled again at once; then the loop naps."""
NAP_S, LONGEST_NAP_S = 0.001, 0.003
"""A nap is a sixteenth of the last wait for a completion, within these: looking costs CPU that rxe could use."""
_CPU_WINDOW_BYTES = 2 * 1024 * 1024
"""What a software peer may have on the wire towards rxe: a burst beyond the netdev backlog is dropped."""
_NIC_WINDOW_BYTES = 64 * 1024 * 1024


def moves_note(hca: HcaSysfs) -> str | None:
    """Return what `p2prw devices` says of a software driver."""
    return f"{hca.driver}: the kernel's CPU copies every byte" if hca.mover == "cpu" else None


def open_error(name: str, binding: VerbsBinding, error: BindingError) -> HostError:
    """Return the error of a device that is there and does not open."""
    return HostError(
        f"cannot open {name} through {binding.name}: {error.reason}",
        why="ib_uverbs is not loaded, its user-space driver is missing, or /dev/infiniband may not be opened",
        fix="modprobe ib_uverbs; apt install ibverbs-providers; ls -l /dev/infiniband",
        code="cannot_open_device",
        errno=error.errno_name,
    )


def describe(
    hca: HcaSysfs, port: PortSysfs, device: HcaFacts | None, attr: PortFacts | None, binding: str | None
) -> DeviceInfo:
    """Return what is known of a port; limits only where the device was opened."""
    addresses = [entry for entry in port.gids if entry.type == "rocev2" and entry.gid.startswith("00" * 10 + "ffff")]
    limits = DeviceLimits()
    if device is not None and attr is not None:
        limits = DeviceLimits(
            max_sge=device.max_sge,
            max_sge_rd=device.max_sge_rd,
            max_msg_bytes=attr.max_msg_bytes,
            max_qp_wr=min(device.max_qp_wr, max(1, device.max_cqe - 1)),
            max_rd_atomic=min(255, device.max_qp_init_rd_atom),
            max_dest_rd_atomic=min(255, device.max_qp_rd_atom),
            iwarp=hca.iwarp,
            max_dm_bytes=device.max_dm_bytes,
        )
    ethernet = port.link_layer == "Ethernet"
    return DeviceInfo(
        name=hca.name,
        provider="verbs",
        driver=hca.driver,
        mover=hca.mover,
        link_layer=port.link_layer,
        state=port.state,
        active_mtu_bytes=attr.active_mtu_bytes if attr else 1024,
        gids=port.gids,
        limits=limits,
        netdev=port.netdev,
        address=".".join(str(byte) for byte in bytes.fromhex(addresses[0].gid[24:])) if addresses else None,
        udp_port=ROCE_UDP_PORT if ethernet else None,
        pci_address=hca.pci_address,
        numa_node=hca.numa_node,
        note=moves_note(hca),
        binding=binding,
        port=port.number,
        rate_gbit_per_s=port.rate_gbit_per_s,
        opened=device is not None and attr is not None,
    )


class VerbsDevice:
    """See `p2prw.engine.providers.base.Device`; `register_by` and `prove` are for the route ladder."""

    def __init__(
        self,
        hca: HcaSysfs,
        port: PortSysfs,
        binding: VerbsBinding,
        context: BoundContext,
        *,
        role: str,
        sysfs: SysfsRoot,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            device, attr = context.query_device(), context.query_port(port.number)
        except BindingError as error:
            raise open_error(hca.name, binding, error) from error
        self.info = describe(hca, port, device, attr, binding.name)
        self.warnings: list[str] = []
        self.lost: str | None = None
        """Why nothing can move any more; None while the port is there and active."""
        self.port = port.number
        self.lid = attr.lid
        self.grh_required = attr.grh_required
        self._context = context
        self._sysfs = sysfs
        self._clock = clock
        self._remote_access = 0 if role == "client" else REMOTE_READ | REMOTE_WRITE
        self._queue_pairs: list[VerbsQueuePair] = []
        self._registrations: list[VerbsRegistration] = []
        self._dms: list[VerbsDm] = []
        self._next_look_s = clock() + LOOK_INTERVAL_S
        self._counters = read_counters(sysfs, hca.name, port.number)
        self._last_completion_s = 0.0
        self._gap_s = 0.0
        self._has_loopback: bool | None = None
        self._odp_keeps_offsets: bool | None = None
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<VerbsDevice {self.info.name} port {self.port} {self.info.binding} {len(self._queue_pairs)} queue pairs>"
        )

    # --- memory

    def register(
        self,
        buffers: Sequence[MappedBuffer],
        access: Access,
        *,
        offset: int = 0,
        length_bytes: int | None = None,
    ) -> Registration:
        """Pin a byte range of mapped host memory (ibv_reg_mr). HostError with errno and what it means."""
        return self.register_by(Route.PIN, "host", buffers, access, offset=offset, length_bytes=length_bytes)

    def register_by(
        self,
        route: Route,
        kind: str,
        buffers: Sequence[MappedBuffer],
        access: Access,
        *,
        offset: int = 0,
        length_bytes: int | None = None,
        dmabuf: tuple[int, int] | None = None,
    ) -> VerbsRegistration:
        """Register by `pin`, `odp`, or `dmabuf` (descriptor, offset of the memory's first byte in it).

        Big ranges are registered in slices, so that signals are heard in between. HostError `cannot_register` carries
        the errno, explained for this kind of memory on this driver.
        """
        flags = int(access)
        regions: list[BoundRegion] = []
        try:
            if route is Route.DMABUF:
                if dmabuf is None:
                    raise BindingError("this memory exports no dma-buf", 95)
                length = length_bytes if length_bytes is not None else sum(one.length_bytes for one in buffers) - offset
                regions.append(self._context.register_dmabuf(dmabuf[0], dmabuf[1] + offset, length, flags))
            else:
                if route is Route.ODP:
                    flags |= ON_DEMAND
                for address, length in cut_buffers(buffers, offset, length_bytes):
                    regions.append(self._context.register(address, length, flags))
        except BaseException as error:
            for region in regions:
                region.close()
            if not isinstance(error, BindingError):
                raise
            raise self._refusal("register", route, kind, error) from error
        return self._keep(regions)

    def allocate_dm(self, length_bytes: int) -> VerbsDm:
        """Allocate memory of the device itself. HostError `cannot_register` with errno."""
        try:
            memory = self._context.allocate_dm(length_bytes)
        except BindingError as error:
            raise self._refusal("allocate", Route.DM, "dm", error) from error
        allocation = VerbsDm(self, self._context, memory, length_bytes, self._clock)
        self._dms.append(allocation)
        return allocation

    def register_dm(self, memory: BoundDm, access: Access, offset: int, length_bytes: int) -> VerbsRegistration:
        """Register a range of it; for `VerbsDm`."""
        try:
            region = memory.register(offset, length_bytes, int(access))
        except BindingError as error:
            raise self._refusal("register", Route.DM, "dm", error) from error
        return self._keep([region])

    def forget_dm(self, allocation: VerbsDm) -> None:
        """Drop device memory that was freed."""
        self._dms.remove(allocation)

    def _keep(self, regions: Sequence[BoundRegion]) -> VerbsRegistration:
        registration = VerbsRegistration(regions, self._registrations.remove)
        self._registrations.append(registration)
        return registration

    def _refusal(self, verb: str, route: Route, kind: str, error: BindingError) -> HostError:
        why, fix = explain(route, kind, self.info.driver, error.errno_name)
        if error.errno_name is None:
            why = f"{why}: {error.reason}"
        return HostError(
            f"{self.info.name} cannot {verb} {kind} memory by {route.value}: {error.reason}",
            why=why,
            fix=fix,
            code="cannot_register",
            errno=error.errno_name,
        )

    def prove(self, registration: VerbsRegistration) -> Proof:
        """WRITE a few bytes out of `registration` into scratch over a throw-away loopback queue pair."""
        proof = prove_by_loopback(self, self._context, registration.vec, self._clock)
        if proof.ok:
            self._has_loopback = True
            return proof
        if self._has_loopback is None:
            # Did the memory fail or the loopback? Memory that cannot fail tells.
            self._has_loopback = prove_by_loopback(self, self._context, None, self._clock).ok
        if self._has_loopback:
            return proof
        return replace(proof, ok=True, proven=False, why="this port has no loopback; the first real chunk proves it")

    def path_to(self, pci_address: str) -> Verdict | None:
        """Return the kernel's P2PDMA verdict for DMA by this device into memory of a PCI function."""
        if self.info.pci_address is None:
            return None
        try:
            return Topology(self._sysfs).pair(self.info.name, pci_address).verdict
        except HostError:
            return None  # not in this tree, or gone meanwhile: the failure itself says more

    def odp_keeps_offsets(self) -> bool:
        """Tell whether this driver's ODP heeds the offset in a page; tried once, on pages of our own."""
        if self._odp_keeps_offsets is None:
            self._odp_keeps_offsets = odp_keeps_offsets(self, self._context, self._clock)
        return self._odp_keeps_offsets

    # --- queue pairs

    def create_queue_pair(self, options: QueuePairOptions) -> QueuePair:
        """Create a queue pair in INIT with a random PSN; `options.gid_index` is its source GID."""
        access = self._remote_access | LOCAL_WRITE
        access |= REMOTE_WRITE * options.peer_writes | REMOTE_READ * options.peer_reads
        pair = VerbsQueuePair(self, self._context, options, access, secrets.randbits(24))
        self._queue_pairs.append(pair)
        return pair

    def forget(self, pair: VerbsQueuePair) -> None:
        """Drop a queue pair that closed itself."""
        if pair in self._queue_pairs:
            self._queue_pairs.remove(pair)

    def receive_window_bytes(self) -> int:
        """Return what software peers together may have on the wire towards this port."""
        return _CPU_WINDOW_BYTES if self.info.mover == "cpu" else _NIC_WINDOW_BYTES

    # --- the loop

    def pump(self) -> bool:
        """Ring the doorbells; once a second look at the port. Never True: completions are the queue pairs' news."""
        for pair in self._queue_pairs:
            pair.flush()
        now = self._clock()
        if now >= self._next_look_s and not self._closed:
            self._next_look_s = now + LOOK_INTERVAL_S
            self._look()
        return False

    def _look(self) -> None:
        name = self.info.name
        state = read_port_state(self._sysfs, name, self.port)
        if state is None:
            self.lost = f"{name} is gone from /sys/class/infiniband"
        elif state != "ACTIVE":
            self.lost = f"{name} port {self.port} is {state}"
        else:
            self.lost = None
        fresh = read_counters(self._sysfs, name, self.port)
        for pair in self._queue_pairs:
            self._count(pair.counters, fresh)
        self._counters = fresh

    def _count(self, counters: QueuePairCounters, fresh: dict[str, int]) -> None:
        """Add what the port counted since the last look; a driver that counts nothing counts as alive."""
        for name, value in fresh.items():
            moved = max(0, value - self._counters.get(name, value))
            setattr(counters, name, getattr(counters, name) + moved)
        if "packets_received" not in fresh:
            counters.packets_received += 1

    def usage(self) -> DeviceUsage:
        """Return what is held; packets are the hardware's business, `counters` in sysfs have them."""
        return DeviceUsage(len(self._queue_pairs), len(self._registrations))

    def completed(self) -> None:
        """A queue pair saw a completion: more may follow at once."""
        now = self._clock()
        self._gap_s, self._last_completion_s = now - self._last_completion_s, now

    def check(self) -> None:
        """Raise TransferError where the port or the device was lost."""
        if self.lost is not None:
            raise TransferError(
                f"the port was lost: {self.lost}",
                why="its cable, its netdev or its driver went away",
                fix="rdma link show; dmesg | tail",
                code="port_lost",
            )

    def filenos(self) -> tuple[int, ...]:
        """Return nothing: completion channels block with the GIL held in pyverbs, so the loop polls by time."""
        return ()

    def wants_write(self) -> bool:
        """Return False: there is no socket."""
        return False

    def next_timer_s(self) -> float | None:
        """Return when to poll again: at once after a completion, then every few milliseconds while work is out."""
        if not any(pair.outstanding for pair in self._queue_pairs):
            return None
        if self._clock() - self._last_completion_s < SPIN_S:
            return 0.0
        return min(LONGEST_NAP_S, max(NAP_S, self._gap_s / 16))

    def close(self) -> None:
        """Close queue pairs, registrations, device memory, protection domain and device. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for pair in list(self._queue_pairs):
            pair.close()
        for registration in list(self._registrations):
            registration.close()
        for allocation in list(self._dms):
            allocation.close()
        try:
            self._context.close()
        except BindingError as error:
            # The kernel frees what is left when the process ends; a transfer that is over is not undone by it.
            self.warnings.append(f"closing {self.info.name}: {error.reason}")

    def __enter__(self) -> VerbsDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
