"""From a memory spec to memory, in two steps: check all that can be checked before a peer is contacted, then open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from p2prw.engine.memory.bar import check_bar, open_bar
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.memory.cuda import check_cuda, open_cuda
from p2prw.engine.memory.dm import NicMemory
from p2prw.engine.memory.dmaheap import check_dmaheap, open_dmaheap
from p2prw.engine.memory.file import FileRegion, FileSource
from p2prw.engine.memory.host import check_host, open_host
from p2prw.engine.memory.p2pmem import check_p2pmem, open_p2pmem
from p2prw.engine.memory.spec import format_memory_spec, size_option
from p2prw.engine.memory.udmabuf import check_udmabuf, open_udmabuf
from p2prw.engine.memory.vfio import check_vfio, open_vfio
from p2prw.engine.model import MemorySpec
from p2prw.engine.stop import StopRequest
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import LocalProtocolError, RequestError
from p2prw.units import exact_size, typed_size

Role = Literal["source", "sink", "both"]


@dataclass(frozen=True, slots=True)
class PreparedMemory:
    """Memory that was checked and not yet opened; holds no descriptor and no memory."""

    spec: MemorySpec
    role: Role
    length_bytes: int | None
    """None: elastic, it takes the size of the transfer. With `file_region` and role `both`: the file as it is now."""
    staged: bool
    opener: Callable[[int | None], MemorySource]
    file_region: FileRegion | None = None
    """For files: one reader or writer for each lease, instead of `open`."""
    slow_opener: Callable[[int | None, StopRequest | None], MemorySource] | None = None
    """Instead of `opener`, where it can take long: big host memory, whose pages are all touched."""

    @property
    def elastic(self) -> bool:
        """The transfer decides the size."""
        return self.length_bytes is None if self.file_region is None else self.file_region.elastic

    def open(self, length_bytes: int | None = None, stop: StopRequest | None = None) -> MemorySource:
        """Open it. `length_bytes` is the transfer's size: elastic memory needs it, other memory must be that long.

        `stop` is looked at where opening takes long. Errors: RequestError `missing_size`, `size_does_not_fit`;
        HostError for what the host cannot do.
        """
        if length_bytes is not None and self.length_bytes is not None and length_bytes > self.length_bytes:
            raise RequestError(
                f"{exact_size(length_bytes)} do not fit into {self.spec.text or self.spec.kind}",
                why=f"it is {exact_size(self.length_bytes)}",
                fix=f"--size {typed_size(self.length_bytes)}",
                code="size_does_not_fit",
            )
        return self.opener(length_bytes) if self.slow_opener is None else self.slow_opener(length_bytes, stop)


def prepare_memory(
    spec: MemorySpec,
    role: Role,
    *,
    overwrite: bool = False,
    force_bound_device: bool = False,
    force_block_device: str | None = None,
    sysfs: SysfsRoot | None = None,
    proc: Path = Path("/proc"),
) -> PreparedMemory:
    """Check `spec` for `role` and return how to open it; `both` is a server's region that may be read and written.

    Errors: HostError with code, why and what to type; RequestError where the spec itself cannot serve the role.
    """
    root = sysfs or SysfsRoot()
    match spec.kind:
        case "host":
            return _prepare_host(spec, role, root, proc)
        case "file":
            region = FileRegion(spec, overwrite=overwrite, force_block_device=force_block_device, sysfs=root, proc=proc)
            return _prepare_file(spec, role, region)
        case "p2pmem":
            length = check_p2pmem(spec, root)
            return PreparedMemory(
                spec, role, length, False, lambda _: open_p2pmem(spec, root, uninitialised_matters=role == "source")
            )
        case "bar":
            writable = role != "source"
            wanted = check_bar(spec, root, writable=writable, force_bound_device=force_bound_device)
            return PreparedMemory(
                spec,
                role,
                wanted.length_bytes,
                False,
                lambda _: open_bar(spec, root, writable=writable, force_bound_device=force_bound_device),
            )
        case "vfio":
            wanted = check_vfio(spec, root)
            writable = role != "source"
            return PreparedMemory(
                spec, role, wanted.length_bytes, False, lambda _: open_vfio(spec, root, writable=writable)
            )
        case "udmabuf":
            return _prepare_allocated(
                spec,
                role,
                lambda size: check_udmabuf(spec, size, root, proc),
                lambda size: open_udmabuf(spec, size, root, proc),
            )
        case "dmaheap":
            return _prepare_allocated(
                spec,
                role,
                lambda size: check_dmaheap(spec, size, root, proc),
                lambda size: open_dmaheap(spec, size, root, proc),
            )
        case "dm":
            # Whether there is any, only the opened device knows: routes.choose_route asks it.
            return _prepare_allocated(spec, role, lambda _: None, lambda size: NicMemory(spec, size))
        case "cuda":
            return _prepare_allocated(spec, role, lambda _: check_cuda(spec), lambda size: open_cuda(spec, size, root))
        case _:
            raise LocalProtocolError(f"memory kind {spec.kind} has words and no code")


def _prepare_allocated(
    spec: MemorySpec, role: Role, check: Callable[[int], object], opener: Callable[[int], MemorySource]
) -> PreparedMemory:
    """Prepare memory that is allocated at its opening: `size=`, or the transfer decides."""
    size = size_option(spec)
    if size is None and role == "both":
        raise _needs_size(spec)

    def open_sized(length_bytes: int | None) -> MemorySource:
        wanted = length_bytes if size is None else size
        if wanted is None:
            raise _needs_size(spec)
        return opener(wanted)

    check(size or 0)
    return PreparedMemory(spec, role, size, False, open_sized)


def _needs_size(spec: MemorySpec) -> RequestError:
    head = format_memory_spec(MemorySpec(spec.kind, spec.arg, {}))
    return RequestError(
        f"{spec.kind} memory needs a size",
        why="nothing else decides it here",
        fix=f"{head},size=64KiB" if spec.kind == "dm" else f"{head},size=16MiB",
        code="missing_size",
    )


def _prepare_host(spec: MemorySpec, role: Role, sysfs: SysfsRoot, proc: Path) -> PreparedMemory:
    size = size_option(spec)
    if size is None and role == "both":
        raise RequestError(
            "a served host region needs a size", why="no peer decides it", fix="host,size=64MiB", code="missing_size"
        )
    check_host(spec, size or 0, sysfs, proc)

    def open_slowly(length_bytes: int | None, stop: StopRequest | None = None) -> MemorySource:
        return open_host(spec, length_bytes, sysfs=sysfs, proc=proc, stop=stop)

    return PreparedMemory(spec, role, size, False, open_slowly, slow_opener=open_slowly)


def _prepare_file(spec: MemorySpec, role: Role, region: FileRegion) -> PreparedMemory:
    region.check(role)
    if role == "source":
        expected = region.length_bytes
        return PreparedMemory(spec, role, expected, True, lambda _: FileSource(spec, expected), region)
    if role == "sink":
        length = None if region.elastic else region.length_bytes
        return PreparedMemory(spec, role, length, True, region.open_sink, region)
    return PreparedMemory(spec, role, region.length_bytes, True, _open_both, region)


def _open_both(_: int | None) -> MemorySource:
    raise LocalProtocolError(
        "a served file is opened by file_region.open_reader() and open_writer(), one for each lease"
    )
