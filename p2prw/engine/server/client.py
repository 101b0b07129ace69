"""One client of a server: its place in the protocol, its lease, its queue pair and its keys; all gone when it leaves.

Driven by the server's loop: `hear()` when its socket is readable, `step(now)` each round. Nothing here blocks; what can
(copying, fsync, rename) runs on the server's worker. Whatever a client does wrong ends that client only.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2prw.engine import gids, routes
from p2prw.engine.attach import staging_shape
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.handshake import ServerHandshake
from p2prw.engine.control.messages import (
    DIGESTS_PER_PAGE,
    REGIONS_PER_PAGE,
    Commit,
    Committed,
    Digest,
    Digests,
    Fill,
    Filled,
    Grant,
    ListRegions,
    Message,
    Open,
    RegionInfo,
    Regions,
    Release,
    Released,
    Segment,
    Staging,
    Window,
    refuse_from,
)
from p2prw.engine.digest import digest_blocks
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.model import Access, Operation
from p2prw.engine.peer import attributes_from_wire, attributes_to_wire
from p2prw.engine.providers.base import Device, QueuePair
from p2prw.engine.server.leases import Lease
from p2prw.engine.server.regions import OfferedRegion
from p2prw.engine.staging import StagingRing
from p2prw.errors import P2prwError, PeerGone, PeerRefusedError, ProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from p2prw.engine.server.server import Server

_DIGEST_BLOCKS_PER_STEP = 4
_QUEUED_BYTES_BEFORE_DIGESTS_WAIT = 256 * 1024


@dataclass(slots=True)
class ActiveLease:
    """A granted lease and all that hangs on it."""

    lease: Lease
    region: OfferedRegion
    memory: MemorySource
    base_offset: int
    """Where the lease's first byte lies in `memory`."""
    queue_pair: QueuePair
    device: Device
    stack: ExitStack = field(default_factory=ExitStack)
    ring: StagingRing | None = None
    busy_slots: set[int] = field(default_factory=set)
    pending_release: bool = False


@dataclass(slots=True)
class _DigestJob:
    request: Digest
    blocks: Iterator[str]
    offset: int
    page: list[str] = field(default_factory=list)


