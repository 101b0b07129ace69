"""A server on a thread, and a hand-driven client that can break every rule."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from p2prw.engine import gids
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.handshake import ClientHandshake
from p2prw.engine.control.messages import Message, Open, QueuePairInfo
from p2prw.engine.events import ServeEvent
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import GidEntry, PeerAddress, ServedRegion, ServeRequest
from p2prw.engine.server.server import Server
from p2prw.engine.server.systemd import ServiceManager
from p2prw.engine.stop import StopRequest
from p2prw.errors import P2prwError

GID = gids.address_to_gid("127.0.0.1")


class Served:
    """A running server and what it said."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.events: list[ServeEvent] = []
        self.stop = StopRequest()
        self.exit_code: int | None = None
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.exit_code = self.server.run(self.stop, self._take)

    def _take(self, event: ServeEvent) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def wait_for(self, kind: str, count: int = 1, timeout_s: float = 5.0) -> ServeEvent:
        """Return the count-th event of a kind."""
        with self.changed:
            found = self.changed.wait_for(lambda: sum(e.kind == kind for e in self.events) >= count, timeout_s)
            assert found, f"no {kind} event {count}: {[event.kind for event in self.events]}"
            return [event for event in self.events if event.kind == kind][count - 1]


class Client:
    """Speaks the control protocol frame by frame; `open` asks for a lease."""

    def __init__(self, address: PeerAddress, *, shake: bool = True, gid: str = GID) -> None:
        self.channel = Channel(socket.create_connection((address.host, address.port)))
        self.gid = gid
        if shake:
            row = gids.to_wire([GidEntry(0, gid, "rocev2")])
            handshake = ClientHandshake(nonce=secrets.token_hex(32), gid_table=row, udp_port=4791)
            try:
                self.channel.run_handshake(handshake, deadline_s=30)
            except P2prwError:
                self.channel.close()
                raise

    def ask(self, message: Message, *kinds: type[Message]) -> Message:
        """Send and wait for one of `kinds`; a refusal is raised as the error it carries."""
        self.channel.send(message)
        return self.channel.expect(*kinds, deadline_s=30, name="the answer")

    def open(self, region: str = "mem", op: str = "write", **options: object) -> Open:
        """Return an open frame with a queue pair nobody listens on."""
        pair = QueuePairInfo(77, 1, self.gid, 4096, 16, 16, udp_port=4799)
        values: dict[str, object] = {"offset": 0, "length": None, **options}
        return Open(region=region, op=op, queue_pair=pair, **values)  # type: ignore[arg-type]


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Start servers on loopback; stopped and joined afterwards."""
    with ExitStack() as stack:

        def start(
            regions: dict[str, str] | None = None,
            *,
            access: str = "rw",
            manager: ServiceManager | None = None,
            **options: object,
        ) -> Served:
            offered = tuple(
                ServedRegion(name=name, memory=parse_memory_spec(spec), access=access)
                for name, spec in (regions or {"mem": "host,size=64KiB"}).items()
            )
            request = ServeRequest(regions=offered, listen=PeerAddress("127.0.0.1", 0), **options)  # type: ignore[arg-type]
            served = Served(stack.enter_context(Server(request, manager=manager)))
            stack.callback(served.thread.join, 10)
            stack.callback(served.stop.end_now)
            served.wait_for("listening")
            return served

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Connect hand-driven clients; closed afterwards."""
    clients: list[Client] = []

    def make(served: Served, **options: object) -> Client:
        clients.append(Client(served.server.address, **options))  # type: ignore[arg-type]
        return clients[-1]

    yield make
    for client in clients:
        client.channel.close()
