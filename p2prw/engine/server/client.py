"""One client of a server: its place in the protocol, and its lease; both are gone when it leaves.

Driven by the server's loop: `hear` when its socket is readable, `step` each round. Nothing here blocks; what can
(copying, fsync, rename) runs on the server's worker. Whatever a client does wrong ends that client only.
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2prw.engine import gids
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.handshake import ServerHandshake
from p2prw.engine.control.measuring import GoOn, Halt, Pingpong, Reverse
from p2prw.engine.control.messages import (
    CAPABILITIES,
    Commit,
    Digest,
    Fill,
    ListRegions,
    Message,
    Open,
    Release,
    Released,
    Restart,
    Window,
    refuse_from,
)
from p2prw.engine.model import Operation
from p2prw.engine.providers.base import Device
from p2prw.engine.server import refusals
from p2prw.engine.server.active import ActiveLease
from p2prw.engine.server.admission import Allowance
from p2prw.engine.server.ending import Ending
from p2prw.engine.server.opening import open_lease
from p2prw.engine.server.regions import regions_page
from p2prw.errors import P2prwError, PeerGone, ProtocolError, RemoteProtocolError
from p2prw.units import exact_size

if TYPE_CHECKING:
    from p2prw.engine.server.server import Server

_MESSAGES_PER_TURN = 16
"""Of one client before the next one has its turn: who asks without end must not keep the others from being heard."""


class ServedClient:
    """The server's side of one control connection."""

    def __init__(self, server: Server, channel: Channel, now: float) -> None:
        self.server = server
        self.channel = channel
        self.name = str(channel.peer_address)
        self.fileno = channel.fileno()
        self.handshake: ServerHandshake | None = None
        self.device: Device | None = None
        self.active: ActiveLease | None = None
        self.gone = False
        self.authenticated = False
        self.exit_code = 0
        self._since_s = now
        self._last_heard_s = now
        self._packets_seen = 0
        self._has_more_to_say = False
        request = server.request
        self._allowance = Allowance(request.client_bytes, request.client_regions, request.client_rate_limit_bytes_per_s)
        self._ending = Ending(self.name)

    # --- what the loop calls --------------------------------------------------------------------------------

    @property
    def is_restless(self) -> bool:
        """`step` may find something to do though nothing happens; what does happen makes the server `visit`."""
        steps = self.active is not None and self.active.has_steps
        return not self.gone and (steps or self._has_more_to_say or self.channel.wants_write)

    def hear(self, now: float) -> None:
        """Take in every whole message; a client that breaks a rule is told and dropped."""
        self._guard(lambda: self._hear(now))

    def step(self, now: float) -> bool:
        """Do a bounded piece of work; True when there was any."""
        if self.gone:
            return False
        if self.channel.wants_write:
            self._guard(self.channel.flush)
        heard = self._has_more_to_say
        if heard:
            self.hear(now)
        active = self.active
        if active is None or not active.has_steps:
            return heard
        busy = self._guard(lambda: active.step(self.channel, now))
        if busy:
            self._last_heard_s = now
        return busy or heard

    def check_deadline(self, now: float) -> None:
        """Drop a client that is silent for too long, never gets through its handshake, or stays beyond its time."""
        active, timeouts = self.active, self.server.request.timeouts
        if active is not None:
            packets = active.queue_pair.counters.packets_received
            if active.working or packets != self._packets_seen:
                self._packets_seen = packets
                self._last_heard_s = now
        error = refusals.overdue(
            timeouts, now, since_s=self._since_s, last_heard_s=self._last_heard_s, authenticated=self.authenticated
        )
        if error is not None:
            self.drop(error)

    def send_window(self) -> None:
        """Tell the client its share of the receive buffer."""
        active = self.active
        if active is not None and not active.waiting_for_worker and not self.gone:
            self._guard(lambda: self.channel.send(Window(self.server.window_bytes(active.device))))

    def _refused(self, what: str, code: str) -> None:
        self.server.counters.errors[code] += 1
        self.server.event("refused", f"{self.name}: {what}", client=self.name, code=code)

    def drop(self, error: P2prwError | None) -> None:
        """Let go of everything this client holds; tell it why where it still listens."""
        if self.gone:
            return
        if self.exit_code == 0 and (error is not None or self.active is not None):
            self.exit_code = error.exit_code if error is not None else 1
        held = self.active is not None
        if self.active is not None:
            self.server.counters.count_transfer(self.active.lease, None)
        self._leave()
        if error is not None and not isinstance(error, PeerGone):
            try:
                self.channel.send(refuse_from(error))
            except P2prwError:
                pass
        self._end_lease()
        self.channel.close()
        ended_well = error is None or (error.code == "stopping" and not held)
        self.server.counters.connections["left" if ended_well else "failed"] += 1
        if error is not None:
            self.server.counters.errors[error.code] += 1
        if error is not None and not ended_well:
            text = f"{self.name}: {error.what}" + (f" ({error.why})" if error.why else "")
            self.server.event("failed", text, client=self.name, code=error.code)
        self._say_end(error.code if error is not None else None)

    def _say_end(self, code: str | None) -> None:
        elapsed_s, had = self.server.now() - self._since_s, self._allowance
        text, fields = self._ending.describe(code, self.exit_code, elapsed_s, had.granted_bytes, had.regions)
        self.server.event("ended", text, **fields)

    def _leave(self) -> None:
        # Before the descriptor is closed: the next accept may get the same number.
        self.gone = True
        self.server.forget(self)

    def _guard(self, work: Callable[[], object]) -> bool:
        """Run `work`; an error of this client ends this client, never the server."""
        self.server.visit(self)
        try:
            return bool(work())
        except RemoteProtocolError as error:
            if not self.authenticated and error.code in ("not_p2prw", "frame_too_long", "bad_message"):
                self._leave()
                self.channel.refuse_stranger()
                self.server.counters.connections["stranger"] += 1
                self._refused(f"no p2prw client: {error.what}", error.code)
                self.exit_code = error.exit_code
                self._say_end(error.code)
            else:
                self.drop(error)
        except PeerGone as error:
            # Who held nothing has simply left; who was thrown out is named.
            self.drop(error if self.active is not None or error.code == "peer_not_reading" else None)
        except P2prwError as error:
            self.drop(error)
        except Exception as error:
            # A defect of ours: this client pays for it, the others go on.
            self.server.event("defect", traceback.format_exc(), client=self.name)
            self.drop(refusals.defect(error))
        return True

    # --- handshake ------------------------------------------------------------------------------------------

    def _hear(self, now: float) -> None:
        # What is left lies in the channel's buffer, where no selector sees it: `step` comes back for it.
        self._has_more_to_say = False
        for _ in range(_MESSAGES_PER_TURN):
            if self.gone or (message := self.channel.receive()) is None:
                return
            self._last_heard_s = now
            if self.authenticated:
                self._handle(message)
            else:
                self._shake(message)
        self._has_more_to_say = True

    def _shake(self, message: Message) -> None:
        if self.handshake is None:
            self.device = self.server.device_for(self.channel.local_address.host)
            self.handshake = ServerHandshake(
                nonce=secrets.token_hex(32),
                token=self.server.request.token,
                gid_table=gids.to_wire(self.device.info.gids),
                udp_port=self.device.info.udp_port,
                capabilities=CAPABILITIES,
                agent=self.server.agent,
            )
        for answer in self.handshake.receive(message, self.channel.received_body, self.channel.binding):
            self.channel.send(answer)
        if self.handshake.error is not None:
            error = self.handshake.error
            self.exit_code = error.exit_code
            self._leave()
            self.channel.close()
            self.server.counters.connections["refused"] += 1
            self._refused(error.what, error.code)
            self._say_end(error.code)
        elif self.handshake.done:
            self.authenticated = True
            self.channel.seal_from(self.handshake)
            agent = self.handshake.peer.agent if self.handshake.peer else ""
            self._ending.accept(agent, token=self.server.request.token is not None, tls=self.channel.has_tls)
            self.server.event("joined", f"{self.name} joined ({agent})", client=self.name, agent=agent)

    # --- messages -------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        match message:
            case ListRegions():
                self._list(message.page)
            case Open():
                self._open(message)
            case Fill():
                self._lease(message.lease).fill(message)
            case Commit():
                self._lease(message.lease).commit(message)
            case Digest():
                self._lease(message.lease).start_digest(message)
            case Restart():
                self._lease(message.lease).restart()
            case Pingpong() | Reverse() | GoOn() | Halt():
                self._lease(message.lease).measure(message, self.channel)
            case Release():
                self._release(message)
            case _:
                raise RemoteProtocolError(f"{message.TYPE} has no place here", code="unexpected_message")

    def _lease(self, lease_id: str) -> ActiveLease:
        active = self.active
        if active is None or active.lease.id != lease_id or active.waiting_for_worker:
            raise RemoteProtocolError("no such lease", code="bad_lease")
        return active

    def _list(self, page: int) -> None:
        self.channel.send(regions_page(self.server.regions.values(), self.server.leases, page))

    def _open(self, message: Open) -> None:
        if self.active is not None:
            raise RemoteProtocolError("open while a lease stands", code="unexpected_message")
        try:
            self.server.check_staying()
            self._grant(message)
        except ProtocolError:
            raise
        except P2prwError as error:
            # The answer to this request is no; the connection stays.
            self._end_lease()
            self.exit_code = 7
            self.channel.send(refuse_from(error))
            self._refused(error.what, error.code)

    def _grant(self, message: Open) -> None:
        device, peer = self.device, self.handshake.peer if self.handshake else None
        assert device is not None and peer is not None
        active = self.active = open_lease(
            self.server,
            message,
            peer=peer,
            address=self.channel.peer_address,
            device=device,
            allowance=self._allowance,
        )
        self.server.leases.add(active.lease)
        self._allowance.take(active.region.name, active.length_bytes)
        self._ending.operations.setdefault(active.lease.operation.value)
        self.exit_code = 1  # until it is released with keep
        if active.prepare is None:
            self._send_grant(active, message)
            return
        active.waiting_for_worker = True
        self.server.worker.submit(active.prepare, lambda error: self._prepared(active, message, error))

    def _prepared(self, active: ActiveLease, message: Open, error: BaseException | None) -> None:
        if self.active is not active or self.gone:
            return
        active.waiting_for_worker = False
        self._guard(lambda: _raise(error) if error is not None else self._send_grant(active, message))

    def _send_grant(self, active: ActiveLease, message: Open) -> None:
        server, lease = self.server, active.lease
        grant = active.make_grant(
            server.request,
            server.window_bytes(active.device),
            active.region.length_bytes,
            path_mtu_bytes=min(message.queue_pair.mtu_bytes, active.queue_pair.local.mtu_bytes),
        )
        for fileno in active.filenos:
            server.watch(fileno)
        self.channel.send(grant)
        server.windows_changed(but=self)
        server.event(
            "granted",
            f"{self.name} {lease.operation.value}s {exact_size(active.length_bytes)} of {lease.region}"
            + (f" from offset {exact_size(message.offset)}" if message.offset else ""),
            client=self.name,
            region=lease.region,
            operation=lease.operation.value,
            offset=message.offset,
            length_bytes=active.length_bytes,
        )

    # --- release --------------------------------------------------------------------------------------------

    def _release(self, message: Release) -> None:
        active = self._lease(message.lease)
        active.finish_work(keep=message.keep, now=self._last_heard_s)
        if not message.keep or active.lease.operation is Operation.READ:
            self._released(active, message.keep, None)
            return
        active.waiting_for_worker = True
        # fsync and rename may take seconds for a big file; the other clients must not wait for it.
        self.server.worker.submit(active.memory.commit, lambda error: self._released(active, message.keep, error))

    def _released(self, active: ActiveLease, keep: bool, error: BaseException | None) -> None:
        if self.active is not active:
            return
        active.waiting_for_worker = False
        if error is not None:
            self._guard(lambda: _raise(error))
            return
        lease, unfinished = active.lease, active.keeps_unfinished
        self.server.counters.count_transfer(lease, active.length_bytes if keep else None)
        self._end_lease()
        self.exit_code = 0 if keep else 1
        self._ending.whole_bytes += active.length_bytes if keep else 0
        self._guard(lambda: self.channel.send(Released(lease.id)))
        done = "kept" if keep else "broken off, what has arrived stays for --resume" if unfinished else "thrown away"
        text = f"{self.name} released {lease.region}: {done}"
        self.server.event("released", text, client=self.name, region=lease.region, keep=keep)

    def _end_lease(self) -> None:
        active, self.active = self.active, None
        if active is None:
            return
        self.server.leases.remove(active.lease.id)
        self._ending.count_moved(active.moved_bytes)
        for fileno in active.filenos:
            self.server.unwatch(fileno)
        if active.waiting_for_worker:
            # The worker has the sink in its hands: closing it now would free a descriptor that is still written to.
            self.server.worker.submit(lambda: None, lambda _: active.close())  # when all before it is done
        else:
            active.close()
        self.server.windows_changed()


def _raise(error: BaseException) -> None:
    raise error
