"""The serving end: one process, one loop, one UDP socket for each local address, many regions, many clients."""

from __future__ import annotations

import ipaddress
import os
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType

from p2prw import __version__
from p2prw.engine import routes
from p2prw.engine.control.channel import Channel
from p2prw.engine.devices import open_device
from p2prw.engine.events import ServeEvent
from p2prw.engine.memory.via import check_via
from p2prw.engine.model import PeerAddress, ServeRequest
from p2prw.engine.providers.base import Device
from p2prw.engine.server.client import ServedClient
from p2prw.engine.server.leases import Lease, LeaseTable
from p2prw.engine.server.listener import open_listeners
from p2prw.engine.server.regions import OfferedRegion, open_region
from p2prw.engine.server.worker import Worker
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError, PeerRefusedError, RequestError

_LONGEST_WAIT_S = 0.25
_HOUSEKEEPING_S = 0.25


class Server:
    """Opens everything when entered (so errors come before "ready"), serves in `run`, closes when left."""

    def __init__(self, request: ServeRequest, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.request = request
        self.agent = f"p2prw {__version__}"
        self.leases = LeaseTable()
        self.regions: dict[str, OfferedRegion] = {}
        self.warnings: list[str] = []
        self._clock = clock
        self._stack = ExitStack()
        self._selector = selectors.DefaultSelector()
        self._devices: dict[str, Device] = {}
        self._clients: dict[int, ServedClient] = {}
        self._watched: set[int] = set()
        self._listeners: list[socket.socket] = []
        self._on_event: Callable[[ServeEvent], None] | None = None
        self._finished: ServedClient | None = None
        self.address = request.listen
        self.worker = Worker()

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
        _check_exposure(request)
        self._stack.callback(self._selector.close)
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
            region = open_region(offered, request)
            self._stack.callback(region.close)
            self.regions[offered.name] = region
            self.warnings += region.warnings
        self._listeners = open_listeners(request.listen)
        for listener in self._listeners:
            self._stack.callback(listener.close)
            self._selector.register(listener, selectors.EVENT_READ, "listener")
        self.address = PeerAddress(request.listen.host, self._listeners[0].getsockname()[1])
        for listener in self._listeners:
            host = listener.getsockname()[0]
            if not ipaddress.ip_address(host.split("%")[0]).is_unspecified:
                # Opened now, so that a UDP port that cannot be had is said before "ready".
                device = self.device_for(host)
                for region in self.regions.values():
                    # So is memory that this device can never reach.
                    routes.choose_route(device.info, region.kind, staged=region.staged)

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
        region = self.regions.get(name)
        if region is not None:
            return region
        near = get_close_matches(name, self.regions, n=1)
        offered = ", ".join(sorted(self.regions)) or "none"
        raise PeerRefusedError(
            f"no region named {name!r}",
            why=f"offered here: {offered}",
            fix=f"{self.address}/{near[0]}" if near else f"p2prw regions {self.address}",
            code="unknown_region",
        )

    def check_conflict(self, lease: Lease) -> None:
        """Raise PeerRefusedError `busy` when somebody holds what `lease` wants."""
        standing = self.leases.conflict(lease)
        if standing is None:
            return
        raise PeerRefusedError(
            f"region {lease.region!r} is busy",
            why=f"{standing.holder} holds it, or the bytes from offset {standing.offset} on, "
            f"for {standing.operation.value}",
            fix="try again later, take another range, or --shared on both sides (the result is then unverified)",
            code="busy",
        )

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
            self._selector.unregister(client.fileno)
            if self.request.once and client.authenticated and self._finished is None:
                self._finished = client

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
        self.event("listening", f"listening on {self.address}", address=str(self.address), port=self.address.port)
        if self.request.ready_file:
            _write_ready_file(self.request.ready_file, str(self.address))
        limit_s = self.request.timeouts.time_limit_s
        end_s = None if limit_s is None else self._clock() + limit_s
        next_housekeeping_s = self._clock()
        while not stop and self._finished is None:
            busy = self._round()
            now = self._clock()
            if now >= next_housekeeping_s:
                next_housekeeping_s = now + _HOUSEKEEPING_S
                for client in list(self._clients.values()):
                    client.check_deadline(now)
            if end_s is not None and now >= end_s:
                self.event("stopped", "time limit reached")
                return 6
            for key, _ in self._selector.select(0 if busy else self._wait_s()):
                if key.data == "listener":
                    self._accept(key.fileobj)  # type: ignore[arg-type]
                elif isinstance(key.data, ServedClient):
                    key.data.hear(now)
        if self._finished is not None:
            return self._finished.exit_code
        self.event("stopped", "stopped")
        return 0

    def _round(self) -> bool:
        busy = self.worker.poll()
        for device in self._devices.values():
            busy = device.pump() or busy
        now = self._clock()
        for client in list(self._clients.values()):
            busy = client.step(now) or busy
        return busy

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
        for fileno, client in self._clients.items():
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.channel.wants_write else 0)
            if self._selector.get_key(fileno).events != events:
                self._selector.modify(fileno, events, client)
        return max(0.0, min(waits))

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # it went away before we looked, or descriptors ran out; the next round tries again
        channel = Channel(sock)
        client = ServedClient(self, channel, self._clock())
        if len(self._clients) >= self.request.max_clients:
            error = PeerRefusedError(
                f"the server has its {self.request.max_clients} clients already",
                why="--max-clients bounds how many may be connected at a time",
                fix="try again later, or a larger --max-clients at the server",
                code="too_many_clients",
            )
            client.drop(error)
            return
        self._clients[channel.fileno()] = client
        self._selector.register(channel.fileno(), selectors.EVENT_READ, client)


def _check_exposure(request: ServeRequest) -> None:
    host = request.listen.host
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        loopback = False
    if loopback or request.token is not None or request.insecure:
        return
    raise RequestError(
        f"--listen {request.listen} offers memory to the network without a token",
        why="whoever reaches the port could read and write the regions",
        fix="--token-file FILE, or --insecure where the network is yours alone",
        code="needs_token",
    )


def _write_ready_file(path: str, line: str) -> None:
    """Write the line whole or not at all: whoever waits for the file may read it the moment it appears."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(line + "\n", encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise HostError(
            f"cannot write the ready file {path}: {error.strerror}",
            why=f"it is written beside its final name, in {target.parent}, and renamed",
            fix=f"ls -ld {target.parent}; --ready-file in a directory that can be written to",
            code="ready_file",
            errno=error.errno,
        ) from error
