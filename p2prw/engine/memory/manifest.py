"""The manifest of an unfinished sink: which blocks have arrived for good, as digests in a file beside it.

    bytes 0..4095   one line of JSON (version, salt, identity), filled up with spaces
    then            24 bytes for each block, at its place: XXH3-128 of the block, and a check of it

A record is written after its block was fsynced, by one pwrite, and read by position: nothing is held in memory,
whatever the size of the file. A record that was never written, is torn or belongs to an older manifest fails its check
(the salt is part of it) and means that the block has not arrived. The digests are never believed: whoever skips a block
digests it again first.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from p2prw.engine.memory.file_errors import file_error
from p2prw.engine.memory.file_io import write_all
from p2prw.errors import HostError

HEADER_BYTES = 4096
RECORDS_PER_PAGE = 1024
_VERSION = 1
_RECORD = struct.Struct("<16sQ")
_WORDS = {
    "source_name": "another source was named",
    "source_offset": "another part of the source was named",
    "source_bytes": "the source's size changed",
    "source_mtime_ns": "the source was modified",
    "block_bytes": "it was begun with another block size",
}


class _Header(NamedTuple):
    salt: int
    identity: dict[str, Any]


class Manifest:
    """One open manifest. `fresh`: nothing noted before counts; `restarted` says why, where something was noted."""

    def __init__(self, path: str, identity: Mapping[str, Any], *, part_is_new: bool) -> None:
        """Go on with the manifest at `path` where its identity is `identity`, else begin a new one there."""
        self.path = path
        self.restarted: str | None = None
        self.descriptor = open_own(path)
        try:
            header = _parse(os.pread(self.descriptor, HEADER_BYTES, 0))
            self._identity = dict(identity)
            other = _difference(header.identity, identity) if header is not None else None
            if not part_is_new and os.fstat(self.descriptor).st_size > HEADER_BYTES:
                self.restarted = other
            self.fresh = header is None or part_is_new or other is not None
            self._salt = _begin(self.descriptor, identity) if header is None or self.fresh else header.salt
            self.holds_any = os.fstat(self.descriptor).st_size > HEADER_BYTES
        except OSError as error:
            os.close(self.descriptor)
            raise file_error("write", path, error) from error

    def __repr__(self) -> str:
        return f"<Manifest {self.path} {'fresh' if self.fresh else 'continued'}>"

    def note(self, index: int, digest: str) -> None:
        """Say that block `index` has arrived. The caller has fsynced it; safe from several threads."""
        raw = bytes.fromhex(digest)
        try:
            record = memoryview(_RECORD.pack(raw, _check(raw, index, self._salt)))
            write_all(self, record, HEADER_BYTES + index * _RECORD.size)
        except OSError as error:
            raise file_error("write", self.path, error) from error
        self.holds_any = True

    def digests(self, first: int, count: int) -> Iterator[str]:
        """Yield the noted digest of each block of [first, first + count), "" where none is noted; a page at a time."""
        for start in range(first, first + count, RECORDS_PER_PAGE):
            yield from self._page(start, min(RECORDS_PER_PAGE, first + count - start))

    def _page(self, first: int, count: int) -> list[str]:
        size = count * _RECORD.size
        try:
            page = os.pread(self.descriptor, size, HEADER_BYTES + first * _RECORD.size)
        except OSError as error:
            raise file_error("read", self.path, error) from error
        whole = len(page) // _RECORD.size
        found = []
        for index, (raw, check) in enumerate(_RECORD.iter_unpack(page[: whole * _RECORD.size]), first):
            found.append(raw.hex() if check == _check(raw, index, self._salt) else "")
        return found + [""] * (count - whole)

    def forget(self) -> None:
        """Throw every note away: what has arrived is of no use."""
        try:
            self._salt = _begin(self.descriptor, self._identity)
        except OSError as error:
            raise file_error("write", self.path, error) from error
        self.fresh, self.holds_any = True, False

    def remove(self) -> None:
        """Remove the file: its sink is whole, or thrown away."""
        self.holds_any = False
        try:
            os.unlink(self.path)  # noqa: PTH108
        except OSError:
            # It is gone already, or the file system is; without its sink it says nothing.
            pass

    def close(self) -> None:
        """Close; a second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_own(path: str, mode: int = 0o600) -> int:
    """Open or create a file whose name others can guess: never through a link, never somebody else's. HostError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        raise file_error("create", path, error) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    raise HostError(
        f"{path} is in the way",
        why="unfinished transfers are kept under this name, and it is no file of this user",
        fix=f"ls -l {path}; remove it, or leave --resume away",
        code="not_permitted",
        errno=errno.EACCES,
    )


def noted_blocks(path: str) -> int | None:
    """Return how many blocks the manifest at `path` notes, None where there is no manifest to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        header = _parse(os.pread(descriptor, HEADER_BYTES, 0))
        if header is None:
            return None
        count = index = 0
        while page := os.pread(descriptor, RECORDS_PER_PAGE * _RECORD.size, HEADER_BYTES + index * _RECORD.size):
            for raw, check in _RECORD.iter_unpack(page[: len(page) // _RECORD.size * _RECORD.size]):
                count += check == _check(raw, index, header.salt)
                index += 1
            if len(page) < RECORDS_PER_PAGE * _RECORD.size:
                break
        return count
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _check(raw: bytes, index: int, salt: int) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(raw + index.to_bytes(8, "little"), seed=salt)


def _begin(descriptor: int, identity: Mapping[str, Any]) -> int:
    """Write a header with a new salt and no records behind it; return the salt."""
    salt = secrets.randbits(64)
    header = json.dumps({"p2prw_manifest": _VERSION, "salt": f"{salt:016x}", "identity": dict(identity)}).encode()
    os.ftruncate(descriptor, 0)
    # One call: a header that is torn is no JSON, and a manifest without a header holds nothing.
    os.pwrite(descriptor, header.ljust(HEADER_BYTES - 1) + b"\n", 0)
    os.fsync(descriptor)
    return salt


def _parse(data: bytes) -> _Header | None:
    """Return the header in the first HEADER_BYTES, None for anything that is none of ours."""
    if len(data) != HEADER_BYTES:
        return None
    try:
        header = json.loads(data)
        if header["p2prw_manifest"] == _VERSION:
            return _Header(int(header["salt"], 16), dict(header["identity"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        # Torn, of another release, or not a manifest at all.
        pass
    return None


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    for key in wanted:
        if found.get(key) != wanted[key]:
            return _WORDS.get(key, "another offset or size was asked for")
    return None
