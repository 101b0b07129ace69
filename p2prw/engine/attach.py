"""Makes both ends of a granted transfer: registers what is ours, describes what is the peer's, sets the limits."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Grant
from p2prw.engine.ends import DirectLocal, DirectRemote, LocalEnd, RemoteEnd, RingLocal, StagedRemote
from p2prw.engine.ladder import climb
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.host import open_scratch
from p2prw.engine.model import (
    Access,
    DeviceInfo,
    DmaVec,
    Operation,
    RemoteSegment,
    RouteReport,
    Sge,
    TransferRequest,
)
from p2prw.engine.providers.base import Device
from p2prw.engine.rw import RwLimits
from p2prw.engine.staging import StagingRing

SCRATCH_BYTES = 1024 * 1024
"""Holds one verification block that is read back, and the flushing READ's few bytes."""
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Scratch:
    """Registered host memory of our own."""

    memory: MemorySource
    sge: Sge


@dataclass(frozen=True, slots=True)
class LocalAttachment:
    """Our end, ready to post from."""

    end: LocalEnd
    vec: DmaVec
    route: RouteReport
    """What was tried and what holds."""
    filenos: tuple[int, ...] = ()
    """Descriptors that turn readable when the end has news."""


def attach_local(
    stack: ExitStack,
    device: Device,
    memory: MemorySource,
    request: TransferRequest,
    length_bytes: int,
    *,
    staged: bool,
    path_mtu_bytes: int | None = None,
) -> LocalAttachment:
    """Register mapped memory whole by the first route that holds, or put a ring of registered chunks before it.

    What is opened is closed by `stack`. HostError where the device or the memory cannot; NoRouteError has the attempts.
    """
    access = Access.LOCAL_READ if request.operation is Operation.WRITE else Access.LOCAL_WRITE
    reach = climb(
        device,
        memory,
        access,
        length_bytes=length_bytes,
        staged=staged,
        kind=request.memory.kind,
        wanted=request.route,
        force=request.force_route,
        path_mtu_bytes=path_mtu_bytes,
    )
    if reach.registration is not None:
        stack.callback(reach.registration.close)
        return LocalAttachment(DirectLocal(reach.registration.vec), reach.registration.vec, reach.report)
    chunk_bytes, slots = staging_shape(request.staging_bytes, request.staging_chunk_bytes, length_bytes)
    ring = StagingRing(memory, chunk_bytes=chunk_bytes, slots=slots)
    stack.callback(ring.close)
    registration = device.register([ring.buffer], access)
    stack.callback(registration.close)
    return LocalAttachment(
        RingLocal(ring, registration.vec, request.operation), registration.vec, reach.report, (ring.wake_fileno(),)
    )


def staging_shape(staging_bytes: int, chunk_bytes: int, length_bytes: int) -> tuple[int, int]:
    """Return (chunk bytes, slots) of a ring: no bigger than the transfer needs, at least two slots, at most 256."""
    chunk = min(chunk_bytes, -(-max(1, length_bytes) // _PAGE_BYTES) * _PAGE_BYTES)
    needed = -(-max(1, length_bytes) // chunk)
    return chunk, max(2, min(staging_bytes // chunk, needed, 256))


def attach_remote(channel: Channel, grant: Grant, operation: Operation, base_offset: int = 0) -> RemoteEnd:
    """Return the peer's end of a grant, from `base_offset` of the lease on."""
    if grant.staging is not None:
        return StagedRemote(channel, grant.lease, grant.staging, operation, base_offset)
    return DirectRemote([RemoteSegment(s.address, s.length, s.rkey) for s in grant.segments], base_offset)


def make_scratch(stack: ExitStack, device: Device) -> Scratch:
    """Return `SCRATCH_BYTES` of registered host memory, closed by `stack`."""
    memory = open_scratch(SCRATCH_BYTES)
    stack.callback(memory.close)
    registration = device.register(memory.buffers(), Access.LOCAL_WRITE)
    stack.callback(registration.close)
    return Scratch(memory, Sge(*registration.vec[0]))


def rw_limits(request: TransferRequest, info: DeviceInfo, window_bytes: int) -> RwLimits:
    """Return what bounds a work request: the device, `--chunk`, and for READ our own socket buffer."""
    chunk = request.chunk_bytes
    if request.operation is Operation.READ and info.mover == "cpu":
        # One READ may fill half our socket buffer: a bigger one would drop its own responses.
        chunk = min(chunk, max(_PAGE_BYTES, window_bytes // 2 // _PAGE_BYTES * _PAGE_BYTES))
    return RwLimits.for_device(
        info.limits,
        max_send_sge=request.queue_pair.max_send_sge,
        chunk_bytes=chunk,
        max_sgl_rd=request.max_sgl_rd,
        force_mr=request.force_mr,
    )
