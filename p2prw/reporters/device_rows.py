"""Rows and text of `p2prw devices`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from p2prw.engine.model import DeviceInfo
from p2prw.reporters.document import plain
from p2prw.reporters.listing import table
from p2prw.units import format_size

if TYPE_CHECKING:
    from p2prw.engine.topology.pci import MemoryDevice


def device_row(info: DeviceInfo) -> dict[str, Any]:
    """Return one row for a device that moves bytes."""
    row: dict[str, Any] = {"row": "device", **plain(info)}
    return row


def memory_row(memory: MemoryDevice) -> dict[str, Any]:
    """Return one row for memory of a PCI device."""
    row: dict[str, Any] = {"row": "memory", **plain(memory)}
    return row


def device_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return both tables."""
    rows = list(rows)
    devices = [row for row in rows if row["row"] == "device"]
    memories = [row for row in rows if row["row"] == "memory"]
    lines = table(
        ("DEVICE", "PROVIDER", "DRIVER", "MOVED BY", "STATE", "MTU", "ADDRESS", "NETDEV"),
        [
            (d["name"], d["provider"], d["driver"], d["mover"], d["state"], d["active_mtu_bytes"], d["address"],
             d["netdev"])
            for d in devices
        ],
    )  # fmt: skip
    lines = lines or ["no device that can move bytes"]
    notes: dict[str, list[str]] = {}
    for device in devices:
        if device["note"]:
            notes.setdefault(device["note"], []).append(device["name"])
    lines += [f"  {', '.join(names)}: {note}" for note, names in notes.items()]
    lines.append("")
    memory_lines = table(
        ("MEMORY", "SIZE", "DRIVER", "NUMA", "USABLE", "WHAT"),
        [
            (m["spec"], format_size(m["size_bytes"]), m["driver"], m["numa_node"], "yes" if m["usable"] else "no",
             m["description"] + (f" ({m['note']})" if m["note"] else ""))
            for m in memories
        ],
    )  # fmt: skip
    return lines + (memory_lines or ["no PCI device with memory that a spec can name"])
