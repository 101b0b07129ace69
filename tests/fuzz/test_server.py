"""A live server, its loop stepped by hand: its sockets, its clock and its selector are made up here, the rest is real.

Clients say what is right, nearly right and wrong, in pieces, and come and go. Whatever they say, the server goes on, no
answer is anything but a message, nothing is held for who has left, and nobody reads or writes what was not granted.
"""

from __future__ import annotations

import errno
import json
import os
import random
import selectors
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine import gids
from p2prw.engine.control.channel import MAX_QUEUED_BYTES, STRANGER_LINE
from p2prw.engine.control.framing import FrameParser, frame
from p2prw.engine.control.messages import (
    PROTOCOL_VERSION,
    Commit,
    Digest,
    Fill,
    Gid,
    Grant,
    Hello,
    ListRegions,
    Message,
    Open,
    QueuePairInfo,
    Refuse,
    Release,
    Released,
    Restart,
    Source,
    decode,
    encode,
)
from p2prw.engine.events import ServeEvent
from p2prw.engine.model import PeerAddress, ServeRequest, Timeouts
from p2prw.engine.server.server import Server
from p2prw.engine.stop import StopRequest

INPUTS = 4_000
"""Messages, garbage that is none, and connections that come and go."""
CLIENTS = 6
MOST_ROUNDS = 4000
"""Of the server's loop for one input, pages of digests included; more is a hang."""
MOST_UNTRUSTED_BYTES = 4096
"""Said to who has not shaken hands, over the whole connection: one hello, one refusal or line."""
GID = gids.address_to_gid("127.0.0.1")
ELSEWHERE = gids.address_to_gid("192.0.2.9")
UNKNOWN = gids.address_to_gid("192.0.2.10")
QUEUE_PAIR = QueuePairInfo(77, 1, GID, 1024, 16, 16, udp_port=4799)
IDLE_S, HANDSHAKE_S = 60.0, 20.0


class FakeListener:
    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()

    def fileno(self) -> int:
        return 1 << 19

    def accept(self) -> tuple[Any, tuple[str, int]]:
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "")
        sock = self.waiting.popleft()
        return sock, sock.getpeername()


class Stepped(selectors.BaseSelector):
    """The server's selector: each `select` is one turn of the storm."""

    def __init__(self) -> None:
        self.keys: dict[int, selectors.SelectorKey] = {}
        self.turn: Callable[[float], list[Any]] = lambda _: []

    @staticmethod
    def _number(fileobj: Any) -> int:
        return fileobj if isinstance(fileobj, int) else fileobj.fileno()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = self._number(fileobj)
        assert number not in self.keys, "registered twice"
        self.keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return self.keys[number]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.keys.pop(self._number(fileobj))

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self.keys[self._number(fileobj)]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return self.turn(timeout or 0.0)

    def get_map(self) -> Any:
        return self.keys

    def close(self) -> None:
        self.keys.clear()


