"""Faults made on purpose between the software device's socket and its RoCE core: `drop=1%,dup=0.5%,...,seed=N`.

Faults strike single packets of bursts, in both directions, each direction with its own random sequence: whoever asks
for faults meets them on requests, data and acknowledgements alike, whichever way the data goes. The n-th packet of a
direction meets the same fate for the same seed, however packets were grouped into bursts.

`corrupt=OFFSET` is another thing: one byte of the transfer's data is changed where no ICRC sees it, so that
verification has something to catch. What tells it from a rate: a rate has a percent sign or a point.

Bursts stay bursts. A packet that changes its place in a burst changes its IPv4 identification (segment i of a
UDP_SEGMENT send carries i), so its ICRC is corrected for the new place; the correction is linear and leaves a right
ICRC right and a wrong one wrong.
"""

from __future__ import annotations

import difflib
import random
import re
import zlib
from dataclasses import dataclass, fields
from typing import NamedTuple

from p2prw.engine.model import Opcode
from p2prw.errors import RequestError
from p2prw.units import parse_size

Endpoint = tuple[str, int]

REORDER_DISTANCE = 8  # packets; a held packet goes out after 1 to this many later ones
REORDER_HOLD_S = 0.002  # seconds; it goes out alone when nothing follows it
MAX_DATAGRAM_BYTES = 65507
MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS before Linux 1382e3b6a350 (in v6.9)

_RATE_KEYS = {"drop": "drop", "dup": "duplicate", "reorder": "reorder", "corrupt": "corrupt", "rkey": "rkey"}
_FIX = "--inject drop=1%,dup=0.5%,reorder=2%,corrupt=1%,seed=1"
_OFFSET_FIX = "--inject corrupt=1% (packets that the ICRC catches), or corrupt=4096 (a byte that it does not)"
_RATE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(%?)")


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Probabilities for each packet, 0.0 to 1.0."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    rkey: float = 0.0
    """Of each request: it carries a wrong key under a right ICRC, which the peer's device must refuse."""
    seed: int = 0
    corrupt_offset: int | None = None
    """The byte of the transfer that is changed under a right ICRC."""


@dataclass(slots=True)
class FaultCounts:
    """Packets seen and packets hit, since the device was opened."""

    packets: int = 0
    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    wrong_rkeys: int = 0

    def __add__(self, other: FaultCounts) -> FaultCounts:
        return FaultCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def parse_faults(text: str) -> FaultPlan:
    """Return the plan that `drop=1%,dup=0.5%,reorder=2%,corrupt=1%,seed=N` asks for; RequestError when it is wrong.

    A rate is a percentage or a fraction of one; the seed defaults to 0. `corrupt` without percent sign or point is a
    byte offset of the transfer: `corrupt=4096`, `corrupt=1MiB`, and also `corrupt=1` (every packet is `corrupt=100%`).
    """
    rates: dict[str, float] = {}
    seed: int | None = None
    corrupt_offset: int | None = None
    for part in filter(None, (item.strip() for item in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key == "seed" and equals:
            if seed is not None:
                raise _repeated(key)
            seed = _parse_seed(value)
            continue
        if key not in _RATE_KEYS:
            near = difflib.get_close_matches(key, [*_RATE_KEYS, "seed"], n=1, cutoff=0.4)
            raise RequestError(
                f"--inject: no fault is called {key!r}",
                why=f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_RATE_KEYS)} and seed",
                fix=_FIX,
                code="bad_inject",
            )
        if _RATE_KEYS[key] in rates or (key == "corrupt" and corrupt_offset is not None):
            raise _repeated(key)
        if key == "corrupt" and value and not any(mark in value for mark in "%."):
            corrupt_offset = _parse_offset(value)
            continue
        rates[_RATE_KEYS[key]] = _parse_rate(key, value)
    if not rates and corrupt_offset is None:
        raise RequestError("--inject names no fault", why="it is empty, or a seed alone", fix=_FIX, code="bad_inject")
    return FaultPlan(**rates, seed=seed or 0, corrupt_offset=corrupt_offset)


def _repeated(key: str) -> RequestError:
    return RequestError(f"--inject: {key} is given twice", why="each word has one value", fix=_FIX, code="bad_inject")


def _parse_rate(key: str, value: str) -> float:
    match = _RATE.fullmatch(value)
    rate = float(match.group(1)) / (100 if match.group(2) else 1) if match else -1.0
    if not 0.0 <= rate <= 1.0:
        raise RequestError(
            f"--inject: {key}={value} is no rate",
            why="a rate is a percentage from 0% to 100%, or a fraction from 0 to 1",
            fix=_FIX,
            code="bad_inject",
        )
    return rate


