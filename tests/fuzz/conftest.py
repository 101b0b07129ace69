"""The fuzz kit: how many inputs, what they are made from, how they are changed, and what must stay flat.

Everything is seeded: a failure comes back with the same command. `corpus/messages.jsonl` holds one valid control
message a line and `corpus/broken.hex` bodies that once were, or could be, trouble; both are only ever added to.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import pathlib
import random
import select
import socket
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2prw.engine.control.messages import PROTOCOL_VERSION
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import ServedRegion

CORPUS = Path(__file__).parent / "corpus"
LONG_FACTOR = 10

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e308, float("inf"), float("nan")),
    *(1 << 64, 1 << 400, -(1 << 200), "", "x" * 3000, "\ud800", "\x1b[31m", "\0", "0x10", "1"),
    *([], {}, [[]], [None], {"type": "hello"}, ["a"] * 300, [{}] * 257, {"a": {"b": {"c": 1}}}),
]
# As text: a container that two documents shared would carry the changes of one into the other.
ODD_TEXTS = [json.dumps(value) for value in ODD_VALUES]
STEPS = (-1, 1, 1 << 24, 1 << 32, 1 << 63, -(1 << 63))
NEW_NAMES = ("type", "lease", "version", "__class__", "", "unknown")


class Kit:
    """What every fuzzer uses."""

    def __init__(self, long: bool) -> None:
        self.is_long = long
        lines = (CORPUS / "messages.jsonl").read_text().splitlines()
        documents: list[dict[str, Any]] = [json.loads(line) for line in lines]
        for document in documents:
            if document["type"] == "hello":
                document["version"] = PROTOCOL_VERSION
        self.bodies = [json.dumps(document).encode() for document in documents]
        self.broken = [bytes.fromhex(line.split()[0]) for line in (CORPUS / "broken.hex").read_text().splitlines()]

    def inputs(self, normal: int) -> int:
        """Return how many inputs a fuzzer takes that takes `normal` in the usual run."""
        return normal * LONG_FACTOR if self.is_long else normal

    @staticmethod
    def regions(words: dict[str, tuple[str, str]]) -> tuple[ServedRegion, ...]:
        """Return what a server offers by name -> (memory, access)."""
        return tuple(
            ServedRegion(name=name, memory=parse_memory_spec(spec), access=access)
            for name, (spec, access) in words.items()
        )

    def document(self, dice: random.Random) -> dict[str, Any]:
        """Return a valid message of the corpus, free to be changed."""
        return dict(json.loads(dice.choice(self.bodies)))

    def change(self, dice: random.Random, document: Any) -> None:
        """Change, drop, add or retype one field of a JSON value, at any depth."""
        places: list[tuple[Any, Any]] = []
        stack = [document]
        while stack:
            parent = stack.pop()
            for key, item in parent.items() if isinstance(parent, dict) else enumerate(parent):
                places.append((parent, key))
                if isinstance(item, dict | list):
                    stack.append(item)
        if not places:
            return
        parent, key = dice.choice(places)
        action = dice.randrange(4)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent[dice.choice(NEW_NAMES)] = json.loads(dice.choice(ODD_TEXTS))
        elif action == 2 and type(parent[key]) is int:
            parent[key] += dice.choice(STEPS)
        else:
            parent[key] = json.loads(dice.choice(ODD_TEXTS))

    def mangle(self, dice: random.Random, body: bytes) -> bytes:
        """Break bytes: cut, flipped, doubled, in another encoding, or from the dice altogether."""
        data = bytearray(body)
        match dice.randrange(5):
            case 0:
                del data[dice.randrange(len(data)) :]
            case 1:
                for _ in range(dice.randint(1, 4)):
                    data[dice.randrange(len(data))] = dice.randrange(256)
            case 2:
                at = dice.randrange(len(data))
                data[at:at] = data[dice.randrange(len(data)) :]
            case 3:
                data = bytearray(dice.randbytes(dice.randrange(200)))
            case _:
                encoding = dice.choice(["utf-16", "utf-32-le", "utf-8-sig"])
                data = bytearray(body.decode("latin-1").encode(encoding))
        return bytes(data)

    def body(self, dice: random.Random) -> bytes:
        """Return the body of a control frame: valid, changed in one to three fields, broken, or known trouble."""
        choice = dice.random()
        if choice < 0.1:
            return dice.choice(self.bodies)
        if choice < 0.7:
            document = self.document(dice)
            for _ in range(dice.randint(1, 3)):
                self.change(dice, document)
            return json.dumps(document).encode()
        if choice < 0.97:
            return self.mangle(dice, dice.choice(self.bodies))
        return dice.choice(self.broken)


class Flat:
    """Memory before and after: Python objects counted, and bytes traced between two marks of the same kind of work."""

    def __init__(self, most_objects: int, most_bytes: int) -> None:
        self.most_objects, self.most_bytes = most_objects, most_bytes
        self.mark_objects = 0

    def mark(self) -> None:
        """From here on nothing may grow; call it when caches are full (half way)."""
        tracemalloc.start()
        gc.collect()
        self.mark_objects = len(gc.get_objects())

    def check(self) -> None:
        """Nothing has grown."""
        gc.collect()
        # pathlib interns the parts of a path, and the interpreter's table of such strings doubles now and then.
        held = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
        held_bytes = sum(trace.size for trace in held.traces)
        more = len(gc.get_objects()) - self.mark_objects
        assert more <= self.most_objects, f"{more} objects more"
        assert held_bytes <= self.most_bytes, f"{held_bytes} bytes more"


@pytest.fixture(autouse=True)
def uncovered(no_cover: None) -> None:
    """Coverage is held by the tests of each part: counting lines here would take as long as the fuzzing."""


@pytest.fixture(scope="session")
def kit(pytestconfig: pytest.Config) -> Kit:
    return Kit(bool(pytestconfig.getoption("--long")))


@pytest.fixture
def flat() -> Iterator[Callable[..., Flat]]:
    """Return a maker of meters; tracing, which slows everything down, ends with the test."""
    yield lambda most_objects=500, most_bytes=256 * 1024: Flat(most_objects, most_bytes)
    tracemalloc.stop()


class HandClock:
    """Seconds that pass when something waits, and a little at each look, so that no loop lives between two looks."""

    def __init__(self, most_looks: int, most_s: float) -> None:
        self.now = 1000.0
        self.most_looks, self.most_s = most_looks, most_s
        self.begin()

    def __call__(self) -> float:
        self.look()
        return self.now

    def look(self) -> None:
        """One step of whoever is looked at; too many are a hang."""
        self.looks += 1
        self.now += 2e-5
        assert self.looks <= self.most_looks, f"still at it after {self.looks} steps"
        assert self.now <= self.end_s, f"still at it after {self.most_s} s"

    def hurry(self) -> float:
        """The time for somebody who spins: his looks are long and are not counted."""
        self.now += 1e-4
        return self.now

    def begin(self) -> None:
        """Count anew."""
        self.looks = 0
        self.end_s = self.now + self.most_s


class Socket:
    """A made-up TCP connection as one end sees it; `recv` and `send` are its kinds'."""

    family, type = socket.AF_INET, socket.SOCK_STREAM
    numbers = iter(range(1 << 20, 1 << 40))

    def __init__(self) -> None:
        self.number = next(self.numbers)
        self.said = bytearray()
        self.ended: OSError | bool = False
        """The other end has closed, or reset, once what has arrived is read."""
        self.closed = False

    def nothing_more(self) -> bytes:
        """Return what recv(2) does when all that has arrived is read."""
        if isinstance(self.ended, OSError):
            raise self.ended
        if self.ended:
            return b""
        raise BlockingIOError

    def fileno(self) -> int:
        return -1 if self.closed else self.number

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 18515

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 20_000 + self.number % 40_000

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def setsockopt(self, *_: object) -> None:
        pass

    def shutdown(self, _: int) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class End(Socket):
    """A stream of bytes; each call takes a little of the time of whoever makes it."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__()
        self.clock = clock
        self.arrived = bytearray()
        self.flood = b""
        """What arrives for ever, as fast as it is read."""

    def recv(self, most: int) -> bytes:
        self.clock.look()
        if self.flood and not self.arrived:
            self.arrived += self.flood
            self.clock.now += 0.02
        if self.arrived:
            data = bytes(self.arrived[:most])
            del self.arrived[:most]
            return data
        return self.nothing_more()

    def send(self, data: bytes | bytearray) -> int:
        self.clock.look()
        if self.ended:
            raise BrokenPipeError(errno.EPIPE, "broken pipe")
        count = min(len(data), 70_000)
        self.said += data[:count]
        return count


class FullEnd(Socket):
    """Pieces, read as they were sent; the peer reads so many bytes, then the kernel's buffer is full."""

    def __init__(self, takes_bytes: int) -> None:
        super().__init__()
        self.arrived: deque[bytes] = deque()
        self.takes_bytes = takes_bytes

    def recv(self, most: int) -> bytes:
        if self.arrived:
            piece = self.arrived.popleft()
            if len(piece) > most:
                self.arrived.appendleft(piece[most:])
            return piece[:most]
        return self.nothing_more()

    def send(self, data: bytes | bytearray) -> int:
        if isinstance(self.ended, OSError):
            raise self.ended
        count = min(len(data), self.takes_bytes, 70_000)
        if count == 0:
            raise BlockingIOError
        self.takes_bytes -= count
        self.said += data[:count]
        return count


