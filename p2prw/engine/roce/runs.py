"""The two loops all bulk data goes through: runs of MIDDLE packets, out and in. Everything else may be slow.

A MIDDLE packet is `prefix (8, constant) | PSN word (4) | data (path MTU) | ICRC (4)`. Going out, the ICRC of a packet
and the header of the next are one piece of 16 bytes, so a packet costs two iovecs and no copy. Coming in, everything
after the prefix is one CRC call, because the prefix's share is in the seed.

`leaf.py` has the same two, compiled, where that could be built; a device is told which to use (`RunCodec`). What a
compiled one can do more, several bursts with a call, is written down here too: `Train` goes out, `Awaited` comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from p2prw.engine.roce.icrc import ICRC_RESIDUE, crc32
from p2prw.engine.roce.opcodes import MIDDLE_OVERHEAD_BYTES
from p2prw.engine.roce.packet import ACK_REQUEST, ICRC_FIELD, PSN_WORD
from p2prw.engine.roce.psn import PSN_MASK

Buffer = bytes | bytearray | memoryview

PREFIX_MASK = 0xFFFFFFFF00FFFFFF
"""All of the first 8 bytes but byte 4 (FECN, BECN), which switches may change on the way."""

_SEAM = Struct("<I8s4s")
_unpackers: dict[int, Struct] = {}


def build_run(
    prefix: bytes, seeds: list[int], psn: int, data: memoryview, mtu_bytes: int, count: int, *, ack_last: bool
) -> list[Buffer]:
    """Return the iovecs of `count` MIDDLE packets that carry `data` (count * mtu_bytes bytes) from PSN `psn` on.

    `seeds[i]` is the CRC up to and with the prefix of segment i; the last packet asks for an ACK with `ack_last`.
    """
    pack_psn, pack_seam, crc = PSN_WORD.pack, _SEAM.pack, crc32
    last = count - 1
    psn &= PSN_MASK
    word = pack_psn(psn | ACK_REQUEST if ack_last and not last else psn)
    buffers: list[Buffer] = [prefix + word]
    append = buffers.append
    position = 0
    for index in range(last):
        end = position + mtu_bytes
        payload = data[position:end]
        position = end
        icrc = crc(payload, crc(word, seeds[index]))
        psn = (psn + 1) & PSN_MASK
        word = pack_psn(psn | ACK_REQUEST if ack_last and index + 1 == last else psn)
        append(payload)
        append(pack_seam(icrc, prefix, word))
    payload = data[position : position + mtu_bytes]
    append(payload)
    append(ICRC_FIELD.pack(crc(payload, crc(word, seeds[last]))))
    return buffers


def receive_run(
    view: memoryview,
    position: int,
    count: int,
    mtu_bytes: int,
    prefix: int,
    psn: int,
    seeds: list[int] | None,
    index: int,
    target: memoryview,
    offset: int,
) -> tuple[int, bool]:
    """Copy up to `count` MIDDLE packets at `view[position:]` to `target[offset:]` while they are what is expected.

    Expected: the 8-byte `prefix` (but for byte 4), PSNs from `psn` on, and a right ICRC, whose seed for the first
    packet is `seeds[index]` (no seeds: unchecked). Returns how many were, and whether one of them asked for an ACK.
    The packet that is not as expected is left to the careful path.
    """
    segment_bytes = mtu_bytes + MIDDLE_OVERHEAD_BYTES
    unpacker = _unpackers.get(segment_bytes)
    if unpacker is None:
        unpacker = _unpackers[segment_bytes] = Struct(f">QI{segment_bytes - 12}x")
    crc, expected, wanted, done = crc32, psn & PSN_MASK, prefix & PREFIX_MASK, 0
    asked = 0
    for head, word in unpacker.iter_unpack(view[position : position + count * segment_bytes]):
        if word & ~ACK_REQUEST != expected or head & PREFIX_MASK != wanted:
            break
        end = position + segment_bytes
        if seeds is not None and crc(view[position + 8 : end], seeds[index + done]) != ICRC_RESIDUE:
            break
        high = offset + mtu_bytes
        target[offset:high] = view[position + 12 : end - 4]
        offset = high
        position = end
        expected = (expected + 1) & PSN_MASK
        asked |= word
        done += 1
    return done, asked & ACK_REQUEST != 0


MOST_BURSTS = 64
"""Of a `Train`: its bits of `asks`."""


class Train(NamedTuple):
    """Packets of one message that a driver makes and sends itself (`RunCodec.send`): perhaps a FIRST, then bursts.

    Only what `left` is told has left.
    """

    prefix: bytes
    seeds: list[int]
    psn: int
    """Of the first MIDDLE."""
    data: memoryview
    """Of all packets together."""
    mtu_bytes: int
    packets: int
    """Of each burst."""
    bursts: int
    asks: int
    """Bit i: the last packet of burst i asks for an ACK."""
    last_prefix: bytes | None
    """Of the very last packet, where that is a LAST; the last burst may be shorter then."""
    last_seed: int
    first_head: bytes | None
    """BTH and extension headers of a FIRST packet with the first path MTU of `data`; it leaves alone, before them.

    Where there are no bursts its LAST follows it in the same send: both are as long.
    """
    first_seed: int
    tail_head: bytes | None
    """The same of a LAST that is longer than they are, with the last path MTU; it leaves after them, as a send."""
    tail_seed: int
    destination: tuple[str, int]
    left: Callable[[int], None]
    """Takes how many of the `sends` have left; called once."""

    @property
    def sends(self) -> int:
        """How many there are if all goes well."""
        if not self.bursts:
            # FIRST and LAST are one.
            return 1
        return self.bursts + (self.first_head is not None) + (self.tail_head is not None)


class Awaited(NamedTuple):
    """What comes next if the run that came last goes on: a driver may put it where it belongs (`RunCodec.take`)."""

    source: tuple[str, int]
    mtu_bytes: int
    prefix: int
    psn: int
    seeds: list[int] | None
    target: memoryview
    offset: int
    packets: int
    """MIDDLEs at most."""
    last_prefix: int | None
    """Of a LAST of a whole path MTU that follows them, where one may be taken too."""
    last_seeds: list[int] | None
    first_prefix: int | None
    """Of a FIRST that comes before them and has PSN `psn`."""
    first_seeds: list[int] | None
    extension_bytes: int
    """Of headers after the BTH of FIRST and LAST; where there are any, both come alone."""
    took: Callable[[int, int, bool, bool, float], None]
    """Takes the numbers of bursts received and of packets taken, whether one asked for an ACK, whether the LAST was
    among them, and the time."""


AwaitedRun = tuple[memoryview, int, int, int, bool, bool]
"""Memory and the offset in it where the next packet belongs, its PSN, how many MIDDLEs there are before the LAST,
whether a FIRST comes before them, and whether the LAST is a whole path MTU and may be taken with them."""


class RunCodec(NamedTuple):
    """Who makes and who takes the runs of a device."""

    name: str
    """As shown to users."""
    build: Callable[..., list[Buffer]]
    """As `build_run`; what it returns may not change while the burst is in use, so no buffer is used again."""
    receive: Callable[..., tuple[int, bool]]
    """As `receive_run`."""
    send: Callable[..., tuple[int, int]] | None = None
    """(fileno, address, a Train's fields up to `tail_seed`): how many sends left, and the errno that ended it or 0.

    `address` is a struct sockaddr.
    """
    take: Callable[..., tuple[int, int, bool, bool, int, tuple[int, int, int, int, bytes] | None]] | None = None
    """(fileno, buffer, address, an Awaited's fields from `mtu_bytes` to `extension_bytes`, most bursts): packets taken,
    bursts received, whether one asked for an ACK, whether the LAST was taken, errno or 0, and what was not awaited.

    That is in the buffer: its length, the position of the first packet not taken, that packet's place in its burst, the
    length of packets, and the sender's struct sockaddr. None: all was taken.
    """


PURE = RunCodec("python", build_run, receive_run)
