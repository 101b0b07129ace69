"""A granted lease and all that hangs on it: queue pair, memory, keys, staging slots, digests under way.

It checks what a client asks of its lease and does it; who may ask, and when the client is dropped, is `client.py`.
"""

from __future__ import annotations

from contextlib import ExitStack

from p2prw.engine import routes
from p2prw.engine.attach import open_host_ring, open_via_ring
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import (
    RATE_LIMIT,
    Commit,
    Committed,
    Digest,
    Fill,
    Filled,
    GoOn,
    Grant,
    Halt,
    Held,
    Pingpong,
    Reverse,
    Segment,
    Staging,
)
from p2prw.engine.ladder import climb
from p2prw.engine.memory.file import identity_of
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.engine.model import Access, Operation, RouteReport, ServeRequest
from p2prw.engine.peer import attributes_to_wire, source_to_wire
from p2prw.engine.providers.base import Device, QueuePair, Registration
from p2prw.engine.server.digesting import Digesting
from p2prw.engine.server.leases import Lease
from p2prw.engine.server.posting import Poster
from p2prw.engine.server.rate import RateAccount
from p2prw.engine.server.regions import OfferedRegion, OpenedRegion
from p2prw.engine.staging import StagingRing
from p2prw.errors import RemoteProtocolError
from p2prw.units import format_rate