class World:
    """What is on the other side of every wait: `turn` does a piece of it and says whether anything happened."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.turn: Callable[[], bool] = lambda: False

    def poller(self) -> Any:
        """Return a stand-in for `select.poll()`."""
        return SimpleNamespace(register=lambda *_: None, modify=lambda *_: None, poll=self.wait)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.look()
        self.clock.now += seconds

    def wait(self, at_most_ms: float) -> list[tuple[int, int]]:
        """Let the others work; where they have nothing to do, let time pass."""
        self.clock.look()
        if not self.turn():
            self.clock.now += at_most_ms / 1000
        return []


class Inline:
    """A server's worker without its thread: a job is done when it is asked for, its callback runs in `poll`."""

    def __init__(self) -> None:
        self.done: deque[tuple[Callable[[BaseException | None], None], BaseException | None]] = deque()

    def fileno(self) -> int:
        return (1 << 19) + 1

    def submit(self, job: Callable[[], object], done: Callable[[BaseException | None], None]) -> None:
        error: BaseException | None = None
        try:
            job()
        except Exception as caught:
            error = caught
        self.done.append((done, error))

    def poll(self) -> bool:
        busy = bool(self.done)
        while self.done:
            done, error = self.done.popleft()
            done(error)
        return busy

    def close(self) -> None:
        self.poll()


@pytest.fixture
def inline_worker() -> Inline:
    return Inline()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Take clock, waits and sockets of the control channel's waits into the test's hands."""
    made = World(HandClock(most_looks=100_000, most_s=30.0))
    selects = SimpleNamespace(poll=made.poller, POLLIN=select.POLLIN, POLLOUT=select.POLLOUT)
    for module in ("p2prw.engine.control.channel", "p2prw.engine.waiting"):
        monkeypatch.setattr(f"{module}.select", selects)
    for module in ("p2prw.engine.control.channel", "p2prw.engine.control.last_words", "p2prw.engine.peer"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=made.clock))
    # Nobody pulls the plug here, and a disk that is asked to make sure takes most of the time.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    return made


@pytest.fixture
def made_up_end() -> type[End]:
    return End


@pytest.fixture
def full_end() -> type[FullEnd]:
    return FullEnd
