"""The kernel's rules for rw contexts: limits, when an MR is needed, what an MR can hold, how queues are sized. Pure.

Source: drivers/infiniband/core/rw.c and core/verbs.c. What is built by them is `rw.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2prw.engine.model import DeviceLimits, DmaSegment, Operation
from p2prw.errors import RequestError
from p2prw.units import MIB

MAX_MR_PAGES = 256
"""RDMA_RW_MAX_MR_PAGES: pages_per_mr is at most this (drivers/infiniband/core/rw.c, rdma_rw_fr_page_list_len)."""

KERNEL_PAGE_BYTES = 4096
"""PAGE_SIZE of the kernel whose counts are shown (x86)."""


def bad_request(what: str, code: str, errno: str, *, why: str | None = None, fix: str | None = None) -> RequestError:
    """Return the error of a request no kernel would take; `errno` is the name it would answer with."""
    return RequestError(what, why=why, fix=fix, code=code, errno=errno)


@dataclass(frozen=True, slots=True)
class RwLimits:
    """What bounds a work request. RequestError (EINVAL) for limits under which nothing can move."""

    max_write_sge: int
    """`qp.max_write_sge` = cap.max_send_sge."""
    max_read_sge: int
    """`qp.max_read_sge` = min(cap.max_send_sge, device max_sge_rd)."""
    max_bytes_per_wr: int | None = MIB
    """min(port max_msg_sz, --chunk); None: only the kernel's rules and 32-bit SGEs (a WR may exceed max_msg_sz)."""
    max_sgl_rd: int = 0
    """Device hint: a READ of more segments uses an MR. Unreadable from user space; 0 is never."""
    force_mr: bool = False
    """Module parameter `ib_core.force_mr`."""
    iwarp: bool = False
    pages_per_mr: int = MAX_MR_PAGES
    """max_fast_reg_page_list_len; taken as at most `MAX_MR_PAGES`, as the kernel does."""

    def __post_init__(self) -> None:
        for name in ("max_write_sge", "max_read_sge", "max_bytes_per_wr", "pages_per_mr"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise bad_request(
                    f"{name} is {value}",
                    "bad_limits",
                    "EINVAL",
                    why="a work request needs at least one SGE and one byte",
                    fix="--chunk 1MiB",
                )
        if self.max_sgl_rd < 0:
            raise bad_request(f"max_sgl_rd is {self.max_sgl_rd}", "bad_limits", "EINVAL", fix="0 for never")

    @classmethod
    def for_device(
        cls,
        device: DeviceLimits,
        *,
        max_send_sge: int,
        chunk_bytes: int,
        max_sgl_rd: int = 0,
        force_mr: bool = False,
    ) -> RwLimits:
        """Return the limits of a queue pair with `max_send_sge` on `device` (ib_create_qp_kernel, core/verbs.c)."""
        sges = min(max_send_sge, device.max_sge)
        return cls(
            max_write_sge=sges,
            max_read_sge=min(sges, device.max_sge_rd),
            max_bytes_per_wr=min(device.max_msg_bytes, chunk_bytes),
            max_sgl_rd=max_sgl_rd,
            force_mr=force_mr,
            iwarp=device.iwarp,
        )


def needs_mr(direction: Operation, nents: int, limits: RwLimits) -> str | None:
    """Return why `rdma_rw_io_needs_mr` says yes, or None. `nents` counts what is left after skipping the offset."""
    if direction is Operation.READ and limits.iwarp:
        return "READ on iWARP: the sink is named by a remote-writable key, so each READ has one SGE"
    if direction is Operation.READ and limits.max_sgl_rd and nents > limits.max_sgl_rd:
        return f"READ of {nents} segments, more than max_sgl_rd {limits.max_sgl_rd}"
    if limits.force_mr:
        return "force_mr is set"
    return None


def can_use_mr(limits: RwLimits) -> bool:
    """Return `rdma_rw_can_use_mr`: whether queues must be sized for MRs at all."""
    return limits.iwarp or limits.max_sgl_rd != 0 or limits.force_mr


def mr_factor(max_pages: int, limits: RwLimits, *, max_sge_rd: int | None = None) -> int:
    """Return `rdma_rw_mr_factor`: contexts needed for a payload of `max_pages` pages.

    The kernel divides by the device's max_sge_rd even for WRITE; without it `limits.max_read_sge` stands in.
    """
    per_context = min(limits.pages_per_mr, MAX_MR_PAGES) if can_use_mr(limits) else (max_sge_rd or limits.max_read_sge)
    return -(-max_pages // per_context)


def mapping_problem(segments: Sequence[DmaSegment], max_pages: int) -> str | None:
    """Return what stops `ib_sg_to_pages` (drivers/infiniband/core/verbs.c): a gap inside a page, or too many pages.

    rdma_rw_init_one_mr splits by *segments* while the MR is limited in *pages*, so long segments fail there.
    """
    pages = 0
    last_end = 0
    for k, (address, length, _) in enumerate(segments):
        end = address + length
        page = address - address % KERNEL_PAGE_BYTES
        if k and (last_end % KERNEL_PAGE_BYTES or page != address):
            if last_end != address:
                return f"segment at {address:#x} does not continue a page that the one before it ends or starts in"
            page += KERNEL_PAGE_BYTES
        pages += max(0, -(-(end - page) // KERNEL_PAGE_BYTES))
        if pages > max_pages:
            return f"{max_pages} pages of 4 KiB in one MR do not hold the segment at {address:#x} ({length} bytes)"
        last_end = end
    return None
