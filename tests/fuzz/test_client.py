"""A server that lies: a real client against a real server, with what the server says changed on its way.

Time, sockets and waits are made up, both devices are scripted and share one fabric, so that a case is a few thousand
steps and the same in every run. The client may trust nothing: whatever comes, in whatever phase, it ends in time with a
P2prwError, writes nothing outside the memory it was given, and says "verified" of right bytes only.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import resource
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import jsonschema
import pytest

from p2prw import api
from p2prw.engine.bench.model import BenchRequest
from p2prw.engine.bench.session import run_bench
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.framing import HEADER, FrameParser
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.memory.prepare import PreparedMemory, prepare_memory
from p2prw.engine.model import (
    Operation,
    PeerAddress,
    QueuePairAttributes,
    QueuePairOptions,
    ServeRequest,
    Timeouts,
    WcStatus,
)
from p2prw.engine.peer import list_regions
from p2prw.engine.providers.scripted import ScriptedDevice, ScriptedFabric, ScriptedQueuePair
from p2prw.engine.roce.device import RoceDevice
from p2prw.engine.server import pingpong
from p2prw.engine.server.client import ServedClient
from p2prw.engine.server.reverse import start_reverse
from p2prw.engine.server.server import Server
from p2prw.engine.session import run_transfer
from p2prw.engine.staging import StagingJob, StagingRing
from p2prw.errors import HostError, P2prwError
from p2prw.reporters.document import dump, transfer_document

CASES = 1_000
IDLE_S = 1.0
GUARD_BYTES = 4096
GUARD = 0xA5
PEER = "127.0.0.1:18515"
QUICK = Timeouts(connect_retry_s=0.2, handshake_s=IDLE_S, idle_s=IDLE_S, drain_s=0.2)
REGION_BYTES = 48 * 1024
BIG_BYTES = 2_500_000
MOST_FILE_BYTES, MOST_MEMORY_BYTES = 64 * 1024 * 1024, 9 * 1024 * 1024
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(api.__file__).parent / "schema/result.schema.json").read_text())
)
V6_GID, ZERO_GID, ELSEWHERE = "20010db8" + "0" * 23 + "1", "0" * 32, "0" * 20 + "ffffc0000209"

Document = dict[str, Any]


def frame(body: bytes) -> bytes:
    """A frame, also one that is too long."""
    return HEADER.pack(len(body)) + body


# --- lies -----------------------------------------------------------------------------------------------------------


def of(*values: Any) -> Callable[[random.Random, Any], Any]:
    return lambda dice, _: dice.choice(values)


def by(*steps: int) -> Callable[[random.Random, Any], Any]:
    return lambda dice, value: (value or 0) + dice.choice(steps)


NUMBERS = (-1, 0, 1, 255, 256, 1 << 24, 1 << 30, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64)
LIES: dict[str, dict[str, Callable[[random.Random, Any], Any]]] = {
    "hello": {
        "version": of(0, 1, 3, 65536),
        "gid_table": of(
            [],
            [{"index": 0, "gid": V6_GID, "type": "rocev2"}],
            [{"index": 0, "gid": ZERO_GID, "type": "rocev2"}],
            [{"index": 65535, "gid": ELSEWHERE, "type": "rocev1", "up": False}],
            [{"index": i, "gid": ELSEWHERE, "type": "rocev2", "netdev": "\x1b" * 60} for i in range(256)],
        ),
        "auth": of("token", "both"),
        "capabilities": of([], ["\x1b[2J"] * 64),
        "nonce": of("", "0" * 64),
    },
    "grant": {
        "lease": of("0" * 16, ""),
        "length": of(*NUMBERS, 5, 4096, 4096, 8191, 10_000, 40_000),
        "segments": of([]),
        "segments.length": of(*NUMBERS),
        "segments.address": of(0, (1 << 64) - 1, (1 << 64) - 4096, 0x10_0000_0000, 1 << 64),
        "segments.rkey": of(0, (1 << 32) - 1, 1 << 32, 0x1000, 0x1001),
        "segments.twice": of(None),
        "segments.many": of(257, 256),
        "window_bytes": of(*NUMBERS),
        "queue_pair.gid": of(V6_GID, ZERO_GID, ELSEWHERE, "ff02" + "0" * 27 + "1", "f" * 32),
        "queue_pair.mtu_bytes": of(0, 255, 257, 4095, 4097, 256, 1 << 63),
        "queue_pair.qpn": of(0, 1, (1 << 24) - 1, 1 << 24),
        "queue_pair.psn": of(-1, (1 << 24) - 1, 1 << 24, 1 << 32),
        "queue_pair.max_rd_atomic": of(0, 255, 256),
        "queue_pair.max_dest_rd_atomic": of(0, 255, 256),
        "queue_pair.udp_port": of(0, 1, 65536),
        "staging": of(
            None,
            {"chunk_bytes": 4096, "slots": []},
            {"chunk_bytes": 512, "slots": [{"address": 0, "length": 512, "rkey": 0}]},
            {"chunk_bytes": 1 << 30, "slots": [{"address": 4096, "length": 1 << 30, "rkey": 0x1000}] * 256},
        ),
        "staging.chunk_bytes": of(0, 512, 4095, 1 << 30, (1 << 30) + 1, 1 << 62),
        "staging.slots": of([]),
        "staging.slots.length": of(*NUMBERS),
        "staging.slots.address": of(0, (1 << 64) - 1, 0x10_0000_0000),
        "region_length": of(*NUMBERS, None),
        "flushable": of(False, None),
        "source": of(
            None,
            {"name": "x" * 64, "offset": (1 << 63) - 1, "bytes": (1 << 63) - 1, "mtime_ns": -(1 << 62)},
            {"name": "\x1b[31m", "offset": -1, "bytes": 0},
        ),
        "held": of(
            None,
            {"manifest": True, "fresh": False, "restarted": None},
            {"manifest": True, "fresh": True, "restarted": "\x1b]0;x\x07"},
            {"manifest": False, "fresh": False},
            {"manifest": True, "fresh": False, "ranges": [[-5, 1 << 63]]},
        ),
        "notes": of(["n" * 2048] * 8, ["\x1b[2J"], [""] * 9),
        "route": of(
            {"chosen": "teleport", "mover": "nic", "peer_to_peer": True, "memory": "x", "device": "y", "driver": ""},
            {"chosen": "cpu", "mover": "cpu", "peer_to_peer": True, "memory": "bar", "device": "", "driver": "soft"},
        ),
        "route.via": of(
            {"memory": "p2pmem", "pci_address": "x\n", "mover": "drive", "peer_to_peer": True, "host_bytes": 1 << 62}
        ),
        "route.attempts": of(
            [{"route": "cpu", "ok": False, "errno": "EWHAT", "wc_status": "X", "why": "y" * 2000}] * 16
        ),
    },
    "filled": {
        "slot": by(1, -1, 255),
        "offset": by(1, -1, 4096, 1 << 62),
        "lease": of("f" * 16),
        "type": of("committed"),
    },
    "committed": {"slot": by(1, -1, 7), "offset": by(1, -1, 1 << 62), "lease": of("f" * 16), "type": of("filled")},
    "digests": {
        "offset": by(1, -1, 1 << 20, 1 << 62),
        "lease": of("f" * 16),
        "digests": of([], [""], ["0" * 32], ["0" * 32] * 1024, ["0" * 31], ["g" * 32], ["0" * 32] * 1025),
        "digests.0": of("", "f" * 32),
        "digests.last": of("", "f" * 32),
        "digests.short": of(None),
        "digests.long": of(None),
        "more": of(True, False, None),
        "method": of("client-read-back", "owner-loopback-read", "an-oracle", "\x1b[2J"),
    },
    "window": {"window_bytes": of(*NUMBERS)},
    "released": {"lease": of("f" * 16, "")},
    "ponging": {"lease": of("f" * 16, None)},
    "reversing": {"lease": of("f" * 16, None)},
    "reversed": {
        "lease": of("f" * 16),
        "messages": of(*NUMBERS),
        "elapsed_ns": of(*NUMBERS),
        "retransmitted_packets": of(*NUMBERS),
    },
    "regions": {
        "more": of(True, None),
        "regions": of([], [{"name": "a/../b", "kind": "host", "length": 1, "access": "r"}]),
        "regions.length": of(*NUMBERS, None),
        "regions.access": of("x", "rw", "r"),
    },
    "refuse": {
        "code": of("", "verify_mismatch", "Ä"),
        "what": of("", "\x1b[2J" * 500),
        "why": of(None),
        "fix": of(None),
    },
}
OPPOSITES = {"filled": "committed", "committed": "filled"}
HARMLESS = frozenset(
    [
        *("hello.gid_table", "hello.capabilities", "hello.nonce", "grant.lease", "grant.segments.length"),
        *("grant.segments.address", "grant.segments.rkey", "grant.segments.many", "grant.segments.twice"),
        *("grant.window_bytes", "grant.queue_pair.gid", "grant.queue_pair.mtu_bytes", "grant.queue_pair.psn"),
        *("grant.queue_pair.max_rd_atomic", "grant.queue_pair.max_dest_rd_atomic", "grant.queue_pair.udp_port"),
        *("grant.staging", "grant.staging.chunk_bytes", "grant.staging.slots.length", "grant.staging.slots.address"),
        *("grant.region_length", "grant.flushable", "grant.source", "grant.held", "grant.notes", "grant.route"),
        *("grant.route.via", "grant.route.attempts", "digests.more", "digests.method", "window.window_bytes"),
        *("regions.more", "regions.regions", "regions.regions.length", "regions.regions.access"),
        *(
            "reversed.messages",
            "reversed.elapsed_ns",
            "reversed.retransmitted_packets",
            "digests.digests",
            "grant.length",
            "grant.segments",
        ),
    ]
)
"""Lies after which a transfer may still be whole: the values are now and then no lie, or make no difference to it."""


def tell_lie(dice: random.Random, document: Document) -> str | None:
    """Change one field of one kind of message to what a liar would say; return its name."""
    lies = LIES.get(document["type"])
    if not lies:
        return None
    name = "length" if "length" in lies and dice.random() < 0.15 else dice.choice(list(lies))
    path, value = name.split("."), lies[name]
    place: Any = document
    for key in path[:-1]:
        below = place.get(key)
        if isinstance(below, list) and path[-1] in ("twice", "many", "short", "long", "0", "last"):
            change_list(below, path[-1], value(dice, None))
            return f"{document['type']}.{name}"
        place = dice.choice(below) if isinstance(below, list) and below else below
        if not isinstance(place, dict):
            return None
    place[path[-1]] = value(dice, place.get(path[-1]))
    if name == "length" and place["segments"] and dice.random() < 0.5:
        # One that holds together.
        place["segments"][0]["length"] = place["length"]
    return f"{document['type'] if path != ['type'] else 'answer'}.{name}"


def change_list(items: list[Any], how: str, value: Any) -> None:
    if not items:
        return
    match how:
        case "twice":
            # Pieces that overlap: each is the first.
            items[:] = [{**items[0], "length": max(1, items[0]["length"] // 2)}] * 2
        case "many":
            piece = max(1, items[0]["length"] // value)
            items[:] = [{**items[0], "address": items[0]["address"] + i * piece, "length": piece} for i in range(value)]
        case "short":
            items.pop()
        case "long":
            items.append(items[-1])
        case _:
            items[0 if how == "0" else -1] = value


@dataclass
class Liar:
    """Stands between the server and one client; forwards frames, but for the one at which it lies."""

    kit: Any
    dice: random.Random
    at: int
    """Which frame of the server; the handshake's hello is 0. Negative: none."""
    parser: FrameParser = field(default_factory=FrameParser)
    frames: int = 0
    told: str = ""
    kind: str = ""
    repeating: bytes = b""
    every_s: float = 0.0
    """0: as fast as it is read."""
    next_s: float = 0.0
    ended: OSError | bool = False
    late: bytes = b""

    def pass_on(self, data: bytes) -> bytes:
        out = bytearray()
        for start in range(0, len(data), 65536):
            self.parser.feed(data[start : start + 65536])
            while (body := self.parser.next_frame()) is not None:
                out += self.forward(body)
        return bytes(out)

    def forward(self, body: bytes) -> bytes:
        self.frames += 1
        if self.frames - 1 != self.at or self.ended:
            late, self.late = self.late, b""
            if late and self.told == "opposite":
                self.told = "answer.opposite"
            return frame(body) + late
        document = json.loads(body)
        self.kind = document["type"]
        return self.lie(document, body)

    def lie(self, document: Document, body: bytes) -> bytes:
        dice, whole = self.dice, frame(body)
        choice = dice.random()
        if choice < 0.2 and (other := OPPOSITES.get(document["type"])):
            # An answer of the other direction, when the slot's bytes are on their way.
            self.told, self.late = "opposite", frame(json.dumps({**document, "type": other}).encode())
            return whole
        if choice < 0.55:
            self.told = tell_lie(dice, document) or "nothing"
            return frame(json.dumps(document).encode())
        if choice < 0.7:
            self.told = "changed"
            for _ in range(dice.randint(1, 2)):
                self.kit.change(dice, document)
            return frame(json.dumps(document).encode())
        self.told = dice.choice(
            [
                "mangled",
                "other",
                "before",
                "after",
                "twice",
                "dropped",
                "late",
                "ended",
                "reset",
                "flood",
                "trickle",
                "cut",
            ]
        )
        match self.told:
            case "mangled":
                return frame(self.kit.mangle(dice, body) or b"{")
            case "other":
                return frame(self.another(document))
            case "before":
                return frame(self.another(document)) + whole
            case "after":
                return whole + frame(self.another(document))
            case "twice":
                return whole + whole
            case "late":
                self.late = whole
                return b""
            case "ended" | "reset":
                self.ended = True if self.told == "ended" else ConnectionResetError(errno.ECONNRESET, "reset")
                return b""
            case "cut":
                self.ended = True
                return whole[: dice.randrange(len(whole))]
            case "flood" | "trickle":
                said = {"type": "window", "window_bytes": 65536}
                if document["type"] == "regions":
                    said = {**document, "more": True}
                self.repeating = frame(json.dumps(said).encode())
                self.every_s = 0.0 if self.told == "flood" else IDLE_S / 3
                return self.repeating
        return b""  # dropped

    def another(self, document: Document) -> bytes:
        """A message of the corpus, half the time with our lease in it."""
        other = self.kit.document(self.dice)
        if "lease" in other and "lease" in document and self.dice.random() < 0.7:
            other["lease"] = document["lease"]
        if self.dice.random() < 0.3:
            other = {"type": "window", "window_bytes": self.dice.choice(NUMBERS)}
        return json.dumps(other).encode()


