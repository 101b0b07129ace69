"""Rows and plain text of `p2prw devices`: lines that grep and awk can use; `device_page` paints them for a terminal."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from p2prw.reporters.document import plain
from p2prw.reporters.listing import table
from p2prw.units import format_size

if TYPE_CHECKING:
    from p2prw.engine.inventory import DeviceRow, Inventory

Row = Mapping[str, Any]

DEVICE_HEAD = ("DEVICE", "DRIVER", "MOVER", "STATE", "RATE", "MTU", "NETDEV", "ADDRESS")
MEMORY_HEAD = ("MEMORY", "SIZE", "FREE", "DRIVER", "NUMA", "USABLE", "WHAT")


def inventory_rows(inventory: Inventory) -> list[dict[str, Any]]:
    """Return the document's `results`: device rows, memory rows, and what could not be seen."""
    rows = [_device_row(device) for device in inventory.devices]
    rows += [{"row": "memory", **plain(memory)} for memory in inventory.memory]
    rows += [{"row": "unseen", "what": one.what, "why": one.why, "try": one.fix} for one in inventory.unseen]
    return rows


def _device_row(device: DeviceRow) -> dict[str, Any]:
    row: dict[str, Any] = {"row": "device", **plain(device.info)}
    if not device.info.opened:
        # Defaults of ours are no facts about the device.
        row |= {"limits": None, "active_mtu_bytes": None}
    for gid in row["gids"]:
        gid["address"] = gid_text(gid["gid"]) if gid["type"] != "ib" else None
    row["routes"] = {one.kind: {"routes": list(one.routes), "refused": plain(one.refused)} for one in device.routes}
    return row


def rows_of(rows: Iterable[Row], kind: str) -> list[Row]:
    """Return the rows of one sort: `device`, `memory` or `unseen`."""
    return [row for row in rows if row["row"] == kind]


def device_cells(row: Row) -> tuple[Any, ...]:
    """Return the cells under `DEVICE_HEAD`."""
    rate = row["rate_gbit_per_s"]
    name = row["name"] if row["port"] == 1 else f"{row['name']} port {row['port']}"
    return (
        name,
        row["driver"],
        row["mover"],
        row["state"],
        None if rate is None else f"{rate:g} Gb/s",
        row["active_mtu_bytes"],
        row["netdev"],
        row["address"],
    )


def memory_cells(row: Row) -> tuple[Any, ...]:
    """Return the cells under `MEMORY_HEAD`."""
    return (
        row["spec"] or f"({row['kind']} {row['pci_address']})",
        None if row["size_bytes"] is None else format_size(row["size_bytes"]),
        None if row["available_bytes"] is None else format_size(row["available_bytes"]),
        row["driver"],
        row["numa_node"],
        "yes" if row["usable"] else "no",
        row["description"] + (f" ({row['note']})" if row["note"] else ""),
    )


def note_lines(devices: Iterable[Row]) -> Iterator[str]:
    """Return each note once, with the devices it is about."""
    notes: dict[str, list[str]] = {}
    for device in devices:
        if device["note"]:
            notes.setdefault(device["note"], []).append(device["name"])
    for note, names in notes.items():
        yield f"{', '.join(names)}: {note}"


def route_lines(devices: Iterable[Row]) -> Iterator[str]:
    """Return the routes to each kind of memory, devices with the same ones together."""
    groups: dict[str, list[str]] = {}
    for device in devices:
        by_routes: dict[str, list[str]] = {}
        for kind, one in device["routes"].items():
            by_routes.setdefault(" ".join(one["routes"]) or "none", []).append(kind)
        text = "; ".join(f"{' '.join(kinds)}: {routes}" for routes, kinds in by_routes.items())
        groups.setdefault(text, []).append(device["name"])
    for text, names in groups.items():
        yield f"{', '.join(names)}: {text}"


def detail_lines(device: Row) -> Iterator[str]:
    """Return what --verbose adds to a device: where it sits, its limits, its GID table, what is refused and why."""
    where = device["pci_address"] or "no PCI device"
    node = "" if device["numa_node"] is None else f", NUMA node {device['numa_node']}"
    driven = f", driven through {device['binding']}" if device["binding"] else ""
    yield f"{device['name']} port {device['port']}: {device['link_layer']}, {where}{node}{driven}"
    limits = device["limits"]
    if limits is None:
        yield "  limits  unknown: the device was not opened"
    else:
        yield (
            f"  limits  {limits['max_sge']} SGEs ({limits['max_sge_rd']} of a READ), "
            f"{limits['max_qp_wr']} WRs, {limits['max_rd_atomic']} READs, "
            f"messages of {format_size(limits['max_msg_bytes'])}"
            + (f", {format_size(limits['max_dm_bytes'])} of own memory" if limits["max_dm_bytes"] else "")
        )
    for gid in device["gids"]:
        up = "" if gid["up"] else ", down"
        yield f"  gid {gid['index']:<3} {gid['type']} {gid['address'] or gid['gid']} {gid['netdev'] or '-'}{up}"
    refused: dict[str, list[str]] = {}
    for kind, one in device["routes"].items():
        for attempt in one["refused"]:
            refused.setdefault(f"{attempt['route']} refused: {attempt['why']}", []).append(kind)
    for text, kinds in refused.items():
        yield f"  {' '.join(kinds)}: {text}"


def gid_text(gid: str) -> str:
    """Return the address a RoCE GID stands for, as people write it."""
    address = ipaddress.IPv6Address(int(gid, 16))
    return str(address.ipv4_mapped or address)


def device_lines(rows: Iterable[Row], *, verbose: bool = False) -> list[str]:
    """Return the whole listing as plain lines."""
    rows = list(rows)
    devices, memories = rows_of(rows, "device"), rows_of(rows, "memory")
    lines = table(DEVICE_HEAD, map(device_cells, devices)) or ["no device that can move bytes"]
    lines += [f"  {note}" for note in note_lines(devices)]
    lines += ["", "ROUTES to memory, by what is known before anything is tried"] if devices else []
    lines += [f"  {text}" for text in route_lines(devices)]
    if verbose:
        lines += ["", *(line for device in devices for line in detail_lines(device))]
    memory_table = table(MEMORY_HEAD, map(memory_cells, memories))
    lines += ["", *(memory_table or ["no memory of a device that a spec can name"])]
    unseen = rows_of(rows, "unseen")
    if unseen:
        lines += ["", "NOT SEEN"]
        for one in unseen:
            lines += [f"  {one['what']}: {one['why']}", f"    try:  {one['try']}"]
    return lines
