"""One software device: a UDP socket's wire, the RoCE core, queue pairs, memory; owner of clock and random numbers.

`p2prw.engine.roce` owns the protocol and has no clock, socket or dice. Everything happens inside `pump`, on the
caller's thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

from p2prw.engine.inject import FaultInjector
from p2prw.engine.model import (
    Access,
    Completion,
    DeviceInfo,
    DeviceLimits,
    GidEntry,
    Opcode,
    QueuePairAttributes,
    QueuePairOptions,
    Sge,
    WcStatus,
)
from p2prw.engine.pcap import PcapWriter
from p2prw.engine.providers.base import DeviceUsage
from p2prw.engine.providers.soft_address import PATH_MTUS, LocalAddress, gid_of
from p2prw.engine.providers.soft_selftest import SelfTest
from p2prw.engine.providers.soft_socket import BoundSocket, path_mtu_to, set_traffic_class
from p2prw.engine.providers.soft_watch import GsoWatch
from p2prw.engine.providers.soft_wire import Wire
from p2prw.engine.roce.device import RoceDevice
from p2prw.engine.roce.remote import address_of
from p2prw.engine.roce.requester import DEFAULT_WINDOW_BYTES
from p2prw.errors import HostError

if TYPE_CHECKING:
    from p2prw.engine.memory.base import MappedBuffer
    from p2prw.engine.providers.base import QueuePair, QueuePairCounters, Registration
    from p2prw.engine.roce.memory_table import MemoryRegistration
    from p2prw.engine.roce.queue_pair import RoceQueuePair
    from p2prw.engine.roce.runs import RunCodec

# By "has segmentation offload": without it a packet costs four times as much, and so does a window that is lost.
# Measured on loopback, WRITE with 1 MiB is as fast as with 8 MiB, READ needs 2; go-back-N throws a window away for each
# lost packet.
WRITE_WINDOW_BYTES = {True: 2 * 1024 * 1024, False: 512 * 1024}
READ_WINDOW_BYTES = {True: 2 * 1024 * 1024, False: 256 * 1024}
LEAST_WINDOW_BYTES = 128 * 1024
GSO_SEGMENTS = 64
"""UDP_MAX_SEGMENTS of every kernel since 4.18."""
# By "is IPv4": IP, UDP, and the largest RoCE packet around a full path MTU: WRITE_ONLY_WITH_IMM.
_OVERHEAD_BYTES = {True: 20 + 8 + 36, False: 40 + 8 + 36}
_PUMPS_PER_LOOK = 16
_TIMER_GRACE_S = 0.1  # a flood from one peer must not stop the timers of another


def describe(name: str, local: LocalAddress, mtu_bytes: int, udp_port: int | None, codec: RunCodec) -> DeviceInfo:
    """Return what a device on `local` says about itself; `udp_port` is None before it is bound."""
    return DeviceInfo(
        name=name,
        provider="soft",
        driver="soft",
        mover="cpu",
        link_layer="Ethernet",
        state="ACTIVE" if local.up else "DOWN",
        active_mtu_bytes=mtu_bytes,
        gids=(GidEntry(0, gid_of(local.address), "rocev2", local.netdev, local.up),),
        limits=DeviceLimits(),
        netdev=local.netdev,
        address=local.address,
        udp_port=udp_port,
        note=f"RoCEv2 in user space over UDP; the CPU copies every byte; packets: {codec.name}",
        netdev_mtu_bytes=local.netdev_mtu_bytes,
        codec=codec.name,
    )


class SoftQueuePair:
    """A queue pair of the core, with the clock added; see `p2prw.engine.providers.base.QueuePair`."""

    def __init__(self, device: SoftDevice, core: RoceQueuePair) -> None:
        self._device = device
        self._core = core
        self.local: QueuePairAttributes = core.local
        self.depth: int = core.depth
        self.counters: QueuePairCounters = core.counters
        self.watch = GsoWatch()
        self._completed_bytes = 0
        self._granted_bytes = DEFAULT_WINDOW_BYTES

    def __repr__(self) -> str:
        return f"<SoftQueuePair {self._core!r}>"

    def connect(self, remote: QueuePairAttributes) -> None:
        """Go to RTR and RTS. HostError where the address family differs or the way there is too narrow."""
        self._device.check_path(self.local, remote)
        self._core.connect(remote, time.monotonic())
        self.share_windows()

    def post_rdma(
        self, wr_id: int, opcode: Opcode, sges: Sequence[Sge], remote_addr: int, rkey: int, *, signaled: bool
    ) -> None:
        """Post one RDMA_WRITE or RDMA_READ; it leaves with the next `pump`."""
        flip = self._device.injector.flip if self._device.injector else None
        spoil_at = flip.strike(opcode, sum(sge.length_bytes for sge in sges)) if flip else None
        self._core.post_rdma(wr_id, opcode, sges, remote_addr, rkey, signaled=signaled, spoil_at=spoil_at)

    def set_window(self, window_bytes: int) -> None:
        """Bound the bytes on the wire towards the peer; READ responses are bounded by our own receive buffer."""
        self._granted_bytes = window_bytes
        self.share_windows()

    def share_windows(self) -> None:
        """Take this queue pair's share of what the device may have under way."""
        self._core.set_window(min(self._granted_bytes, self._device.write_window_bytes()))
        self._core.set_read_window(self._device.read_window_bytes())

    def stop_gso(self) -> None:
        """Make every packet a send of its own from now on."""
        connection = self._core.requester.connection
        if connection is not None:
            connection.stop_segmenting()

    def poll(self, max_completions: int = 64) -> list[Completion]:
        """Return completions, oldest first."""
        completions = self._core.poll(max_completions)
        if not self.watch.is_trusted:
            for completion in completions:
                if completion.status is WcStatus.SUCCESS and completion.opcode is not Opcode.RDMA_READ:
                    self._completed_bytes += completion.byte_len
        return completions

    def look(self) -> str | None:
        """Return why segmented sends seem not to arrive, or None."""
        completed_packets = self._completed_bytes // self._core.mtu_bytes
        return self.watch.look(self.counters, completed_packets, self._device.wire.segmented_sends)

    def close(self) -> None:
        """Destroy the queue pair. Safe to call twice."""
        self._core.close()
        self._device.forget(self)


