"""The software device: drives the sans-IO RoCE core with one UDP socket. Needs no privilege and no RDMA hardware.

This module owns the socket, the clock and the random numbers; `p2prw.engine.roce` owns the protocol and has none of
them. The unit of work is a burst: up to 64 KiB of equal packets in one system call (UDP_SEGMENT, UDP_GRO; udp(7)).
Everything happens inside `pump`, on the caller's thread.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple
from weakref import WeakSet

from p2prw.engine.inject import FaultedBurst, FaultInjector, moved_icrc, parse_faults
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
from p2prw.engine.providers.soft_address import LocalAddress, gid_of, local_addresses, port_mtu_bytes, resolve_device
from p2prw.engine.providers.soft_selftest import SelfTest, run_self_test
from p2prw.engine.providers.soft_socket import UDP_GRO, UDP_SEGMENT, BoundSocket, open_socket, path_mtu_to
from p2prw.engine.providers.soft_watch import GsoWatch
from p2prw.engine.roce.device import Burst, RoceDevice
from p2prw.errors import HostError

if TYPE_CHECKING:
    from p2prw.engine.memory.base import MappedBuffer
    from p2prw.engine.providers.base import QueuePair, QueuePairCounters, Registration
    from p2prw.engine.roce.memory_table import MemoryRegistration
    from p2prw.engine.roce.queue_pair import RoceQueuePair

RECEIVES_PER_PUMP = 16
"""Bursts taken from the socket before timers and sends get their turn, so that acknowledgements are not late."""
SENDS_PER_PUMP = 32
READ_WINDOW_BYTES = 1024 * 1024
GSO_SEGMENTS = 64
"""UDP_MAX_SEGMENTS of every kernel since 4.18."""
_RECEIVE_BYTES = 65536
# IPv4 or IPv6, UDP, and the largest RoCE packet around a full path MTU: WRITE_ONLY_WITH_IMM.
_OVERHEAD_BYTES = {socket.AF_INET: 20 + 8 + 36, socket.AF_INET6: 40 + 8 + 36}
_ANCILLARY_BYTES = socket.CMSG_SPACE(4)
_PUMPS_PER_LOOK = 16
_TIMER_GRACE_S = 0.1  # a flood from one peer must not stop the timers of another
_GSO_REFUSALS = (errno.EIO, errno.EINVAL, errno.EMSGSIZE)

Role = Literal["client", "server"]
Endpoint = tuple[str, int]


class _Waiting(NamedTuple):
    """A burst the socket had no room for; copied, because memory may be deregistered before it goes."""

    data: bytes
    segment_bytes: int
    destination: Endpoint


def open_soft_device(
    name: str,
    *,
    local_address: str | None,
    udp_port: int | None,
    role: Role,
    gso: bool = True,
    inject: str | None = None,
    pcap: str | Path | None = None,
) -> SoftDevice:
    """Open `soft0`, `soft:NETDEV`, `soft:ADDRESS` or `auto` (the address `local_address`).

    Raises RequestError for a name or fault list that cannot be read, HostError (with errno) where the host has no such
    address, the UDP port is taken, or the kernel sends headers that the ICRC cannot foresee.
    """
    plan = parse_faults(inject) if inject else None
    local = resolve_device(name, local_address)
    mtu_bytes = port_mtu_bytes(local.netdev_mtu_bytes)
    self_test = run_self_test(local, gso=gso)
    if not self_test.single_ok:
        raise HostError(
            "this kernel sends IPv4 headers that RoCEv2's ICRC cannot be computed for",
            why=self_test.why,
            fix="use an IPv6 address: --device soft:ADDRESS (IPv6 headers have no identification)",
            code="unforeseeable_header",
        )
    bound = open_socket(
        local,
        udp_port=udp_port,
        role=role,
        gso=gso and self_test.gso_ok,
        pinned=name not in ("soft0", "auto"),
        random_bits=secrets.randbits,
    )
    if gso and not self_test.gso_ok:
        bound.warnings.append(f"segmented sends are off: {self_test.why}")
    try:
        injector = FaultInjector(plan, ipv4=bound.local.family == socket.AF_INET) if plan else None
        if injector:
            bound.warnings.append(f"faults are injected on purpose: {inject}")
        capture = PcapWriter(pcap) if pcap else None
        return SoftDevice(name, bound, mtu_bytes, self_test, injector, capture)
    except BaseException:
        bound.sock.close()
        raise


def list_soft_devices() -> tuple[DeviceInfo, ...]:
    """Return what could be opened here: one device for each address of each netdev that is up; nothing is bound."""
    found: list[DeviceInfo] = []
    named: set[str] = set()
    for local in local_addresses():
        if not local.up:
            continue
        try:
            mtu_bytes = port_mtu_bytes(local.netdev_mtu_bytes)
        except HostError:
            continue
        if local.address == "127.0.0.1":
            name = "soft0"
        elif local.netdev in named or local.is_loopback:
            name = f"soft:{local.address}" + (f"%{local.netdev}" if local.scope_id else "")
        else:
            name = f"soft:{local.netdev}"
        named.add(local.netdev)
        found.append(_describe(name, local, mtu_bytes, None))
    return tuple(found)


def _describe(name: str, local: LocalAddress, mtu_bytes: int, udp_port: int | None) -> DeviceInfo:
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
        note="RoCEv2 in user space over UDP; the CPU copies every byte",
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

    def __repr__(self) -> str:
        return f"<SoftQueuePair {self._core!r}>"

    def connect(self, remote: QueuePairAttributes) -> None:
        """Go to RTR and RTS. HostError where the address family differs or the way there is too narrow."""
        self._device.check_path(self.local, remote)
        self._core.connect(remote, time.monotonic())
        self._core.set_read_window(self._device.read_window_bytes())

    def post_rdma(
        self, wr_id: int, opcode: Opcode, sges: Sequence[Sge], remote_addr: int, rkey: int, *, signaled: bool
    ) -> None:
        """Post one RDMA_WRITE or RDMA_READ; it leaves with the next `pump`."""
        self._core.post_rdma(wr_id, opcode, sges, remote_addr, rkey, signaled=signaled)

    def set_window(self, window_bytes: int) -> None:
        """Bound the bytes on the wire towards the peer; READ responses are bounded by our own receive buffer."""
        self._core.set_window(window_bytes)
        self._core.set_read_window(self._device.read_window_bytes())

    def stop_gso(self) -> None:
        """Make every packet a send of its own from now on."""
        connection = self._core.requester.connection
        if connection is not None:
            connection.max_segments = 1

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
        return self.watch.look(self.counters, self._completed_bytes // self._core.mtu_bytes)

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
    ) -> None:
        self.info = _describe(name, bound.local, mtu_bytes, bound.udp_port)
        self.warnings: list[str] = bound.warnings
        """Sentences for the user, in the order they came up; the list grows while the device lives."""
        self.self_test = self_test
        self.gso = bound.has_gso
        """True while segmented sends are used."""
        self.receive_buffer_bytes = bound.receive_buffer_bytes
        self.send_failures = 0
        """Datagrams or bursts the kernel refused and the protocol has to repair as losses."""
        self.receive_failures = 0

        self.core = RoceDevice(
            bound.local.address,
            bound.udp_port,
            port_mtu_bytes=mtu_bytes,
            random_bits=secrets.randbits,
            # IPv4: the identification of a foreign packet is not shown to a UDP socket, so it is solved for.
            icrc_check="full" if bound.local.family == socket.AF_INET6 else "solve",
            gso_segments=GSO_SEGMENTS if bound.has_gso else 1,
        )
        self._local = bound.local
        self._endpoint: Endpoint = (bound.local.address, bound.udp_port)
        self._ipv4 = bound.local.family == socket.AF_INET
        self._injector = injector
        self._capture = capture
        self._queue_pairs: list[SoftQueuePair] = []
        self._registrations: WeakSet[MemoryRegistration] = WeakSet()
        self._closed = False

        # --- the socket and what it needs on each call
        self._sock = bound.sock
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._ancillary: dict[int, list[tuple[int, int, bytes]]] = {}
        self._waiting: deque[_Waiting] = deque()
        self._told: set[int | None] = set()
        self._pumps = self._segmented_sends = self._segmented_before = 0

    def __repr__(self) -> str:
        pairs = len(self._queue_pairs)
        return f"<SoftDevice {self.info.name} {self._endpoint[0]} port {self._endpoint[1]} queue_pairs={pairs}>"

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
            if self._ipv4:
                self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, options.traffic_class)
            else:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, options.traffic_class)
        self._queue_pairs.append(pair)
        return pair

    def forget(self, pair: SoftQueuePair) -> None:
        """Drop a queue pair that closed itself."""
        if pair in self._queue_pairs:
            self._queue_pairs.remove(pair)

    def check_path(self, ours: QueuePairAttributes, remote: QueuePairAttributes) -> None:
        """Refuse a peer that our socket cannot reach with whole packets. HostError."""
        address = ipaddress.IPv6Address(bytes.fromhex(remote.gid))
        mapped = address.ipv4_mapped
        if (mapped is not None) != self._ipv4:
            raise HostError(
                f"the peer's address {mapped or address} is not of the family of ours ({self._local.address})",
                why="both ends of a queue pair speak IPv4, or both IPv6",
                fix="--device soft:ADDRESS with an address of the same family on both hosts",
                code="address_family",
            )
        mtu_bytes = min(ours.mtu_bytes, remote.mtu_bytes)
        path_bytes = path_mtu_to(self._local, (str(mapped or address), remote.udp_port))
        needed_bytes = mtu_bytes + _OVERHEAD_BYTES[self._local.family]
        if path_bytes is not None and path_bytes < needed_bytes:
            raise HostError(
                f"path MTU {mtu_bytes} does not fit the way to {mapped or address}",
                why=f"its packets need {needed_bytes} bytes, the route carries {path_bytes}",
                fix=f"--mtu {port_mtu_bytes(path_bytes)}",
                code="mtu_too_large",
            )

    # --- waiting

    def receive_window_bytes(self) -> int:
        """Return half of the granted receive buffer.

        The other half is for what the kernel charges above the payload: a lone 4096 byte packet costs 8448 bytes, one
        of 1024 bytes 2304 (net/core/sock.c charges truesize), and SO_RCVBUF's own doubling covers only the first part.
        """
        return self.receive_buffer_bytes // 2

    def read_window_bytes(self) -> int:
        """Return what READ responses to one queue pair may take of the receive buffer: an even share, but not all.

        Above READ_WINDOW_BYTES nothing gets faster, and go-back-N throws a window away for each packet that is lost.
        """
        return min(READ_WINDOW_BYTES, self.receive_window_bytes() // max(1, len(self._queue_pairs)))

    def filenos(self) -> tuple[int, ...]:
        """Return the socket's descriptor."""
        return (self._sock.fileno(),) if not self._closed else ()

    def wants_write(self) -> bool:
        """Return True while bursts wait for room in the send buffer: wait for writable too."""
        return bool(self._waiting)

    def next_timer_s(self) -> float | None:
        """Return seconds until `pump` has work though nothing arrives; None when no timer runs."""
        at = self.core.next_timer()
        if self._injector:
            held = self._injector.next_timer()
            at = held if at is None else at if held is None else min(at, held)
        return None if at is None else max(0.0, at - time.monotonic())

    # --- work

    def pump(self) -> bool:
        """Receive, run timers, send: at most RECEIVES_PER_PUMP and SENDS_PER_PUMP bursts. True: call again at once."""
        if self._closed:
            return False
        now = time.monotonic()
        worked, drained = self._receive(now)
        at = self.core.next_timer()
        # An answer that waits in the socket is no reason to send again: what has arrived is read before a timer fires,
        # or a process that slept through its timeout would start a storm of resends.
        if at is not None and at <= (now if drained else now - _TIMER_GRACE_S):
            self.core.handle_timer(now)
            worked = True
        self._pumps += 1
        if self._pumps % _PUMPS_PER_LOOK == 0:
            self._watch_gso()
        if self._injector:
            worked |= self._release_held(now)
        return self._send(now) or worked

    def _receive(self, now: float) -> tuple[bool, bool]:
        """Take bursts from the socket; return whether there were any, and whether there are no more."""
        recvmsg_into, receive_burst = self._sock.recvmsg_into, self.core.receive_burst
        buffers, view = [self._buffer], self._view
        plain = self._injector is None and self._capture is None
        for received in range(RECEIVES_PER_PUMP):
            try:
                length_bytes, ancillary, _, source = recvmsg_into(buffers, _ANCILLARY_BYTES)
            except BlockingIOError:
                return received > 0, True
            except OSError:
                # An ICMP error about an earlier datagram; whom it hit finds out by timeout.
                self.receive_failures += 1
                continue
            segment_bytes = length_bytes
            for level, kind, data in ancillary:
                if kind == UDP_GRO and level == socket.SOL_UDP:
                    segment_bytes = int.from_bytes(data[:4], sys.byteorder)
            if plain:
                # fast path: no copy, no look at single packets.
                receive_burst(view[:length_bytes], segment_bytes, source[:2], now)
            else:
                self._receive_examined(view[:length_bytes], segment_bytes, source[:2], now)
        return True, False

    def _receive_examined(self, view: memoryview, segment_bytes: int, source: Endpoint, now: float) -> None:
        if self._capture:
            self._record(view, segment_bytes, source, self._endpoint, received=True)
        if not self._injector:
            self.core.receive_burst(view, segment_bytes, source, now)
            return
        for burst in self._injector.receiving.apply(view, segment_bytes, source, now):
            self.core.receive_burst(memoryview(burst.data), burst.segment_bytes, burst.endpoint, now)

    def _release_held(self, now: float) -> bool:
        assert self._injector is not None
        arrived = self._injector.receiving.release(now)
        for burst in arrived:
            self.core.receive_burst(memoryview(burst.data), burst.segment_bytes, burst.endpoint, now)
        leaving = self._injector.sending.release(now)
        for burst in leaving:
            self._transmit_copied(burst)
        return bool(arrived or leaving)

    def _send(self, now: float) -> bool:
        worked = False
        while self._waiting:
            # What waits was yielded earlier, so it goes first: the core counts on order.
            first = self._waiting.popleft()
            if not self._transmit([first.data], first.segment_bytes, len(first.data), first.destination):
                return worked
            worked = True
        plain = self._injector is None and self._capture is None
        sent = 0
        for burst in self.core.bursts_to_send(now):
            sent += 1
            if plain:
                # fast path: the kernel gathers the pieces.
                self._transmit(burst.buffers, burst.segment_bytes, burst.length_bytes, burst.destination)
            else:
                self._send_examined(burst, now)
            if self._waiting or sent >= SENDS_PER_PUMP:
                break
        return worked or sent > 0

    def _send_examined(self, burst: Burst, now: float) -> None:
        data = b"".join(burst.buffers)
        if self._injector:
            going = self._injector.sending.apply(memoryview(data), burst.segment_bytes, burst.destination, now)
        else:
            going = [FaultedBurst(data, burst.segment_bytes, burst.destination)]
        for one in going:
            self._transmit_copied(one)

    def _transmit_copied(self, burst: FaultedBurst) -> None:
        if self._waiting:
            # The order of what waits is kept; one burst may have become several.
            self._waiting.append(_Waiting(bytes(burst.data), burst.segment_bytes, burst.endpoint))
        else:
            self._transmit([burst.data], burst.segment_bytes, len(burst.data), burst.endpoint)

    def _transmit(
        self,
        buffers: Sequence[bytes | bytearray | memoryview],
        segment_bytes: int,
        length_bytes: int,
        destination: Endpoint,
    ) -> bool:
        """Send one burst; False when the socket is full and the burst waits (at the head) for room."""
        try:
            if 0 < segment_bytes < length_bytes:
                ancillary = self._ancillary.get(segment_bytes)
                if ancillary is None:
                    ancillary = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("H", segment_bytes))]
                    self._ancillary[segment_bytes] = ancillary
                self._segmented_sends += 1
                self._sock.sendmsg(buffers, ancillary, 0, destination)
            else:
                self._sock.sendmsg(buffers, (), 0, destination)
        except BlockingIOError:
            self._waiting.appendleft(_Waiting(b"".join(buffers), segment_bytes, destination))
            return False
        except OSError as exc:
            return self._send_refused(exc, b"".join(buffers), segment_bytes, destination)
        if self._capture:
            self._record(memoryview(b"".join(buffers)), segment_bytes, self._endpoint, destination)
        return True

    def _send_refused(self, exc: OSError, data: bytes, segment_bytes: int, destination: Endpoint) -> bool:
        """Send a burst in single datagrams where the kernel refuses segmentation; else count a loss."""
        if 0 < segment_bytes < len(data) and exc.errno in _GSO_REFUSALS:
            self.stop_gso(f"the kernel refuses them: {errno.errorcode.get(exc.errno or 0, exc.errno)}")
            singles = []
            for place, start in enumerate(range(0, len(data), segment_bytes)):
                payload = data[start : start + segment_bytes]
                # Each was sealed as segment `place` of a burst; alone its identification is 0.
                singles.append(moved_icrc(payload, place, 0) if self._ipv4 else payload)
            for index, payload in enumerate(singles):
                if not self._transmit([payload], 0, len(payload), destination):
                    # The first that did not fit is at the head of the queue already; the others follow it.
                    rest = [_Waiting(later, 0, destination) for later in singles[index + 1 :]]
                    self._waiting = deque([self._waiting[0], *rest, *list(self._waiting)[1:]])
                    return False
            return True
        self.send_failures += 1
        if exc.errno not in self._told:
            self._told.add(exc.errno)
            hint = (
                f" ({len(data)} bytes do not fit the route: take a smaller --mtu)"
                if exc.errno == errno.EMSGSIZE
                else ""
            )
            self.warnings.append(f"sending to {destination[0]} port {destination[1]} fails: {exc.strerror}{hint}")
        return True

    def stop_gso(self, why: str) -> None:
        """Send single datagrams from now on, and say so once."""
        if self.gso:
            self.gso = False
            self.core.gso_segments = 1
            for pair in self._queue_pairs:
                pair.stop_gso()
            self.warnings.append(f"segmented sends (UDP_SEGMENT) are off, expect a third of the rate: {why}")

    def _watch_gso(self) -> None:
        if self.gso and self._segmented_sends != self._segmented_before:
            self._segmented_before = self._segmented_sends
            for pair in self._queue_pairs:
                why = pair.look()
                if why:
                    self.stop_gso(f"{why}; perhaps the NIC's segmentation does not count the IPv4 identification up")
                    return

    def _record(
        self, view: memoryview, segment_bytes: int, source: Endpoint, destination: Endpoint, *, received: bool = False
    ) -> None:
        if self._capture is None:
            return
        try:
            self._capture.write_burst(view, segment_bytes, source, destination, received=received)
        except OSError as exc:
            # A full disk must not end a transfer.
            self._end_capture(exc)

    def _end_capture(self, failed: OSError | None = None) -> None:
        capture, self._capture = self._capture, None
        if capture is None:
            return
        try:
            capture.close()
        except OSError as exc:
            failed = failed or exc
        if failed:
            self.warnings.append(f"the capture {capture.path} ends early: {failed.strerror}")

    @property
    def injector(self) -> FaultInjector | None:
        """What makes faults on purpose, with its counts."""
        return self._injector

    def close(self) -> None:
        """Close queue pairs, registrations, the capture and the socket. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for pair in list(self._queue_pairs):
            pair.close()
        for registration in list(self._registrations):
            registration.close()
        self._waiting.clear()
        self._end_capture()
        self._sock.close()

    def __enter__(self) -> SoftDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