def _parse_offset(value: str) -> int:
    try:
        return parse_size(value, "corrupt")
    except RequestError as error:
        raise RequestError(
            f"--inject: corrupt={value} is neither a rate nor a byte offset",
            why="a rate has a percent sign or a point, a byte offset is a size",
            fix=_OFFSET_FIX,
            code="bad_inject",
        ) from error


def _parse_seed(value: str) -> int:
    try:
        return int(value, 0)
    except ValueError:
        what = f"--inject: seed={value} is no whole number"
        raise RequestError(what, why="a seed makes a run repeatable", fix=_FIX, code="bad_inject") from None


def moved_icrc(payload: bytes | bytearray | memoryview, old_index: int, new_index: int) -> bytes:
    """Return the payload (one whole UDP payload) with its ICRC corrected for another IPv4 identification.

    CRC-32 is linear: the difference of two CRCs is the raw CRC of the difference of the data, here the two bytes of
    the identification followed by zeros up to the end of what the ICRC covers.
    """
    if old_index == new_index:
        return bytes(payload)
    # After the identification: 14 bytes of the IPv4 header, 8 of UDP, the payload without the ICRC.
    difference = (old_index ^ new_index).to_bytes(2, "big") + bytes(14 + 8 + len(payload) - 4)
    raw_crc = zlib.crc32(difference, 0xFFFFFFFF) ^ 0xFFFFFFFF
    icrc = int.from_bytes(payload[-4:], "little") ^ raw_crc
    return bytes(payload[:-4]) + icrc.to_bytes(4, "little")


# Opcodes of packets with an RETH (IBTA Vol 1 table 38): WRITE First, Only, Only with immediate, READ Request.
_WITH_RETH = frozenset({0x06, 0x0A, 0x0B, 0x0C})
_RKEY_OFFSET = 20  # BTH 12 bytes, virtual address 8


def wrong_rkey(payload: bytes | memoryview) -> bytes | None:
    """Return the payload with another rkey and the ICRC that goes with it; None where it carries no key."""
    if len(payload) < _RKEY_OFFSET + 8 or payload[0] not in _WITH_RETH:
        return None
    spoiled = bytearray(payload)
    spoiled[_RKEY_OFFSET] ^= 0xFF
    # As in moved_icrc(): the raw CRC of the difference.
    difference = b"\xff" + bytes(len(payload) - 4 - _RKEY_OFFSET - 1)
    raw_crc = zlib.crc32(difference, 0xFFFFFFFF) ^ 0xFFFFFFFF
    icrc = int.from_bytes(payload[-4:], "little") ^ raw_crc
    spoiled[-4:] = icrc.to_bytes(4, "little")
    return bytes(spoiled)


class FaultedBurst(NamedTuple):
    """A burst as it goes on after the faults; `segment_bytes` equals the length for a single datagram."""

    data: bytes | memoryview
    segment_bytes: int
    endpoint: Endpoint


class _Packet(NamedTuple):
    data: bytes | memoryview
    place: int
    """In the burst it came in: what its ICRC was made for."""
    endpoint: Endpoint


class _Held(NamedTuple):
    packet: _Packet
    packets_to_wait: int
    deadline: float


