"""What went wrong with a block whose bytes are not the expected ones: the first bad offset, a class, and where to look.

Pure: bytes in, words out. It works on the bytes that differ, so a block of which only a part is bad is classified too.
Runs once per failed transfer on about one block (1 MiB); it is written for clarity, with big integers as byte masks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2prw.errors import LocalProtocolError

MAX_SHIFT_BYTES = 64 * 1024

CLASSIFICATIONS = (
    "never_arrived",
    "stale",
    "all_ff",
    "all_zero",
    "swapped",
    "shifted",
    "corrupt",
    "identical",
)

_FEW_BYTES = 8
"""Fewer bad bytes than this say nothing by being 0x00 or 0xFF: one flipped byte may be either."""
_WINDOW_BYTES = 64
_MIN_SHIFT_EVIDENCE_BYTES = 32
_MAX_CANDIDATES = 256
_MARK_BAD = bytes([0]) + bytes([0xFF]) * 255


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `classify` found. Offsets and counts are bytes."""

    first_bad_offset: int
    """For `identical`: one past the last byte compared."""
    classification: str
    """One of `CLASSIFICATIONS`."""
    why: str
    """For the engineer: what it means and where to look."""
    bad_bytes: int = 0
    bad_bits: int = 0
    last_bad_offset: int | None = None
    shift_bytes: int | None = None
    """`shifted`: found bytes lie this much later (positive) or earlier (negative) than they should."""


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Expected and found, and where they differ, relative to the block."""

    expected: bytes
    found: bytes
    mask: bytes
    """0xFF where they differ, else 0."""
    first: int
    end: int
    """One past the last bad byte."""
    bad_bytes: int

    def bad_equal(self, other: bytes) -> bool:
        """Return whether every bad byte found is that of `other` in the same place."""
        return not _and(self.mask, _xor(self.found, other)).strip(b"\0")


def classify(
    expected: bytes,
    found: bytes,
    *,
    offset_bytes: int = 0,
    previous: bytes | None = None,
    older: Sequence[bytes] = (),
) -> Diagnosis:
    """Compare a block with what it should be; `offset_bytes` is where it starts and is added to the offsets told.

    `previous`: what the memory held before the transfer (a poison, say); `older`: earlier generations of the data. Both
    are as long as the block. LocalProtocolError when lengths differ.
    """
    if any(len(other) != len(expected) for other in (found, *older, *(() if previous is None else (previous,)))):
        raise LocalProtocolError("cannot compare blocks of different lengths", code="bad_block")
    if expected == found:
        return Diagnosis(
            offset_bytes + len(expected),
            "identical",
            "the bytes agree now, though their digests did not: the memory changed in between, or the side that"
            " digested it saw older data (a CPU cache or a write-combining buffer not yet flushed)",
        )
    difference = _xor(expected, found)
    mask = difference.translate(_MARK_BAD)
    comparison = _Comparison(
        expected,
        found,
        mask,
        first=len(mask) - len(mask.lstrip(b"\0")),
        end=len(mask.rstrip(b"\0")),
        bad_bytes=mask.count(0xFF),
    )
    classification, why, shift = _classify(comparison, previous, older)
    share = f"{comparison.bad_bytes} of {len(expected)} bytes are bad"
    return Diagnosis(
        first_bad_offset=offset_bytes + comparison.first,
        classification=classification,
        why=f"{share}: {why}",
        bad_bytes=comparison.bad_bytes,
        bad_bits=int.from_bytes(difference, "little").bit_count(),
        last_bad_offset=offset_bytes + comparison.end - 1,
        shift_bytes=shift,
    )


def _classify(comparison: _Comparison, previous: bytes | None, older: Sequence[bytes]) -> tuple[str, str, int | None]:
    """Return (classification, why, shift). What is known about the memory goes before what its bytes look like."""
    telling = comparison.bad_bytes >= min(_FEW_BYTES, len(comparison.expected))
    if telling and previous is not None and comparison.bad_equal(previous):
        return "never_arrived", _NEVER_ARRIVED, None
    if telling:
        for age, generation in enumerate(older, 1):
            if comparison.bad_equal(generation):
                return "stale", f"they are those of generation {age} before this one; {_STALE}", None
        if comparison.bad_equal(b"\xff" * len(comparison.found)):
            return "all_ff", _ALL_FF, None
        if comparison.bad_equal(bytes(len(comparison.found))):
            return "all_zero", _ALL_ZERO, None
    swap = _find_word_swap(comparison) or _find_exchange(comparison)
    if swap:
        return "swapped", swap, None
    shift = _find_shift(comparison)
    if shift:
        where = "later" if shift > 0 else "earlier"
        return "shifted", f"from here on the data lies {abs(shift)} bytes {where} than it should; {_SHIFTED}", shift
    bits = int.from_bytes(_xor(comparison.expected, comparison.found), "little").bit_count()
    return "corrupt", _corrupt(comparison, bits), None


# --- words --------------------------------------------------------------------------------------------------

_NEVER_ARRIVED = (
    "they are what the memory held before the transfer, so these writes never landed. PCIe writes are posted: nobody"
    " reports a dropped one. Look at memory decoding (setpci -s BDF COMMAND, bit 1), ACS redirect on the switch ports"
    " between NIC and memory, IOMMU faults in dmesg, and whether the registration points at this memory at all"
)
_STALE = (
    "an old copy was read: a cache or write-combining buffer was not flushed, a READ overtook the WRITE before it"
    " (relaxed ordering), or a completion came before the data was visible"
)
_ALL_FF = (
    "they read as 0xFF, what a CPU or NIC gets when a PCIe read is aborted or times out. Look at memory decoding"
    " (setpci -s BDF COMMAND, bit 1), the power state (D3) or a reset of the device, ACS redirect sending peer-to-peer"
    " reads to a root port that does not forward them, and AER errors (UnsupReq, CmpltTO) in dmesg"
)
_ALL_ZERO = (
    "they read as zero: writes were dropped on the way to fresh memory, or another page was reached than the one meant."
    " Look at the IOMMU mapping (dmesg: DMAR, AMD-Vi), ACS redirect, the offset into the BAR or dma-buf, and holes in a"
    " sparse file"
)
_SHIFTED = (
    "look at the offset of the registration (dma-buf offset, BAR page offset, iova), at a segment whose length was"
    " taken twice or not at all, and at retransmissions that restarted at the wrong byte"
)
_WORD_SWAP = (
    "look for a bridge or device register that swaps byte lanes (big-endian mode), or a copy loop that converts words"
)
_EXCHANGED = (
    "pieces landed in each other's place: look at the order of segments or pages in the dma vec, and at reordered"
    " packets or completions taken for the wrong work request"
)


def _corrupt(comparison: _Comparison, bits: int) -> str:
    span = comparison.end - comparison.first
    if bits <= 2 * comparison.bad_bytes and comparison.bad_bytes <= _FEW_BYTES:
        return (
            f"{_count(bits, 'flipped bit')} in {_count(comparison.bad_bytes, 'byte')}: look at memory errors (EDAC,"
            " mcelog) and the AER counters of the links; the CRCs of RoCE and PCIe would have caught them on the wire"
        )
    picture = f"{bits} bits differ over {span} bytes and match no known picture; look for another writer to this memory"
    if comparison.bad_bytes * 100 < span:
        return f"{picture} during the transfer: the bad bytes are few and scattered"
    return f"{picture}, for accesses of a width the device does not take (partial writes into a BAR), or a wrong source"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- pictures -----------------------------------------------------------------------------------------------


def _find_word_swap(comparison: _Comparison) -> str | None:
    """Return why when all bad words, counted from the start of the block, are byte-reversed; at least two of them."""
    for code, width in (("Q", 8), ("I", 4), ("H", 2)):
        usable = len(comparison.expected) // width * width
        if comparison.end > usable:
            continue
        expected, found = array(code, comparison.expected[:usable]), array(code, comparison.found[:usable])
        reversed_words = array(code, expected)
        reversed_words.byteswap()
        if found[comparison.first // width] != reversed_words[comparison.first // width]:
            continue
        bad = [k for k, word in enumerate(expected) if word != found[k]]
        if len(bad) > 1 and all(found[k] == reversed_words[k] for k in bad):
            return f"each bad {width}-byte word has its bytes in reverse order; {_WORD_SWAP}"
    return None


def _find_exchange(comparison: _Comparison) -> str | None:
    """Return why when all bad chunks of some power-of-two size are pairs that changed places."""
    # Largest first: what exchanges pages exchanges all the words in them as well.
    size = 1 << max(0, (len(comparison.expected) // 2).bit_length() - 1)
    while size >= 4:
        # Chunks count from the block's start (pages), or from the first bad byte (packets of an unaligned transfer).
        for origin in {comparison.first // size * size, comparison.first}:
            pairs = _exchanged_pairs(comparison, origin, size)
            if pairs:
                return f"{_count(pairs, 'pair')} of {size}-byte chunks changed places; {_EXCHANGED}"
        size //= 2
    return None


def _exchanged_pairs(comparison: _Comparison, origin: int, size: int) -> int:
    if origin + -(-(comparison.end - origin) // size) * size > len(comparison.expected):
        return 0
    expected, found = comparison.expected, comparison.found
    if found[origin : origin + size] not in expected:
        return 0
    bad = [at for at in range(origin, comparison.end, size) if expected[at : at + size] != found[at : at + size]]
    # What each chunk should hold -> where. A chunk that is found nowhere among them ends it.
    home = {expected[at : at + size]: at for at in bad}
    for at in bad:
        other = home.get(found[at : at + size])
        if other is None or found[other : other + size] != expected[at : at + size]:
            return 0
    return len(bad) // 2


def _find_shift(comparison: _Comparison) -> int | None:
    """Return by how many bytes the data from the first bad byte on lies late (> 0) or early (< 0), or None."""
    for shift in sorted(set(_shift_candidates(comparison)), key=abs):
        if _shift_explains(comparison, shift):
            return shift
    return None


def _shift_candidates(comparison: _Comparison) -> Iterator[int]:
    """Yield shifts at which some window of one side is found in the other; windows at the start and in the middle."""
    middle = (comparison.first + comparison.end) // 2
    for at in (comparison.first, middle):
        for needle_in, hay, sign in (
            (comparison.found, comparison.expected, -1),
            (comparison.expected, comparison.found, 1),
        ):
            needle = needle_in[at : at + _WINDOW_BYTES]
            low, high = max(0, at - MAX_SHIFT_BYTES), at + MAX_SHIFT_BYTES + len(needle)
            hit = hay.find(needle, low, high)
            for _ in range(_MAX_CANDIDATES):
                if hit < 0:
                    break
                if hit != at:
                    yield sign * (hit - at)
                hit = hay.find(needle, hit + 1, high)


def _shift_explains(comparison: _Comparison, shift: int) -> bool:
    """Return whether found[x] == expected[x - shift] for the bad bytes.

    |shift| of them may be excused: what was pushed in before late data, or what stayed behind early data. Early data at
    the end of the block come from beyond it, which nothing here can judge.
    """
    first, end, length = comparison.first, comparison.end, len(comparison.expected)
    excused = (first + max(shift, 0), end + min(shift, 0))
    for start, stop in ((max(first, shift), min(end, length + shift)), excused):
        enough = max(_MIN_SHIFT_EVIDENCE_BYTES, (end - first) // 4)
        if stop - start >= enough and comparison.found[start:stop] == comparison.expected[start - shift : stop - shift]:
            return True
    return False


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(len(left), "little")


def _and(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "little") & int.from_bytes(right, "little")).to_bytes(len(left), "little")
