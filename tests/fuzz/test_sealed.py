"""Somebody in between who changes what is sealed by a token, or what TLS carries, after the handshake or in it.

Both ends are real channels; the bytes between them pass through here, frame by frame or record by record. Whatever is
done to them, each end hears a beginning of what the other one said and nothing else, and ends with a documented error.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.control.channel import MAX_QUEUED_BYTES, STRANGER_LINE, Channel
from p2prw.engine.control.framing import HEADER, READ_BYTES
from p2prw.engine.control.handshake import ClientHandshake, Handshake, ServerHandshake
from p2prw.engine.control.messages import MAX_FRAME_BYTES, Message, decode
from p2prw.engine.control.tls import TlsDoor, TlsFilter, client_filter
from p2prw.engine.model import TlsClient, TlsServer
from p2prw.errors import P2prwError, PeerGone, PeerRefusedError, RemoteProtocolError

SEALED, TLS, FILTERS = 4_000, 600, 2_000
TOKEN = b"correct horse"
RECORD_BYTES = 5
CHANGE_CIPHER_SPEC = 20
MOST_RECORD_BYTES = RECORD_BYTES + (1 << 14) + 256
"""RFC 8446 section 5.2."""
HARMS = (
    *("flip", "flip", "flip", "drop", "twice", "swap", "replay", "foreign", "cut", "end", "length", "garbage"),
    *("huge", "shorter", "longer", "empty", "plain"),
)
ADDING = frozenset({"twice", "replay", "foreign", "garbage", "huge", "empty", "plain"})
"""What leaves everything that was said in its place; something comes between."""


@dataclass
class Side:
    """One end: what it has said and heard since the handshake, and how it ended."""

    channel: Channel
    end: Any
    handshake: Handshake
    said: list[Message] = field(default_factory=list)
    heard: list[Message] = field(default_factory=list)
    error: P2prwError | None = None
    ready: bool = False

    def begin(self) -> None:
        for message in self.handshake.start():
            self.channel.send(message)

    def step(self) -> None:
        """Take in what has arrived, as the session and the server do."""
        if self.error is not None:
            return
        try:
            while (message := self.channel.receive()) is not None:
                if self.ready:
                    self.heard.append(message)
                    continue
                for answer in self.handshake.receive(message, self.channel.received_body, self.channel.binding):
                    self.channel.send(answer)
                if self.handshake.error is not None:
                    raise self.handshake.error
                if self.handshake.done:
                    self.channel.seal_from(self.handshake)
                    self.ready = True
        except (PeerGone, PeerRefusedError, RemoteProtocolError) as error:
            self.error = error
        self.check()

    def say(self, message: Message) -> None:
        if self.error is None:
            self.channel.send(message)
            self.said.append(message)

    def check(self) -> None:
        channel = self.channel
        assert channel._parser.held_bytes < MAX_FRAME_BYTES + HEADER.size + READ_BYTES
        assert channel.queued_bytes <= MAX_QUEUED_BYTES
        if channel._tls is not None:
            assert channel._tls._incoming.pending <= READ_BYTES + MOST_RECORD_BYTES

    def leave(self, dice: random.Random, message: Message) -> None:
        """After an error an end still says goodbye, flushes and closes: none of it is a traceback."""
        for _ in range(2):
            for call in (lambda: self.channel.send(message), self.channel.flush, self.channel.receive):
                try:
                    call()
                except (PeerGone, PeerRefusedError, RemoteProtocolError):
                    pass
        if dice.random() < 0.3:
            self.channel.refuse_stranger()
        self.channel.close()
        self.channel.close()


@dataclass
class Middle:
    """The way in one direction; does harm to one unit of it."""

    dice: random.Random
    in_records: bool
    at: int = -1
    harm: str = ""
    foreign: list[bytes] = field(default_factory=list)
    """Units of other sessions, in this direction."""
    seen: list[bytes] = field(default_factory=list)
    rest: bytearray = field(default_factory=bytearray)
    late: bytes = b""
    done: bool = False
    harmed: bytes = b""
    stopped: bool = False

    def pass_on(self, data: bytes) -> bytes:
        self.rest += data
        out = bytearray()
        while (unit := self.next_unit()) is not None:
            self.seen.append(unit)
            if self.stopped:
                continue
            if len(self.seen) - 1 == self.at:
                out += self.hurt(unit)
            else:
                out += unit + self.late
                self.late = b""
        return bytes(out)

    def next_unit(self) -> bytes | None:
        rest = self.rest
        header = RECORD_BYTES if self.in_records and rest[:1] != b"\0" else HEADER.size
        if len(rest) < header:
            return None
        length = int.from_bytes(rest[3:5] if header == RECORD_BYTES else rest[:4], "big")
        if len(rest) < header + length:
            return None
        unit = bytes(rest[: header + length])
        del rest[: header + length]
        return unit

    def hurt(self, unit: bytes) -> bytes:
        dice, self.done, self.harmed = self.dice, True, unit
        header = RECORD_BYTES if self.in_records else HEADER.size
        match self.harm:
            case "flip":
                at = dice.randrange(len(unit))
                return unit[:at] + bytes((unit[at] ^ 1 << dice.randrange(8),)) + unit[at + 1 :]
            case "drop":
                return b""
            case "twice":
                return unit + unit
            case "swap":
                self.late = unit
                return b""
            case "replay":
                return dice.choice(self.seen) + unit
            case "foreign":
                return dice.choice(self.foreign or [unit]) + unit
            case "cut" | "end":
                self.stopped = True
                return unit[: dice.randrange(len(unit))] if self.harm == "cut" else b""
            case "length":
                wrong = dice.choice([0, 1, len(unit), 65535, 16640])
                size = 2 if self.in_records else 4
                return unit[: header - size] + wrong.to_bytes(size, "big") + unit[header:]
            case "garbage":
                return dice.randbytes(dice.randrange(1, 300)) + unit
            case "huge":
                filler = dice.randbytes(70_000)
                return (b"\x17\x03\x03\xff\xff" if self.in_records else b"\0\x01\0\0") + filler + unit
            case "shorter":
                return self.resized(unit[header:-1]) + b""
            case "longer":
                return self.resized(unit[header:] + b"}")
            case "empty":
                return self.resized(b"") + unit
            case _:
                # A message without a seal, or TLS's alert in clear.
                alert = b"\x15\x03\x03\0\x02" + dice.choice([b"\x01\0", b"\x02\x28", b"\x02\x74"])
                body = b'{"type":"window","window_bytes":1}'
                return (alert if self.in_records else self.resized(body)) + unit

    def resized(self, body: bytes) -> bytes:
        if self.in_records:
            return b"\x17\x03\x03" + len(body).to_bytes(2, "big") + body
        return HEADER.pack(len(body)) + body


class Session:
    """Two sides with somebody in between."""

    def __init__(
        self, world: Any, made_up_end: Any, dice: random.Random, tls: tuple[TlsFilter, TlsFilter] | None, token: bool
    ) -> None:
        near, far = made_up_end(world.clock), made_up_end(world.clock)
        world.clock.begin()
        proof = TOKEN if token else None
        filters = tls or (None, None)
        self.client = Side(Channel(near, filters[0]), near, ClientHandshake(nonce=secrets.token_hex(32), token=proof))
        self.server = Side(Channel(far, filters[1]), far, ServerHandshake(nonce=secrets.token_hex(32), token=proof))
        self.to_server = Middle(dice, tls is not None)
        self.to_client = Middle(dice, tls is not None)
        self.client.begin()

    def settle(self) -> None:
        """Let both talk until nobody has anything to say."""
        ways = (
            (self.client, self.to_server, self.server),
            (self.server, self.to_client, self.client),
        )
        for _ in range(40):
            moved = False
            for speaker, way, listener in ways:
                speaker.channel.flush()
                if speaker.end.said:
                    moved = True
                    listener.end.arrived += way.pass_on(bytes(speaker.end.said))
                    speaker.end.said.clear()
                if way.stopped:
                    listener.end.ended = True
                listener.step()
            if not moved:
                return
        raise AssertionError("they talk for ever")

    def close(self, dice: random.Random, message: Message) -> None:
        for side in (self.client, self.server):
            side.leave(dice, message)


Maker = Callable[[], Session]


def storm(kit: Any, flat: Any, dice: random.Random, count: int, make: Maker, *, sealed: bool) -> None:
    """`count` sessions, each with one harm in one direction."""
    harms: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    foreign: tuple[list[bytes], list[bytes]] = ([], [])
    messages = [decode(body) for body in kit.bodies]
    meter = flat(2000, 1 << 20)
    for number in range(count):
        if number == count * 9 // 10:
            meter.mark()
        session = make()
        ways = (session.to_server, session.to_client)
        which = dice.randrange(2)
        way, listener, speaker = (
            (ways[0], session.server, session.client) if which == 0 else (ways[1], session.client, session.server)
        )
        way.harm = dice.choice(HARMS)
        way.foreign = foreign[which]
        late = dice.random() < 0.75
        if not late:
            way.at = dice.randrange(4)
        session.settle()
        if late:
            assert session.client.ready and session.server.ready, (session.client.error, session.server.error)
            way.at = len(way.seen) + dice.randrange(3)
        for _ in range(dice.randrange(1, 4)):
            for side in (session.client, session.server):
                if side.ready:
                    side.say(dice.choice(messages))
            if dice.random() < 0.5:
                session.settle()
        session.settle()
        for side, other in ((session.client, session.server), (session.server, session.client)):
            # The law: what is taken for the peer's is what the peer said, in its order, from the beginning.
            assert side.heard == other.said[: len(side.heard)]
            assert side.error is None or side.error.code != "local_protocol"
        harmless = way.in_records and way.harmed[:1] == bytes((CHANGE_CIPHER_SPEC,))
        if way.done and not harmless:
            harms[way.harm] += 1
            noticed = listener.error is not None or len(listener.heard) < len(speaker.said) or not listener.ready
            if sealed and late:
                assert noticed, (way.harm, way.at, way.harmed)
        if listener.error is not None:
            codes[listener.error.code] += 1
        if number % 8 == 0:
            # Recorded: the next sessions hear it again.
            for index, one in enumerate(ways):
                foreign[index][:] = one.seen or foreign[index]
        session.close(dice, dice.choice(messages))
    meter.check()
    for harm in set(HARMS):
        assert harms[harm] >= count // 100, harms
    assert codes["peer_lost"] and (codes["bad_seal"] or codes["tls_failed"]), codes


@pytest.mark.timeout(3600)
def test_sealed_frames(kit, flat, world, made_up_end) -> None:
    dice = random.Random("sealed")
    storm(
        kit,
        flat,
        dice,
        kit.inputs(SEALED),
        lambda: Session(world, made_up_end, dice, None, token=True),
        sealed=True,
    )


@pytest.mark.parametrize("token", [False, True], ids=["open", "token"])
def test_tls_records(kit, flat, world, made_up_end, certificates: Path, token: bool) -> None:
    dice = random.Random(f"tls {token}")
    door = TlsDoor(TlsServer(cert_file=str(certificates / "host.pem"), key_file=str(certificates / "host.key")))
    trusts = TlsClient(ca_file=str(certificates / "ca.pem"))

    def make() -> Session:
        filters = client_filter(trusts, "127.0.0.1"), door.filter()
        return Session(world, made_up_end, dice, filters, token)

    storm(kit, flat, dice, kit.inputs(TLS) // 2, make, sealed=True)


@pytest.mark.parametrize("role", ["client", "server"])
def test_filters_fed_anything(kit, flat, world, made_up_end, certificates: Path, role: str) -> None:
    """A stranger at a TLS port, and a stranger that a TLS client was sent to."""
    dice = random.Random(f"filters {role}")
    door = TlsDoor(TlsServer(cert_file=str(certificates / "host.pem"), key_file=str(certificates / "host.key")))
    trusts = TlsClient(fingerprint=door.fingerprint)
    hello = client_filter(trusts, "127.0.0.1").take()
    codes: Counter[str] = Counter()
    count, meter = kit.inputs(FILTERS) // 2, flat(2000, 1 << 20)
    message = decode(kit.bodies[0])
    filters = [door.filter() if role == "server" else client_filter(trusts, "127.0.0.1") for _ in range(1)]
    for number in range(count):
        if number == count * 9 // 10:
            meter.mark()
        world.clock.begin()
        end = made_up_end(world.clock)
        filters[0] = door.filter() if role == "server" else client_filter(trusts, "127.0.0.1")
        handshake = (ServerHandshake if role == "server" else ClientHandshake)(nonce=secrets.token_hex(32))
        side = Side(Channel(end, filters[0]), end, handshake)
        side.begin()
        for _ in range(dice.randint(1, 4)):
            end.arrived += stranger(kit, dice, hello)
            side.step()
        assert not side.ready and not side.heard
        if dice.random() < 0.3:
            end.ended = True
            side.step()
        codes[side.error.code if side.error else ""] += 1
        side.leave(dice, message)
        assert len(end.said) <= 8192, "a stranger is told a lot"
    meter.check()
    for code in ("", "tls_failed", "not_p2prw", "peer_lost"):
        assert codes[code], codes


def stranger(kit: Any, dice: random.Random, hello: bytes) -> bytes:
    body = dice.randbytes(dice.choice([0, 1, 40, 500, 16640, 17000]))
    length = dice.choice([len(body), 0, 65535, 16641])
    record = bytes((dice.choice([20, 21, 22, 23, 24, 255]), 3, dice.choice([0, 1, 3, 4]))) + length.to_bytes(2, "big")
    return bytes(
        dice.choice(
            [
                record + body,
                kit.mangle(dice, hello),
                hello[: dice.randrange(1, len(hello))],
                b"\x16\x03\x01" + dice.randbytes(2) + b"\x01\0\0" + body,
                b"\x15\x03\x03\0\x02\x02\x28",
                b"\x14\x03\x03\0\x01\x01",
                b"GET / HTTP/1.1\r\n\r\n",
                STRANGER_LINE,
                dice.randbytes(dice.randrange(1, 100)),
            ]
        )
    )
