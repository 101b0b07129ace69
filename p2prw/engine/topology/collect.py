"""Gathers what verdicts and device lists read into a snapshot (tests/golden/README.md). Small, and names nobody.

No serial numbers, no MAC or IP addresses: GIDs, network addresses and controllers' serials are not read, and the
Device Serial Number capability is blanked in configuration space. Names of netdevs and RDMA devices stay.
"""

from __future__ import annotations

import re
from typing import Any

from p2prw.engine.topology.pci import PCI_DEVICES, device_path
from p2prw.engine.topology.snapshot import encode_bytes
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

Tree = dict[str, dict[str, Any]]

_TEXTS = (
    "class",
    "current_link_speed",
    "current_link_width",
    "device",
    "enable",
    "max_link_speed",
    "max_link_width",
    "numa_node",
    "power_state",
    "resource",
    "vendor",
)
_LINKS = {"driver": "bus/pci/drivers", "iommu_group": "kernel/iommu_groups"}
_CLASSES = {
    "infiniband": ("node_type",),
    "nvme": ("state", "transport"),
    "net": ("operstate",),
    "block": (),
    "drm": (),
    "iommu": (),
}
_CPU_LINES = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part")
_EXTENDED_BYTES = range(0x100, 0x1000)
_DEVICE_SERIAL_NUMBER = 0x0003


def collect(sysfs: SysfsRoot) -> Tree:
    """Return the tree of a snapshot of this machine (of the tree that `sysfs` is)."""
    tree: Tree = {"sys/bus/pci/devices": {}}
    for address in sysfs.list(PCI_DEVICES):
        real = sysfs.real_path(device_path(address))
        if real is not None:
            tree["sys/bus/pci/devices"][address] = {"link": f"sys/{real}"}
            _function(sysfs, tree, real)
    for kind, texts in _CLASSES.items():
        for name in sysfs.list(f"class/{kind}"):
            _class_device(sysfs, tree, kind, name, texts)
    proc = sysfs.beside("proc")
    tree["proc"] = {"cpuinfo": _first_processor(proc.read_text("cpuinfo") or "")}
    tree["proc/sys/kernel"] = {"osrelease": proc.read_text("sys/kernel/osrelease") or ""}
    return tree


def _function(sysfs: SysfsRoot, tree: Tree, real: str) -> None:
    entries = tree.setdefault(f"sys/{real}", {})
    for name in _TEXTS:
        _text(sysfs, entries, real, name)
    for name, target in _LINKS.items():
        leads_to = sysfs.link_name(f"{real}/{name}")
        if leads_to is not None:
            entries[name] = {"link": f"sys/{target}/{leads_to}"}
            group = tree.setdefault(f"sys/{target}/{leads_to}", {})
            if name == "iommu_group":
                _text(sysfs, group, f"{target}/{leads_to}", "type")
    physical = sysfs.real_path(f"{real}/physfn")
    if physical is not None:
        entries["physfn"] = {"link": f"sys/{physical}"}
    for name in sysfs.list(real):
        if re.fullmatch(r"resource\d(_wc)?", name):
            entries[name] = {"size": sysfs.size_bytes(f"{real}/{name}") or 0}
    for kind in ("infiniband", "net", "nvme"):
        for name in sysfs.list(f"{real}/{kind}"):
            tree.setdefault(f"sys/{real}/{kind}/{name}", {})
    if sysfs.exists(f"{real}/p2pmem"):
        memory = tree.setdefault(f"sys/{real}/p2pmem", {})
        for name in ("size", "available", "published"):
            _text(sysfs, memory, f"{real}/p2pmem", name)
        if sysfs.exists(f"{real}/p2pmem/allocate"):
            memory["allocate"] = {"size": 0}
    try:
        config = sysfs.read_bytes(f"{real}/config", 4096)
    except HostError as error:
        entries["config"] = {"errno": error.errno}
        return
    if config is not None:
        entries["config"] = encode_bytes(without_serial_number(config), sysfs.size_bytes(f"{real}/config"))


def _class_device(sysfs: SysfsRoot, tree: Tree, kind: str, name: str, texts: tuple[str, ...]) -> None:
    real = sysfs.real_path(f"class/{kind}/{name}")
    # Netdevs and disks of no PCI function say nothing here; an RDMA device without one is a software device.
    if real is None or (kind in ("net", "block") and "/pci" not in f"/{real}"):
        return
    tree.setdefault(f"sys/class/{kind}", {})[name] = {"link": f"sys/{real}"}
    entries = tree.setdefault(f"sys/{real}", {})
    for text in texts:
        _text(sysfs, entries, real, text)
    device = sysfs.real_path(f"{real}/device") if kind == "infiniband" else None
    if device is not None:
        entries["device"] = {"link": f"sys/{device}"}


def _text(sysfs: SysfsRoot, entries: dict[str, Any], folder: str, name: str) -> None:
    try:
        text = sysfs.read_text(f"{folder}/{name}")
    except HostError as error:
        entries[name] = {"errno": error.errno}
        return
    if text is not None:
        entries[name] = text


def _first_processor(cpuinfo: str) -> str:
    """Return the lines about the first processor that rules and people ask for."""
    first = cpuinfo.partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.partition(":")[0].strip() in _CPU_LINES)


def without_serial_number(config: bytes) -> bytes:
    """Return the configuration space with the Device Serial Number (a NIC's MAC address) blanked."""
    raw = bytearray(config)
    seen: set[int] = set()
    position = 0x100
    while position in _EXTENDED_BYTES and position not in seen and position + 12 <= len(raw):
        seen.add(position)
        header = int.from_bytes(raw[position : position + 4], "little")
        if header & 0xFFFF == _DEVICE_SERIAL_NUMBER:
            raw[position + 4 : position + 12] = bytes(8)
        position = header >> 20 & 0xFFC
    return bytes(raw)