class Peer:
    """What one connection has said and heard."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.parser = FrameParser()
        self.read = 0
        self.shaken = False
        self.line = b""
        self.grant: Grant | None = None
        self.refusals: list[str] = []

    def hear(self) -> None:
        """Take in what the server said: whole messages of its own, or the one line for strangers."""
        if self.read == len(self.sock.said):
            return
        new = bytes(self.sock.said[self.read :])
        self.read = len(self.sock.said)
        if new.startswith(STRANGER_LINE[:5]):
            assert new == STRANGER_LINE[: len(new)]
            self.line = new
            return
        for start in range(0, len(new), 65536):
            self.parser.feed(new[start : start + 65536])
            while (body := self.parser.next_frame()) is not None:
                message = decode(body)
                if isinstance(message, Hello):
                    self.shaken = True
                elif isinstance(message, Grant):
                    self.grant = message
                elif isinstance(message, Refuse):
                    assert message.what
                    assert message.why
                    assert "Traceback" not in message.what + message.why
                    self.refusals.append(message.code)
                elif isinstance(message, Released):
                    self.grant = None


class Storm:
    """Feeds the server one input a turn, and looks at it in between."""

    def __init__(
        self, kit: Any, dice: random.Random, end: Any, server: Server, selector: Stepped, stop: StopRequest
    ) -> None:
        self.kit, self.dice, self.end, self.server, self.selector, self.stop = kit, dice, end, server, selector, stop
        self.listener = FakeListener()
        selector.register(self.listener, selectors.EVENT_READ, "listener")
        selector.turn = self.turn
        self.now = 1000.0
        self.peers: list[Peer] = []
        self.inputs = self.rounds = self.most_rounds = 0
        self.wanted = 0
        self.codes: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.defects: list[str] = []
        self.meter: Any = None
        self.is_marked = False

    def clock(self) -> float:
        return self.now

    def take_event(self, event: ServeEvent) -> None:
        self.events[event.kind] += 1
        if event.kind == "defect":
            self.defects.append(event.text)
        code = event.fields.get("code")
        if isinstance(code, str):
            self.codes[code] += 1

    # --- the loop's turn --------------------------------------------------------------------------------------

    def turn(self, timeout_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self.ready()
        if ready or timeout_s == 0.0 or self.is_working():
            self.rounds += 1
            assert self.rounds <= MOST_ROUNDS, "the server goes round and round"
            return ready
        self.most_rounds = max(self.most_rounds, self.rounds)
        self.rounds = 0
        self.look()
        if self.inputs >= self.wanted:
            self.stop.set(15)
            # Whatever the server still waits for has its limit.
            self.now += 3600
            return []
        if not self.is_marked and self.inputs >= self.wanted * 9 // 10:
            self.is_marked = True
            self.meter.mark()
        self.act()
        return self.ready()

    def ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        found = []
        if self.listener.waiting:
            found.append((self.selector.keys[self.listener.fileno()], selectors.EVENT_READ))
        for peer in self.peers:
            sock = peer.sock
            key = self.selector.keys.get(sock.number)
            if key is None or sock.closed:
                continue
            reads = sock.arrived or sock.ended
            writes = key.events & selectors.EVENT_WRITE and sock.takes_bytes
            if reads or writes:
                found.append((key, selectors.EVENT_READ if reads else selectors.EVENT_WRITE))
        return found

    def is_working(self) -> bool:
        """A staging thread copies: the one thing here that takes real time."""
        working = [client for client in self.server._clients.values() if client.active and client.active._busy_slots]
        if working:
            time.sleep(0.0002)
        return bool(working)

    # --- what the clients do ----------------------------------------------------------------------------------

    def act(self) -> None:
        dice = self.dice
        self.inputs += 1
        self.now += dice.choice([0.0, 0.001, 0.1])
        choice = dice.random()
        if choice < 0.004:
            # Everybody is silent for long.
            self.now += dice.choice([HANDSHAKE_S, IDLE_S, 3 * IDLE_S]) + 1
            return
        open_peers = [peer for peer in self.peers if not peer.sock.closed and not peer.sock.ended]
        if len(open_peers) < CLIENTS or choice < 0.01:
            peer = Peer(self.end(1 << 30 if dice.random() < 0.9 else dice.randrange(200_000)))
            self.peers.append(peer)
            self.listener.waiting.append(peer.sock)
            if dice.random() < 0.8:
                # Most shake hands, so that there is something behind it to aim at.
                peer.sock.arrived.append(frame(encode(self.hello())))
            else:
                self.say(peer, self.stranger())
            return
        peer = dice.choice(open_peers)
        if choice < 0.03:
            peer.sock.ended = True if dice.random() < 0.5 else ConnectionResetError(errno.ECONNRESET, "reset")
        elif choice < 0.06 and not peer.shaken:
            self.say(peer, self.stranger())
        else:
            count = dice.choice([1, 1, 1, 2, 5])
            self.inputs += count - 1
            data = b"".join(frame(self.body(peer) or b"{") for _ in range(count))
            if dice.random() < 0.02:
                data = data[: dice.randrange(len(data))]
            if dice.random() < 0.02:
                place = dice.randrange(len(data))
                data = data[:place] + bytes((data[place] ^ 1 << dice.randrange(8),)) + data[place + 1 :]
            self.say(peer, data)

    def say(self, peer: Peer, data: bytes) -> None:
        """Let bytes arrive, now and then in pieces."""
        if self.dice.random() < 0.1 and len(data) > 1:
            cut = self.dice.randrange(1, len(data))
            peer.sock.arrived += [data[:cut], data[cut:]]
        else:
            peer.sock.arrived.append(data)

    def stranger(self) -> bytes:
        dice = self.dice
        return dice.choice(
            [
                b"GET / HTTP/1.1\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(200),
                dice.randbytes(dice.randrange(1, 200)),
                frame(self.kit.body(dice) or b"{"),
                b"\0\0\xff\xff{",
                frame(encode(Hello(PROTOCOL_VERSION + 1, "0" * 64, "none"))),
            ]
        )

    def hello(self) -> Hello:
        rows = (Gid(0, GID, "rocev2"), Gid(1, ELSEWHERE, "rocev2"))
        return Hello(PROTOCOL_VERSION, self.dice.randbytes(32).hex(), "none", ("resume",), rows, 4799, "storm")

    def body(self, peer: Peer) -> bytes:
        """Return the next body of a client: what fits its place, the same with a field changed, or anything."""
        choice = self.dice.random()
        if choice < 0.06:
            return bytes(self.kit.body(self.dice))
        body = encode(self.fitting(peer))
        if choice < 0.2:
            document = json.loads(body)
            self.kit.change(self.dice, document)
            return json.dumps(document).encode()
        if choice < 0.21:
            return bytes(self.kit.mangle(self.dice, body))
        return body

    def fitting(self, peer: Peer) -> Message:
        dice, grant = self.dice, peer.grant
        if dice.random() < 0.05:
            return ListRegions(dice.choice([0, 1, 65535]))
        if grant is None:
            region = dice.choice(["mem", "mem", "ro", "wo", "src", "sink", "sink", "kept", "nobody"])
            operation = "read" if (region in ("ro", "src")) != (dice.random() < 0.2) else "write"
            pair = QUEUE_PAIR
            if dice.random() < 0.05:
                pair = QueuePairInfo(1, 1, dice.choice([ELSEWHERE, UNKNOWN]), 1024, 1, 1)
            source = Source("file", 0, 1 << 20, dice.choice([1, 2])) if region == "kept" else None
            offset, length = dice.choice([0, 0, 0, 4096, 70_000]), dice.choice([None, 1, 4096, 8192, 200_000, 0])
            if region in ("sink", "kept"):
                length = length or 8192
            limit, shared = dice.choice([None, 4096]), dice.random() < 0.1
            return Open(region, offset, length, operation, pair, limit, shared, 1 << 16, source)
        lease = grant.lease if dice.random() < 0.97 else dice.randbytes(8).hex()
        slots = len(grant.staging.slots) if grant.staging else 1
        slot = dice.randrange(slots + (dice.random() < 0.1))
        offset = dice.choice([0, 0, 4096, dice.randrange(grant.length + 1)])
        length = dice.choice([1, 4096, max(0, min(grant.length - offset, 16 * 1024)), grant.length])
        match dice.randrange(8):
            case 0 | 1 if grant.staging:
                return Fill(lease, slot, offset, length)
            case 2 | 3 if grant.staging:
                return Commit(lease, slot, offset, length)
            case 4:
                return Digest(lease, offset, length, dice.choice([4096, 1 << 20]), dice.random() < 0.3)
            case 5 if dice.random() < 0.3:
                return Restart(lease) if dice.random() < 0.5 else Open("mem", 0, 1, "read", QUEUE_PAIR)
            case 6:
                return ListRegions(0)
            case _:
                return Release(lease, dice.random() < 0.7)

    # --- what must hold after each input -----------------------------------------------------------------------

    def look(self) -> None:
        assert not self.defects, self.defects[0]
        held = 0
        for client in self.server._clients.values():
            assert not client.gone
            assert client.channel.queued_bytes <= MAX_QUEUED_BYTES
            assert client.authenticated or client.active is None
            held += client.active is not None
        assert len(self.server.leases) == held, "a lease outlives its client"
        for device in self.server._devices.values():
            assert len(device.core._queue_pairs) == held, "a queue pair outlives its lease"  # type: ignore[attr-defined]
        for peer in self.peers:
            peer.hear()
            self.codes.update(peer.refusals)
            peer.refusals.clear()
            assert peer.shaken or len(peer.sock.said) <= MOST_UNTRUSTED_BYTES
        self.peers = [peer for peer in self.peers if not peer.sock.closed]
        assert len(self.server._clients) <= len(self.peers)


@pytest.fixture
def served(kit: Any, tmp_path: Path) -> tuple[ServeRequest, Path, bytes]:
    folder = tmp_path / "served"
    folder.mkdir()
    content = random.Random("source").randbytes(200_000)
    (folder / "src.bin").write_bytes(content)
    regions = {
        "mem": ("host,size=64KiB", "rw"),
        "ro": ("host,size=16KiB,pattern=words:5", "r"),
        "wo": ("host,size=16KiB", "w"),
        "src": (f"file:{folder}/src.bin", "r"),
        "sink": (f"file:{folder}/sink.bin", "rw"),
        "kept": (f"file:{folder}/kept.bin", "w"),
    }
    request = ServeRequest(
        regions=kit.regions(regions),
        listen=PeerAddress("127.0.0.1", 0),
        device="soft0",
        timeouts=Timeouts(idle_s=IDLE_S, handshake_s=HANDSHAKE_S),
        max_clients=CLIENTS,
        staging_bytes=64 * 1024,
        staging_chunk_bytes=16 * 1024,
        overwrite=True,
    )
    return request, folder, content


def test_a_server_in_a_storm(kit, flat, served, full_end, inline_worker, monkeypatch) -> None:
    # Nobody pulls the plug here, and a disk that is asked to make sure takes most of the time.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    request, folder, content = served
    dice = random.Random("server")
    stop = StopRequest()
    storm: Storm
    selector = Stepped()
    server = Server(request, clock=lambda: storm.now, selector=selector)
    server.worker.close()
    server.worker = inline_worker
    with server:
        storm = Storm(kit, dice, full_end, server, selector, stop)
        storm.wanted = kit.inputs(INPUTS)
        storm.meter = flat(2000, 1 << 20)
        before = {name: bytes(view_of(server, name)) for name in ("mem", "ro", "wo")}
        assert server.run(stop, storm.take_event) == 0
        assert storm.inputs >= storm.wanted
        # No packet was sent, so nothing but commits of staged regions can have written anything.
        assert {name: bytes(view_of(server, name)) for name in before} == before
        for peer in storm.peers:
            peer.sock.ended = True
    storm.meter.check()
    assert (folder / "src.bin").read_bytes() == content
    names = {path.name for path in folder.iterdir() if ".p2prw-" not in path.name}
    assert names == {"src.bin", "sink.bin", "kept.bin"}
    assert not selector.keys
    # Every branch was reached, or the storm says nothing.
    for code in (
        *("bad_message", "unexpected_message", "unknown_message", "bad_lease", "bad_slot", "bad_range", "bad_right"),
        *("unknown_region", "busy", "read_only", "bad_gid", "foreign_gid", "version_mismatch", "too_many_clients"),
    ):
        assert storm.codes[code] >= 2, (code, storm.codes)
    for kind, least in {
        "joined": 200,
        "granted": 200,
        "released": 50,
        "ended": 10,
        "refused": 200,
        "failed": 100,
    }.items():
        assert storm.events[kind] >= least, storm.events


def view_of(server: Server, region: str) -> memoryview:
    view: memoryview | None = server.regions[region]._memory.buffers()[0].view  # type: ignore[attr-defined]
    assert view is not None
    return view
