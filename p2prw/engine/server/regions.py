"""What a server offers under a name: mapped memory that is opened once, or a file that is opened for each lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from p2prw.engine.control.messages import REGIONS_PER_PAGE, RegionInfo, Regions
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.file import FileRegion, run_steps
from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.model import Operation, ServedRegion, ServeRequest, SourceIdentity
from p2prw.engine.server.leases import LeaseTable
from p2prw.engine.stop import StopRequest
from p2prw.errors import PeerRefusedError, RequestError
from p2prw.units import exact_size, typed_size

_ROLES = {"r": "source", "w": "sink", "rw": "both"}


@dataclass(frozen=True, slots=True)
class OpenedRegion:
    """Memory for one lease. The lease's first byte is at `base_offset` of `memory`."""

    memory: MemorySource
    base_offset: int
    close: Callable[[], None]
    prepare: Callable[[], None] | None = None
    """Long work before the first byte may be written (allocating, copying what is kept); run it off the loop."""
    resuming: bool = False
    """A writer wants to go on with what is here."""


def _nothing() -> None:
    """Mapped memory outlives its leases."""


class OfferedRegion:
    """One `--region`."""

    staged = False
    exclusive_whole = False
    """A writer keeps every other client out of the whole region, not only out of its range."""

    def __init__(self, offered: ServedRegion) -> None:
        self.name = offered.name
        self.kind = offered.memory.kind
        self.access = offered.access
        self.warnings: tuple[str, ...] = ()

    @property
    def length_bytes(self) -> int | None:
        """What a client can reach; None: an elastic sink that takes what is written."""
        raise NotImplementedError

    def open_for(
        self, operation: Operation, offset: int, length_bytes: int, resume: SourceIdentity | None = None
    ) -> OpenedRegion:
        """Open the region for one lease on [offset, offset + length). HostError where that fails.

        `resume`: a writer's source, where it wants to go on with what it left here.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Unmap; leases have ended."""

    def check(self, operation: Operation, offset: int, length: int | None, limit: int | None) -> int:
        """Return the length to grant; PeerRefusedError when the right, the offset or the size does not fit.

        `length` None: to the end of the region, at most `limit` (the client's own memory).
        """
        right = "w" if operation is Operation.WRITE else "r"
        if right not in self.access:
            offered = "read" if self.access == "r" else "written"
            raise PeerRefusedError(
                f"region {self.name!r} may only be {offered}",
                why=f"it is served with access={self.access}",
                fix=f"p2prw serve --region {self.name}=...,access=rw",
                code="read_only" if right == "w" else "write_only",
            )
        total = self._total_for(operation)
        if total is None:
            granted = length if length is not None else limit
            if granted is None:
                raise PeerRefusedError(
                    f"region {self.name!r} takes any size, and none was given",
                    why="neither end has a size of its own",
                    fix="--size 64MiB",
                    code="missing_size",
                )
            return granted
        if offset > total:
            raise PeerRefusedError(
                f"offset {exact_size(offset)} is past the end of region {self.name!r}",
                why=f"it is {exact_size(total)} long",
                fix=f"{self.name}+OFFSET with an offset of less than {typed_size(total)}",
                code="offset_past_end",
            )
        room = total - offset
        if length is None:
            return room if limit is None else min(room, limit)
        if length > room:
            raise PeerRefusedError(
                f"{exact_size(length)} do not fit into region {self.name!r}"
                + (f" at offset {exact_size(offset)}" if offset else ""),
                why=f"it is {exact_size(total)} long" + (f", {exact_size(room)} are left there" if offset else ""),
                fix=f"--size {typed_size(room)}" if room else "an offset that leaves some of it, or a larger region",
                code="region_too_small",
            )
        return length

    def _total_for(self, operation: Operation) -> int | None:
        return self.length_bytes


class MappedRegion(OfferedRegion):
    """Memory that stays open and mapped while the server runs; each lease registers its range of it."""

    def __init__(self, offered: ServedRegion, request: ServeRequest, stop: StopRequest | None = None) -> None:
        super().__init__(offered)
        prepared = prepare_memory(
            offered.memory,
            _ROLES[offered.access],  # type: ignore[arg-type]
            overwrite=request.overwrite,
            force_bound_device=request.force_bound_device,
        )
        if prepared.length_bytes is None:
            raise RequestError(
                f"region {offered.name!r} needs a size",
                why="it is mapped before the first client comes",
                fix=f"--region {offered.name}={offered.memory.kind},size=64MiB",
                code="missing_size",
            )
        self._memory = prepared.open(None, stop)
        self.warnings = self._memory.warnings

    @property
    def length_bytes(self) -> int:
        """The mapped length."""
        return self._memory.length_bytes

    def open_for(
        self, operation: Operation, offset: int, length_bytes: int, resume: SourceIdentity | None = None
    ) -> OpenedRegion:
        """Return the standing memory."""
        return OpenedRegion(self._memory, offset, _nothing, resuming=resume is not None)

    def close(self) -> None:
        """Unmap."""
        self._memory.close()


class FileOffered(OfferedRegion):
    """A file or block device behind staging chunks. A writer's file appears when its lease is released whole."""

    staged = True
    exclusive_whole = True

    def __init__(self, offered: ServedRegion, request: ServeRequest) -> None:
        super().__init__(offered)
        self._via = request.via
        self._file = FileRegion(
            offered.memory,
            overwrite=request.overwrite or offered.access == "rw",
            force_block_device=request.force_block_device,
        )
        self._file.check(_ROLES[offered.access])

    @property
    def length_bytes(self) -> int | None:
        """The file's length now; None for an elastic sink that is not there yet."""
        length = self._file.length_bytes
        return None if self._file.elastic and not length and "w" in self.access else length

    def _total_for(self, operation: Operation) -> int | None:
        if operation is Operation.WRITE and self._file.elastic:
            return None
        return self._file.length_bytes

    def open_for(
        self, operation: Operation, offset: int, length_bytes: int, resume: SourceIdentity | None = None
    ) -> OpenedRegion:
        """Open the current file for a reader, a new one (perhaps begun as a copy) for a writer."""
        if operation is Operation.READ:
            reader = self._file.open_reader()
            return OpenedRegion(reader, offset, reader.close)
        # What a drive writes (--via) goes past the sink and cannot be noted.
        resume = None if self._via is not None else resume
        writer = self._file.open_writer(offset, length_bytes, resume=resume)
        prepare = partial(run_steps, writer.prepare_steps())
        return OpenedRegion(writer, offset, writer.close, prepare, resuming=resume is not None)


def open_region(offered: ServedRegion, request: ServeRequest, stop: StopRequest | None = None) -> OfferedRegion:
    """Open what `--region` names. HostError or RequestError when it cannot be had, InterruptedTransfer after a stop."""
    if offered.memory.kind == "file":
        return FileOffered(offered, request)
    return MappedRegion(offered, request, stop)


def regions_page(regions: Iterable[OfferedRegion], leases: LeaseTable, page: int) -> Regions:
    """Return one page of what a client that asks is told."""
    offered = list(regions)
    first, last = page * REGIONS_PER_PAGE, (page + 1) * REGIONS_PER_PAGE
    rows = tuple(
        RegionInfo(
            region.name, region.kind, region.length_bytes, region.access, region.staged, leases.busy(region.name)
        )
        for region in offered[first:last]
    )
    return Regions(rows, more=last < len(offered))
