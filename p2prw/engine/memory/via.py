"""A staging ring in P2P memory: `--via p2pmem:BDF`. The drive DMAs between the file and the ring, a NIC from there on.

    file:/dev/nvme1n1 --(O_DIRECT, DMA by nvme1)--> ring in the CMB of nvme0 --(RDMA)--> the peer

Success of such I/O proves nothing: a machine can lose the bytes and say that all is well (an IOMMU above a switch
does). So the ring is poisoned before use, and a digest of the file never comes out of the ring: `FileSource.read_at`
and `RangeOfFile.read_at` read it into host memory.
"""

from __future__ import annotations

import errno
import mmap
import os

from p2prw.engine.memory.base import MappedBuffer
from p2prw.engine.memory.block_device import BlockSink
from p2prw.engine.memory.direct import DirectFile, refused
from p2prw.engine.memory.file import FileSource
from p2prw.engine.memory.file_sink import FileSink
from p2prw.engine.memory.host import open_scratch
from p2prw.engine.memory.p2pmem import P2pmemMemory, check_p2pmem, open_p2pmem
from p2prw.engine.memory.spec import make_spec
from p2prw.engine.model import MemorySpec, ViaReport
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, LocalProtocolError, RequestError
from p2prw.units import format_size

_POISON = bytes.fromhex("b5d07ae1c36f9824")
_POISON_PIECE_BYTES = 1024 * 1024
_PAGE_BYTES = 4096


