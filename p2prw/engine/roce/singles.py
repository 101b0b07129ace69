"""Runs of whole messages of one packet each: many small WRITEs, or answers to small READs, as one burst.

A GSO burst wants segments of equal size, so a run holds messages of one length. Segment i is `prefix (8, constant) |
PSN word (4) | RETH or AETH | data | pad | ICRC`, with the seed of place i (`burst.Connection`). Coming in, everything
after the prefix is one CRC call. A packet that is not as expected ends the run and is left to the careful path.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from p2prw.engine.roce.icrc import ICRC_RESIDUE, crc32
from p2prw.engine.roce.memory_table import MemoryTable
from p2prw.engine.roce.opcodes import AETH_BYTES, BTH_BYTES, ICRC_BYTES, RETH_BYTES
from p2prw.engine.roce.packet import ACK_REQUEST, ICRC_FIELD, PADDING
from p2prw.engine.roce.psn import PSN_MASK
from p2prw.engine.roce.runs import PREFIX_MASK, Buffer

WRITE_OVERHEAD_BYTES = BTH_BYTES + RETH_BYTES + ICRC_BYTES
RESPONSE_OVERHEAD_BYTES = BTH_BYTES + AETH_BYTES + ICRC_BYTES

_COPY_BYTES = 1024
"""Up to here a message is copied next to its headers: cheaper than one more piece for `sendmsg` and the CRC."""
_PREFIX_BYTES = 8

_unpackers: dict[tuple[str, int], Struct] = {}


def build_singles(prefix: bytes, seeds: list[int], heads: Sequence[bytes], pieces: Sequence[Buffer]) -> list[Buffer]:
    """Return the iovecs of one packet for each head (PSN word and extension headers) and its data, all of one size.

    `seeds[i]` is the CRC up to and with the prefix of segment i.
    """
    crc, pack_icrc = crc32, ICRC_FIELD.pack
    length_bytes = len(pieces[0])
    pad = PADDING[-length_bytes & 3]
    buffers: list[Buffer] = []
    if length_bytes <= _COPY_BYTES:
        for head, piece, seed in zip(heads, pieces, seeds, strict=False):
            body = head + piece + pad
            buffers += (prefix, body, pack_icrc(crc(body, seed)))
        return [b"".join(buffers)]
    for head, piece, seed in zip(heads, pieces, seeds, strict=False):
        icrc = crc(piece, crc(head, seed))
        if pad:
            icrc = crc(pad, icrc)
        buffers += (prefix + head, piece, pad + pack_icrc(icrc))
    return buffers


def receive_writes(
    view: memoryview,
    position: int,
    count: int,
    length_bytes: int,
    prefix: int,
    psn: int,
    seeds: list[int] | None,
    index: int,
    memory: MemoryTable,
    access: int,
) -> tuple[int, bool]:
    """Execute up to `count` WRITE ONLY packets of `length_bytes` of data each at `view[position:]`, as expected.

    Expected: as in `runs.receive_run`, and a RETH with a good key, range and this length, to memory with a plain view.
    Returns how many were, and whether one of them asked for an ACK.
    """
    pad_bytes = -length_bytes & 3
    segment_bytes = length_bytes + pad_bytes + WRITE_OVERHEAD_BYTES
    unpacker = _unpackers.get(("write", segment_bytes))
    if unpacker is None:
        unpacker = _remember("write", segment_bytes, f">QIQII{length_bytes + pad_bytes + ICRC_BYTES}x")
    crc, find, expected, wanted, done, asked = crc32, memory.find, psn & PSN_MASK, prefix & PREFIX_MASK, 0, 0
    start = BTH_BYTES + RETH_BYTES
    end = start + length_bytes
    for head, word, address, rkey, dma_length in unpacker.iter_unpack(
        view[position : position + count * segment_bytes]
    ):
        if word & ~ACK_REQUEST != expected or head & PREFIX_MASK != wanted or dma_length != length_bytes:
            break
        after = position + segment_bytes
        if seeds is not None and crc(view[position + _PREFIX_BYTES : after], seeds[index + done]) != ICRC_RESIDUE:
            break
        region = find(rkey, address, length_bytes, access)
        if region is None or region.view is None:
            break
        offset = address - region.address
        region.view[offset : offset + length_bytes] = view[position + start : position + end]
        position = after
        expected = (expected + 1) & PSN_MASK
        asked |= word
        done += 1
    return done, asked & ACK_REQUEST != 0


def responses_in(
    view: memoryview,
    position: int,
    count: int,
    length_bytes: int,
    prefix: int,
    psn: int,
    seeds: list[int] | None,
    index: int,
) -> int:
    """Return how many READ RESPONSE ONLY packets with `length_bytes` of data at `view[position:]` are as expected.

    Expected: as in `runs.receive_run`, and an AETH that is an ACK. Their data lies at `response_data`.
    """
    pad_bytes = -length_bytes & 3
    segment_bytes = length_bytes + pad_bytes + RESPONSE_OVERHEAD_BYTES
    unpacker = _unpackers.get(("response", segment_bytes))
    if unpacker is None:
        unpacker = _remember(
            "response", segment_bytes, f">QIB{AETH_BYTES - 1 + length_bytes + pad_bytes + ICRC_BYTES}x"
        )
    crc, expected, wanted, done = crc32, psn & PSN_MASK, prefix & PREFIX_MASK, 0
    for head, word, syndrome in unpacker.iter_unpack(view[position : position + count * segment_bytes]):
        if word & PSN_MASK != expected or head & PREFIX_MASK != wanted or syndrome >> 5:
            break
        after = position + segment_bytes
        if seeds is not None and crc(view[position + _PREFIX_BYTES : after], seeds[index + done]) != ICRC_RESIDUE:
            break
        position = after
        expected = (expected + 1) & PSN_MASK
        done += 1
    return done


def _remember(kind: str, segment_bytes: int, fields: str) -> Struct:
    if len(_unpackers) >= 64:
        # Peers choose the sizes.
        _unpackers.clear()
    unpacker = _unpackers[kind, segment_bytes] = Struct(fields)
    return unpacker
