"""Makes both ends of a granted transfer: registers what is ours, describes what is the peer's, sets the limits."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Grant
from p2prw.engine.digest import BLOCK_BYTES
from p2prw.engine.ends import DirectLocal, DirectRemote, LocalEnd, RemoteEnd, RingLocal, StagedRemote
from p2prw.engine.ladder import NoRouteError, climb
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.engine.memory.host import open_scratch
from p2prw.engine.memory.via import BouncedStage, ControllerStage, ring_room
from p2prw.engine.model import (
    Access,
    DeviceInfo,
    DmaVec,
    MemorySpec,
    Operation,
    RemoteSegment,
    Route,
    RouteReport,
    Sge,
    TransferRequest,
)
from p2prw.engine.pace import RateLimit, paced_chunk_bytes
from p2prw.engine.providers.base import Device, Registration
from p2prw.engine.routes import staged_via
from p2prw.engine.rw import RwLimits
from p2prw.engine.staging import Stage, StagingRing
from p2prw.engine.topology.sysfs import SysfsRoot

if TYPE_CHECKING:
    from p2prw.engine.memory.block_device import BlockSink
    from p2prw.engine.memory.file import FileSource
    from p2prw.engine.memory.file_sink import FileSink

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
    if request.via is not None:
        opened = open_via_ring(
            stack,
            device,
            memory,
            access,
            via=request.via,
            staging_bytes=request.staging_bytes,
            chunk_bytes=request.staging_chunk_bytes,
            length_bytes=length_bytes,
            wanted=request.route,
            force=request.force_route,
            path_mtu_bytes=path_mtu_bytes,
        )
        return _ring_end(opened, request.operation)
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
    opened = open_host_ring(
        stack,
        device,
        memory,
        access,
        reach.report,
        staging_bytes=request.staging_bytes,
        chunk_bytes=request.staging_chunk_bytes,
        length_bytes=length_bytes,
    )
    return _ring_end(opened, request.operation)


def _ring_end(opened: OpenedRing, operation: Operation) -> LocalAttachment:
    vec = opened.registration.vec
    return LocalAttachment(
        RingLocal(opened.ring, vec, operation), vec, opened.report, filenos=(opened.ring.wake_fileno(),)
    )


@dataclass(frozen=True, slots=True)
class OpenedRing:
    """A ring before staged memory, registered."""

    ring: StagingRing
    registration: Registration
    report: RouteReport


def open_host_ring(
    stack: ExitStack,
    device: Device,
    memory: MemorySource,
    access: Access,
    report: RouteReport,
    *,
    staging_bytes: int,
    chunk_bytes: int,
    length_bytes: int,
) -> OpenedRing:
    """Put a ring of registered host chunks before `memory`; `report` says how that is reached. Closed by `stack`."""
    shape = resume_shape if isinstance(memory, ResumableSink) else staging_shape
    chunk, slots = shape(staging_bytes, chunk_bytes, length_bytes)
    ring = StagingRing(memory, chunk_bytes=chunk, slots=slots)
    stack.callback(ring.close)
    registration = device.register([ring.buffer], access)
    stack.callback(registration.close)
    return OpenedRing(ring, registration, report)


def open_via_ring(
    stack: ExitStack,
    device: Device,
    memory: MemorySource,
    access: Access,
    *,
    via: MemorySpec,
    staging_bytes: int,
    chunk_bytes: int,
    length_bytes: int,
    start: int = 0,
    wanted: Route | None = None,
    force: bool = False,
    path_mtu_bytes: int | None = None,
) -> OpenedRing:
    """Put a ring in P2P memory before a file, and reach the ring by the first route that holds. Closed by `stack`.

    The CPU copies only where `wanted` says bounce: else NoRouteError, because whoever asks for `--via` wants no copy.
    """
    room_bytes, most_bytes = ring_room(via, staging_bytes, chunk_bytes, SysfsRoot())
    chunk, slots = staging_shape(room_bytes, most_bytes, length_bytes)
    file = cast("FileSource | FileSink | BlockSink", memory)
    stage = ControllerStage(via, file, chunk * slots, chunk, start=start, length_bytes=length_bytes)
    stack.callback(stage.close)
    try:
        reach = climb(
            device,
            stage.ring,
            access,
            staged=False,
            wanted=wanted,
            force=force,
            path_mtu_bytes=path_mtu_bytes,
            may_copy=False,
        )
    except NoRouteError as error:
        error.report = staged_via(error.report, stage.report)
        error.fix = "--route bounce (the CPU then copies between the ring and host memory), or leave --via away"
        raise
    slots_of: Stage = stage if reach.registration is not None else BouncedStage(stage)
    ring = StagingRing(memory, chunk_bytes=chunk, slots=slots, stage=slots_of)
    stack.callback(ring.close)
    registration = reach.registration or device.register([ring.buffer], access)
    stack.callback(registration.close)
    return OpenedRing(ring, registration, staged_via(reach.report, stage.report))


def staging_shape(staging_bytes: int, chunk_bytes: int, length_bytes: int) -> tuple[int, int]:
    """Return (chunk bytes, slots) of a ring: no bigger than the transfer needs, at least two slots, at most 256."""
    chunk = min(chunk_bytes, -(-max(1, length_bytes) // _PAGE_BYTES) * _PAGE_BYTES)
    needed = -(-max(1, length_bytes) // chunk)
    return chunk, max(2, min(staging_bytes // chunk, needed, 256))


def resume_shape(staging_bytes: int, chunk_bytes: int, length_bytes: int) -> tuple[int, int]:
    """Return (chunk bytes, slots) before a sink that notes what arrives: what is on its way is lost with a process.

    At most a 32nd of the transfer, of whole blocks where that leaves any.
    """
    ring = max(4 * BLOCK_BYTES, min(staging_bytes, length_bytes // 32))
    chunk = min(chunk_bytes, max(BLOCK_BYTES, ring // 4 // BLOCK_BYTES * BLOCK_BYTES))
    return staging_shape(min(staging_bytes, ring), chunk, length_bytes)


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


def read_chunk_bytes(operation: Operation, info: DeviceInfo, chunk_bytes: int, window_bytes: int) -> int:
    """Return `chunk_bytes`; for READ no more than our own socket buffer takes, of which `window_bytes` are granted."""
    if operation is Operation.READ and info.mover == "cpu":
        # One READ may fill half our socket buffer: a bigger one would drop its own responses.
        return min(chunk_bytes, max(_PAGE_BYTES, window_bytes // 2 // _PAGE_BYTES * _PAGE_BYTES))
    return chunk_bytes


def rw_limits(
    request: TransferRequest, info: DeviceInfo, window_bytes: int, rate_limit: RateLimit | None = None
) -> RwLimits:
    """Return what bounds a work request: the device, `--chunk`, a rate limit, and for READ our own socket buffer."""
    chunk = paced_chunk_bytes(request.chunk_bytes, rate_limit)
    chunk = read_chunk_bytes(request.operation, info, chunk, window_bytes)
    return RwLimits.for_device(
        info.limits,
        max_send_sge=request.queue_pair.max_send_sge,
        chunk_bytes=chunk,
        max_sgl_rd=request.max_sgl_rd,
        force_mr=request.force_mr,
    )