class ServedClient:
    """The server's side of one control connection."""

    def __init__(self, server: Server, channel: Channel, now: float) -> None:
        self.server = server
        self.channel = channel
        self.name = str(channel.peer_address)
        self.joined_s = self.last_heard_s = now
        self.handshake: ServerHandshake | None = None
        self.device: Device | None = None
        self.active: ActiveLease | None = None
        self.gone = False
        self.fileno = channel.fileno()
        self.authenticated = False
        self.exit_code = 0
        self._digest: _DigestJob | None = None
        self._packets_seen = 0

    # --- what the loop calls --------------------------------------------------------------------------------

    def hear(self, now: float) -> None:
        """Take in every whole message; a client that breaks a rule is told and dropped."""
        self._guard(lambda: self._hear(now))

    def step(self, now: float) -> bool:
        """Do a bounded piece of work; True when there was any."""
        if self.gone:
            return False
        busy = False
        if self.channel.wants_write:
            self._guard(self.channel.flush)
        if self.active is not None and self.active.ring is not None:
            busy = self._guard(self._finish_jobs)
        if self._digest is not None and not self.gone:
            busy = self._guard(self._digest_step) or busy
        if self.active is not None:
            packets = self.active.queue_pair.counters.packets_received
            if busy or packets != self._packets_seen:
                self._packets_seen = packets
                self.last_heard_s = now
        return busy

    def check_deadline(self, now: float) -> None:
        """Drop a client that is silent for too long."""
        timeouts = self.server.request.timeouts
        limit_s, wait = (
            (timeouts.idle_s, "idle timeout") if self.authenticated else (timeouts.handshake_s, "handshake timeout")
        )
        if self.active is not None and (self.active.busy_slots or self.active.pending_release):
            return
        if now - self.last_heard_s > limit_s:
            self.drop(
                PeerRefusedError(
                    f"nothing was heard for {limit_s:g} s ({wait})", fix="--idle-timeout at the server", code="idle"
                )
            )

    def drop(self, error: P2prwError | None) -> None:
        """Let go of everything this client holds; tell it why where it still listens."""
        if self.gone:
            return
        self._leave()
        if error is not None:
            if self.exit_code == 0:
                self.exit_code = error.exit_code
            if not isinstance(error, PeerGone):
                try:
                    self.channel.send(refuse_from(error))
                except P2prwError:
                    pass
        if self.active is not None and self.exit_code == 0:
            self.exit_code = 1
        self._end_lease()
        self.channel.close()
        if error is None:
            self.server.event("left", f"{self.name} left", client=self.name)
        else:
            text = f"{self.name}: {error.what}" + (f" ({error.why})" if error.why else "")
            self.server.event("failed", text, client=self.name, code=error.code)

    def _leave(self) -> None:
        # Before the descriptor is closed: the next accept may get the same number.
        self.gone = True
        self.server.forget(self)

    # --- guarded work ---------------------------------------------------------------------------------------

    def _guard(self, work: Callable[[], object]) -> bool:
        """Run `work`; an error of this client ends this client, never the server."""
        try:
            return bool(work())
        except RemoteProtocolError as error:
            if not self.authenticated and error.code in ("not_p2prw", "frame_too_long", "bad_message"):
                self._leave()
                self.channel.refuse_stranger()
                self.server.event("refused", f"{self.name} is no p2prw client: {error.what}", client=self.name)
            else:
                self.drop(error)
        except PeerGone as error:
            self.drop(error if self.active is not None or not self.authenticated else None)
        except (P2prwError, OSError) as error:
            self.drop(error if isinstance(error, P2prwError) else P2prwError(str(error)))
        return True

    def _hear(self, now: float) -> None:
        while not self.gone and (message := self.channel.receive()) is not None:
            self.last_heard_s = now
            if self.authenticated:
                self._handle(message)
            else:
                self._shake(message)

    def _shake(self, message: Message) -> None:
        if self.handshake is None:
            self.device = self.server.device_for(self.channel.local_address.host)
            self.handshake = ServerHandshake(
                nonce=secrets.token_hex(32),
                token=self.server.request.token,
                gid_table=gids.to_wire(self.device.info.gids),
                udp_port=self.device.info.udp_port,
                agent=self.server.agent,
            )
        for answer in self.handshake.receive(message, self.channel.received_body):
            self.channel.send(answer)
        if self.handshake.failed:
            error = self.handshake.error
            assert error is not None
            self.exit_code = 7
            self._leave()
            self.channel.close()
            self.server.event("refused", f"{self.name}: {error.what}", client=self.name, code=error.code)
        elif self.handshake.done:
            self.authenticated = True
            peer = self.handshake.peer
            agent = peer.agent if peer else ""
            self.server.event("joined", f"{self.name} joined ({agent})", client=self.name, agent=agent)

    # --- messages -------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        match message:
            case ListRegions():
                self._list(message.page)
            case Open():
                self._open(message)
            case Fill():
                self._fill(message)
            case Commit():
                self._commit(message)
            case Digest():
                self._start_digest(message)
            case Release():
                self._release(message)
            case _:
                raise RemoteProtocolError(f"{message.TYPE} has no place here", code="unexpected_message")

    def _list(self, page: int) -> None:
        regions = self.server.regions
        first = page * REGIONS_PER_PAGE
        rows = tuple(
            RegionInfo(
                region.name,
                region.kind,
                region.length_bytes,
                region.access,
                region.staged,
                self.server.leases.busy(region.name),
            )
            for region in list(regions.values())[first : first + REGIONS_PER_PAGE]
        )
        self.channel.send(Regions(rows, more=first + REGIONS_PER_PAGE < len(regions)))

    def _refuse(self, error: PeerRefusedError) -> None:
        """Say no to one request; the connection stays."""
        self.exit_code = 7
        self.channel.send(refuse_from(error))
        self.server.event("refused", f"{self.name}: {error.what}", client=self.name, code=error.code)

    def _open(self, message: Open) -> None:
        if self.active is not None:
            raise RemoteProtocolError("open while a lease stands", code="unexpected_message")
        try:
            self._grant(message)
        except PeerRefusedError as error:
            self._end_lease()
            self._refuse(error)
        except ProtocolError:
            raise
        except P2prwError as error:
            self._end_lease()
            self._refuse(PeerRefusedError(error.what, why=error.why, fix=error.fix, code=error.code))

    def _grant(self, message: Open) -> None:
        server = self.server
        operation = Operation(message.op)
        region = server.find_region(message.region)
        length = region.check(operation, message.offset, message.length, message.limit)
        whole = region.exclusive_whole and operation is Operation.WRITE
        lease = Lease(
            id=secrets.token_hex(8),
            region=region.name,
            offset=0 if whole else message.offset,
            length_bytes=(1 << 62) if whole else length,
            operation=operation,
            shared=message.shared,
            holder=self.name,
        )
        standing = server.leases.conflict(lease)
        if standing is not None:
            raise PeerRefusedError(
                f"region {region.name!r} is busy",
                why=f"{standing.holder} holds {standing.length_bytes} bytes from offset {standing.offset} for "
                f"{standing.operation.value}",
                fix="try again later, take another range, or --shared on both sides (the result is then unverified)",
                code="busy",
            )
        device = self._device_for_peer(message)
        queue_pair = device.create_queue_pair(server.request.queue_pair)
        active = ActiveLease(lease, region, region.idle_memory, message.offset, queue_pair, device)
        active.stack.callback(queue_pair.close)
        self.active = active
        server.leases.add(lease)
        queue_pair.connect(attributes_from_wire(message.queue_pair))
        if message.window_bytes is not None:
            queue_pair.set_window(message.window_bytes)
        opened = region.open_for(operation, message.offset, length, whole_file=message.offset == 0)
        active.memory, active.base_offset = opened.memory, opened.base_offset
        active.stack.callback(opened.close)
        if opened.prepare is None:
            self._send_grant(message, length)
            return
        active.pending_release = True

        def prepared(error: BaseException | None) -> None:
            if self.active is not active:
                return
            active.pending_release = False
            if error is not None:
                self._guard(lambda: _raise(error))
            else:
                self._guard(lambda: self._send_grant(message, length))

        server.worker.submit(opened.prepare, prepared)

    def _device_for_peer(self, message: Open) -> Device:
        assert self.handshake is not None and self.handshake.peer is not None and self.device is not None
        table = {entry.gid for entry in self.handshake.peer.gid_table}
        if message.queue_pair.gid not in table:
            raise RemoteProtocolError("the queue pair's GID is not in the client's table", code="bad_gid")
        address = gids.gid_to_address(message.queue_pair.gid)
        control = gids.gid_to_address(gids.address_to_gid(self.channel.peer_address.host))
        both_loopback = address.is_loopback and control.is_loopback
        if address != control and not both_loopback and self.server.request.token is None:
            # Else a stranger could aim our packets at somebody else.
            raise PeerRefusedError(
                f"the client wants data sent to {address}, but talks from {control}",
                why="without a token data goes only where the control connection comes from",
                fix="start the server with --token-file, or leave --device away at the client",
                code="foreign_gid",
            )
        return self.device

    def _send_grant(self, message: Open, length: int) -> None:
        active = self.active
        assert active is not None
        operation, region = active.lease.operation, active.region
        segments: tuple[Segment, ...] = ()
        staging: Staging | None = None
        flushable = True
        access = Access.REMOTE_READ if operation is Operation.READ else Access.LOCAL_WRITE | Access.REMOTE_WRITE
        if length and region.staged:
            staging = self._make_staging(active, access | Access.REMOTE_READ, length)
        elif length:
            flushable = "r" in region.access
            registration = active.device.register(
                active.memory.buffers(),
                access | Access.REMOTE_READ if flushable else access,
                offset=active.base_offset,
                length_bytes=length,
            )
            active.stack.callback(registration.close)
            segments = tuple(Segment(*segment) for segment in registration.remote_segments())
        self.channel.send(
            Grant(
                lease=active.lease.id,
                length=length,
                segments=segments,
                window_bytes=self.server.window_bytes(active.device),
                route=routes.to_wire(routes.choose_route(active.device.info, region.kind, staged=region.staged)),
                queue_pair=attributes_to_wire(active.queue_pair.local),
                staging=staging,
                region_length=region.length_bytes,
                flushable=flushable,
            )
        )
        self.exit_code = 1  # until it releases with keep
        self.server.windows_changed()
        self.server.event(
            "granted",
            f"{self.name} {operation.value}s {length} bytes of {region.name} from offset {message.offset}",
            client=self.name,
            region=region.name,
            operation=operation.value,
            offset=message.offset,
            length_bytes=length,
        )

    def _make_staging(self, active: ActiveLease, access: Access, length: int) -> Staging:
        request = self.server.request
        chunk, slots = staging_shape(request.staging_bytes, request.staging_chunk_bytes, length)
        ring = StagingRing(active.memory, chunk_bytes=chunk, slots=slots)
        active.stack.callback(ring.close)
        active.ring = ring
        self.server.watch(ring.wake_fileno())
        active.stack.callback(self.server.unwatch, ring.wake_fileno())
        registration = active.device.register([ring.buffer], access)
        active.stack.callback(registration.close)
        (segment,) = registration.remote_segments()
        return Staging(
            chunk, tuple(Segment(segment.address + slot * chunk, chunk, segment.rkey) for slot in range(ring.slots))
        )

    # --- staged regions -------------------------------------------------------------------------------------

    def _slot_of(self, message: Fill | Commit) -> tuple[ActiveLease, StagingRing]:
        active = self._lease(message.lease)
        ring = active.ring
        if ring is None:
            raise RemoteProtocolError(f"{message.TYPE} for a region that is not staged", code="unexpected_message")
        if message.slot >= ring.slots or message.slot in active.busy_slots:
            raise RemoteProtocolError(f"{message.TYPE} of slot {message.slot}: no such free slot", code="bad_slot")
        if not 0 < message.length <= ring.chunk_bytes or message.offset + message.length > self._length(active):
            raise RemoteProtocolError(f"{message.TYPE} outside the lease or the slot", code="bad_range")
        return active, ring

    def _length(self, active: ActiveLease) -> int:
        return active.memory.length_bytes - active.base_offset

    def _fill(self, message: Fill) -> None:
        active, ring = self._slot_of(message)
        if active.lease.operation is Operation.WRITE and "r" not in active.region.access:
            raise RemoteProtocolError("fill of a region that may not be read", code="bad_right")
        active.busy_slots.add(message.slot)
        ring.start_fill(message.slot, active.base_offset + message.offset, message.length)

    def _commit(self, message: Commit) -> None:
        active, ring = self._slot_of(message)
        if active.lease.operation is not Operation.WRITE:
            raise RemoteProtocolError("commit under a read lease", code="bad_right")
        active.busy_slots.add(message.slot)
        ring.start_drain(message.slot, active.base_offset + message.offset, message.length)

    def _finish_jobs(self) -> bool:
        active = self.active
        assert active is not None and active.ring is not None
        jobs = active.ring.poll()
        for job in jobs:
            active.busy_slots.discard(job.slot)
            if job.error is not None:
                raise job.error
            answer = Filled if job.kind == "fill" else Committed
            self.channel.send(answer(active.lease.id, job.slot, job.offset - active.base_offset))
        return bool(jobs)

    # --- digest and release ---------------------------------------------------------------------------------

    def _lease(self, lease_id: str) -> ActiveLease:
        active = self.active
        if active is None or active.lease.id != lease_id or active.pending_release:
            raise RemoteProtocolError("no such lease", code="bad_lease")
        return active

    def _start_digest(self, message: Digest) -> None:
        active = self._lease(message.lease)
        if self._digest is not None or active.busy_slots:
            raise RemoteProtocolError("digest while work is under way", code="unexpected_message")
        if message.length == 0 or message.offset + message.length > self._length(active):
            raise RemoteProtocolError("digest outside the lease", code="bad_range")
        blocks = digest_blocks(active.memory, active.base_offset + message.offset, message.length, message.block_bytes)
        self._digest = _DigestJob(message, iter(blocks), message.offset)

    def _digest_step(self) -> bool:
        job = self._digest
        assert job is not None
        if self.channel.queued_bytes > _QUEUED_BYTES_BEFORE_DIGESTS_WAIT:
            return False
        for _ in range(_DIGEST_BLOCKS_PER_STEP):
            digest = next(job.blocks, None)
            if digest is None:
                self._send_digests(job, more=False)
                self._digest = None
                return True
            job.page.append(digest)
            if len(job.page) == DIGESTS_PER_PAGE:
                more = job.offset + DIGESTS_PER_PAGE * job.request.block_bytes < job.request.offset + job.request.length
                self._send_digests(job, more=more)
                if not more:
                    self._digest = None
                    return True
        return True

    def _send_digests(self, job: _DigestJob, *, more: bool) -> None:
        self.channel.send(Digests(job.request.lease, job.offset, tuple(job.page), more=more))
        job.offset += len(job.page) * job.request.block_bytes
        job.page.clear()

    def _release(self, message: Release) -> None:
        active = self._lease(message.lease)
        if active.busy_slots or self._digest is not None:
            if message.keep:
                raise RemoteProtocolError("release with keep while work is under way", code="unexpected_message")
            self._digest = None
        if not message.keep or active.lease.operation is Operation.READ:
            self._released(message.keep, None)
            return
        active.pending_release = True
        # fsync and rename may take seconds for a big file; the other clients must not wait for it.
        self.server.worker.submit(active.memory.commit, lambda error: self._released(message.keep, error))

    def _released(self, keep: bool, error: BaseException | None) -> None:
        active = self.active
        if active is None:
            return
        if error is not None:
            active.pending_release = False
            self._guard(lambda: _raise(error))
            return
        lease = active.lease
        self._end_lease()
        if self.gone:
            return
        self.exit_code = 0 if keep else 1
        self._guard(lambda: self.channel.send(Released(lease.id)))
        self.server.event(
            "released",
            f"{self.name} released {lease.region}: {'kept' if keep else 'thrown away'}",
            client=self.name,
            region=lease.region,
            keep=keep,
        )

    def _end_lease(self) -> None:
        active, self.active, self._digest = self.active, None, None
        if active is None:
            return
        self.server.leases.remove(active.lease.id)
        active.stack.close()
        self.server.windows_changed()

    def send_window(self) -> None:
        """Tell the client its share of the receive buffer."""
        if self.active is not None and not self.active.pending_release and not self.gone:
            window = Window(self.server.window_bytes(self.active.device))
            self._guard(lambda: self.channel.send(window))


def _raise(error: BaseException) -> None:
    raise error
