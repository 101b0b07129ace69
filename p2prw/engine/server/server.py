"""The serving end: one process, one loop, one UDP socket for each local address, many regions, many clients.

How clients come in is `acceptor.py`, what one of them may do is `client.py`.
"""

from __future__ import annotations

import ipaddress
import selectors
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from p2prw import __version__
from p2prw.engine import routes
from p2prw.engine.control.channel import Channel
from p2prw.engine.devices import open_device
from p2prw.engine.events import ServeEvent
from p2prw.engine.memory.via import check_via
from p2prw.engine.model import PeerAddress, ServeRequest
from p2prw.engine.providers.base import Device
from p2prw.engine.server import refusals
from p2prw.engine.server.acceptor import Acceptor
from p2prw.engine.server.admission import Networks
from p2prw.engine.server.client import ServedClient
from p2prw.engine.server.counters import ServerCounters, ServerState
from p2prw.engine.server.leases import Lease, LeaseTable
from p2prw.engine.server.metrics import Metrics
from p2prw.engine.server.regions import OfferedRegion, open_region
from p2prw.engine.server.systemd import ServiceManager
from p2prw.engine.server.visits import Visits
from p2prw.engine.server.worker import Worker
from p2prw.engine.stop import StopRequest
from p2prw.engine.waiting import Spinner
from p2prw.engine.whole_file import write_whole
from p2prw.errors import RequestError

_LONGEST_WAIT_S = 0.25
_HOUSEKEEPING_S = 0.25