class SoftDevice:
    """One UDP socket, one RoCE core; see `p2prw.engine.providers.base.Device`."""

    def __init__(
        self,
        name: str,
        bound: BoundSocket,
        mtu_bytes: int,
        self_test: SelfTest,
        injector: FaultInjector | None,
        capture: PcapWriter | None,
        codec: RunCodec,
    ) -> None:
        self.info = describe(name, bound.local, mtu_bytes, bound.udp_port, codec)
        self.warnings: list[str] = bound.warnings
        """Sentences for the user, in the order they came up; the list grows while the device lives."""
        self.self_test = self_test
        self.gso = bound.has_gso
        """True while segmented sends are used."""
        self.receive_buffer_bytes = bound.receive_buffer_bytes
        self.core = RoceDevice(
            bound.local.address,
            bound.udp_port,
            port_mtu_bytes=mtu_bytes,
            random_bits=secrets.randbits,
            # IPv4: the identification of a foreign packet is not shown to a UDP socket, so it is solved for.
            icrc_check="solve" if bound.local.is_ipv4 else "full",
            gso_segments=GSO_SEGMENTS if bound.has_gso else 1,
            codec=codec,
            most_bytes=WRITE_WINDOW_BYTES[bound.has_gso],
            most_read_bytes=READ_WINDOW_BYTES[bound.has_gso],
        )
        self.wire = Wire(
            bound,
            self.core.receive_burst,
            on_gso_refused=self.stop_gso,
            injector=injector,
            capture=capture,
            awaited=self.core.awaited,
            wanting=self.core.wanting,
            codec=codec,
        )
        self._local = bound.local
        self._queue_pairs: list[SoftQueuePair] = []
        self._registrations: WeakSet[MemoryRegistration] = WeakSet()
        self._closed = False
        self._pumps = self._segmented_before = 0
        self._retransmitted_by_the_gone = 0

    def __repr__(self) -> str:
        address, udp_port = self.wire.endpoint
        return f"<SoftDevice {self.info.name} {address} port {udp_port} queue_pairs={len(self._queue_pairs)}>"

    # --- objects

    def register(
        self,
        buffers: Sequence[MappedBuffer],
        access: Access,
        *,
        offset: int = 0,
        length_bytes: int | None = None,
    ) -> Registration:
        """Make mapped buffers reachable; no page is pinned, the CPU copies when packets pass."""
        registration = self.core.memory.register(buffers, access, offset, length_bytes)
        self._registrations.add(registration)
        return registration

    def create_queue_pair(self, options: QueuePairOptions) -> QueuePair:
        """Create a queue pair in INIT with a random PSN."""
        pair = SoftQueuePair(self, self.core.create_queue_pair(options))
        if options.traffic_class:
            # One socket serves all queue pairs, so the class given last holds for all.
            set_traffic_class(self.wire.sock, options.traffic_class)
        self._queue_pairs.append(pair)
        self._share_windows()
        return pair

    def _share_windows(self) -> None:
        for pair in self._queue_pairs:
            pair.share_windows()

    def forget(self, pair: SoftQueuePair) -> None:
        """Drop a queue pair that closed itself."""
        if pair in self._queue_pairs:
            self._queue_pairs.remove(pair)
            self._share_windows()
            self._retransmitted_by_the_gone += pair.counters.retransmitted_packets

    def check_path(self, ours: QueuePairAttributes, remote: QueuePairAttributes) -> None:
        """Refuse a peer that our socket cannot reach with whole packets. HostError."""
        packed, peer = address_of(remote.gid)
        if (len(packed) == 4) != self.wire.is_ipv4:
            raise HostError(
                f"the peer's address {peer} is not of the family of ours ({self._local.address})",
                why="both ends of a queue pair speak IPv4, or both IPv6",
                fix="--device soft:ADDRESS with an address of the same family on both hosts",
                code="address_family",
            )
        mtu_bytes = min(ours.mtu_bytes, remote.mtu_bytes)
        overhead_bytes = _OVERHEAD_BYTES[self._local.is_ipv4]
        path_bytes = path_mtu_to(self._local, (peer, remote.udp_port))
        if path_bytes is not None and path_bytes < mtu_bytes + overhead_bytes:
            fitting = [mtu for mtu in PATH_MTUS if mtu + overhead_bytes <= path_bytes]
            raise HostError(
                f"path MTU {mtu_bytes} does not fit the way to {peer}",
                why=f"its packets need {mtu_bytes + overhead_bytes} bytes, the route carries {path_bytes}",
                fix=f"--mtu {fitting[0]}" if fitting else "a route with an MTU of 1500",
                code="mtu_too_large",
            )

    # --- waiting

    def receive_window_bytes(self) -> int:
        """Return half of the granted receive buffer.

        The other half is for what the kernel charges above the payload: a lone 4096 byte packet costs 8448 bytes, one
        of 1024 bytes 2304 (net/core/sock.c charges truesize), and SO_RCVBUF's own doubling covers only the first part.
        """
        return self.receive_buffer_bytes // 2

    def write_window_bytes(self) -> int:
        """Return what one queue pair may have under way: many of them together no more than one, but whole bursts.

        What waits in a socket is copied twice; more of it than a cache holds is copied from memory.
        """
        window_bytes = WRITE_WINDOW_BYTES[self.gso]
        return max(window_bytes // max(1, len(self._queue_pairs)), min(LEAST_WINDOW_BYTES, window_bytes))

    def read_window_bytes(self) -> int:
        """Return what READ responses to one queue pair may take of the receive buffer: an even share, but not all."""
        return min(READ_WINDOW_BYTES[self.gso], self.receive_window_bytes() // max(1, len(self._queue_pairs)))

    def filenos(self) -> tuple[int, ...]:
        """Return the socket's descriptor."""
        return (self.wire.sock.fileno(),) if not self._closed else ()

    def wants_write(self) -> bool:
        """Return True while bursts wait for room in the send buffer: wait for writable too."""
        return self.wire.wants_write()

    def next_timer_s(self) -> float | None:
        """Return seconds until `pump` has work though nothing arrives; None when no timer runs."""
        due = [at for at in (self.core.next_timer(), self.wire.next_timer()) if at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    # --- work

    def pump(self) -> bool:
        """Receive, run timers, send; bounded work. True: call again at once."""
        if self._closed:
            return False
        now = time.monotonic()
        worked, drained = self.wire.receive(now)
        # An answer that waits in the socket is no reason to send again: what has arrived is read before a timer fires,
        # or a process that slept through its timeout would start a storm of resends.
        if self.core.is_timer_due(now if drained else now - _TIMER_GRACE_S):
            self.core.handle_timer(now)
            worked = True
            # Timeouts are looked at one by one: three between two looks would pass for three in a row.
            self._watch_gso()
        self._pumps += 1
        if self._pumps % _PUMPS_PER_LOOK == 0 and self.wire.segmented_sends != self._segmented_before:
            self._segmented_before = self.wire.segmented_sends
            self._watch_gso()
        worked |= self.wire.release_held(now)
        core = self.core
        outgoing = core.trains_to_send(now) if self.wire.takes_trains else core.bursts_to_send(now)
        return self.wire.send(outgoing, now) or worked

    def take_completed(self) -> Collection[int]:
        """See `providers.base.TellingDevice`."""
        return self.core.take_completed()

    def stop_gso(self, why: str) -> None:
        """Send single datagrams from now on, and say so once."""
        if self.gso:
            self.gso = False
            self.core.gso_segments = 1
            for pair in self._queue_pairs:
                pair.stop_gso()
            self.warnings.append(f"segmented sends (UDP_SEGMENT) are off, expect a third of the rate: {why}")

    def _watch_gso(self) -> None:
        if self.gso:
            for pair in self._queue_pairs:
                why = pair.look()
                if why:
                    perhaps = "; perhaps the NIC's segmentation does not count the IPv4 identification up"
                    self.stop_gso(why + perhaps * self.wire.is_ipv4)
                    return

    def usage(self) -> DeviceUsage:
        """Return what is held, and the packets that were sent again or dropped."""
        counters = self.core.counters
        return DeviceUsage(
            queue_pairs=len(self._queue_pairs),
            registrations=len(self.core.memory),
            retransmitted_packets=self._retransmitted_by_the_gone
            + sum(pair.counters.retransmitted_packets for pair in self._queue_pairs),
            dropped_packets={
                "malformed": counters.dropped_malformed,
                "unknown_queue_pair": counters.dropped_unknown_qpn,
                "wrong_source": counters.dropped_wrong_source,
                "icrc": counters.icrc_errors,
            },
        )

    @property
    def injector(self) -> FaultInjector | None:
        """What makes faults on purpose, with its counts."""
        return self.wire.injector

    def close(self) -> None:
        """Close queue pairs, registrations, the capture and the socket. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        flip = self.injector.flip if self.injector else None
        if flip is not None and not flip.struck:
            self.warnings.append(f"corrupt={flip.offset} changed nothing: fewer bytes were moved")
        for pair in list(self._queue_pairs):
            pair.close()
        for registration in list(self._registrations):
            registration.close()
        self.wire.close()

    def __enter__(self) -> SoftDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