class FaultShim:
    """One direction. Driven by bursts that pass and by a timer that lets held packets go. No clock of its own."""

    def __init__(self, plan: FaultPlan, direction: str, *, ipv4: bool) -> None:
        """`direction` (`tx` or `rx`) gives each direction its own random sequence."""
        self.counts = FaultCounts()
        self._plan = plan
        self._ipv4 = ipv4
        self._random = random.Random(f"{plan.seed}:{direction}")
        self._held: list[_Held] = []

    def apply(self, data: memoryview, segment_bytes: int, endpoint: Endpoint, now: float) -> list[FaultedBurst]:
        """Return what becomes of a burst: the burst itself, or copies in fresh memory; `now` is in seconds.

        Packets that are held are copied, so `data` may be reused after the call's results were used.
        """
        step = segment_bytes or len(data)
        going: list[_Packet] = []
        struck = bool(self._held)
        for place, start in enumerate(range(0, len(data), step)):
            packet = _Packet(data[start : start + step], place, endpoint)
            struck |= self._strike(packet, going, now)
        if not struck:
            # fast path: nothing happened to this burst.
            return [FaultedBurst(data, step, endpoint)]
        return self._regroup(going)

    def _strike(self, packet: _Packet, going: list[_Packet], now: float) -> bool:
        """Decide one packet's fate and append what goes on; return True when it is not simply the packet."""
        plan, counts, draw = self._plan, self.counts, self._random.random
        counts.packets += 1
        # Always the same draws for each packet, so that the n-th packet's fate depends on n and the seed only.
        drop, corrupt, duplicate, reorder, where = draw(), draw(), draw(), draw(), draw()
        passed = going
        struck = False
        if drop < plan.drop:
            counts.dropped += 1
            struck = True
        else:
            if corrupt < plan.corrupt:
                counts.corrupted += 1
                struck = True
                spoiled = bytearray(packet.data)
                bit = int(where * len(spoiled) * 8)
                spoiled[bit >> 3] ^= 1 << (bit & 7)
                packet = packet._replace(data=bytes(spoiled))
            # Drawn only where it was asked for: other plans keep the fates they had.
            if plan.rkey and draw() < plan.rkey:
                refused = wrong_rkey(packet.data)
                if refused is not None:
                    counts.wrong_rkeys += 1
                    struck = True
                    packet = packet._replace(data=refused)
            if reorder < plan.reorder:
                counts.reordered += 1
                struck = True
                kept = packet._replace(data=bytes(packet.data))
                self._held.append(_Held(kept, 1 + int(where * REORDER_DISTANCE), now + REORDER_HOLD_S))
                return struck
            passed.append(packet)
            if duplicate < plan.duplicate:
                counts.duplicated += 1
                struck = True
                passed.append(packet)
        if self._held:
            self._held = [held._replace(packets_to_wait=held.packets_to_wait - 1) for held in self._held]
            passed.extend(held.packet for held in self._held if held.packets_to_wait <= 0)
            self._held = [held for held in self._held if held.packets_to_wait > 0]
        return struck

    def next_timer(self) -> float | None:
        """Return when `release` has work (on the caller's clock); None when nothing is held."""
        return min((held.deadline for held in self._held), default=None)

    def release(self, now: float) -> list[FaultedBurst]:
        """Return the held packets whose time is up."""
        due = [held.packet for held in self._held if held.deadline <= now]
        if not due:
            return []
        self._held = [held for held in self._held if held.deadline > now]
        return self._regroup(due)

    def _regroup(self, packets: list[_Packet]) -> list[FaultedBurst]:
        """Join neighbours of equal size into bursts again (the last may be shorter) and correct their ICRCs."""
        bursts: list[FaultedBurst] = []
        run: list[_Packet] = []
        length_bytes = 0
        for packet in packets:
            size = len(packet.data)
            fits = (
                run
                and packet.endpoint == run[0].endpoint
                and len(run[-1].data) == len(run[0].data) >= size
                and len(run) < MAX_SEGMENTS
                and length_bytes + size <= MAX_DATAGRAM_BYTES
            )
            if not fits:
                self._emit(run, bursts)
                run, length_bytes = [], 0
            run.append(packet)
            length_bytes += size
        self._emit(run, bursts)
        return bursts

    def _emit(self, run: list[_Packet], bursts: list[FaultedBurst]) -> None:
        if not run:
            return
        if self._ipv4:
            pieces: list[bytes | memoryview] = [
                packet.data if packet.place == place else moved_icrc(packet.data, packet.place, place)
                for place, packet in enumerate(run)
            ]
        else:
            pieces = [packet.data for packet in run]
        bursts.append(FaultedBurst(b"".join(pieces), len(run[0].data), run[0].endpoint))


class ByteFlip:
    """Finds the work request that carries byte `offset` of a transfer.

    A transfer is posted in the order of its bytes, all by one opcode; what is posted by the other one (the READs that
    flush a WRITE, or bring a bad block back) is none of its data.
    """

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.struck = False
        self._opcode: Opcode | None = None
        self._posted_bytes = 0

    def strike(self, opcode: Opcode, length_bytes: int) -> int | None:
        """Count a posted request; return where in it the byte lies, or None."""
        if self._opcode is None:
            self._opcode = opcode
        if opcode is not self._opcode or self.struck:
            return None
        first, self._posted_bytes = self._posted_bytes, self._posted_bytes + length_bytes
        self.struck = first <= self.offset < self._posted_bytes
        return self.offset - first if self.struck else None


class FaultInjector:
    """Both directions of one device."""

    def __init__(self, plan: FaultPlan, *, ipv4: bool) -> None:
        self.plan = plan
        self.flip = None if plan.corrupt_offset is None else ByteFlip(plan.corrupt_offset)
        self.sending = FaultShim(plan, "tx", ipv4=ipv4)
        self.receiving = FaultShim(plan, "rx", ipv4=ipv4)

    @property
    def counts(self) -> FaultCounts:
        """Both directions together."""
        return self.sending.counts + self.receiving.counts

    def next_timer(self) -> float | None:
        """Return when a held packet must go on; None when none is held."""
        return min((t for t in (self.sending.next_timer(), self.receiving.next_timer()) if t is not None), default=None)
