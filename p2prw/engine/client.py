"""One lease at a server and all that hangs on it at our side, opened phase by phase and closed in reverse.

    map -> exchange (hello) -> open -> exchange (open/grant) -> connect -> register

What is done with the lease (a transfer, a measurement) is its user's: `session.py`, `bench/`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from p2prw.engine import gids, outcome, routes
from p2prw.engine.attach import LocalAttachment, attach_local, rw_limits
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.last_words import how_it_ended
from p2prw.engine.control.messages import RESUME, Gid, Grant, Open, Release, Released, Restart, Source
from p2prw.engine.deadline import Deadline
from p2prw.engine.devices import open_device
from p2prw.engine.grants import check_grant
from p2prw.engine.ladder import NoRouteError
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.file import identity_of
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.engine.memory.prepare import PreparedMemory, prepare_memory
from p2prw.engine.memory.via import check_via
from p2prw.engine.model import Operation, RouteReport, SourceIdentity, TransferRequest
from p2prw.engine.pace import RateLimit, lower_limit
from p2prw.engine.peer import (
    PeerLink,
    attributes_from_wire,
    attributes_to_wire,
    shake_hands,
    source_from_wire,
    source_to_wire,
)
from p2prw.engine.phases import PhaseClock
from p2prw.engine.providers.base import Device, QueuePair
from p2prw.engine.rw import RwLimits
from p2prw.errors import DeadlineExceeded, P2prwError, PeerGone, RemoteProtocolError, RequestError
from p2prw.units import exact_size, typed_size

_CLOSE_S = 5.0
_LAST_WORDS_S = 1.0
"""A process that ends loses its memory regions, queue pairs and connections within this time, but in any order."""
_PEER_MAY_BE_GONE = frozenset({"REM_ACCESS_ERR", "REM_OP_ERR", "REM_INV_REQ_ERR", "RETRY_EXC_ERR", "WR_FLUSH_ERR"})


@dataclass(frozen=True, slots=True)
class Attached:
    """Both ends of a granted lease, ready to post from."""

    link: PeerLink
    grant: Grant
    memory: MemorySource
    limits: RwLimits
    local: LocalAttachment | None
    """None for size 0: all checks and the handshake have run, nothing is registered."""
    rate_limit: RateLimit | None = None
    """The lower one of `--rate-limit` and what the server allows each client."""

    @property
    def notes_arrivals(self) -> bool:
        """The sink, at whichever end, notes what arrives and keeps it when the transfer breaks off."""
        return isinstance(self.memory, ResumableSink) or (self.grant.held is not None and self.grant.held.manifest)


class LeaseClient:
    """Opens what one `TransferRequest` needs. `attach` once, then `release` or `abandon`, then `close`.

    What it found out on the way (routes, environment, warnings) stays readable, however far it came.
    """

    def __init__(
        self,
        request: TransferRequest,
        deadline: Deadline,
        phases: PhaseClock,
        *,
        device: Device | None = None,
        resume: bool = False,
    ) -> None:
        """`device`: one that is open already, for another queue pair on it; it is not closed here.

        `resume`: a file sink goes on where an earlier transfer stopped, and keeps what arrives if this one does.
        """
        self.request = request
        self.deadline = deadline
        self.phases = phases
        self.resume = resume
        self.stack = ExitStack()

        # --- what a result says
        self.length_bytes: int | None = None
        self.chunk_bytes = request.chunk_bytes
        self.rate_limit = lower_limit(request.rate_limit_bytes_per_s, None)
        self.warnings: list[str] = []
        self.environment: dict[str, Any] = outcome.environment(None)
        self.local_route: RouteReport | None = None
        self.remote_route: RouteReport | None = None

        # --- what is open
        self.device = device
        self.queue_pair: QueuePair | None = None
        self.memory: MemorySource | None = None
        self.link: PeerLink | None = None
        self.lease: str | None = None
        self.gid_index: int | None = None
        self.capabilities: tuple[str, ...] = ()
        """What the server's release can do."""
        self.peer_gids: tuple[Gid, ...] = ()

    def attach(self) -> Attached:
        """Open everything, phase by phase. Raises P2prwError; what was opened until then is closed by `close`."""
        request, phases = self.request, self.phases
        phases.enter("map")
        prepared = self._prepare()
        phases.enter("exchange")
        retry_s = self.deadline.left_s(request.timeouts.connect_retry_s)
        channel = Channel.connect(
            request.peer,
            replace(request.timeouts, connect_retry_s=retry_s),
            tls=request.tls,
            stop=self.deadline.stop,
        )
        self.stack.callback(channel.close)
        phases.enter("open")
        device = self._open_device(channel)
        self._choose_route(device, prepared)
        phases.enter("exchange")
        link = self._shake_hands(channel, device)
        # A resumed sink waits for the grant: it says what the source is.
        waits = self.resume and request.operation is Operation.READ and prepared.file_region is not None
        if prepared.length_bytes is not None and not waits:
            # Everything that can fail here fails before the peer gives a lease.
            phases.enter("map")
            self._open_memory(prepared, None)
        phases.enter("exchange")
        options = replace(request.queue_pair, gid_index=self.gid_index)
        queue_pair = self.queue_pair = link.queue_pair = device.create_queue_pair(options)
        self.stack.callback(queue_pair.close)
        grant = self._open_region(link, queue_pair, device, prepared)
        phases.enter("map")
        source = source_from_wire(grant.source) or SourceIdentity(request.region, request.region_offset, grant.length)
        memory = self.memory or self._open_memory(prepared, grant.length, source if waits else None)
        phases.enter("connect")
        window_bytes = self._connect(queue_pair, device, grant)
        phases.enter("register")
        limits = rw_limits(request, device.info, window_bytes, self.rate_limit)
        self.chunk_bytes = limits.max_bytes_per_wr or request.chunk_bytes
        if grant.length == 0:
            local = None
        else:
            local = attach_local(
                self.stack,
                device,
                memory,
                request,
                grant.length,
                staged=prepared.staged,
                path_mtu_bytes=min(queue_pair.local.mtu_bytes, grant.queue_pair.mtu_bytes),
            )
            self.local_route = local.route
            staging_bytes = grant.staging.chunk_bytes if grant.staging is not None else None
            for side, route in (("local", local.route), ("remote", self.remote_route)):
                if route is not None:
                    routes.check_whole_pages(route, side, self.chunk_bytes, local.end.span_bytes, staging_bytes)
            if request.require_direct:
                routes.require_direct(local.route, "local")
        return Attached(link, grant, memory, limits, local, self.rate_limit)

    # --- the phases ---------------------------------------------------------------------------------------

    def _prepare(self) -> PreparedMemory:
        request = self.request
        if request.via is not None:
            check_via(request.via, request.memory.kind)
        prepared = prepare_memory(
            request.memory,
            "source" if request.operation is Operation.WRITE else "sink",
            overwrite=request.overwrite,
            force_bound_device=request.force_bound_device,
            force_block_device=request.force_block_device,
        )
        size, length = request.size_bytes, prepared.length_bytes
        if size is not None and length is not None and size > length:
            raise RequestError(
                f"--size {typed_size(size)} is more than the local memory holds",
                why=f"{request.memory.text or request.memory.kind} is {exact_size(length)}",
                fix=f"--size {typed_size(length)}, or leave --size away",
                code="size_does_not_fit",
            )
        return prepared

    def _open_device(self, channel: Channel) -> Device:
        request = self.request
        if self.device is not None:
            self.environment = outcome.environment(self.device.info)
            return self.device
        device, reason = open_device(
            request.device,
            local_address=channel.local_address.host,
            role="client",
            gso=request.gso,
            leaf=request.leaf,
            inject=request.inject,
            pcap=request.pcap,
            ib_port=request.ib_port,
            verbs_binding=request.verbs_binding,
        )
        self.device = device
        self.stack.callback(device.close)
        self.environment = outcome.environment(device.info)
        self.environment["device"]["reason"] = reason
        return device

    def _choose_route(self, device: Device, prepared: PreparedMemory) -> None:
        """Say what can be said before anything is registered: refusals by class, and what can never be direct."""
        request = self.request
        report = routes.choose_route(
            device.info,
            request.memory.kind if request.via is None else request.via.kind,
            staged=prepared.staged and request.via is None,
            wanted=request.route,
            force=request.force_route,
        )
        # How a ring in a device's memory is reached, and whether the drive gets there, only opening it tells.
        self.local_route = report if request.via is None else None
        if request.require_direct:
            routes.require_direct(report, "local")

    def _shake_hands(self, channel: Channel, device: Device) -> PeerLink:
        request = self.request
        hello = shake_hands(
            channel,
            request.token,
            self.deadline.left_s(request.timeouts.handshake_s),
            device=device,
            stop=self.deadline.stop,
        )
        pair = gids.pick_gid_pair(device.info.gids, gids.from_wire(hello.gid_table), request.queue_pair.gid_index)
        self.environment["gid_pair"] = pair.reason
        self.gid_index = pair.local.index
        self.capabilities, self.peer_gids = hello.capabilities, hello.gid_table
        self.link = PeerLink(channel, device, self.deadline, windows_bind=request.operation is Operation.WRITE)
        return self.link

    def _open_memory(
        self, prepared: PreparedMemory, length_bytes: int | None, resume: SourceIdentity | None = None
    ) -> MemorySource:
        memory: MemorySource
        if resume is not None and prepared.file_region is not None:
            memory = self.memory = prepared.file_region.open_sink(length_bytes, resume)
        else:
            memory = self.memory = prepared.open(length_bytes, self.deadline.stop)
        self.stack.callback(memory.close)
        self.warnings += memory.warnings
        return memory

    def _open_region(self, link: PeerLink, queue_pair: QueuePair, device: Device, prepared: PreparedMemory) -> Grant:
        request = self.request
        link.channel.send(
            Open(
                region=request.region,
                offset=request.region_offset,
                length=request.size_bytes,
                op=request.operation.value,
                queue_pair=attributes_to_wire(queue_pair.local),
                limit=prepared.length_bytes,
                shared=request.shared,
                window_bytes=max(1, device.receive_window_bytes()),
                source=self._source(),
            )
        )
        grant: Grant = link.expect(Grant, "the grant", request.timeouts.idle_s)
        self.lease = grant.lease
        check_grant(grant, asked_bytes=request.size_bytes, limit_bytes=prepared.length_bytes, peer_gids=self.peer_gids)
        self.length_bytes = grant.length
        self.remote_route = routes.from_wire(grant.route)
        self.rate_limit = lower_limit(request.rate_limit_bytes_per_s, grant.rate_limit_bytes_per_s)
        self.warnings += grant.notes
        if grant.length == 0 and request.size_bytes is None:
            ends = "the local memory is empty" if prepared.length_bytes == 0 else "the region ends where this begins"
            self.warnings.append(f"nothing to move: {ends}")
        if request.require_direct:
            routes.require_direct(self.remote_route, "remote")
        return grant

    def _source(self) -> Source | None:
        """Return what a write to be resumed comes from; None where nothing is to be resumed."""
        if not self.resume or self.request.operation is Operation.READ or RESUME not in self.capabilities:
            return None
        if self.memory is None:
            return Source(self.request.memory.kind, 0, 0)
        return source_to_wire(identity_of(self.memory))

    def _connect(self, queue_pair: QueuePair, device: Device, grant: Grant) -> int:
        """Bring the queue pair up and return the window: what the server granted, for READ what our socket holds."""
        remote = attributes_from_wire(grant.queue_pair)
        queue_pair.connect(remote)
        reading = self.request.operation is Operation.READ
        window_bytes = device.receive_window_bytes() if reading else grant.window_bytes
        queue_pair.set_window(window_bytes)
        self.environment["negotiated"] = outcome.negotiated(
            queue_pair.local, remote, self.request.queue_pair, window_bytes
        )
        return window_bytes

    def start_over(self, attached: Attached) -> None:
        """Have the sink forget what it noted."""
        if isinstance(attached.memory, ResumableSink):
            attached.memory.forget()
        elif attached.notes_arrivals:
            attached.link.channel.send(Restart(attached.grant.lease))

    # --- the end --------------------------------------------------------------------------------------------

    def release(self, *, keep: bool) -> None:
        """Both ends keep what arrived: the server's sink first, then ours."""
        link = self.link
        assert self.lease is not None and link is not None
        link.channel.send(Release(self.lease, keep))
        at_most_s = max(self.request.timeouts.idle_s, self.request.timeouts.handshake_s)
        released: Released = link.expect(Released, "the release", at_most_s)
        if released.lease != self.lease:
            raise RemoteProtocolError("the release of a lease that is not ours", code="bad_lease")
        self.lease = None
        if keep and self.memory is not None and self.request.operation is Operation.READ:
            self.memory.commit()

    def abandon(self) -> None:
        """After a failure: tell the peer that nothing is to be kept; never raises, never waits long."""
        if self.lease is None or self.link is None:
            return
        lease, self.lease = self.lease, None
        try:
            self.link.channel.send(Release(lease, keep=False))
            self.link.channel.expect(Released, deadline_s=_CLOSE_S, name="the release", pump=self.link.device.pump)
        except P2prwError:
            # It may be gone, or busy with a page of digests; its end of the connection tells it the same.
            pass

    def explain(self, error: P2prwError, bytes_done: int | None) -> P2prwError:
        """Keep the attempts of a ladder without a rung; say what was moved when the peer was lost on the way.

        `bytes_done` None: the same bytes go again and again, so that says nothing.

        An error completion may be all that the device shows of a peer that refused or ended: then that is returned.
        """
        if isinstance(error, NoRouteError):
            self.local_route = error.report
        if error.wc_status in _PEER_MAY_BE_GONE:
            error = self._last_words(error)
        if isinstance(error, PeerGone | DeadlineExceeded) and self.length_bytes is not None:
            moved = f"{bytes_done} of {self.length_bytes} bytes were moved"
            if bytes_done is not None and (error.why is None or "bytes were moved" not in error.why):
                error.why = f"{error.why}; {moved}" if error.why else moved
            error.fix = error.fix or "look at the server's output, start it again and repeat the transfer"
        return error

    def _last_words(self, error: P2prwError) -> P2prwError:
        """Return why the peer ended what the device only saw the end of; `error` itself where it is still there."""
        if self.link is None:
            return error
        ending = how_it_ended(self.link.channel, _LAST_WORDS_S, self.link.device.pump)
        if ending is None:
            return error
        ending.wc_status = error.wc_status
        ending.why = f"{ending.why}; {error.what}" if ending.why else error.what
        return ending

    def close(self) -> None:
        """Close what was opened, in reverse. Safe to call twice."""
        self.stack.close()
