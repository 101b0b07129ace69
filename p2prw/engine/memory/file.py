"""Files and block devices: read with pread, written through `file_sink`; never mapped, so truncation cannot kill us.

`FileRegion` is what a server offers: one reader for any number of readers, one writer at a time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2prw.engine.memory.base import MappedBuffer, MemorySource
from p2prw.engine.memory.block_device import BlockSink, block_device_bytes, check_block_sink, is_named
from p2prw.engine.memory.file_errors import file_error
from p2prw.engine.memory.file_io import expect_order, read_all
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.engine.memory.file_sink import FileSink
from p2prw.engine.memory.file_target import check_file_sink
from p2prw.engine.memory.spec import size_option
from p2prw.engine.model import MemorySpec, Offer, SourceIdentity
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, LocalProtocolError, RequestError
from p2prw.units import format_size


def file_path(spec: MemorySpec) -> str:
    """Return the path a `file:` spec names, `~` resolved."""
    return os.path.expanduser(spec.arg or "")  # noqa: PTH111 (a Path would lose what the user wrote)


class FileSource:
    """A `MemorySource` that reads a regular file or a block device."""

    offers = frozenset({Offer.STAGED})
    is_device_memory = False
    digest_method = "owner-cpu"
    numa_node: int | None = None
    pci_address: str | None = None

    def __init__(self, spec: MemorySpec, expected_bytes: int | None = None) -> None:
        """Open it; `expected_bytes` is what a check before found: less now is `source_changed`, more is ignored."""
        self.spec = spec
        self.warnings: tuple[str, ...] = ()
        self.path = file_path(spec)
        self.base_offset = size_option(spec, "offset") or 0
        self.descriptor = _open_source(self.path)
        expect_order(self)
        try:
            self.length_bytes = _source_bytes(spec, self.path, _size_of(self.descriptor), expected_bytes)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<FileSource {self.path} {self.length_bytes} bytes fd={self.descriptor}>"

    @property
    def mtime_ns(self) -> int | None:
        """When the file was modified last; None for a block device, whose node does not say."""
        status = os.fstat(self.descriptor)
        return status.st_mtime_ns if stat.S_ISREG(status.st_mode) else None

    def buffers(self) -> tuple[MappedBuffer, ...]:
        """Files are staged: nothing is mapped."""
        return ()

    def read_at(self, offset: int, into: memoryview) -> int:
        """Read from `offset`; short only at the end. HostError `source_changed` where the file shrank meanwhile."""
        wanted = max(0, min(len(into), self.length_bytes - offset))
        try:
            count = read_all(self, into[:wanted], self.base_offset + offset)
        except OSError as error:
            raise file_error("read", self.path, error) from error
        if count < wanted:
            raise _source_changed(self.path, self.length_bytes + self.base_offset, self.base_offset + offset + count)
        return count

    def write_at(self, offset: int, data: memoryview) -> None:
        """A source is not written."""
        raise LocalProtocolError(f"{self.path} was opened as a source")

    def commit(self) -> None:
        """Nothing to make whole."""

    def abort(self) -> None:
        """Nothing to throw away."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class FileRegion:
    """A file as a server offers it. Offsets are the region's: `offset=` of the spec lies below them.

    Elastic (no `size=`, a regular file): a write at offset 0 replaces the whole file with exactly what is written, a
    write further in keeps the rest. With `size=` the file has at least offset + size bytes after any write, and what
    lies outside the written range is kept. A reader keeps the file it opened while a writer replaces it.
    """

    def __init__(
        self,
        spec: MemorySpec,
        *,
        overwrite: bool = False,
        force_block_device: str | None = None,
        sysfs: SysfsRoot | None = None,
        proc: Path = Path("/proc"),
    ) -> None:
        self.spec = spec
        self.path = file_path(spec)
        self._base = size_option(spec, "offset") or 0
        self._size = size_option(spec)
        self._overwrite = overwrite
        self._force_block_device = force_block_device
        self._sysfs = sysfs or SysfsRoot()
        self._proc = proc
        self._writer: FileSink | BlockSink | None = None

    @property
    def is_block_device(self) -> bool:
        """Written in place, and as big as it is."""
        status = _status(self.path)
        return status is not None and stat.S_ISBLK(status.st_mode)

    @property
    def elastic(self) -> bool:
        """A write decides the size of the file."""
        return self._size is None and not self.is_block_device

    @property
    def length_bytes(self) -> int:
        """What a reader would find now; 0 where there is no file yet."""
        if self._size is not None:
            return self._size
        status = _status(self.path)
        if status is None:
            return 0
        total = block_device_bytes(self.path) if stat.S_ISBLK(status.st_mode) else status.st_size
        return max(0, total - self._base)

    def check(self, role: str) -> None:
        """Raise what opening is bound to raise: HostError with code and remedy."""
        if role == "source":
            FileSource(self.spec).close()
            return
        status = _status(self.path)
        if status is not None and role == "both":
            # An empty or missing file can be written first and read later; one that is there must be readable now.
            os.close(_open_source(self.path))
        if status is not None and stat.S_ISBLK(status.st_mode):
            check_block_sink(
                self.path,
                self._base,
                self._size,
                overwrite=self._overwrite or role == "both",
                force_mounted=is_named(self.path, self._force_block_device),
                sysfs=self._sysfs,
                proc=self._proc,
            )
            return
        needed = None if self._size is None else self._base + self._size
        # A server that offers a file for reading too must start; a client's write is then what is refused.
        check_file_sink(self.path, overwrite=self._overwrite or role == "both", needed_bytes=needed)

    def open_reader(self) -> FileSource:
        """Open the current file."""
        return FileSource(self.spec)

    def open_writer(
        self, offset: int, length_bytes: int, elastic: bool | None = None, *, resume: SourceIdentity | None = None
    ) -> FileSink | BlockSink:
        """Open a sink for the region's bytes [offset, offset + length_bytes); its offsets are the region's too.

        `elastic` None: as the region is. `resume`: go on with what an unfinished transfer from this source left, and
        leave in turn what can be gone on with (a block device keeps what was written anyway). The caller runs
        `prepare_steps()` before it writes (write_at would run the rest of it at once). HostError: `busy` while another
        writer is open, `exists` without --overwrite, `no_space`.
        """
        if self._writer is not None and not self._writer.closed:
            # Each writer starts from a copy and ends in a rename: of two at once the later would undo the earlier.
            raise HostError(
                f"{self.path} is being written by another client",
                why="a file has one writer at a time, whatever the range",
                fix="try again when it has finished",
                code="busy",
            )
        if self._size is not None and offset + length_bytes > self._size:
            raise RequestError(
                f"{length_bytes} bytes at {offset} do not fit into {self.path}",
                why=f"size= makes the region {self._size} bytes",
                fix=f"an offset and a size within {self._size} bytes",
                code="size_does_not_fit",
            )
        if self.is_block_device:
            self._writer = BlockSink(
                self.spec,
                self.path,
                base_offset=self._base,
                range_start=offset,
                range_end=offset + length_bytes,
                overwrite=self._overwrite,
                force_mounted=is_named(self.path, self._force_block_device),
                sysfs=self._sysfs,
                proc=self._proc,
            )
            return self._writer
        replace = (self.elastic if elastic is None else elastic) and offset == 0 and self._base == 0
        where: dict[str, Any] = {
            "base_offset": self._base,
            "range_start": offset,
            "range_end": offset + length_bytes,
            "least_bytes": 0 if self._size is None else self._base + self._size,
            "keep_rest": not replace,
            "overwrite": self._overwrite,
        }
        if resume is None:
            self._writer = FileSink(self.spec, self.path, **where)
        else:
            self._writer = ResumableSink(self.spec, self.path, source=resume, **where)
        return self._writer

    def open_sink(self, length_bytes: int | None, resume: SourceIdentity | None = None) -> FileSink | BlockSink:
        """Open the whole region as a client's sink, ready to write. RequestError where its size is not known."""
        length = self._size
        if length is None:
            length = max(0, self.length_bytes) if self.is_block_device else length_bytes
        if length is None:
            raise RequestError(
                f"the size of {self.path} is not known yet",
                why="no transfer has named one",
                fix="size=64MiB",
                code="missing_size",
            )
        sink = self.open_writer(0, length, resume=resume)
        try:
            run_steps(sink.prepare_steps())
        except BaseException:
            sink.close()
            raise
        return sink


