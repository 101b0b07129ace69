"""Test data by name: `words[:SEED]`, `zero`, `random[:SEED]`, `file:PATH`. The same text gives the same bytes anywhere.

    words   word k (8 bytes, little-endian) is output k of splitmix64 with that seed. Position dependent, so a shifted
            or exchanged block shows; computable for any offset, so no copy of what was sent has to be kept.
    random  256 KiB blocks of SFC64 output, block b seeded by (seed, b).
    file    the bytes of the file, over and over.

Any offset and length may be asked for. numpy is imported when bytes are first made, never at import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from p2prw.errors import HostError, RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAMES = ("words", "zero", "random", "file")
DEFAULT_SEED = 1

STEP_BYTES = 4 * 1024 * 1024
"""Most bytes made or read at a time."""

_WORDS_BLOCK_BYTES = 128 * 1024  # fits L2 with its scratch: twice the speed of 1 MiB blocks
_RANDOM_BLOCK_BYTES = 256 * 1024

_U64 = (1 << 64) - 1
# splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014)
_GAMMA = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


def mix64(seed: int, index: int) -> int:
    """Return word `index` of `words:SEED`: output `index` of splitmix64 with state `seed`."""
    z = (seed + (index + 1) * _GAMMA) & _U64
    z = ((z ^ (z >> 30)) * _MIX1) & _U64
    z = ((z ^ (z >> 27)) * _MIX2) & _U64
    return z ^ (z >> 31)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Bytes by position; made by `parse_pattern`."""

    name: str
    """One of `NAMES`."""
    seed: int = DEFAULT_SEED
    path: str | None = None

    def __str__(self) -> str:
        if self.name == "file":
            return f"file:{self.path}"
        return "zero" if self.name == "zero" else f"{self.name}:{self.seed}"

    def fill(self, view: memoryview, offset_bytes: int = 0) -> None:
        """Write the pattern's bytes [offset_bytes, offset_bytes + len(view)) into `view`.

        Works in steps of at most `STEP_BYTES`. For plain memory only: what goes to a device is stored by the caller
        under the access rules of that memory. HostError when the file cannot be read.
        """
        out = view.cast("B") if view.format != "B" or view.ndim != 1 else view
        _FILLERS[self.name](self, out, offset_bytes)

    def bytes_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return the pattern's bytes [offset_bytes, offset_bytes + length_bytes)."""
        data = bytearray(length_bytes)
        self.fill(memoryview(data), offset_bytes)
        return bytes(data)


def parse_pattern(text: str) -> Pattern:
    """Return the pattern meant by `words[:SEED]`, `zero`, `random[:SEED]` or `file:PATH`.

    RequestError with the nearest name; HostError (errno) when the file is missing or unreadable, RequestError when it
    is empty.
    """
    name, colon, argument = text.partition(":")
    if name not in NAMES:
        raise _unknown_pattern(text, name)
    if name == "file":
        if not argument:
            what = "pattern file: needs a path"
            raise RequestError(what, why="its bytes are repeated", fix="file:/path/to/data", code="bad_pattern")
        if _file_length(argument) == 0:
            raise RequestError(
                f"pattern file {argument!r} is empty",
                why="there is nothing to repeat",
                fix="pattern=zero, or a file with bytes in it",
                code="bad_pattern",
            )
        return Pattern(name, path=argument)
    if name == "zero":
        if colon:
            what = f"pattern {text!r}: zero takes no seed"
            raise RequestError(what, why="all its bytes are 0", fix="zero", code="bad_pattern")
        return Pattern(name)
    return Pattern(name, _parse_seed(text, name, argument) if colon else DEFAULT_SEED)


def _parse_seed(text: str, name: str, argument: str) -> int:
    try:
        seed = int(argument, 0)
    except ValueError:
        seed = -1
    if not 0 <= seed <= _U64:
        raise RequestError(
            f"pattern {text!r}: {argument!r} is not a seed",
            why="a seed is an integer from 0 to 2^64 - 1",
            fix=f"{name}:42",
            code="bad_pattern",
        )
    return seed


def _unknown_pattern(text: str, name: str) -> RequestError:
    import difflib

    near = difflib.get_close_matches(name.lower(), NAMES, 1, 0.5)
    return RequestError(
        f"there is no pattern {text!r}",
        why="patterns are words[:SEED], zero, random[:SEED] and file:PATH",
        fix=near[0] + (":PATH" if near[0] == "file" else "") if near else "words:1",
        code="unknown_pattern",
    )


