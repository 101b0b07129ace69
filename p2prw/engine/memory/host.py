"""Host memory: anonymous pages (plain, huge, NUMA-bound, filled with a pattern), or memory that a program gives us.

Every page is there before "ready": a page fault inside a transfer would be measured as network time, and an
allocation the kernel cannot back must fail before a peer is contacted.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from p2prw.engine.memory.limits import check_host_memory, check_hugepages, check_numa_node, hugepage_advice
from p2prw.engine.memory.mapped import MappedMemory, address_of, check_pattern, close_mapping
from p2prw.engine.memory.spec import HUGEPAGE_BYTES, make_spec, size_option
from p2prw.engine.model import MemorySpec, Offer
from p2prw.engine.stop import StopRequest
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, RequestError
from p2prw.units import format_size

if TYPE_CHECKING:
    import numpy
    from _typeshed import ReadableBuffer

    from p2prw.engine.memory.base import MappedBuffer

# include/uapi/linux/mman.h, include/uapi/asm-generic/mman-common.h: not in the mmap module.
_MAP_HUGETLB = 0x40000
_MAP_HUGE_SHIFT = 26
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_MPOL_BIND = 2  # include/uapi/linux/mempolicy.h
# __NR_mbind; asm-generic's number serves every architecture that came after it.
_NR_MBIND = {"x86_64": 237, "aarch64": 235, "riscv64": 235, "loongarch64": 235, "ppc64le": 259, "s390x": 268}
# Pages are touched in slices, so that Ctrl-C is heard between them.
_TOUCH_BYTES = 64 * 1024**2
_SLOW_BYTES = 1024**3
"""From here on it takes a second and more on many a machine, so it is said."""


class HostBuffer:
    """Plain memory: accesses of any width and order are safe, so `view` is the way in."""

    __slots__ = ("_view", "cpu_address", "length_bytes", "view")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.view: memoryview | None = view
        self.length_bytes = len(view)
        self.cpu_address = address_of(view)

    def load(self, offset: int, length_bytes: int) -> memoryview:
        """Return a view of the bytes; nothing is copied."""
        return self._view[offset : offset + length_bytes]

    def load_into(self, offset: int, into: memoryview) -> None:
        """Copy `len(into)` bytes from `offset`."""
        into[:] = self._view[offset : offset + len(into)]

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """Copy `data` to `offset`."""
        self._view[offset : offset + len(data)] = data


class HostMemory(MappedMemory):
    """A `MemorySource` of host pages."""

    offers = frozenset({Offer.PAGES, Offer.CPU_MAPPING})

    def in_place(self) -> MappedBuffer:
        """Return all of it, to be read where it lies (digests)."""
        return self.buffer

    @classmethod
    def from_buffer(
        cls, buffer: ReadableBuffer | numpy.ndarray[Any, Any], spec: MemorySpec | None = None
    ) -> HostMemory:
        """Return memory over a program's own contiguous buffer (bytearray, mmap, numpy array); nothing is copied.

        A read-only buffer (bytes) can be a source only. The program keeps the buffer alive and unresized meanwhile.
        """
        # numpy's stubs know the buffer protocol only from Python 3.12 on.
        view = memoryview(cast("ReadableBuffer", buffer))
        if not view.c_contiguous:
            raise RequestError(
                "memory given by a program must be contiguous",
                why="a region is one run of bytes",
                fix="numpy.ascontiguousarray(a)",
                code="not_contiguous",
            )
        flat = view.cast("B") if view.nbytes else memoryview(bytearray())
        return cls(
            spec or make_spec("host", None, {"size": str(view.nbytes)}), HostBuffer(flat), writable=not flat.readonly
        )


def check_host(spec: MemorySpec, length_bytes: int, sysfs: SysfsRoot, proc: Path = Path("/proc")) -> None:
    """Raise HostError or RequestError where `open_host` is bound to fail."""
    node = _numa_option(spec)
    if node is not None:
        check_numa_node(node, length_bytes, sysfs)
    if "hugepages" in spec.options:
        check_hugepages(length_bytes, spec.options["hugepages"], sysfs, node)
    else:
        check_host_memory(length_bytes, sysfs, proc=proc)
    check_pattern(spec)


def open_host(
    spec: MemorySpec,
    length_bytes: int | None = None,
    *,
    sysfs: SysfsRoot | None = None,
    proc: Path = Path("/proc"),
    stop: StopRequest | None = None,
) -> HostMemory:
    """Allocate `length_bytes` (`size=` wins) of zeroed or pattern-filled memory, all of it present.

    Errors: InterruptedTransfer once `stop` is set; RequestError without any size; HostError `not_enough_memory`,
    `no_hugepages`, `no_numa_node`, `numa_bind`.
    """
    size = size_option(spec)
    length = length_bytes if size is None else size
    if length is None:
        raise RequestError(
            "host memory needs a size", why="nothing else decides it here", fix="host,size=64MiB", code="missing_size"
        )
    root = sysfs or SysfsRoot()
    check_host(spec, length, root, proc)
    node = _numa_option(spec)
    mapping = _map(length, spec.options.get("hugepages"))
    try:
        address = address_of(mapping)
        if node is not None:
            _bind(address, len(mapping), node)
        if stop is not None and length >= _SLOW_BYTES:
            stop.waits_for(f"taking {format_size(length)} of host memory")
        _touch(mapping, spec, stop)
        view = memoryview(mapping)[:length]
        if "pattern" in spec.options:
            from p2prw.engine.pattern import parse_pattern

            parse_pattern(spec.options["pattern"]).fill(view)
        return HostMemory(spec, HostBuffer(view), mapping=mapping, numa_node=node)
    except BaseException:
        close_mapping(mapping)
        raise


def open_scratch(length_bytes: int) -> HostMemory:
    """Return zeroed, present host memory for our own use (staging chunks, read-back)."""
    return open_host(make_spec("host", None, {"size": str(length_bytes)}))


def _numa_option(spec: MemorySpec) -> int | None:
    return int(spec.options["numa"]) if "numa" in spec.options else None


def _map(length_bytes: int, hugepages: str | None) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    unit = mmap.PAGESIZE
    if hugepages is not None:
        unit = HUGEPAGE_BYTES[hugepages]
        flags |= _MAP_HUGETLB | (unit.bit_length() - 1) << _MAP_HUGE_SHIFT
    # Zero bytes cannot be mapped; a transfer of size 0 still has memory with an address.
    mapped_bytes = max(1, -(-length_bytes // unit)) * unit
    try:
        return mmap.mmap(-1, mapped_bytes, flags=flags)
    except (OSError, OverflowError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else errno.ENOMEM
        if hugepages is not None:
            raise HostError(
                f"cannot map {format_size(mapped_bytes)} of {hugepages} huge pages: {os.strerror(number or 0)}",
                why="the pages are free but reserved for others, or this kernel has no such page size",
                fix=hugepage_advice(hugepages, mapped_bytes // unit),
                code="no_hugepages",
                errno=number,
            ) from error
        raise HostError(
            f"cannot map {format_size(length_bytes)} of host memory: {os.strerror(number or 0)}",
            why="the address space limit (ulimit -v) or the kernel's overcommit rule is in the way",
            fix="a smaller size=, ulimit -v unlimited, or sysctl vm.overcommit_memory",
            code="not_enough_memory",
            errno=number,
        ) from error


def _bind(address: int, length_bytes: int, node: int) -> None:
    number = _NR_MBIND.get(platform.machine())
    if number is None:
        raise HostError(
            f"cannot bind memory to NUMA node {node}",
            why=f"the mbind system call's number on {platform.machine()} is not known here",
            fix=f"numactl --membind={node} p2prw ...",
            code="numa_bind",
        )
    libc = ctypes.CDLL(None, use_errno=True)
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    words = (ctypes.c_ulong * (node // bits + 1))()
    words[node // bits] = 1 << node % bits
    # mm/mempolicy.c get_nodes() drops the last bit of maxnode: it counts from one too many.
    arguments = (address, length_bytes, _MPOL_BIND, ctypes.addressof(words), len(words) * bits + 1, 0)
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in arguments)) == 0:
        return
    failure = ctypes.get_errno()
    raise HostError(
        f"cannot bind memory to NUMA node {node}: {os.strerror(failure)}",
        why="the container's seccomp profile forbids mbind"
        if failure == errno.EPERM
        else "this process may not use that node (cpuset), or the kernel has no NUMA support",
        fix="docker run --cap-add SYS_NICE" if failure == errno.EPERM else "cat /proc/self/status | grep Mems_allowed",
        code="numa_bind",
        errno=failure,
    )


def _touch(mapping: mmap.mmap, spec: MemorySpec, stop: StopRequest | None) -> None:
    """Make every page present, or raise: where the kernel can say no (MADV_POPULATE_WRITE) no SIGBUS can follow."""
    step = max(_TOUCH_BYTES, HUGEPAGE_BYTES.get(spec.options.get("hugepages", ""), 0))
    for start in range(0, len(mapping), step):
        length = min(step, len(mapping) - start)
        if stop is not None:
            stop.check()
        try:
            mapping.madvise(_MADV_POPULATE_WRITE, start, length)
        except OSError as error:
            if error.errno == errno.EINVAL:
                # Linux before 5.14. One byte of each page; the memory is fresh, so writing zero changes nothing.
                import numpy

                numpy.frombuffer(mapping, dtype=numpy.uint8)[start : start + length : mmap.PAGESIZE] = 0
                continue
            where = f" on NUMA node {spec.options['numa']}" if "numa" in spec.options else ""
            raise HostError(
                f"the kernel has no pages{where} behind {format_size(len(mapping))} of host memory",
                why=f"{format_size(start)} were there, then {os.strerror(error.errno or 0)}",
                fix="a smaller size=, or free memory" + (" on that node" if where else ""),
                code="not_enough_memory",
                errno=error.errno,
            ) from error
