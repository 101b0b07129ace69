"""Packets and requests of those who may not: guessed keys, more than was granted, strangers with the right numbers.

The server is real; the other end is made of the RoCE core and a socket, so that it can lie in one thing at a time and
be right in all others (QPN, PSN, ICRC). A lie is followed by the truth from the right socket: it would have worked.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from p2prw import api
from p2prw.engine import gids
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.handshake import ClientHandshake
from p2prw.engine.control.messages import Grant, Open, Release, Released, Window
from p2prw.engine.events import ServeEvent
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import (
    Access,
    GidEntry,
    Opcode,
    PeerAddress,
    QueuePairOptions,
    ServedRegion,
    ServeRequest,
    Sge,
    Timeouts,
    WcStatus,
)
from p2prw.engine.peer import attributes_from_wire, attributes_to_wire
from p2prw.engine.roce.device import RoceDevice
from p2prw.engine.server.server import Server
from p2prw.engine.stop import StopRequest
from p2prw.errors import PeerRefusedError
from p2prw.units import exact_size

LENGTH = 64 * 1024
TOKEN = b"the token of these tests"
SILENCE_S = 0.2
"""An answer takes well under a millisecond on loopback."""


class Served:
    """A server on a thread, its memory and what it said."""

    def __init__(self, **options: object) -> None:
        regions = (
            ServedRegion(name="mem", memory=parse_memory_spec(f"host,size={LENGTH}")),
            ServedRegion(name="second", memory=parse_memory_spec("host,size=4096")),
        )
        request = ServeRequest(regions=regions, listen=PeerAddress("127.0.0.1", 0), **options)  # type: ignore[arg-type]
        self.events: list[ServeEvent] = []
        self.server = Server(request)
        self.server.__enter__()
        self.stop = StopRequest()
        self.thread = threading.Thread(target=self.server.run, args=(self.stop, self.events.append), daemon=True)
        self.thread.start()

    @property
    def address(self) -> PeerAddress:
        return self.server.address

    @property
    def core(self) -> RoceDevice:
        return self.server.device_for("127.0.0.1").core  # type: ignore[attr-defined, no-any-return]

    def memory(self) -> bytes:
        (buffer,) = self.server.regions["mem"]._memory.buffers()  # type: ignore[attr-defined]
        return bytes(buffer.load(0, LENGTH))

    def wait_for(self, kind: str, count: int = 1) -> ServeEvent:
        end = time.monotonic() + 30
        while len(found := [event for event in list(self.events) if event.kind == kind]) < count:
            assert time.monotonic() < end, f"no {kind} event {count}: {self.events}"
            time.sleep(0.005)
        return found[count - 1]

    def close(self) -> None:
        self.stop.set()
        self.thread.join(30)
        self.server.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(**options: object) -> Served:
        started.append(Served(**options))
        return started[-1]

    yield start
    for one in started:
        one.close()


class Peer:
    """A client with a lease, a socket, and a RoCE core of its own."""

    def __init__(self, served: Served, operation: str = "write", offset: int = 0, length: int | None = None) -> None:
        self.served = served
        self.number = secrets.randbits(23) + 2
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.8", 0))
        self.core, self.pair = self.make_core(self.sock)
        self.channel = Channel(socket.create_connection((served.address.host, served.address.port)))
        gid = gids.address_to_gid("127.0.0.8")
        row = gids.to_wire([GidEntry(0, gid, "rocev2")])
        token = served.server.request.token
        self.channel.run_handshake(
            ClientHandshake(nonce=secrets.token_hex(32), token=token, gid_table=row, udp_port=self.port), deadline_s=5
        )
        info = attributes_to_wire(self.pair.local)
        self.channel.send(Open(region="mem", offset=offset, length=length, op=operation, queue_pair=info))
        grant = self.channel.expect(Grant, deadline_s=30, name="the grant")
        assert isinstance(grant, Grant)
        self.grant = grant
        self.far = attributes_from_wire(grant.queue_pair)
        self.pair.connect(self.far)

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    def make_core(self, sock: socket.socket):
        """A core that believes to be at `sock`, with this peer's QPN and PSN."""
        host, port = sock.getsockname()
        core = RoceDevice(host, port, port_mtu_bytes=1024, random_bits=lambda bits: self.number)
        return core, core.create_queue_pair(QueuePairOptions(mtu_bytes=1024))

    def packet(
        self, data: bytes = b"!" * 64, *, core=None, rkey: int | None = None, skip: int = 0, opcode=Opcode.RDMA_WRITE
    ) -> bytes:
        """One packet to the first byte of the lease, right but for what is asked for."""
        device, pair = core or (self.core, self.pair)
        access = Access.LOCAL_WRITE if opcode is Opcode.RDMA_READ else Access.LOCAL_READ
        vec = device.memory.register(HostMemory.from_buffer(bytearray(data)).buffers(), access).vec
        (segment,) = self.grant.segments
        pair.post_rdma(
            *(1, opcode, [Sge(*vec[0])], segment.address + skip, segment.rkey if rkey is None else rkey), signaled=True
        )
        (burst,) = device.bursts_to_send(time.monotonic())
        return b"".join(bytes(buffer) for buffer in burst.buffers)

    def send(self, packet: bytes, sock: socket.socket | None = None) -> bytes | None:
        """Send and return what comes back to that socket; None: nothing."""
        sock = sock or self.sock
        sock.sendto(packet, (self.served.core.address, self.served.core.udp_port))
        sock.settimeout(SILENCE_S)
        try:
            return sock.recv(65536)
        except TimeoutError:
            return None

    def run(self, packet: bytes) -> WcStatus:
        """Send a packet of `self.pair` and return how the peer's device answered it."""
        answer = self.send(packet)
        assert answer is not None, "no answer"
        source = (self.served.core.address, self.served.core.udp_port)
        self.core.receive_burst(memoryview(answer), len(answer), source, time.monotonic())
        (completion,) = self.pair.poll(1)
        status: WcStatus = completion.status
        return status

    def leave(self) -> None:
        self.channel.close()
        self.sock.close()


