"""What the suite measures, and what it has to show. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from p2prw.units import format_size, parse_size

PARTS = ("p2prw", "ucx", "libfabric", "ceiling", "queue_pairs", "perftest")
"""Pieces that can be run on their own. `perftest` boots the lab's guest, so only when it is asked for."""
USUAL = PARTS[:-1]
MESSAGE = ("-s", "1M", "-D", "1")
"""Messages of 1 MiB for a second; the other tool then sends as many."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    part: str
    words: tuple[str, ...]
    """Of `p2prw bench`."""
    against: str | None = None
    least_bytes_per_s: float | None = None
    """What the median has to reach."""
    least_ratio: float | None = None
    """What the ratio of medians has to reach."""
    pure: bool = False
    """Without the compiled codec, at both ends."""


def _pair(name: str, operation: str, against: str, least_ratio: float | None, words: tuple[str, ...] = MESSAGE) -> Case:
    part = "ucx" if "ucx" in against else "libfabric"
    return Case(name, part, ("--op", operation, *words), against, least_ratio=least_ratio)


CASES = (
    Case("WRITE", "p2prw", ("--op", "write", *MESSAGE), least_bytes_per_s=1e9),
    Case("READ", "p2prw", ("--op", "read", *MESSAGE), least_bytes_per_s=1e9),
    Case("WRITE, pure Python", "p2prw", ("--op", "write", *MESSAGE), least_bytes_per_s=1e9, pure=True),
    Case("READ, pure Python", "p2prw", ("--op", "read", *MESSAGE), least_bytes_per_s=1e9, pure=True),
    Case("WRITE, path MTU 1024", "p2prw", ("--op", "write", "-m", "1024", *MESSAGE), least_bytes_per_s=0.6e9),
    Case("READ, path MTU 1024", "p2prw", ("--op", "read", "-m", "1024", *MESSAGE), least_bytes_per_s=0.6e9),
    _pair("WRITE / ucx_perftest ucp_put_bw over tcp", "write", "UCX_TLS=tcp ucx_perftest -t ucp_put_bw", 2.0),
    _pair("READ / ucx_perftest ucp_get over tcp", "read", "UCX_TLS=tcp ucx_perftest -t ucp_get", 2.0),
    _pair("WRITE / fi_rma_bw over tcp;ofi_rxm", "write", "fi_rma_bw -p 'tcp;ofi_rxm' -o write", 1.0),
    _pair("READ / fi_rma_bw over tcp;ofi_rxm", "read", "fi_rma_bw -p 'tcp;ofi_rxm' -o read", 1.0),
    # It moves a few MB/s: as many messages as ours would take minutes.
    _pair("WRITE / fi_rma_bw over udp;ofi_rxd", "write", "fi_rma_bw -p 'udp;ofi_rxd' -o write -I 16 -w 1", 20.0),
)


QUEUE_PAIRS = 64
WALK = "64MiB"
"""What as many queue pairs touch together, with messages of 1 MiB."""


@dataclass(frozen=True)
class LanesCase:
    """Many queue pairs at once against one."""

    operation: str
    size: str
    """Of the messages of each."""
    same_memory: bool = False
    """The one goes round as much memory as all of them touch together (`--walk`), message by message."""
    least_ratio: float = 0.85

    @property
    def name(self) -> str:
        size = format_size(parse_size(self.size))
        return f"{self.operation.upper()} {size}" + (", the one in the memory of all" if self.same_memory else "")

    @property
    def walk(self) -> tuple[str, ...]:
        """Words of `p2prw bench` for the one."""
        return ("--walk", str(QUEUE_PAIRS * parse_size(self.size))) if self.same_memory else ()

    def holds(self, ratio: float) -> bool:
        """Return whether the ratio of medians is enough."""
        return ratio >= self.least_ratio


LANES_CASES = tuple(
    LanesCase(operation, size, same_memory)
    for operation in ("write", "read")
    for size, same_memory in (("8K", False), ("64K", False), ("64K", True), ("1M", False), ("1M", True))
)
