"""What the serving end of a smoke test offers, under fixed names: `serve --smoke`, and the server of a loopback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from p2prw.engine.control.messages import RegionInfo
from p2prw.engine.memory.spec import make_spec
from p2prw.engine.model import MemorySpec, ServedRegion
from p2prw.engine.smoke.model import SERVED_BYTES, SmokeMemory, SmokeRegion

PREFIX = "smoke-"
PATTERNED_KINDS = frozenset({"host", "p2pmem", "udmabuf", "dmaheap", "cuda"})
"""Kinds that take `pattern=`: they are ours to fill."""
_NAME_CHARACTERS = 64


def region_name(memory: str) -> str:
    """Return `smoke-p2pmem-0000-01-00.0` for `p2pmem:0000:01:00.0`."""
    return (PREFIX + re.sub(r"[^A-Za-z0-9_.-]", "-", memory))[:_NAME_CHARACTERS]


def region_bytes(memory: SmokeMemory, wanted_bytes: int) -> int:
    """Return how long the region is: as long as is wanted, or as much of the memory as there is."""
    return wanted_bytes if memory.most_bytes is None else min(wanted_bytes, memory.most_bytes)


def served_region(memory: SmokeMemory, length_bytes: int, seed: int, path: str | None = None) -> ServedRegion:
    """Return the region of `memory`; `path` is the file behind the memory `file`."""
    spec = file_spec(path, length_bytes) if path is not None else spec_of(memory.kind, memory.name, length_bytes, seed)
    return ServedRegion(name=region_name(memory.name), memory=spec)


def spec_of(kind: str, name: str, length_bytes: int, seed: int) -> MemorySpec:
    """Return the spec of mapped memory, filled with data of its own where that can be done."""
    options = {"size": str(length_bytes)}
    if kind in PATTERNED_KINDS:
        options["pattern"] = f"random:{seed}"
    return make_spec(kind, name.partition(":")[2] or None, options)


def file_spec(path: str, length_bytes: int | None = None) -> MemorySpec:
    """Return the spec of a file; with a length the parts that are not written are kept."""
    return make_spec("file", path, {} if length_bytes is None else {"size": str(length_bytes)})


def standing_regions(memories: Iterable[SmokeMemory]) -> tuple[ServedRegion, ...]:
    """Return the regions of `serve --smoke`. No files: a server writes to none that nobody named."""
    # dm belongs to a device, and a server may have several.
    served = [memory for memory in memories if memory.kind not in ("file", "dm")]
    return tuple(served_region(memory, region_bytes(memory, SERVED_BYTES), seed=1) for memory in served)


def regions_of_peer(rows: Sequence[RegionInfo]) -> tuple[SmokeRegion, ...]:
    """Return the regions among `rows` that are there for smoke tests: by name, and both readable and writable."""
    return tuple(
        SmokeRegion(row.name, row.name.removeprefix(PREFIX), row.length)
        for row in rows
        if row.name.startswith(PREFIX) and row.access == "rw" and row.length
    )