@pytest.fixture
def join() -> Iterator[Callable[..., Peer]]:
    joined: list[Peer] = []

    def make(served: Served, *words: object, **options: object) -> Peer:
        joined.append(Peer(served, *words, **options))  # type: ignore[arg-type]
        return joined[-1]

    yield make
    for one in joined:
        one.leave()


def bound(host: str, port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


def test_the_truth_works(serve, join):
    served = serve(token=TOKEN)
    peer = join(served)
    assert peer.run(peer.packet()) is WcStatus.SUCCESS
    assert served.memory() == b"!" * 64 + bytes(LENGTH - 64)


@pytest.mark.parametrize("where", ["address", "port"])
def test_a_packet_from_another_address_than_the_queue_pairs(serve, join, where):
    """It knows QPN, PSN, rkey and address, and its ICRC is right: dropped, and not answered."""
    served = serve(token=TOKEN)
    peer = join(served)
    with bound("127.0.0.9", peer.port) if where == "address" else bound("127.0.0.8") as stranger:
        assert peer.send(peer.packet(core=connected(peer, stranger)), stranger) is None
    assert served.core.counters.dropped_wrong_source == 1
    assert served.memory() == bytes(LENGTH)
    assert peer.run(peer.packet()) is WcStatus.SUCCESS


def connected(peer: Peer, sock: socket.socket):
    """The core of somebody else with everything this peer knows."""
    core, pair = peer.make_core(sock)
    pair.connect(peer.far)
    return core, pair


def test_a_forged_source_without_its_numbers(serve, join):
    """From the right address, with a QPN or a PSN that is not the right one: nothing is written."""
    served = serve(token=TOKEN)
    peer = join(served)
    core, pair = peer.make_core(peer.sock)
    pair.connect(replace(peer.far, qpn=peer.far.qpn ^ 1))
    assert peer.send(peer.packet(core=(core, pair))) is None
    assert served.core.counters.dropped_unknown_qpn == 1
    peer.number, number = peer.number + 5, peer.number
    peer.send(peer.packet(core=connected(peer, peer.sock)))
    peer.number = number
    assert served.memory() == bytes(LENGTH)
    assert peer.run(peer.packet()) is WcStatus.SUCCESS


@pytest.mark.parametrize("opcode", [Opcode.RDMA_WRITE, Opcode.RDMA_READ])
def test_a_guessed_rkey_costs_the_queue_pair(serve, join, opcode):
    """One guess for each lease: the second packet, with the right key, is too late."""
    served = serve(token=TOKEN)
    peer = join(served)
    assert peer.run(peer.packet(rkey=peer.grant.segments[0].rkey ^ 1, opcode=opcode)) is WcStatus.REM_ACCESS_ERR
    again = connected(peer, peer.sock)
    peer.send(peer.packet(core=again))
    assert served.memory() == bytes(LENGTH)


def test_a_client_that_guesses_ends_with_7(serve):
    served = serve(token=TOKEN)
    result = api.write(f"{served.address}/mem", f"host,size={LENGTH},pattern=words:1", token=TOKEN, inject="rkey=100%")
    assert result.exit_code == 7 and result.error is not None
    assert (result.error.code, result.error.wc_status) == ("remote_access", "REM_ACCESS_ERR")
    assert result.error.why and result.error.fix and result.results[0].bytes == 0
    assert served.memory() == bytes(LENGTH)


def test_more_than_was_granted(serve, join):
    """A reader that writes, and a writer beside its range: refused by the device, nothing moves."""
    served = serve(token=TOKEN)
    reader = join(served, "read")
    assert reader.run(reader.packet()) is WcStatus.REM_ACCESS_ERR
    reader.leave()
    served.wait_for("ended")
    for skip in (-64, -1, 4096 - 63, 4096):
        writer = join(served, "write", 8192, 4096)
        assert writer.run(writer.packet(skip=skip)) is WcStatus.REM_ACCESS_ERR
        writer.leave()
        served.wait_for("ended", len([event for event in served.events if event.kind == "joined"]))
    assert served.memory() == bytes(LENGTH)
    assert len(served.core.memory) == 0


def test_each_client_has_its_own_key_and_it_ends_with_the_lease(serve, join):
    served = serve(token=TOKEN)
    first = join(served, "write", 0, 4096)
    second = join(served, "write", 8192, 4096)
    (ours,), (theirs,) = first.grant.segments, second.grant.segments
    assert ours.rkey != theirs.rkey and ours.address != theirs.address and first.far.qpn != second.far.qpn
    first.channel.send(Release(first.grant.lease, keep=True))
    while not isinstance(first.channel.expect(Released, Window, deadline_s=30, name="the release"), Released):
        pass
    assert first.send(first.packet()) is None, "its queue pair is gone"
    assert second.run(second.packet(rkey=ours.rkey, skip=ours.address - theirs.address)) is WcStatus.REM_ACCESS_ERR
    second.leave()
    served.wait_for("ended")
    assert served.memory() == bytes(LENGTH) and len(served.core.memory) == 0


def test_who_has_no_queue_pair_is_never_answered(serve, join):
    """Not before there is one, not beside one, whatever it says: nobody can be flooded through us."""
    served = serve(token=TOKEN)
    udp = (served.core.address, served.core.udp_port)
    peer = join(served)
    whole = peer.packet()
    with bound("127.0.0.9") as stranger:
        said = [whole, whole[:20], whole[:12] + bytes(len(whole) - 12), b"", b"\0" * 16, b"GET / HTTP/1.1\r\n\r\n"]
        said += [secrets.token_bytes(secrets.randbelow(1400)) for _ in range(200)]
        # Every opcode to the right queue pair: requests, acknowledgements, congestion notices.
        said += [bytes([opcode]) + whole[1:] for opcode in range(256)]
        for packet in said:
            stranger.sendto(packet, udp)
        stranger.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            stranger.recv(1)
    assert served.memory() == bytes(LENGTH)
    assert peer.run(whole) is WcStatus.SUCCESS


# --- networks and limits -----------------------------------------------------------------------------------------


def test_only_the_networks_that_are_allowed(serve):
    served = serve(token=TOKEN, allow=("10.0.0.0/8", "127.0.0.8/32"))
    result = api.write(f"{served.address}/mem", "host,size=4096", token=TOKEN)
    assert result.exit_code == 7 and result.error is not None and result.error.code == "address_not_allowed"
    assert result.results == () and result.error.fix
    ended = served.wait_for("ended")
    assert ended.fields["ended"] == "address_not_allowed" and ended.fields["authenticated"] is False
    allowed = serve(token=TOKEN, allow=("127.0.0.0/8",))
    assert api.write(f"{allowed.address}/mem", "host,size=4096", token=TOKEN).exit_code == 0


def test_what_one_client_may_have(serve):
    served = serve(client_bytes=8192)
    assert api.write(f"{served.address}/mem", "host,size=8192").exit_code == 0
    result = api.write(f"{served.address}/mem", "host,size=8193")
    assert result.exit_code == 7 and result.error is not None and result.error.code == "client_bytes"
    assert result.error.fix == "--size 8192" and result.results == ()
    assert served.memory() == bytes(LENGTH)


def test_the_limits_hold_over_all_leases_of_a_connection(serve):
    served = serve(client_regions=1, client_bytes=8192)
    row = gids.to_wire([GidEntry(0, gids.address_to_gid("127.0.0.1"), "rocev2")])
    with Channel(socket.create_connection((served.address.host, served.address.port))) as channel:
        channel.run_handshake(ClientHandshake(nonce=secrets.token_hex(32), gid_table=row), deadline_s=30)
        core = RoceDevice("127.0.0.1", 4799, port_mtu_bytes=1024, random_bits=secrets.randbits)
        info = attributes_to_wire(core.create_queue_pair(QueuePairOptions()).local)

        def ask(region: str, length: int) -> str:
            channel.send(Open(region=region, offset=0, length=length, op="write", queue_pair=info))
            try:
                grant = channel.expect(Grant, deadline_s=30, name="the grant")
            except PeerRefusedError as refusal:
                return refusal.code
            assert isinstance(grant, Grant)
            channel.send(Release(grant.lease, keep=True))
            channel.expect(Released, deadline_s=30, name="the release")
            return "granted"

        assert ask("mem", 4096) == "granted"
        assert ask("second", 1) == "client_regions"
        assert ask("mem", 4097) == "client_bytes"
        assert ask("mem", 4096) == "granted"
        assert ask("mem", 1) == "client_bytes"


# --- the log -----------------------------------------------------------------------------------------------------


def test_one_line_for_the_end_of_each_connection_without_secrets(serve, join):
    served = serve(token=TOKEN)
    assert api.write(f"{served.address}/mem", f"host,size={LENGTH}", token=TOKEN).exit_code == 0
    assert api.read(f"{served.address}/mem", "host,size=4096", token=b"wrong").exit_code == 7
    peer = join(served, "read", 0, 4096)
    peer.leave()
    with socket.create_connection((served.address.host, served.address.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        served.wait_for("ended", 4)
    ended = [event for event in served.events if event.kind == "ended"]
    assert [event.fields["ended"] for event in ended] == ["ok", "auth_failed", "peer_lost", "not_p2prw"]
    fields = ended[0].fields
    assert fields["token"] is True and fields["tls"] is False and fields["exit_code"] == 0
    assert (fields["operations"], fields["regions"]) == (["write"], ["mem"])
    assert fields["granted_bytes"] == fields["whole_bytes"] == LENGTH
    assert f"write mem, {exact_size(LENGTH)} granted, {exact_size(LENGTH)} whole; token" in ended[0].text
    assert ended[1].fields["token"] is False and ended[1].fields["granted_bytes"] == 0
    assert (ended[2].fields["granted_bytes"], ended[2].fields["whole_bytes"]) == (4096, 0)
    said = json.dumps([(event.kind, event.text, event.fields) for event in served.events])
    for secret in (TOKEN.decode(), TOKEN.hex(), str(peer.grant.segments[0].rkey), str(peer.far.psn), peer.grant.lease):
        assert secret not in said


def test_the_time_limit_of_a_client(serve, join):
    """A key is dead once the time of its client is over."""
    served = serve(token=TOKEN, timeouts=Timeouts(client_s=0.5))
    peer = join(served)
    ended = served.wait_for("ended")
    assert ended.fields["ended"] == "client_time_limit"
    assert peer.send(peer.packet()) is None
    assert served.memory() == bytes(LENGTH)