def _pieces(start: int, length: int, block_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (block, first byte in it, bytes of it, position in the output) for [start, start + length)."""
    done = 0
    while done < length:
        block, skip = divmod(start + done, block_bytes)
        size = min(block_bytes - skip, length - done)
        yield block, skip, size, done
        done += size


def _fill_zero(_pattern: Pattern, out: memoryview, _offset: int) -> None:
    zeros = bytes(min(STEP_BYTES, len(out)))
    for at in range(0, len(out), STEP_BYTES):
        size = min(STEP_BYTES, len(out) - at)
        out[at : at + size] = zeros[:size]


def _fill_words(pattern: Pattern, out: memoryview, offset: int) -> None:
    import numpy as np

    words = _WORDS_BLOCK_BYTES // 8
    steps = _gamma_multiples(words)
    z, shifted = np.empty(words, np.dtype("<u8")), np.empty(words, np.uint64)
    target = np.frombuffer(out, np.uint8)
    for block, skip, size, at in _pieces(offset, len(out), _WORDS_BLOCK_BYTES):
        # A short piece costs what it covers, not a whole block.
        first, last = skip // 8, -(-(skip + size) // 8)
        n = last - first
        base = (pattern.seed + (block * words + first) * _GAMMA) & _U64
        zn, sn = z[:n], shifted[:n]
        np.add(steps[:n], np.uint64(base), out=zn)
        for shift, factor in ((30, _MIX1), (27, _MIX2)):
            np.right_shift(zn, np.uint64(shift), out=sn)
            np.bitwise_xor(zn, sn, out=zn)
            np.multiply(zn, np.uint64(factor), out=zn)
        np.right_shift(zn, np.uint64(31), out=sn)
        np.bitwise_xor(zn, sn, out=zn)
        head = skip - first * 8
        target[at : at + size] = zn.view(np.uint8)[head : head + size]


@lru_cache(maxsize=1)
def _gamma_multiples(words: int) -> NDArray[np.uint64]:
    """Return (1 .. words) x gamma: what splitmix64 adds to its state, for every word of a block."""
    import numpy as np

    return np.arange(1, words + 1, dtype=np.uint64) * np.uint64(_GAMMA)


def _fill_random(pattern: Pattern, out: memoryview, offset: int) -> None:
    import numpy as np

    target = np.frombuffer(out, np.uint8)
    for block, skip, size, at in _pieces(offset, len(out), _RANDOM_BLOCK_BYTES):
        # Raw output of a named bit generator: numpy keeps these streams the same between versions.
        raw: Any = np.random.SFC64([pattern.seed, block]).random_raw(-(-(skip + size) // 8))
        target[at : at + size] = raw.astype("<u8", copy=False).view(np.uint8)[skip : skip + size]


def _fill_file(pattern: Pattern, out: memoryview, offset: int) -> None:
    path = str(pattern.path)
    length = _file_length(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if length <= STEP_BYTES:
                _repeat(out, os.pread(fd, length, 0), offset, path)
                return
            for _, skip, size, at in _pieces(offset, len(out), length):
                done = 0
                while done < size:
                    step = min(STEP_BYTES, size - done)
                    got = os.preadv(fd, [out[at + done : at + done + step]], skip + done)
                    if not got:
                        raise _file_changed(path)
                    done += got
        finally:
            os.close(fd)
    except OSError as error:
        raise _cannot_read(path, error) from error


def _repeat(out: memoryview, data: bytes, offset: int, path: str) -> None:
    if not data:
        raise _file_changed(path)
    # A short file is repeated to a step first, so that filling is a few large copies.
    tile = data * max(1, min(STEP_BYTES, len(out)) // len(data))
    for _, skip, size, at in _pieces(offset % len(data), len(out), len(tile)):
        out[at : at + size] = tile[skip : skip + size] if size != len(tile) else tile


def _file_length(path: str) -> int:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer; it then fails to seek.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
    except OSError as error:
        raise _cannot_read(path, error) from error


def _cannot_read(path: str, error: OSError) -> HostError:
    return HostError(
        f"cannot read pattern file {path!r}", why=error.strerror, fix="words:1", code="pattern_file", errno=error.errno
    )


def _file_changed(path: str) -> HostError:
    return HostError(
        f"pattern file {path!r} got shorter while it was read",
        why="another process truncated or replaced it",
        fix="run again when nothing writes to it, or copy it first",
        code="pattern_file",
        errno="EIO",
    )


_FILLERS: dict[str, Callable[[Pattern, memoryview, int], None]] = {
    "words": _fill_words,
    "zero": _fill_zero,
    "random": _fill_random,
    "file": _fill_file,
}
