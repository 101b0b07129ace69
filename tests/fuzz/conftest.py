"""The fuzz kit: how many inputs, what they are made from, how they are changed, and what must stay flat.

Everything is seeded: a failure comes back with the same command. `corpus/messages.jsonl` holds one valid control
message a line and `corpus/broken.hex` bodies that once were, or could be, trouble; both are only ever added to.
"""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.control.messages import PROTOCOL_VERSION

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
        self.mark_objects = self.mark_bytes = 0

    def mark(self) -> None:
        """From here on nothing may grow; call it when caches are full (half way)."""
        tracemalloc.start()
        gc.collect()
        self.mark_objects, self.mark_bytes = len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    def check(self) -> None:
        """Nothing has grown."""
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - self.mark_bytes
        more = len(gc.get_objects()) - self.mark_objects
        assert more <= self.most_objects, f"{more} objects more"
        assert held <= self.most_bytes, f"{held} bytes more"


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