def identity_of(memory: MemorySource, name: str | None = None, offset: int | None = None) -> SourceIdentity:
    """Return what a resumed transfer holds a source against: its name, place, size, and a file's time."""
    spec = memory.spec
    if offset is None:
        offset = size_option(spec, "offset") or 0
    mtime_ns = memory.mtime_ns if isinstance(memory, FileSource) else None
    return SourceIdentity(name or spec.kind, offset, memory.length_bytes, mtime_ns)


def run_steps(steps: Iterator[int]) -> None:
    """Run a preparation to its end."""
    for _ in steps:
        pass


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise file_error("look at", path, error) from error


def _open_source(path: str) -> int:
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever, before we can see that it is one.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise file_error("read", path, error) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise HostError(
            f"{path} is a directory",
            why="a region is one run of bytes",
            fix=f"name one file in it, or pack it: tar -cf {path.rstrip('/') or 'root'}.tar {path}",
            code="is_directory",
        )
    raise HostError(
        f"{path} is not a file or block device",
        why="pipes, sockets and character devices have no offsets to read at",
        fix="copy what it holds into a file first",
        code="not_a_file",
    )


def _size_of(descriptor: int) -> int:
    # A block device has st_size 0; its end is found by seeking, and pread does not mind where the offset stands.
    return os.lseek(descriptor, 0, os.SEEK_END)


def _source_bytes(spec: MemorySpec, path: str, total: int, expected: int | None) -> int:
    base, size = size_option(spec, "offset") or 0, size_option(spec)
    if size is None:
        size = expected
    if base <= total and (size is None or base + size <= total):
        return total - base if size is None else size
    if expected is not None:
        raise _source_changed(path, base + (size or 0), total)
    raise HostError(
        f"{path} has only {total} bytes ({format_size(total)})",
        why=f"offset={base}" + ("" if size is None else f" and size={size}") + f" ask for {base + (size or 0)} bytes",
        fix=f"offset= of at most {total}" if base > total else f"size={total - base}",
        code="source_too_short",
    )


def _source_changed(path: str, expected_bytes: int, found_bytes: int) -> HostError:
    return HostError(
        f"{path} changed while it was being read: it ends at {found_bytes}, not {expected_bytes}",
        why="another process truncated or replaced it",
        fix="run again when nothing writes to it, or copy it first",
        code="source_changed",
    )
