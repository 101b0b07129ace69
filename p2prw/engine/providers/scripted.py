"""A provider without a wire: two in-process memories, an injected clock, and a script of what goes wrong.

It exists so that everything above a provider can be tested to the last decision: which work requests were posted, how
many were outstanding, what happens when the 17th fails, when a completion is late or never comes, when bytes arrive
spoiled. Devices on one `ScriptedFabric` reach each other; keys, addresses and numbers are counted up, never random.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2prw.engine.model import (
    Access,
    Completion,
    DeviceInfo,
    DeviceLimits,
    DmaSegment,
    DmaVec,
    GidEntry,
    Opcode,
    QueuePairAttributes,
    QueuePairOptions,
    RemoteSegment,
    Sge,
    WcStatus,
)
from p2prw.engine.providers.base import DeviceUsage, QueuePairCounters
from p2prw.engine.providers.scripted_fabric import Region, ScriptedFabric
from p2prw.engine.providers.scripted_script import Counts, Fault, ManualClock, Script
from p2prw.errors import HostError, LocalProtocolError

if TYPE_CHECKING:
    from p2prw.engine.memory.base import MappedBuffer

__all__ = [
    "Counts",
    "Fault",
    "ManualClock",
    "Script",
    "ScriptedDevice",
    "ScriptedFabric",
    "ScriptedQueuePair",
    "ScriptedRegistration",
]

_GID = "00000000000000000000ffff7f000001"


@dataclass(slots=True)
class _Wqe:
    ordinal: int
    wr_id: int
    opcode: Opcode
    sges: tuple[Sge, ...]
    remote_addr: int
    rkey: int
    signaled: bool
    length_bytes: int
    due: float | None = None
    """When it completes; None while it waits for the window."""


class ScriptedRegistration:
    """See `p2prw.engine.providers.base.Registration`."""

    def __init__(self, device: ScriptedDevice, vec: DmaVec) -> None:
        self._device: ScriptedDevice | None = device
        self.vec = vec

    def remote_segments(self) -> tuple[RemoteSegment, ...]:
        """Return (address, length, rkey) of each buffer."""
        return tuple(RemoteSegment(*segment) for segment in self.vec)

    def close(self) -> None:
        """Take the keys back. Safe to call twice."""
        device, self._device = self._device, None
        if device is not None:
            device.counts.registrations_open -= 1
            for segment in self.vec:
                device.fabric.regions.pop(segment.lkey, None)


class ScriptedQueuePair:
    """See `p2prw.engine.providers.base.QueuePair`."""

    def __init__(self, device: ScriptedDevice, options: QueuePairOptions) -> None:
        self.depth = options.depth
        self.counters = QueuePairCounters()
        self.posted: list[tuple[int, Opcode, tuple[Sge, ...], int, int, bool]] = []
        """Every post, as (wr_id, opcode, sges, remote_addr, rkey, signaled), when the device keeps a log."""
        self.remote: QueuePairAttributes | None = None
        self.is_error = False
        self._device = device
        self._window_bytes: int | None = None
        self._queue: deque[_Wqe] = deque()
        self._completions: deque[tuple[int, Completion]] = deque()
        self._retired = 0
        self._count = 0
        self._line_free = self._last_due = 0.0
        self.local = QueuePairAttributes(
            qpn=device.fabric.add_queue_pair(self),
            psn=0,
            gid=_GID,
            mtu_bytes=options.mtu_bytes or device.info.active_mtu_bytes,
            max_rd_atomic=options.max_rd_atomic,
            max_dest_rd_atomic=device.info.limits.max_dest_rd_atomic,
        )

    def __repr__(self) -> str:
        state = "ERR" if self.is_error else "RTS" if self.remote else "INIT"
        return f"<ScriptedQueuePair {self.local.qpn:#x} {state} outstanding={self._count - self._retired}/{self.depth}>"

    def connect(self, remote: QueuePairAttributes) -> None:
        """Go to RTS towards a queue pair of the same fabric; HostError when the script says so."""
        if self._device.script.connect_errno is not None:
            raise HostError("the scripted device refuses to connect", errno=self._device.script.connect_errno)
        self.remote = remote

    def set_window(self, window_bytes: int) -> None:
        """Bound the bytes that are on their way; one request always goes."""
        self._device.counts.windows.append(window_bytes)
        self._window_bytes = window_bytes

    def post_rdma(
        self, wr_id: int, opcode: Opcode, sges: Sequence[Sge], remote_addr: int, rkey: int, *, signaled: bool
    ) -> None:
        """Post one work request. LocalProtocolError when unconnected or deeper than `depth`."""
        if self.remote is None:
            raise LocalProtocolError("post on a queue pair that is not connected")
        outstanding = self._count + 1 - self._retired
        if outstanding > self.depth:
            raise LocalProtocolError(f"more than {self.depth} work requests outstanding")
        counts = self._device.counts
        length_bytes = sum(sge.length_bytes for sge in sges)
        wqe = _Wqe(counts.posts, wr_id, opcode, tuple(sges), remote_addr, rkey, signaled, length_bytes)
        self._count += 1
        counts.posts += 1
        counts.signaled_posts += signaled
        counts.posted_bytes += length_bytes
        counts.outstanding += 1
        counts.peak_outstanding = max(counts.peak_outstanding, counts.outstanding)
        if self._device.keep_log:
            self.posted.append((wr_id, opcode, wqe.sges, remote_addr, rkey, signaled))
        self._queue.append(wqe)

    def poll(self, max_completions: int = 64) -> list[Completion]:
        """Return completions, oldest first; each retires everything posted before it."""
        counts = self._device.counts
        counts.polls += 1
        found: list[Completion] = []
        while self._completions and len(found) < max_completions:
            position, completion = self._completions.popleft()
            counts.outstanding -= position - self._retired
            self._retired = position
            found.append(completion)
        counts.completions += len(found)
        counts.empty_polls += not found
        return found

    def close(self) -> None:
        """Destroy. Safe to call twice."""
        if self._device.fabric.queue_pairs.pop(self.local.qpn, None) is not None:
            self._device.counts.queue_pairs_open -= 1
            self._device.counts.outstanding -= self._count - self._retired
            self._retired = self._count
            self._queue.clear()
            self._completions.clear()
            self._device.forget(self)

    # --- driven by the device

    def work(self, now: float, budget: int | None) -> int:
        """Start what the window allows, complete what is due; return how many requests completed."""
        done = 0
        self._start(now)
        while self._queue and (budget is None or done < budget):
            wqe = self._queue[0]
            if self.is_error:
                self._complete(wqe, WcStatus.WR_FLUSH_ERR)
            elif wqe.due is None or wqe.due > now or self._device.fault(wqe.ordinal).stall:
                break
            else:
                self._execute(wqe)
            done += 1
            self._start(now)
        return done

    def next_due(self) -> float | None:
        """Return when the oldest request completes; None when nothing will."""
        if not self._queue or self._device.fault(self._queue[0].ordinal).stall:
            return None
        return self._queue[0].due

    def _start(self, now: float) -> None:
        script = self._device.script
        on_the_wire = 0
        for wqe in self._queue:
            if wqe.due is None:
                if (
                    self._window_bytes is not None
                    and on_the_wire
                    and on_the_wire + wqe.length_bytes > self._window_bytes
                ):
                    return
                transfer_s = wqe.length_bytes / script.bytes_per_s if script.bytes_per_s else 0.0
                self._line_free = max(now, self._line_free) + transfer_s
                due = self._line_free + script.latency_s + self._device.fault(wqe.ordinal).delay_s
                wqe.due = self._last_due = max(due, self._last_due)
            on_the_wire += wqe.length_bytes

    def _execute(self, wqe: _Wqe) -> None:
        fault = self._device.fault(wqe.ordinal)
        status = fault.status
        if status is WcStatus.SUCCESS:
            status = self._move(wqe, fault)
        self._complete(wqe, status, silent=fault.lose_completion)

    def _complete(self, wqe: _Wqe, status: WcStatus, *, silent: bool = False) -> None:
        self._queue.popleft()
        position = self._count - len(self._queue)
        if status is not WcStatus.SUCCESS:
            self.is_error = True
        elif silent or not wqe.signaled:
            return
        completion = Completion(wqe.wr_id, status, wqe.opcode, wqe.length_bytes, self.local.qpn)
        self._completions.append((position, completion))

    def _move(self, wqe: _Wqe, fault: Fault) -> WcStatus:
        """Carry the bytes of one request; all keys and ranges are checked before the first moves."""
        fabric = self._device.fabric
        if self.remote is None or self.remote.qpn not in fabric.queue_pairs:
            return WcStatus.RETRY_EXC_ERR
        is_write = wqe.opcode in (Opcode.RDMA_WRITE, Opcode.RDMA_WRITE_WITH_IMM)
        local: list[tuple[Region, Sge]] = []
        for sge in wqe.sges:
            region = fabric.find(
                sge.lkey, sge.address, sge.length_bytes, Access.LOCAL_READ if is_write else Access.LOCAL_WRITE
            )
            if region is None:
                return WcStatus.LOC_PROT_ERR
            local.append((region, sge))
        if not wqe.length_bytes:
            return WcStatus.SUCCESS
        right = Access.REMOTE_WRITE if is_write else Access.REMOTE_READ
        remote = fabric.find(wqe.rkey, wqe.remote_addr, wqe.length_bytes, right)
        if remote is None:
            return WcStatus.REM_ACCESS_ERR
        if fault.lose_data:
            return WcStatus.SUCCESS
        far = remote.base + wqe.remote_addr - remote.segment.address
        moved = 0
        for region, sge in local:
            near = region.base + sge.address - region.segment.address
            source, at = (region.buffer, near) if is_write else (remote.buffer, far + moved)
            data = bytearray(source.load(at, sge.length_bytes))
            if fault.spoil_at is not None and moved <= fault.spoil_at < moved + sge.length_bytes:
                data[fault.spoil_at - moved] ^= 0xFF
            sink, at = (remote.buffer, far + moved) if is_write else (region.buffer, near)
            sink.store(at, memoryview(data))
            moved += sge.length_bytes
        return WcStatus.SUCCESS


class ScriptedDevice:
    """See `p2prw.engine.providers.base.Device`."""

    def __init__(
        self,
        name: str = "scripted0",
        *,
        fabric: ScriptedFabric | None = None,
        script: Script | None = None,
        clock: Callable[[], float] = time.monotonic,
        limits: DeviceLimits | None = None,
        mtu_bytes: int = 4096,
        keep_log: bool = True,
    ) -> None:
        """`clock` gives seconds; `keep_log` keeps every post in `ScriptedQueuePair.posted` (memory grows with it)."""
        self.fabric = fabric or ScriptedFabric()
        self.script = script or Script()
        self.counts = Counts()
        self.keep_log = keep_log
        self.warnings: list[str] = []
        self.info = DeviceInfo(
            name=name,
            provider="scripted",
            driver="scripted",
            mover="cpu",
            link_layer="Ethernet",
            state="ACTIVE",
            active_mtu_bytes=mtu_bytes,
            gids=(GidEntry(0, _GID, "rocev2"),),
            limits=limits or DeviceLimits(),
            note="moves bytes inside one process by a script; for tests",
        )
        self._clock = clock
        self._faults = {fault.wr: fault for fault in self.script.faults}
        self._queue_pairs: list[ScriptedQueuePair] = []
        self._registrations: list[ScriptedRegistration] = []

    def __repr__(self) -> str:
        return f"<ScriptedDevice {self.info.name} posts={self.counts.posts} queue_pairs={len(self._queue_pairs)}>"

    def fault(self, ordinal: int) -> Fault:
        """Return what the script has for the n-th post."""
        return self._faults.get(ordinal) or _NO_FAULT

    def forget(self, pair: ScriptedQueuePair) -> None:
        """Drop a queue pair that closed itself."""
        self._queue_pairs.remove(pair)

    def register(
        self,
        buffers: Sequence[MappedBuffer],
        access: Access,
        *,
        offset: int = 0,
        length_bytes: int | None = None,
    ) -> ScriptedRegistration:
        """Give a byte range of the buffers addresses and keys; HostError as scripted, or when it does not fit."""
        if self.script.register_errno is not None:
            code = self.script.register_errno
            raise HostError(f"the scripted device cannot register: {os.strerror(code)}", errno=code)
        total = sum(buffer.length_bytes for buffer in buffers)
        end = total if length_bytes is None else offset + length_bytes
        if not 0 <= offset <= end <= total:
            raise HostError(f"cannot register bytes {offset} to {end} of {total}", errno="EINVAL")
        vec: list[DmaSegment] = []
        start = 0
        for buffer in buffers:
            low, high = max(offset, start), min(end, start + buffer.length_bytes)
            if low < high:
                vec.append(self.fabric.add_region(buffer, low - start, high - low, access))
            start += buffer.length_bytes
        registration = ScriptedRegistration(self, tuple(vec))
        self._registrations.append(registration)
        self.counts.registrations_made += 1
        self.counts.registrations_open += 1
        return registration

    def create_queue_pair(self, options: QueuePairOptions) -> ScriptedQueuePair:
        """Create a queue pair; HostError above the device's limits."""
        if options.depth > self.info.limits.max_qp_wr:
            raise HostError(f"{options.depth} WQEs are more than {self.info.limits.max_qp_wr}", errno="EINVAL")
        pair = ScriptedQueuePair(self, options)
        self._queue_pairs.append(pair)
        self.counts.queue_pairs_made += 1
        self.counts.queue_pairs_open += 1
        return pair

    def usage(self) -> DeviceUsage:
        """Return what is open."""
        return DeviceUsage(len(self._queue_pairs), self.counts.registrations_open)

    def receive_window_bytes(self) -> int:
        """Return what the script says."""
        return self.script.receive_window_bytes

    def pump(self) -> bool:
        """Complete what is due on the injected clock."""
        self.counts.pumps += 1
        now, budget, done = self._clock(), self.script.completions_per_pump, 0
        for pair in list(self._queue_pairs):
            done += pair.work(now, None if budget is None else budget - done)
        return done > 0

    def filenos(self) -> tuple[int, ...]:
        """Return nothing: there is no socket, poll by time."""
        return ()

    def wants_write(self) -> bool:
        """Return False."""
        return False

    def next_timer_s(self) -> float | None:
        """Return seconds until the next completion is due; None when none is."""
        due = [at for at in (pair.next_due() for pair in self._queue_pairs) if at is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    def close(self) -> None:
        """Close queue pairs and registrations. Safe to call twice."""
        for pair in list(self._queue_pairs):
            pair.close()
        for registration in self._registrations:
            registration.close()
        self._registrations.clear()


_NO_FAULT = Fault(-1)