# --- the two ends ---------------------------------------------------------------------------------------------------


class InlineRing(StagingRing):
    """A ring without threads: a job is done when it is asked for, and seen some polls later."""

    live: ClassVar[WeakSet[InlineRing]] = WeakSet()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "workers": 0})
        self._polls = 0
        self.live.add(self)

    def poll(self) -> list[StagingJob]:
        self._polls += 1
        return super().poll() if self._polls % 4 == 0 else []

    def _start(self, job: StagingJob) -> StagingJob:
        super()._start(job)
        self._queue.put(None)
        self._work()
        return job


class CheckedPair(ScriptedQueuePair):
    """Connects as a software device's queue pair does, which looks at what the peer said of its end."""

    def connect(self, remote: QueuePairAttributes) -> None:
        core = RoceDevice("127.0.0.1", 4791, port_mtu_bytes=4096, random_bits=lambda bits: 1 << (bits - 1))
        core.create_queue_pair(QueuePairOptions()).connect(remote, 0.0)
        super().connect(remote)

    def poll(self, max_completions: int = 64) -> Any:
        found = super().poll(max_completions)
        # What was posted lies in memory that was registered for it.
        assert not [one for one in found if one.status in (WcStatus.LOC_PROT_ERR, WcStatus.LOC_LEN_ERR)]
        return found


