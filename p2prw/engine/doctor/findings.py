"""What a check says, and what it was asked. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from p2prw.engine.model import MemorySpec


class Status(StrEnum):
    """How a host stands in one respect."""

    OK = "ok"
    WARN = "warn"
    """Works, and worse than it could; or something that nobody asked for is missing."""
    FAIL = "fail"
    """Something that p2prw needs for what was asked is broken."""
    UNKNOWN = "unknown"
    """Could not be told from here: no right, or no file that says it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer of one check."""

    id: str
    """Stable, snake_case."""
    status: Status
    title: str
    why: str | None = None
    fix: str | None = None
    """Something to paste; every finding that is not ok has one."""
    subject: str | None = None
    """The device, port or memory it is about, where there may be several."""
    theme: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


DMABUF_KINDS = frozenset({"vfio", "udmabuf", "dmaheap", "cuda"})
"""Memory that a NIC reaches by importing a dma-buf."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What the user named: naming something makes all that it needs required."""

    device: str = "auto"
    ib_port: int = 1
    memory: MemorySpec | None = None
    pair: tuple[str, str] | None = None
    """(NIC, memory) as `p2prw topology` takes them."""
    binding: str = "auto"

    @property
    def kind(self) -> str | None:
        """The kind of memory that was named."""
        if self.memory is not None:
            return self.memory.kind
        return self.pair[1].partition(":")[0].partition(",")[0] if self.pair else None

    @property
    def verbs_device(self) -> str | None:
        """The verbs device that was named."""
        return None if self.device == "auto" or is_soft(self.device) else self.device

    @property
    def needs_soft(self) -> bool:
        """Nothing else would move the bytes."""
        return self.verbs_device is None

    def lacking(self, *, verbs: bool = False, kind: str | None = None, device: str | None = None) -> Status:
        """Return how bad it is that something is missing which verbs, a kind of memory or a device needs."""
        needed = (
            (verbs and self.verbs_device is not None)
            or (kind is not None and kind == self.kind)
            or (device is not None and device == self.verbs_device)
        )
        return Status.FAIL if needed else Status.WARN


def is_soft(name: str) -> bool:
    """Tell whether a device name is the software device's."""
    return name == "soft0" or name.startswith("soft:")