def poison_at(offset: int, length_bytes: int) -> bytes:
    """Return what a span's bytes [offset, offset + length) of a transfer are where nothing ever reached its slot."""
    phase = offset % len(_POISON)
    return (_POISON * (length_bytes // len(_POISON) + 2))[phase : phase + length_bytes]


def check_via(via: MemorySpec, kind: str | None, sysfs: SysfsRoot | None = None) -> None:
    """Raise RequestError where `--via` names no ring or `kind` is not staged, HostError where there is no such ring."""
    if via.kind != "p2pmem":
        raise RequestError(
            f"--via {via.text or via.kind}: a file is staged through p2pmem only",
            why="a drive can reach memory that has struct pages and is a device's: that is p2pmem",
            fix="--via p2pmem:0000:01:00.0",
            code="via_kind",
        )
    if kind != "file":
        raise RequestError(
            f"--via is for files and block devices, not for {kind or 'what is offered here'}",
            why="other memory is reached as it is, it is not staged",
            fix="leave --via away, or file:PATH",
            code="via_needs_file",
        )
    check_p2pmem(via, sysfs or SysfsRoot())


def ring_room(via: MemorySpec, staging_bytes: int, chunk_bytes: int, sysfs: SysfsRoot) -> tuple[int, int]:
    """Return (bytes of the ring at most, of a slot at most): `size=`, else what `--staging` and the pool allow."""
    room = min(check_p2pmem(via, sysfs), staging_bytes)
    chunk = min(chunk_bytes, room // 2 // _PAGE_BYTES * _PAGE_BYTES)
    if chunk < _PAGE_BYTES:
        raise HostError(
            f"a ring of {format_size(room)} in {via.text or via.kind} is too small",
            why=f"it takes two slots of at least {_PAGE_BYTES} bytes",
            fix=f"p2pmem:{via.arg},size=1MiB; or stop who holds the rest of the pool",
            code="not_enough_memory",
        )
    return room, chunk


class ControllerStage:
    """The slots of a ring in P2P memory and the file behind them; see `staging.Stage`. Positions are the ring's."""

    def __init__(
        self,
        via: MemorySpec,
        memory: FileSource | FileSink | BlockSink,
        ring_bytes: int,
        chunk_bytes: int,
        *,
        start: int,
        length_bytes: int,
        sysfs: SysfsRoot | None = None,
    ) -> None:
        """Open everything, have the kernel allow one block, poison the ring.

        `start` and `length_bytes`: the range of `memory` that the transfer covers.
        """
        root = sysfs or SysfsRoot()
        self._sink = None if isinstance(memory, FileSource) else memory
        self._memory = memory
        self._file = DirectFile(memory, writable=self._sink is not None, sysfs=root)
        try:
            self._check(start, chunk_bytes)
            self.ring: P2pmemMemory = open_p2pmem(make_spec("p2pmem", via.arg, {"size": str(ring_bytes)}), root)
        except BaseException:
            self._file.close()
            raise
        self._view = self.ring.dma_view()
        block = self._file.block_bytes
        self.report = ViaReport(
            memory="p2pmem",
            pci_address=via.arg or "",
            mover="drive",
            peer_to_peer=True,
            drive=self._file.drive,
            host_bytes=length_bytes % block if self._sink is not None else 0,
        )
        try:
            self._try_first_block(start)
            piece = memoryview(poison_at(0, _POISON_PIECE_BYTES))
            for position in range(0, ring_bytes, len(piece)):
                self.ring.write_at(position, piece[: ring_bytes - position])
            # What is digested later is to come from the drive, not from a copy that the page cache made before.
            os.posix_fadvise(memory.descriptor, memory.base_offset + start, length_bytes, os.POSIX_FADV_DONTNEED)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<ControllerStage {self._file!r} {self.ring!r}>"

    @property
    def buffer(self) -> MappedBuffer:
        """What is to be registered: all slots."""
        return self.ring.buffers()[0]

    def fill(self, position: int, offset: int, length_bytes: int) -> int:
        """Have the drive read the memory's [offset, offset + length) into the ring; return the count.

        A last block is read whole: what lies beyond the transfer stays in the slot.
        """
        at, block = self._place(offset), self._file.block_bytes
        whole = -(-length_bytes // block) * block
        try:
            count = self._file.read_into(self._view[position : position + whole], at)
        except OSError as error:
            raise self._refused("read", error) from error
        return min(count, length_bytes)

    def drain(self, position: int, offset: int, length_bytes: int) -> None:
        """Have the drive write the ring's bytes to the memory at `offset`; a part of a block goes through the host."""
        if self._sink is None:
            raise LocalProtocolError(f"{self._file.path} was opened as a source")
        self._sink.check_write(offset, length_bytes)
        at, tail = self._place(offset), length_bytes % self._file.block_bytes
        whole = length_bytes - tail
        try:
            self._file.write_from(self._view[position : position + whole], at)
            if tail:
                self._write_tail(position + whole, tail, at + whole)
        except OSError as error:
            raise self._refused("write", error) from error

    def close(self) -> None:
        """Close the second descriptor and give the ring back; a second call does nothing."""
        self._file.close()
        self._view.release()
        self.ring.close()

    # --- blocks ---------------------------------------------------------------------------------------------

    def _place(self, offset: int) -> int:
        """Return where in the file `offset` is; HostError where no block begins there."""
        at = self._memory.base_offset + offset
        if at % self._file.block_bytes:
            raise _not_aligned(self._file, f"byte {at}", "offset=, +OFFSET and, at both ends, --staging-chunk")
        return at

    def _check(self, start: int, chunk_bytes: int) -> None:
        self._place(start)
        if chunk_bytes % self._file.block_bytes:
            raise _not_aligned(self._file, f"every {chunk_bytes} bytes", "--staging-chunk")

    def _try_first_block(self, start: int) -> None:
        # A new file's blocks hold nothing yet: reading them asks no drive. There the first write finds out.
        if not isinstance(self._sink, FileSink):
            self.fill(0, start, self._file.block_bytes)

    def _write_tail(self, position: int, length_bytes: int, at: int) -> None:
        """Write part of a block: read the block into host memory, put the tail in, write it whole.

        Past the page cache too: a dirty page there could cover blocks that the drive is writing from the ring.
        """
        block = self._file.block_bytes
        size = os.fstat(self._file.descriptor).st_size
        with mmap.mmap(-1, block) as host, memoryview(host) as view:
            self._file.read_into(view, at)
            self.ring.read_at(position, view[:length_bytes])
            self._file.write_from(view, at)
        if not self._file.is_block_device and at + block > size:
            # No other span lies behind the tail: what is cut off is the rest of its block.
            os.ftruncate(self._file.descriptor, size)

    def _refused(self, action: str, error: OSError) -> HostError:
        return refused(action, self._file.path, self._file.drive, self.report.pci_address, error)


class BouncedStage:
    """A ring in P2P memory with host memory before it, for `--route bounce`: the CPU copies between both."""

    def __init__(self, inner: ControllerStage) -> None:
        self._inner = inner
        self._host = open_scratch(inner.ring.length_bytes)

    @property
    def buffer(self) -> MappedBuffer:
        """What is to be registered: the host memory."""
        return self._host.buffers()[0]

    def fill(self, position: int, offset: int, length_bytes: int) -> int:
        """Have the drive fill the ring, then copy it."""
        count = self._inner.fill(position, offset, length_bytes)
        self._host.write_at(position, memoryview(self._inner.ring.buffer.load(position, count)))
        return count

    def drain(self, position: int, offset: int, length_bytes: int) -> None:
        """Copy into the ring, then have the drive take it."""
        self._inner.ring.write_at(position, memoryview(self._host.buffer.load(position, length_bytes)))
        self._inner.drain(position, offset, length_bytes)

    def close(self) -> None:
        """Free the host memory; the ring is the inner stage's. A second call does nothing."""
        self._host.close()


def _not_aligned(file: DirectFile, what: str, where: str) -> HostError:
    return HostError(
        f"{what} is not where direct I/O on {file.path} may begin",
        why=f"it counts in blocks of {file.block_bytes} bytes, and the drive moves whole blocks",
        fix=f"multiples of {file.block_bytes} for {where}, or leave --via away",
        code="not_aligned",
        errno=errno.EINVAL,
    )