class Server:
    """Opens everything when entered (so errors come before "ready"), serves in `run`, closes when left."""

    def __init__(
        self,
        request: ServeRequest,
        *,
        clock: Callable[[], float] = time.monotonic,
        manager: ServiceManager | None = None,
        selector: selectors.BaseSelector | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """`stop` is looked at, and told, where opening the regions takes long."""
        self.request = request
        self._stop = stop
        self.counters = ServerCounters()
        self.agent = f"p2prw {__version__}"
        self.leases = LeaseTable()
        self.regions: dict[str, OfferedRegion] = {}
        self.warnings: list[str] = []
        self.now = clock
        self._stack = ExitStack()
        self._selector = selectors.DefaultSelector() if selector is None else selector
        self._spinner = Spinner()
        self._devices: dict[str, Device] = {}
        self._clients: dict[int, ServedClient] = {}
        self._visits = Visits(self._selector)
        self.visit = self._visits.add
        self._watched: set[int] = set()
        self.networks = Networks(request.allow)
        self._on_event: Callable[[ServeEvent], None] | None = None
        self._finished: ServedClient | None = None
        self._stop_at_s: float | None = None
        """Once asked to stop: when the transfers that still run are told to end."""
        self.worker = Worker()
        self._manager = manager or ServiceManager({}, pid=0)
        self._acceptor = Acceptor(
            request, self._manager.listen_fds, self._selector, self._check_newcomer, self.counters, self.event
        )
        self._metrics: Metrics | None = None

    @property
    def address(self) -> PeerAddress:
        """Where clients come; with the port that was picked once it is open."""
        return self._acceptor.address

    def __enter__(self) -> Server:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        request = self.request
        self._stack.callback(self._selector.close)
        self._stack.callback(self._acceptor.close)
        self._acceptor.open()
        self.watch(self.worker.fileno())
        if request.via is not None:
            kinds = [offered.memory.kind for offered in request.regions]
            check_via(request.via, "file" if "file" in kinds else next(iter(kinds), None))
        for offered in request.regions:
            if offered.name in self.regions:
                raise RequestError(
                    f"region {offered.name!r} is given twice",
                    why="a client names the region it wants, so names must differ",
                    fix="one --region for each name",
                    code="duplicate_region",
                )
            region = open_region(offered, request, self._stop)
            self._stack.callback(region.close)
            self.regions[offered.name] = region
            self.warnings += region.warnings
        for host in self._acceptor.hosts:
            if not ipaddress.ip_address(host.split("%")[0]).is_unspecified:
                # Opened now, so that a UDP port that cannot be had is said before "ready".
                device = self.device_for(host)
                for region in self.regions.values():
                    # So is memory that this device can never reach.
                    routes.choose_route(device.info, region.kind, staged=region.staged)
        if request.metrics is not None or request.metrics_file is not None:
            self._metrics = Metrics(
                request,
                self._selector,
                self.worker,
                self.state,
                self.counters,
                lambda text: self.event("warning", text),
            )
            self._stack.callback(self._metrics.close)

    def close(self) -> None:
        """Drop clients, close devices and memory. Safe to call twice."""
        for client in list(self._clients.values()):
            client.drop(None)
        self.worker.close()
        for device in self._devices.values():
            device.close()
        self._devices.clear()
        self._stack.close()

    # --- what clients ask the server for ----------------------------------------------------------------------

    def find_region(self, name: str) -> OfferedRegion:
        """Return an offered region; PeerRefusedError that names the nearest one."""
        if name not in self.regions:
            raise refusals.unknown_region(name, list(self.regions), self.address)
        return self.regions[name]

    def check_conflict(self, lease: Lease) -> None:
        """Raise PeerRefusedError `busy` when somebody holds what `lease` wants."""
        standing = self.leases.conflict(lease)
        if standing is not None:
            raise refusals.busy(standing)

    def device_for(self, local_address: str) -> Device:
        """Return the device on one of our addresses, opening it the first time."""
        device = self._devices.get(local_address)
        if device is None:
            request = self.request
            device, reason = open_device(
                request.device,
                local_address=local_address,
                role="server",
                gso=request.gso,
                leaf=request.leaf,
                inject=request.inject,
                pcap=request.pcap,
                ib_port=request.ib_port,
                verbs_binding=request.verbs_binding,
            )
            self._devices[local_address] = device
            for fileno in device.filenos():
                self.watch(fileno)
            self.warnings += getattr(device, "warnings", [])
            self.event("device", f"{device.info.name}: {reason}", device=device.info.name)
            if request.client_rate_limit_bytes_per_s is not None and device.info.provider != "soft":
                unseen = refusals.unseen_rate(device.info.name)
                self.warnings.append(unseen)
                self.event("warning", unseen)
        return device

    def window_bytes(self, device: Device) -> int:
        """Return one client's share of what a device's socket buffer holds."""
        active = sum(1 for client in self._clients.values() if client.active and client.active.device is device)
        return max(1, device.receive_window_bytes() // max(1, active))

    def windows_changed(self, but: ServedClient | None = None) -> None:
        """Send every client its new share, but one that has just been told."""
        for client in list(self._clients.values()):
            if client is not but:
                client.send_window()

    def watch(self, fileno: int) -> None:
        """Wake the loop when `fileno` turns readable."""
        self._selector.register(fileno, selectors.EVENT_READ, "wake")
        self._watched.add(fileno)

    def unwatch(self, fileno: int) -> None:
        """Stop watching, before the descriptor is closed; what was never watched is no error."""
        if fileno in self._watched:
            self._watched.remove(fileno)
            self._selector.unregister(fileno)

    def forget(self, client: ServedClient) -> None:
        """Stop listening to a client that leaves; its channel is closed afterwards."""
        if self._clients.get(client.fileno) is client:
            del self._clients[client.fileno]
            self._visits.forget(client)
            self._selector.unregister(client.fileno)
            if self.request.once and client.authenticated and self._finished is None:
                self._finished = client

    def state(self) -> ServerState:
        """Return what is held now."""
        devices = {f"{device.info.name} {address}": device.usage() for address, device in self._devices.items()}
        return ServerState(len(self._clients), len(self.leases), devices)

    def event(self, kind: str, text: str, **fields: object) -> None:
        """Tell whoever runs us."""
        if self._on_event is not None:
            self._on_event(ServeEvent(kind, text, dict(fields)))

    # --- the loop ---------------------------------------------------------------------------------------------

    def run(self, stop: StopRequest, on_event: Callable[[ServeEvent], None] | None = None) -> int:
        """Serve until `stop`, or with `once` until the first authenticated client has left; return the exit code."""
        self._on_event = on_event
        for warning in self.warnings:
            self.event("warning", warning)
        fingerprint = self._acceptor.fingerprint
        text = f"listening on {self.address}" + (f", TLS certificate sha256:{fingerprint}" if fingerprint else "")
        self.event("listening", text, address=str(self.address), port=self.address.port, tls_fingerprint=fingerprint)
        if self._metrics is not None:
            places = self._metrics.places
            self.event("metrics", f"metrics: {', '.join(places)}", places=list(places))
        if self.request.ready_file:
            line = f"{self.address}\n".encode()
            # 0644: whoever waits for it may be another user.
            write_whole(self.request.ready_file, line, "--ready-file", code="ready_file", mode=0o644)
        self._manager.ready(f"listening on {self.address}")
        limit_s = self.request.timeouts.time_limit_s
        end_s = None if limit_s is None else self.now() + limit_s
        next_housekeeping_s = self.now()
        while self._finished is None:
            busy = self._round()
            now = self.now()
            if stop and (stop.at_once or self._has_stopped(now)):
                break
            if now >= next_housekeeping_s:
                next_housekeeping_s = now + _HOUSEKEEPING_S
                self._acceptor.resume()
                self._manager.tick(now, self._status())
                if self._metrics is not None:
                    self._metrics.housekeeping(now)
                for client in list(self._clients.values()):
                    client.check_deadline(now)
            if end_s is not None and now >= end_s:
                self.event("stopped", "time limit reached")
                return 6
            ready = self._selector.select(0) if busy else self._spinner.wait(self._selector.select, self._wait_s())
            for key, _ in ready:
                if key.data == "listener":
                    self._take_in(self._acceptor.accept(key.fileobj))  # type: ignore[arg-type]
                elif key.data != "wake":
                    key.data.hear(now)
        if self._finished is not None:
            return self._finished.exit_code
        self._dismiss()
        self.event("stopped", "stopped")
        return 0

    # --- stopping in good order -------------------------------------------------------------------------------

    def _has_stopped(self, now: float) -> bool:
        """Begin to stop when asked for the first time; True once no transfer runs any more, or its time is over."""
        running = len(self.leases)
        if self._stop_at_s is None:
            limit_s = self.request.timeouts.stop_s
            self._stop_at_s = now + limit_s
            self._manager.stopping(self._status(), limit_s)
            if self._manager.listen_fds:
                # They are the manager's too: who comes now waits there for the next server.
                self._acceptor.stop()
            if running:
                transfers = "1 transfer" if running == 1 else f"{running} transfers"
                text = f"stopping: {transfers} may take another {limit_s:g} s; a second signal ends them at once"
                self.event("stopping", text, transfers=running)
        return not running or now >= self._stop_at_s

    def _status(self) -> str:
        clients, transfers = len(self._clients), len(self.leases)
        said = f"{clients} client{'' if clients == 1 else 's'}, {transfers} transfer{'' if transfers == 1 else 's'}"
        return said if self._stop_at_s is None else f"stopping: {said}"

    def check_staying(self) -> None:
        """Raise PeerRefusedError `stopping` once the server was asked to stop: nothing new begins."""
        if self._stop_at_s is not None:
            raise refusals.stopping()

    def _dismiss(self) -> None:
        """Tell who is still here that the server ends, and let go of what they hold."""
        for client in list(self._clients.values()):
            client.drop(
                refusals.stopping() if client.active is None else refusals.stopped(self.request.timeouts.stop_s)
            )

    def _round(self) -> bool:
        busy = self.worker.poll()
        for device in self._devices.values():
            busy = device.pump() or busy
        return self._visits.round(self.now()) or busy

    def _wait_s(self) -> float:
        waits = [_LONGEST_WAIT_S]
        for device in self._devices.values():
            timer_s = device.next_timer_s()
            if timer_s is not None:
                waits.append(timer_s)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if device.wants_write() else 0)
            for fileno in device.filenos():
                if self._selector.get_key(fileno).events != events:
                    self._selector.modify(fileno, events, "wake")
        self._visits.watch_writers()
        return max(0.0, min(waits))

    def _take_in(self, channel: Channel | None) -> None:
        if channel is not None:
            client = self._clients[channel.fileno()] = ServedClient(self, channel, self.now())
            self._selector.register(client.fileno, selectors.EVENT_READ, client)

    def _check_newcomer(self, host: str) -> None:
        self.networks.check(host)
        self.check_staying()
        if len(self._clients) >= self.request.max_clients:
            raise refusals.full(self.request.max_clients)
