"""Memory of a verbs device itself: registered for peers, and read and written by its owner over a loopback queue pair.

The CPU has no way in (providers may have one, mlx5 does; the verbs API promises none), so what is read for a digest
has been carried by the NIC: `owner-loopback-read`.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2prw.engine.model import Access, Opcode, Sge
from p2prw.engine.providers.verbs_binding import LOCAL_WRITE, REMOTE_WRITE, BindingError, BoundContext, BoundDm
from p2prw.engine.providers.verbs_memory import VerbsRegistration
from p2prw.engine.providers.verbs_proof import await_completions, loopback_pair
from p2prw.errors import HostError, P2prwError

if TYPE_CHECKING:
    from p2prw.engine.providers.verbs import VerbsDevice

SCRATCH_BYTES = 64 * 1024


class VerbsDm:
    """See `p2prw.engine.memory.dm.NicAllocation`. Made by `VerbsDevice.allocate_dm`."""

    def __init__(
        self,
        device: VerbsDevice,
        context: BoundContext,
        memory: BoundDm,
        length_bytes: int,
        clock: Callable[[], float],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.length_bytes = length_bytes
        self._device = device
        self._context = context
        self._memory: BoundDm | None = memory
        self._clock = clock
        self._sleep = sleep
        self._loopback: _Loopback | None = None

    def register(self, access: Access, offset: int, length_bytes: int) -> VerbsRegistration:
        """ibv_reg_dm_mr; its addresses begin at 0."""
        return self._device.register_dm(self._open_memory, access, offset, length_bytes)

    def copy_out(self, offset: int, into: memoryview) -> None:
        """Have the NIC write `len(into)` bytes to scratch, piece by piece."""
        loopback = self._open_loopback()
        for start in range(0, len(into), SCRATCH_BYTES):
            piece = into[start : start + SCRATCH_BYTES]
            loopback.move(loopback.memory, offset + start, loopback.scratch, 0, len(piece))
            piece[:] = loopback.bytes[: len(piece)]

    def copy_in(self, offset: int, data: memoryview) -> None:
        """Have the NIC write `data` from scratch, piece by piece."""
        loopback = self._open_loopback()
        for start in range(0, len(data), SCRATCH_BYTES):
            piece = data[start : start + SCRATCH_BYTES]
            loopback.bytes[: len(piece)] = piece
            loopback.move(loopback.scratch, 0, loopback.memory, offset + start, len(piece))

    def close(self) -> None:
        """Free it; registrations were closed before. Safe to call twice."""
        loopback, self._loopback = self._loopback, None
        if loopback is not None:
            loopback.close()
        memory, self._memory = self._memory, None
        if memory is None:
            return
        self._device.forget_dm(self)
        try:
            memory.close()
        except BindingError as error:
            # The kernel frees what is left when the process ends; a transfer that is over is not undone by it.
            self._device.warnings.append(f"freeing device memory of {self._device.info.name}: {error.reason}")

    def _open_loopback(self) -> _Loopback:
        if self._loopback is None:
            try:
                self._loopback = _Loopback(self, self._device, self._context, self._clock, self._sleep)
            except BindingError as error:
                raise _no_loopback(self._device, error.reason, error.errno_name) from error
            except P2prwError as error:
                raise _no_loopback(self._device, error.what, error.errno) from error
        return self._loopback

    @property
    def _open_memory(self) -> BoundDm:
        if self._memory is None:
            raise HostError(
                f"the memory in {self._device.info.name} was freed",
                why="its device or its transfer was closed",
                fix="start a new transfer",
                code="memory_closed",
            )
        return self._memory


class _Loopback:
    """A queue pair connected to itself, scratch of ours, and all of the device memory."""

    def __init__(
        self,
        dm: VerbsDm,
        device: VerbsDevice,
        context: BoundContext,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._device = device
        self._clock, self._sleep = clock, sleep
        self._next_wr_id = 0
        self._mapping = mmap.mmap(-1, SCRATCH_BYTES)
        self._pin = ctypes.c_char.from_buffer(self._mapping)
        self.bytes = memoryview(self._mapping)
        rights = LOCAL_WRITE | REMOTE_WRITE
        self._registration: VerbsRegistration | None = None
        self._scratch = context.register(ctypes.addressof(self._pin), SCRATCH_BYTES, rights)
        try:
            self._registration = dm.register(Access.LOCAL_WRITE | Access.REMOTE_WRITE, 0, dm.length_bytes)
            self._pair = loopback_pair(device, context)
        except BaseException:
            self._free_memory()
            raise
        scratch = self._scratch
        self.scratch = (scratch.address, scratch.lkey, scratch.rkey)
        (address, _, lkey) = self._registration.vec[0]
        rkey = self._registration.remote_segments()[0].rkey
        self.memory = (address, lkey, rkey)

    def move(
        self, source: tuple[int, int, int], source_offset: int, target: tuple[int, int, int], offset: int, count: int
    ) -> None:
        """RDMA WRITE `count` bytes; HostError where they do not arrive in time."""
        sge = Sge(source[0] + source_offset, count, source[1])
        self._pair.post_rdma(self._next_wr_id, Opcode.RDMA_WRITE, (sge,), target[0] + offset, target[2], signaled=True)
        self._next_wr_id += 1
        came = await_completions(self._pair, 1, self._clock, self._sleep)
        if not came.ok:
            raise _no_loopback(self._device, came.why or f"a WRITE ended with {came.wc_status}", None)

    def close(self) -> None:
        self._pair.close()
        self._free_memory()

    def _free_memory(self) -> None:
        if self._registration is not None:
            self._registration.close()
        try:
            self._scratch.close()
        except BindingError:
            pass  # a device that is gone takes its regions with it
        self.bytes.release()
        del self._pin
        self._mapping.close()


def _no_loopback(device: VerbsDevice, why: str, errno: str | None) -> HostError:
    return HostError(
        f"the memory in {device.info.name} cannot be read back over the device itself",
        why=f"{why}; no CPU mapping leads to it, so a loopback queue pair is the only way",
        fix="--no-verify, where the bytes may go unverified",
        code="no_loopback",
        errno=errno,
    )
