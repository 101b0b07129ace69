"""Proves a registration: a few bytes are written out of it into scratch, on a queue pair connected to itself.

A registration that succeeds proves nothing (ODP over a BAR registers and fails at the first access). The proof only
reads the memory in question; it never writes to it.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from p2prw.engine.model import DmaVec, Opcode, QueuePairOptions, Sge, WcStatus
from p2prw.engine.providers.verbs_binding import (
    LOCAL_WRITE,
    ON_DEMAND,
    REMOTE_WRITE,
    BindingError,
    BoundContext,
    BoundRegion,
)
from p2prw.engine.providers.verbs_queue_pair import VerbsQueuePair
from p2prw.errors import P2prwError

if TYPE_CHECKING:
    from p2prw.engine.providers.verbs import VerbsDevice

PROOF_BYTES = 64
PROOF_DEADLINE_S = 3.0
_NAP_S = 0.0005
# 4.096 us x 2^14 is 67 ms: a loopback that loses packets is told within half a second.
_OPTIONS = QueuePairOptions(depth=4, max_send_sge=1, timeout=14, retry_cnt=3, rnr_retry=3, max_rd_atomic=1)


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of it. `proven` False with `ok` True: there was no way to try."""

    ok: bool
    proven: bool = True
    wc_status: str | None = None
    why: str | None = None


def prove_by_loopback(
    device: VerbsDevice,
    context: BoundContext,
    vec: DmaVec | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None] = time.sleep,
) -> Proof:
    """WRITE the first and the last bytes of `vec` (None: of scratch itself) into scratch; all is closed afterwards."""
    scratch = mmap.mmap(-1, mmap.PAGESIZE)
    pin = ctypes.c_char.from_buffer(scratch)
    address = ctypes.addressof(pin)
    region = None
    pair: VerbsQueuePair | None = None
    try:
        region = context.register(address, mmap.PAGESIZE, LOCAL_WRITE | REMOTE_WRITE)
        pair = loopback_pair(device, context)
        if vec is None:
            pieces = [Sge(address + 2048, PROOF_BYTES, region.lkey)]
        else:
            first, last = vec[0], vec[-1]
            tail = min(PROOF_BYTES, last.length_bytes)
            pieces = [
                Sge(first.address, min(PROOF_BYTES, first.length_bytes), first.lkey),
                Sge(last.address + last.length_bytes - tail, tail, last.lkey),
            ]
        for wr_id, sge in enumerate(pieces):
            pair.post_rdma(wr_id, Opcode.RDMA_WRITE, (sge,), address, region.rkey, signaled=True)
        return await_completions(pair, len(pieces), clock, sleep)
    except BindingError as error:
        return Proof(False, why=error.reason)
    except P2prwError as error:
        return Proof(False, why=error.what)
    finally:
        if pair is not None:
            pair.close()
        if region is not None:
            region.close()
        del pin
        scratch.close()


def odp_keeps_offsets(
    device: VerbsDevice,
    context: BoundContext,
    clock: Callable[[], float],
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Tell whether ODP memory is read where it was asked for, also inside a page and across its end.

    rxe up to Linux 7.3 (and later, until somebody mends it) copies from and to the start of each page
    (drivers/infiniband/sw/rxe/rxe_odp.c, __rxe_odp_mr_copy: neither the offset in the page nor the progress in the
    packet is added). Tried on pages of our own with known bytes: the user's memory may hold the same bytes everywhere.
    """
    page = mmap.PAGESIZE
    source, sink = mmap.mmap(-1, 2 * page), mmap.mmap(-1, page)
    source[:] = b"".join(number.to_bytes(4, "little") for number in range(2 * page // 4))
    pins = [ctypes.c_char.from_buffer(source), ctypes.c_char.from_buffer(sink)]
    from_address, to_address = map(ctypes.addressof, pins)
    regions: list[BoundRegion] = []
    pair: VerbsQueuePair | None = None
    start = page - PROOF_BYTES // 2
    try:
        regions.append(context.register(from_address, 2 * page, LOCAL_WRITE | ON_DEMAND))
        regions.append(context.register(to_address, page, LOCAL_WRITE | REMOTE_WRITE))
        pair = loopback_pair(device, context)
        sge = Sge(from_address + start, PROOF_BYTES, regions[0].lkey)
        pair.post_rdma(0, Opcode.RDMA_WRITE, (sge,), to_address, regions[1].rkey, signaled=True)
        return await_completions(pair, 1, clock, sleep).ok and sink[:PROOF_BYTES] == source[start : start + PROOF_BYTES]
    except (BindingError, P2prwError):
        return False
    finally:
        if pair is not None:
            pair.close()
        for region in regions:
            region.close()
        pins.clear()
        source.close()
        sink.close()


def loopback_pair(device: VerbsDevice, context: BoundContext) -> VerbsQueuePair:
    """Return a queue pair that is connected to itself, quick to notice a port without loopback."""
    gid_index = next((one.index for one in device.info.gids if one.up), None)
    options = replace(_OPTIONS, gid_index=gid_index)
    pair = VerbsQueuePair(device, context, options, LOCAL_WRITE | REMOTE_WRITE, psn=1)
    try:
        pair.connect(pair.local)
    except BaseException:
        pair.close()
        raise
    return pair


def await_completions(
    pair: VerbsQueuePair, count: int, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Proof:
    """Wait for `count` completions; not ok at the first bad one, or when `PROOF_DEADLINE_S` is over."""
    end_s = clock() + PROOF_DEADLINE_S
    while count:
        for completion in pair.poll():
            if completion.status is not WcStatus.SUCCESS:
                return Proof(False, wc_status=completion.status.name)
            count -= 1
        if count:
            if clock() > end_s:
                return Proof(False, why=f"no completion within {PROOF_DEADLINE_S:g} s")
            sleep(_NAP_S)
    return Proof(True)
