"""A regular file as a sink: written under a temporary name beside the target, which it becomes only when it is whole.

Killed at any point, the target is either what it was or what was verified, never something between.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

from p2prw.engine.memory.file_errors import file_error
from p2prw.engine.memory.file_holes import CANNOT, data_ranges, fallocate, punch, zero_runs
from p2prw.engine.memory.file_io import RangeOfFile, expect_order, write_all
from p2prw.engine.memory.file_parts import leftover_note, lock_part, part_path, remove_orphans
from p2prw.engine.memory.file_target import (
    check_file_sink,
    check_space,
    exists_error,
    resolve_target,
    status_or_none,
)
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.whole_file import put_in_place
from p2prw.errors import HostError
from p2prw.units import format_size

# One step of preparing: short enough that a loop that runs steps in between is not held up.
COPY_STEP_BYTES = 4 * 1024**2
ALLOCATE_STEP_BYTES = 64 * 1024**2


class FileSink(RangeOfFile):
    """A `MemorySource` to write to; its offsets are a region's, of which [range_start, range_end) may be written."""

    offers = frozenset({Offer.STAGED})
    is_device_memory = False
    digest_method = "owner-cpu"
    numa_node: int | None = None
    pci_address: str | None = None

    def __init__(
        self,
        spec: MemorySpec,
        path: str,
        *,
        base_offset: int = 0,
        range_start: int = 0,
        range_end: int,
        least_bytes: int = 0,
        keep_rest: bool,
        overwrite: bool,
    ) -> None:
        """Create the temporary file. `keep_rest`: the target's other bytes stay; `least_bytes`: its least size."""
        self.spec = spec
        self.length_bytes = range_end
        self.warnings: tuple[str, ...] = ()
        self.closed = False
        self.path = path
        self.base_offset = base_offset
        self._range_start = range_start
        self._overwrite = overwrite
        self._target, self._directory = resolve_target(path)
        self._committed = False
        self._ready = False
        self._punches = True
        """The file system makes holes, as far as is known."""
        self.descriptor = -1
        self._existing = -1
        self._steps: Iterator[int] | None = None
        check_file_sink(path, overwrite=overwrite, needed_bytes=None)
        existing = self._open_existing() if keep_rest else status_or_none(self._target, path)
        self._copy_bytes = existing.st_size if keep_rest and existing is not None else 0
        self._final_bytes = max(base_offset + range_end, least_bytes, self._copy_bytes)
        try:
            self._temporary = self._create_temporary(existing)
            # What is read is the digest, once all is written: a file larger than memory comes back from the disk.
            expect_order(self)
        except BaseException:
            self._close_descriptors()
            raise

    def __repr__(self) -> str:
        state = "committed" if self._committed else "closed" if self.closed else f"as {self._temporary}"
        return f"<FileSink {self.path} {self._final_bytes} bytes {state}>"

    @property
    def prepare_bytes(self) -> int:
        """What `prepare_steps` counts up to."""
        return self._final_bytes + self._copy_bytes

    def prepare_steps(self) -> Iterator[int]:
        """Reserve the space and copy what is kept, a step at a time; yields bytes done. Errors abort the sink."""
        if self._steps is None:
            self._steps = self._prepare()
        return self._steps

    def _before_write(self) -> None:
        self._finish_preparing()

    def _store(self, data: memoryview, position: int) -> None:
        """Write, but leave a hole where there are only zeros: what is sparse stays sparse."""
        done = 0
        for start, end in zero_runs(data, position, self._final_bytes) if self._punches else ():
            write_all(self, data[done:start], position + done)
            done = start
            if self._make_hole(position + start, position + end):
                done = end
        write_all(self, data[done:], position + done)

    def _make_hole(self, start: int, end: int) -> bool:
        if start < end and self._punches:
            self._punches = punch(self.descriptor, start, end, self._final_bytes)
        return self._punches

    def commit(self) -> None:
        """fsync, rename to the target, fsync the directory. HostError `exists`: somebody made the target meanwhile."""
        if self._committed:
            return
        self._finish_preparing()
        try:
            os.fsync(self.descriptor)
            self._rename()
            self._committed = True
            _sync_directory(self._directory)
        except FileExistsError as error:
            raise exists_error(self.path) from error
        except OSError as error:
            raise file_error("finish", self.path, error) from error

    def abort(self) -> None:
        """Remove the temporary file; nothing happens after `commit`."""
        if self._committed or not self._temporary:
            return
        temporary, self._temporary = self._temporary, ""
        try:
            os.unlink(temporary)  # noqa: PTH108
        except OSError:
            # It is gone already, or the file system is: either way there is nothing left to do about it.
            pass

    def close(self) -> None:
        """Close; a sink that was not committed is thrown away. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self._leave()
            self._close_descriptors()

    def _leave(self) -> None:
        # What becomes of a sink that is closed before it is whole.
        self.abort()

    # --- preparing ------------------------------------------------------------------------------------------

    def _open_existing(self) -> os.stat_result | None:
        try:
            self._existing = os.open(self._target, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise file_error("read", self.path, error) from error
        return os.fstat(self._existing)

    def _create_temporary(self, existing: os.stat_result | None) -> str:
        name = os.path.basename(self._target)  # noqa: PTH119
        for _ in range(100):
            temporary = part_path(self._directory, name, secrets.token_hex(4))
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self.descriptor = os.open(temporary, flags, 0o666 if existing is None else 0o600)
            except FileExistsError:
                continue
            except OSError as error:
                raise file_error("create", self.path, error) from error
            if not lock_part(self.descriptor):
                os.close(self.descriptor)
                continue
            if existing is not None:
                self._take_over(existing)
            return temporary
        raise HostError(
            f"no free temporary name beside {self.path}",
            why="a hundred random names are taken, which is no chance",
            fix="remove .*.part files there",
            code="io_error",
        )

    def _take_over(self, existing: os.stat_result) -> None:
        """Owner and mode of the file that is replaced, without set-uid and set-gid: its bytes are a stranger's now."""
        try:
            os.fchown(self.descriptor, existing.st_uid, existing.st_gid)
        except OSError:
            # Only root gives files away; then the mode still holds for the one who replaces it.
            pass
        try:
            os.fchmod(self.descriptor, existing.st_mode & 0o777)
        except OSError as error:
            self.warnings += (f"{self.path}: could not keep its mode ({os.strerror(error.errno or 0)})",)

    def _prepare(self) -> Iterator[int]:
        try:
            for done in self._allocate():
                yield done
            for done in self._copy():
                yield self._final_bytes + done
        except OSError as error:
            self.close()
            raise self._allocation_error(error) from error
        except BaseException:
            self.close()
            raise
        self._ready = True

    def _finish_preparing(self) -> None:
        if self.closed:
            raise HostError(
                f"{self.path} is closed",
                why="its transfer has ended",
                fix="start a new transfer",
                code="memory_closed",
            )
        if not self._ready:
            for _ in self.prepare_steps():
                pass

    def _allocate(self) -> Iterator[int]:
        remove_orphans(self._target)
        self.warnings += self._notes()
        # As far as a resumed sink reaches its space was reserved; what it lacks there are holes, which are to stay.
        position = os.fstat(self.descriptor).st_size
        check_space(self.path, self._directory, max(0, self._final_bytes - position))
        while position < self._final_bytes:
            length = min(ALLOCATE_STEP_BYTES, self._final_bytes - position)
            if not fallocate(self.descriptor, position, length):
                # No fallocate here (NFS before 4.2, FAT, some FUSE): the size alone is set; ENOSPC may come later.
                os.ftruncate(self.descriptor, self._final_bytes)
                yield self._final_bytes
                return
            position += length
            yield position

    def _notes(self) -> tuple[str, ...]:
        note = leftover_note(self._target)
        return () if note is None else (note,)

    def _ranges_to_copy(self) -> list[tuple[int, int]]:
        return [(0, self._copy_bytes)]

    def _copy(self) -> Iterator[int]:
        for start, stop in self._ranges_to_copy():
            done = start
            for position, end in data_ranges(self._existing, start, stop):
                # Its holes stay holes; their space was reserved with the rest.
                self._make_hole(done, position)
                for done in self._copy_range(position, end):
                    yield done
                if done < end:
                    # The old file shrank; what it no longer has stays zero, as a sparse write would have it.
                    return
            if done < stop:
                self._make_hole(done, stop)
                yield stop

    def _copy_range(self, position: int, end: int) -> Iterator[int]:
        by_kernel = True
        while position < end:
            length = min(COPY_STEP_BYTES, end - position)
            count = 0
            if by_kernel:
                try:
                    count = os.copy_file_range(self._existing, self.descriptor, length, position, position)
                except OSError as error:
                    if error.errno not in CANNOT:
                        raise
                # A count of 0 is the end, or a file system (procfs, some FUSE) that does not mean it: pread tells.
                by_kernel = count > 0
            if count == 0:
                piece = os.pread(self._existing, length, position)
                if not piece:
                    return
                write_all(self, memoryview(piece), position)
                count = len(piece)
            position += count
            yield position

    def _allocation_error(self, error: OSError) -> HostError:
        failure = file_error("reserve space for", self.path, error)
        if failure.code == "no_space":
            failure.why = f"{format_size(self._final_bytes)} are needed; {failure.why}"
        return failure

    # --- finishing ------------------------------------------------------------------------------------------

    def _rename(self) -> None:
        put_in_place(self._temporary, self._target, overwrite=self._overwrite)

    def _close_descriptors(self) -> None:
        for name in ("descriptor", "_existing"):
            descriptor = getattr(self, name)
            setattr(self, name, -1)
            if descriptor >= 0:
                os.close(descriptor)


def _sync_directory(directory: str) -> None:
    """Make the rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems (FUSE, SMB) cannot sync a directory; the file itself is safe.
        if error.errno not in CANNOT:
            raise
    finally:
        os.close(descriptor)