class NearDevice(ScriptedDevice):
    closed = False

    def close(self) -> None:
        super().close()
        self.closed = True

    def create_queue_pair(self, options: QueuePairOptions) -> CheckedPair:
        pair = CheckedPair(self, options)
        self._queue_pairs.append(pair)
        self.counts.queue_pairs_open += 1
        return pair


class NoSelector:
    """The server's; who has something to say is looked up by hand."""

    def register(self, *_: object) -> None:
        pass

    unregister = register
    modify = register

    def close(self) -> None:
        pass


@dataclass
class Memory:
    """Our host memory, between two guards."""

    whole: bytearray
    length: int
    before: bytes

    def content(self) -> bytes:
        return bytes(self.whole[GUARD_BYTES : GUARD_BYTES + self.length])

    def check(self, touched_bytes: int) -> None:
        guard = bytes([GUARD]) * GUARD_BYTES
        assert self.whole[:GUARD_BYTES] == guard and self.whole[GUARD_BYTES + self.length :] == guard
        assert self.content()[touched_bytes:] == self.before[touched_bytes:], "written beyond the transfer"


class Rig:
    """One server, and one client after the other."""

    def __init__(self, kit: Any, dice: random.Random, world: Any, end: Any, server: Server, folder: Path) -> None:
        self.kit, self.dice, self.world, self.end, self.server, self.folder = kit, dice, world, end, server, folder
        self.fabric = ScriptedFabric()
        self.near: list[NearDevice] = []
        self.memories: list[Memory] = []
        self.connections: list[tuple[Any, Any, Liar]] = []
        self.lies: deque[Liar] = deque()
        self.defects: list[str] = []
        world.turn = self.turn
        server._on_event = lambda event: self.defects.append(event.text) if event.kind == "defect" else None

    # --- what is made up for the client

    def connect(self, *_: object, **__: object) -> Any:
        near, far = self.end(self.world.clock), self.end(self.world.clock)
        liar = self.lies.popleft() if self.lies else Liar(self.kit, self.dice, -1)
        self.connections.append((near, far, liar))
        channel = Channel(far)
        self.server._clients[far.fileno()] = ServedClient(self.server, channel, self.world.clock.now)
        return near

    def open_near(self, *_: object, **__: object) -> tuple[NearDevice, str]:
        self.near.append(NearDevice("near", fabric=self.fabric, clock=self.world.clock))
        return self.near[-1], "scripted"

    def open_far(self, *_: object, **__: object) -> tuple[ScriptedDevice, str]:
        return ScriptedDevice("far", fabric=self.fabric, clock=self.world.clock, keep_log=False), "scripted"

    def prepare(self, spec: Any, role: Any, **options: Any) -> PreparedMemory:
        prepared = prepare_memory(spec, role, **options)
        if spec.kind != "host":
            return prepared

        def guarded(length: int | None) -> Any:
            size = prepared.length_bytes if prepared.length_bytes is not None else length
            if size is None or size >= 1 << 40:
                return prepared.opener(length)
            if size > MOST_MEMORY_BYTES:
                # This machine may have them.
                raise HostError("too little memory", why="a test", fix="less", code="not_enough_memory")
            whole = bytearray([GUARD]) * (GUARD_BYTES + size + GUARD_BYTES)
            inside = memoryview(whole)[GUARD_BYTES : GUARD_BYTES + size]
            inside[:] = (self.dice.randbytes(min(size, 1 << 16)) * (size // (1 << 16) + 1))[:size]
            self.memories.append(Memory(whole, size, bytes(inside)))
            return HostMemory.from_buffer(inside, spec)

        return replace(prepared, opener=guarded, slow_opener=None)

    # --- time passes

    def turn(self) -> bool:
        moved = any(ring._finished for ring in InlineRing.live)
        for near, far, liar in self.connections:
            if near.said:
                far.arrived += near.said
                near.said.clear()
                moved = True
            if near.closed and not far.ended:
                far.ended = moved = True
            client = self.server._clients.get(far.number)
            if client is not None and (far.arrived or far.ended):
                client.hear(self.world.clock.now)
                moved = True
            # The server's windows come when others come and go; nobody else does here.
            moved = self.server._round() or moved
            if far.said:
                near.arrived += liar.pass_on(bytes(far.said))
                far.said.clear()
                moved = True
            if liar.ended:
                near.ended = liar.ended
            if liar.every_s:
                self.trickle(near, liar)
            else:
                near.flood = liar.repeating * 100
            if far.closed and not near.ended:
                near.ended = moved = True
        return moved

    def trickle(self, near: Any, liar: Liar) -> None:
        if self.world.clock.now >= liar.next_s:
            liar.next_s = self.world.clock.now + liar.every_s
            near.arrived += liar.repeating

    # --- after a case

    def hang_up(self) -> None:
        """The client is gone: nothing of it is left, at either side."""
        for near, _, liar in self.connections:
            assert near.closed, "a connection was left open"
            liar.repeating, liar.every_s = b"", 0.0
        for _ in range(50):
            if not self.turn() and not self.server._clients:
                break
        assert not self.server._clients and not len(self.server.leases)
        assert not self.defects, self.defects[0]
        for device in self.near:
            assert not device._queue_pairs and not device.counts.registrations_open
            assert device.closed
        for there in self.server._devices.values():
            assert there.usage().queue_pairs == 0
            there.close()
        self.server._devices.clear()
        self.connections.clear()
        self.near.clear()
        self.memories.clear()
        self.lies.clear()
        self.fabric = ScriptedFabric()

    def there(self, name: str) -> bytes:
        """What the server holds now."""
        if name not in ("mem", "wo"):
            return (self.folder.parent / "served" / f"{name}.bin").read_bytes()
        view = self.server.regions[name]._memory.buffers()[0].view  # type: ignore[attr-defined]
        return bytes(view)


# --- what is asked of the server ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One transfer; `target` and `memory` as on the command line, FILE for a file of ours."""

    operation: Operation
    target: str
    memory: str
    frames: int
    """What an honest server says, about."""
    weight: int = 4
    dry_run: bool = False
    options: dict[str, Any] = field(default_factory=dict)


READ, WRITE = Operation.READ, Operation.WRITE
STAGED = {"staging_bytes": 16 * 1024, "staging_chunk_bytes": 8 * 1024}
RESUMED = {"resume": True, "staging_bytes": 1 << 20, "staging_chunk_bytes": 1 << 19}
TRANSFERS = (
    Ask(WRITE, "mem", "host,size=8KiB", 4, 10),
    Ask(WRITE, "mem+100", "host,size=32KiB", 4, 6, options={"size_bytes": 9000}),
    Ask(WRITE, "mem", "host,size=8KiB", 4, 1, options={"shared": True}),
    Ask(WRITE, "mem", "host,size=8KiB", 3, 1, options={"size_bytes": 0}),
    Ask(WRITE, "wo", "host,size=8KiB", 4, 2),
    Ask(WRITE, "mem", "FILE", 4, 4, options=STAGED),
    Ask(WRITE, "sink", "host,size=40KiB", 9, 8),
    Ask(WRITE, "kept", "FILE", 9, 2, options=RESUMED),
    Ask(WRITE, "mem", "host,size=8KiB", 3, 2, dry_run=True),
    Ask(WRITE, "sink", "FILE", 3, 2, dry_run=True),
    Ask(WRITE, "mem", "host,size=8KiB", 4, 1, options={"retries": 2}),
    Ask(READ, "mem", "host", 4, 8),
    Ask(READ, "mem+100", "host,size=32KiB", 4, 6, options={"size_bytes": 9000}),
    Ask(READ, "mem", "host,size=32KiB", 3, 2, options={"verify": False}),
    Ask(READ, "mem", "FILE", 4, 8, options=STAGED),
    Ask(READ, "src", "host", 9, 4),
    Ask(READ, "src", "FILE", 9, 8, options=STAGED),
    Ask(READ, "src", "FILE", 3, 1, dry_run=True),
    Ask(READ, "big", "FILE", 8, 1, options=RESUMED),
)
MEASUREMENTS: tuple[dict[str, Any], ...] = (
    {"sizes": (512, 4096), "iterations": 20, "verify": True},
    {"sizes": (4096,), "iterations": 20, "operations": (READ,), "tests": ("bw", "lat"), "verify": True},
    {"sizes": (1024,), "duration_s": 0.002, "queue_pairs": 2},
    {"sizes": (64, 2), "iterations": 4, "tests": ("lat",), "lat_by": "ping-pong"},
    {"sizes": (512, 2000), "iterations": 10, "both_ways": True, "verify": True},
    {"sweep": True, "iterations": 2, "warm_up": 1, "operations": (WRITE, READ)},
)


def run_transfer_case(rig: Rig, ask: Ask) -> Any:
    """Run one transfer to its end and look at everything that it says and leaves behind."""
    local = rig.folder / ("kept.bin" if ask.options.get("resume") and ask.operation is WRITE else "local.bin")
    source = b""
    memory = ask.memory
    if memory == "FILE":
        memory = f"file:{local}"
        if ask.operation is WRITE:
            # Its time and size are what it is known by, and a resumed one stays.
            if not (ask.options.get("resume") and local.exists()):
                local.write_bytes(rig.dice.randbytes(BIG_BYTES if "resume" in ask.options else 20_000))
            os.utime(local, (1, 1))
            source = local.read_bytes()
    options: dict[str, Any] = {"timeouts": QUICK, **ask.options}
    request = api.make_request(ask.operation, f"{PEER}/{ask.target}", memory, **options)
    clock = rig.world.clock
    result = api.finish(run_transfer(request, dry_run=ask.dry_run, clock=clock, sleep=rig.world.sleep))
    assert result.status in ("ok", "planned", "failed")
    assert (result.exit_code == 0) == (result.status != "failed") == (result.error is None)
    name, _, offset = ask.target.partition("+")
    start, moved = int(offset or 0), result.results[0].size_bytes if result.results else 0
    for one in rig.memories:
        touched = moved if ask.operation is READ and result.results else 0
        one.check(max(0, touched))
    here = rig.memories[-1].content() if rig.memories else b""
    if ask.memory == "FILE" and ask.operation is READ:
        assert local.exists() == (result.status == "ok"), f"a sink after {result.error or result.status}"
        here = local.read_bytes() if local.exists() else b""
    if result.status == "ok":
        verified = result.verify.status == "verified"
        assert verified or ask.options.get("shared") or ask.options.get("verify") is False
        assert not result.partial
        if ask.options.get("size_bytes") is not None:
            assert moved == ask.options["size_bytes"]
        there = rig.there(name)[start : start + moved]
        if verified:
            assert len(there) == moved
            assert (source or here)[:moved] == there, "verified, and the bytes differ"
        if ask.memory == "FILE" and ask.operation is READ:
            assert len(here) == moved
    if local.name == "local.bin":
        local.unlink(missing_ok=True)
    if not ask.options.get("resume"):
        assert not list(rig.folder.glob("*.p2prw*")), "half a file was left behind"
    return result


def run_bench_case(rig: Rig, wishes: dict[str, Any]) -> Any:
    connection = api.make_request(WRITE, f"{PEER}/mem", "host", timeouts=QUICK, queue_pair=QueuePairOptions(depth=8))
    result = api.finish(run_bench(BenchRequest(connection=connection, **wishes), clock=rig.world.clock))
    assert (result.exit_code == 0) == (result.status == "ok") == (result.error is None)
    for one in rig.memories:
        guard = bytes([GUARD]) * GUARD_BYTES
        assert one.whole[:GUARD_BYTES] == guard and one.whole[GUARD_BYTES + one.length :] == guard
    if result.status == "ok" and wishes.get("verify"):
        assert result.verify.status == "verified"
    return result


def run_list_case(rig: Rig) -> P2prwError | None:
    try:
        listed = list_regions(PeerAddress("127.0.0.1", 18515), None, QUICK)
    except P2prwError as error:
        return error
    assert len(listed) <= 1 << 16
    return None


def check_error(error: Any) -> None:
    """It can be shown and acted upon, and it is not ours."""
    assert error.what and (error.why or error.fix), error
    assert error.code not in ("local_protocol", "usage", "queue_full", "queue_pair_state", "too_many_sges"), error
    "\n".join(filter(None, (error.what, error.why, error.fix))).encode()


@pytest.fixture
def rig(kit, world, made_up_end, inline_worker, tmp_path, monkeypatch) -> Iterator[Rig]:
    served, folder = tmp_path / "served", tmp_path / "ours"
    served.mkdir()
    folder.mkdir()
    (served / "src.bin").write_bytes(random.Random("source").randbytes(30_000))
    (served / "big.bin").write_bytes(random.Random("big").randbytes(BIG_BYTES))
    regions = {
        "mem": (f"host,size={REGION_BYTES}", "rw"),
        "wo": ("host,size=16KiB", "w"),
        "src": (f"file:{served}/src.bin", "r"),
        "big": (f"file:{served}/big.bin", "r"),
        "sink": (f"file:{served}/sink.bin", "rw"),
        "kept": (f"file:{served}/kept.bin", "rw"),
    }
    request = ServeRequest(
        regions=kit.regions(regions),
        listen=PeerAddress("127.0.0.1", 0),
        device="soft0",
        timeouts=Timeouts(),
        staging_bytes=1 << 20,
        staging_chunk_bytes=8 * 1024,
        overwrite=True,
    )
    made: list[Rig] = []
    opened = [lambda *a, **o: made[0].open_near(*a, **o), lambda *a, **o: made[0].open_far(*a, **o)]
    monkeypatch.setattr("p2prw.engine.client.open_device", opened[0])
    monkeypatch.setattr("p2prw.engine.server.server.open_device", lambda *a, **o: (ScriptedDevice(), "scripted"))
    monkeypatch.setattr("p2prw.engine.attach.StagingRing", InlineRing)
    server = Server(request, clock=world.clock, selector=NoSelector())  # type: ignore[arg-type]
    server.worker.close()
    server.worker = inline_worker
    # What a lie about a length may take from this machine's disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, limits[1]))
    try:
        with server:
            server._devices.clear()
            monkeypatch.setattr("p2prw.engine.server.server.open_device", opened[1])
            made.append(Rig(kit, random.Random("client"), world, made_up_end, server, folder))
            monkeypatch.setattr("p2prw.engine.control.channel.connect_socket", made[0].connect)
            monkeypatch.setattr("p2prw.engine.client.prepare_memory", made[0].prepare)
            hurried = functools.partial(start_reverse, clock=world.clock.hurry)
            monkeypatch.setattr("p2prw.engine.server.posting.start_reverse", hurried)
            monkeypatch.setattr(pingpong, "Pingpong", functools.partial(pingpong.Pingpong, clock=world.clock.hurry))
            yield made[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def one_case(rig: Rig, liar: Liar | None, kind: str, what: Any) -> tuple[int, Any]:
    """Run one command and everything that must hold after it; return its exit code and its error."""
    rig.world.clock.begin()
    if liar is not None:
        rig.lies.append(liar)
    if kind == "list":
        error = run_list_case(rig)
        code, document = (error.exit_code if error else 0), None
    else:
        result = run_transfer_case(rig, what) if kind == "transfer" else run_bench_case(rig, what)
        error, code, document = result.error, result.exit_code, transfer_document(result)
    if error is not None:
        check_error(error)
        assert code in (1, 3, 4, 7), (code, error)
    if document is not None:
        dump(document)
        if rig.dice.random() < 0.2:
            SCHEMA.validate(document)
    rig.hang_up()
    return code, error


def choose(dice: random.Random) -> tuple[str, Any, int]:
    choice = dice.random()
    if choice < 0.75:
        ask = dice.choices(TRANSFERS, [one.weight for one in TRANSFERS])[0]
        return "transfer", ask, ask.frames
    if choice < 0.95:
        return "bench", dice.choices(MEASUREMENTS, (4, 4, 4, 4, 4, 1))[0], 8
    return "list", None, 2


def test_an_honest_server_passes(rig) -> None:
    """Without this the storm could hold because nothing ever works."""
    for ask in TRANSFERS:
        assert one_case(rig, None, "transfer", ask) == (0, None), ask
    for wishes in MEASUREMENTS:
        assert one_case(rig, None, "bench", wishes) == (0, None), wishes
    assert one_case(rig, None, "list", None) == (0, None)


@pytest.mark.timeout(3600)
def test_a_client_in_front_of_a_liar(kit, flat, rig) -> None:
    dice = rig.dice
    codes: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    told: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    count, meter, descriptors = kit.inputs(CASES), flat(2000, 1 << 20), 0
    for number in range(count):
        if number == count * 9 // 10:
            meter.mark()
            descriptors = len(os.listdir("/proc/self/fd"))
        kind, what, frames = choose(dice)
        liar = Liar(kit, dice, dice.randrange(frames))
        try:
            code, error = one_case(rig, liar, kind, what)
        except BaseException as caught:
            caught.add_note(f"case {number}: {what or kind}; {liar.told!r} at frame {liar.at} ({liar.kind})")
            raise
        codes[code] += 1
        kinds[liar.kind] += 1
        told[liar.told] += 1
        reasons[error.code if error is not None else ""] += 1
        if code == 0:
            passed[liar.told] += 1
            # Who resumes starts over, and who has retries comes again: the lie was one at the first time. Where
            # nothing is sent, a queue pair that is none does no harm.
            options = what.options if kind == "transfer" else {}
            passes = options.keys() & {"resume", "retries"} or options.get("size_bytes") == 0
            passes = passes or (kind == "transfer" and what.dry_run)
            assert passes or liar.told in HARMLESS or "." not in liar.told, (liar.told, kind, what)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    meter.check()
    # Every phase and every end was reached, or the storm says nothing.
    for kind in ("hello", "grant", "filled", "committed", "digests", "window", "released", "ponging", "regions"):
        assert kinds[kind] >= 2, kinds
    for code in (0, 1, 3, 4, 7):
        assert codes[code] >= count // 200, codes