class ActiveLease:
    """One client's lease while it stands. `close` ends everything at once: keys, queue pair, an unfinished sink."""

    def __init__(
        self,
        lease: Lease,
        region: OfferedRegion,
        opened: OpenedRegion,
        length_bytes: int,
        device: Device,
        queue_pair: QueuePair,
    ) -> None:
        self.lease = lease
        self.region = region
        self.memory = opened.memory
        self.length_bytes = length_bytes
        self.device = device
        self.queue_pair = queue_pair
        self.prepare = opened.prepare
        """Off the loop, before the grant; None: there is nothing to do."""
        self.filenos: list[int] = []
        self.waiting_for_worker = False
        self.client_can: tuple[str, ...] = ()
        """The capabilities of the client's release."""
        self._resuming = opened.resuming
        self._base_offset = opened.base_offset
        self._ring: StagingRing | None = None
        self._busy_slots: set[int] = set()
        self._digest: Digesting | None = None
        self._poster: Poster | None = None
        self._staged_bytes = 0
        """What the client had filled and committed."""
        self.account: RateAccount | None = None
        """The client's, where its rate is limited."""
        self._stack = ExitStack()
        self._stack.callback(opened.close)
        self._stack.callback(queue_pair.close)

    @property
    def working(self) -> bool:
        """Something of this lease is under way at our side, so the client's silence is no idleness."""
        return bool(self._busy_slots) or self.waiting_for_worker or self._digest is not None

    @property
    def has_steps(self) -> bool:
        """`step` may find something to do; asked in every round for every client."""
        posts = self._poster is not None and self._poster.has_steps
        return posts or (self._ring or self._digest or self.account) is not None

    @property
    def moved_bytes(self) -> int | None:
        """What the client moved, as far as it can be seen here; None: its device tells nothing of it.

        A NIC serves one-sided operations by itself; there, what passes through staging is all that is seen.
        """
        if self._sees_operations:
            return self.queue_pair.counters.peer_bytes
        return self._staged_bytes if self._ring is not None else None

    @property
    def _sees_operations(self) -> bool:
        return self.device.info.provider == "soft"

    def _check_rate(self, now: float) -> None:
        if self.account is not None:
            again_bytes = self.queue_pair.counters.peer_bytes_again
            self.account.check(self.moved_bytes or 0, again_bytes, now)

    def make_grant(
        self,
        request: ServeRequest,
        window_bytes: int,
        region_length: int | None,
        *,
        path_mtu_bytes: int | None = None,
    ) -> Grant:
        """Register what the client asked for, with the least rights for it, and return the grant.

        A writer gets READ too (to flush, and to read a bad block back) unless the region is write-only.
        """
        reading = self.lease.operation is Operation.READ
        access = Access.REMOTE_READ if reading else Access.LOCAL_WRITE | Access.REMOTE_WRITE
        flushable = self.region.staged or "r" in self.region.access
        route = routes.choose_route(self.device.info, self.region.kind, staged=self.region.staged)
        if flushable:
            access |= Access.REMOTE_READ
        segments: tuple[Segment, ...] = ()
        staging: Staging | None = None
        if self.length_bytes:
            reach = climb(
                self.device,
                self.memory,
                access,
                offset=self._base_offset,
                length_bytes=self.length_bytes,
                staged=self.region.staged,
                kind=self.region.kind,
                path_mtu_bytes=path_mtu_bytes,
            )
            route = reach.report
            if reach.registration is None:
                # The slots are ours: whoever may write the region may also read back what it put there.
                flushable = True
                staging, route = self._make_staging(request, access | Access.REMOTE_READ, route, path_mtu_bytes)
            else:
                self._stack.callback(reach.registration.close)
                self._poster = self._make_poster(request, reach.registration, window_bytes)
                segments = tuple(Segment(*segment) for segment in reach.registration.remote_segments())
        rate, notes = None, self.memory.warnings if self.region.staged else ()
        if self.account is not None:
            rate, ring = self.account.rate_bytes_per_s, self._ring
            # What is seen there of a NIC's work: slots that were filled, and may not have been read yet.
            ahead_bytes = ring.chunk_bytes * ring.slots if ring is not None and not self._sees_operations else 0
            self.account.begin_lease(ahead_bytes)
            if RATE_LIMIT not in self.client_can:
                notes += (_untold(rate),)
        return Grant(
            lease=self.lease.id,
            length=self.length_bytes,
            segments=segments,
            window_bytes=window_bytes,
            route=routes.to_wire(route),
            queue_pair=attributes_to_wire(self.queue_pair.local),
            staging=staging,
            region_length=region_length,
            flushable=flushable,
            source=source_to_wire(identity_of(self.memory, self.region.name, self._base_offset)) if reading else None,
            held=self._held(),
            notes=notes,
            rate_limit_bytes_per_s=None if rate is None else max(1, int(rate)),
        )

    def _held(self) -> Held | None:
        if not self._resuming or self.lease.operation is Operation.READ:
            return None
        if isinstance(self.memory, ResumableSink):
            return Held(manifest=True, fresh=not self.memory.keeps, restarted=self.memory.restarted)
        return Held(manifest=False, fresh=False)

    @property
    def keeps_unfinished(self) -> bool:
        """What has arrived stays behind for the next writer, although this one breaks off."""
        return isinstance(self.memory, ResumableSink) and self.memory.keeps

    def restart(self) -> None:
        """Forget the blocks of a resumed sink. RemoteProtocolError where there is none, or where work is under way."""
        if not isinstance(self.memory, ResumableSink) or self._busy_slots or self._digest is not None:
            raise RemoteProtocolError("restart has no place here", code="unexpected_message")
        self.memory.forget()

    def _make_staging(
        self, request: ServeRequest, access: Access, report: RouteReport, path_mtu_bytes: int | None
    ) -> tuple[Staging, RouteReport]:
        if request.via is not None and self.region.kind == "file":
            opened = open_via_ring(
                self._stack,
                self.device,
                self.memory,
                access,
                via=request.via,
                staging_bytes=request.staging_bytes,
                chunk_bytes=request.staging_chunk_bytes,
                length_bytes=self.length_bytes,
                start=self._base_offset,
                path_mtu_bytes=path_mtu_bytes,
            )
        else:
            opened = open_host_ring(
                self._stack,
                self.device,
                self.memory,
                access,
                report,
                staging_bytes=request.staging_bytes,
                chunk_bytes=request.staging_chunk_bytes,
                length_bytes=self.length_bytes,
            )
        ring = self._ring = opened.ring
        self.filenos.append(ring.wake_fileno())
        (segment,) = opened.registration.remote_segments()
        chunk = ring.chunk_bytes
        slots = tuple(Segment(segment.address + slot * chunk, chunk, segment.rkey) for slot in range(ring.slots))
        return Staging(chunk, slots), opened.report

    # --- staged regions -------------------------------------------------------------------------------------

    def fill(self, message: Fill) -> None:
        """Begin to read region bytes into a slot. RemoteProtocolError where the client may not ask for that."""
        ring = self._check_slot(message)
        if self.lease.operation is Operation.WRITE and "r" not in self.region.access:
            raise RemoteProtocolError("fill of a region that may not be read", code="bad_right")
        self._busy_slots.add(message.slot)
        self._staged_bytes += message.length
        ring.start_fill(message.slot, self._base_offset + message.offset, message.length)

    def commit(self, message: Commit) -> None:
        """Begin to write a slot to the region. RemoteProtocolError where the client may not ask for that."""
        ring = self._check_slot(message)
        if self.lease.operation is not Operation.WRITE:
            raise RemoteProtocolError("commit under a read lease", code="bad_right")
        self._busy_slots.add(message.slot)
        self._staged_bytes += message.length
        ring.start_drain(message.slot, self._base_offset + message.offset, message.length)

    def _check_slot(self, message: Fill | Commit) -> StagingRing:
        ring = self._ring
        if ring is None:
            raise RemoteProtocolError(f"{message.TYPE} for a region that is not staged", code="unexpected_message")
        if message.slot >= ring.slots or message.slot in self._busy_slots:
            raise RemoteProtocolError(f"{message.TYPE} of slot {message.slot}: no such free slot", code="bad_slot")
        if not 0 < message.length <= ring.chunk_bytes or message.offset + message.length > self.length_bytes:
            raise RemoteProtocolError(f"{message.TYPE} outside the lease or the slot", code="bad_range")
        return ring

    # --- what is posted towards the client --------------------------------------------------------------------

    def _make_poster(self, request: ServeRequest, registration: Registration, window_bytes: int) -> Poster:
        poster = Poster(
            self.lease.operation,
            self.memory,
            self._base_offset,
            self.length_bytes,
            "r" in self.region.access,
            registration.vec,
            self.device,
            self.queue_pair,
            request.queue_pair.max_send_sge,
            window_bytes,
            request.passive,
            rate_limited=request.client_rate_limit_bytes_per_s is not None,
        )
        self._stack.callback(poster.close)
        return poster

    def measure(self, message: Pingpong | Reverse | GoOn | Halt, channel: Channel) -> None:
        """Take part in a measurement. PeerRefusedError, RemoteProtocolError where the client may not ask for that."""
        if self._poster is None:
            raise RemoteProtocolError(f"{message.TYPE} for a region that is staged", code="unexpected_message")
        self._poster.hear(message, channel)

    # --- digest ---------------------------------------------------------------------------------------------

    def start_digest(self, message: Digest) -> None:
        """Begin to digest a range; pages follow from `step`."""
        if self._digest is not None or self._busy_slots:
            raise RemoteProtocolError("digest while work is under way", code="unexpected_message")
        memory, start, length = self.memory, self._base_offset, self.length_bytes
        if message.reverse:
            sink = self._poster.read_sink if self._poster is not None else None
            if sink is None:
                raise RemoteProtocolError("digest of a reverse that has READ nothing", code="unexpected_message")
            memory, start, length = sink, 0, sink.length_bytes
        self._digest = Digesting(message, memory, start, length)

    def step(self, channel: Channel, now: float) -> bool:
        """Answer finished slots and digest a few blocks; True when there was anything to do.

        HostError of a file. PeerRefusedError `rate_exceeded` of a client that moves more than it may.
        """
        self._check_rate(now)
        busy = False
        if self._ring is not None:
            for job in self._ring.poll():
                busy = True
                self._busy_slots.discard(job.slot)
                if job.error is not None:
                    raise job.error
                answer = Filled if job.kind == "fill" else Committed
                channel.send(answer(self.lease.id, job.slot, job.offset - self._base_offset))
        if self._poster is not None and self._poster.has_steps:
            busy = self._poster.step(channel) or busy
        if self._digest is not None and self._digest.step(channel):
            busy = True
            if self._digest.done:
                self._digest = None
        return busy

    def finish_work(self, *, keep: bool, now: float) -> None:
        """Forget what is under way; RemoteProtocolError when the client wants to keep unfinished bytes.

        PeerRefusedError as `step`.
        """
        self._check_rate(now)
        if keep and (self._busy_slots or self._digest is not None):
            raise RemoteProtocolError("release with keep while work is under way", code="unexpected_message")
        self._digest = None
        if self._poster is not None:
            self._poster.close()

    def close(self) -> None:
        """Revoke the keys, destroy the queue pair, throw an unfinished sink away. Safe to call twice."""
        self._stack.close()


def _untold(rate_bytes_per_s: float) -> str:
    return (
        f"this server lets a client move {format_rate(rate_bytes_per_s)} and ends one that moves more; this p2prw is "
        f"older and does not keep to that by itself: --rate-limit {max(1, int(rate_bytes_per_s))}B/s"
    )
