"""What of this host takes part in a smoke test, and what is left alone, with the reason. Pure, over an `Inventory`.

Nothing is written that is not ours: host memory, files we make, and memory that its driver allocates for us (p2pmem,
dma-buf exporters, GPUs, NIC memory). A BAR or a VFIO function is somebody's device: it takes part when it is named.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from p2prw.engine import gids
from p2prw.engine.inventory import DeviceRow, Inventory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import DeviceInfo
from p2prw.engine.smoke.model import Skip, SmokeDevice, SmokeMemory, place_of
from p2prw.engine.topology.memory_devices import MemoryDevice
from p2prw.errors import HostError, RequestError
from p2prw.units import MIB

SAFE_KINDS = ("p2pmem", "udmabuf", "dmaheap", "cuda", "dm")
"""Device and dma-buf memory that is allocated for us and given back."""
NAMED_ONLY = {
    "bar": "a BAR is part of somebody's device, and a smoke test writes",
    "vfio": "a function handed to VFIO belongs to whoever bound it",
}
KINDS = ("host", "file", *SAFE_KINDS, *NAMED_ONLY)
_PAGE_BYTES = 4096
_ASKED_BYTES = 16 * MIB
"""Of what is made in the size one asks for. The kernel bounds some: /dev/udmabuf to 64 MiB, by default."""
_NAMES_SHOWN = 4


def find_devices(
    inventory: Inventory, wanted: Sequence[str], *, every_address: bool
) -> tuple[list[SmokeDevice], list[Skip]]:
    """Return the devices that take part, verbs first; HostError `no_device` for a wanted one that is not there.

    `every_address`: also software devices on addresses of netdevs; without it loopback's two stand for them, because
    packets to an address of our own never leave the host.
    """
    found: list[SmokeDevice] = []
    skips: list[Skip] = []
    if wanted:
        return [device for name in wanted for device in _wanted(inventory.devices, name)], skips
    for row in inventory.devices:
        reason = _unfit(row.info)
        if reason is None and row.info.provider == "soft" and not every_address and not _is_loopback(row.info):
            reason = f"a software device on this host's own address is loopback again: --device {row.info.name}"
        if reason is None:
            found.append(_device(row, row.info.name))
        else:
            skips.append(Skip(place_of(row.info.name, row.info.port), None, reason))
    skips += [Skip(None, one.what, f"{one.why}; {one.fix}") for one in inventory.unseen]
    return found, skips


def _wanted(rows: Sequence[DeviceRow], name: str) -> list[SmokeDevice]:
    """Return the device of that name: all of its ports that can."""
    ports = [row for row in rows if row.info.name == name] or [row for row in rows if _is_soft(name, row.info)][:1]
    if not ports:
        raise HostError(
            f"no device named {name!r}",
            why=f"this host has: {', '.join(dict.fromkeys(row.info.name for row in rows)) or 'none'}",
            fix="p2prw devices",
            code="no_device",
        )
    fit = [row for row in ports if _unfit(row.info) is None]
    if not fit:
        reasons = "; ".join(str(_unfit(row.info)) for row in ports)
        raise HostError(f"{name}: {reasons}", why="it cannot move bytes now", fix="p2prw devices", code="no_device")
    return [_device(row, name) for row in fit]


def find_memories(inventory: Inventory, wanted: Sequence[str]) -> tuple[list[SmokeMemory], list[Skip]]:
    """Return the memory that takes part. RequestError for a word that is no memory, HostError for what is not there."""
    if wanted:
        found = [memory for word in wanted for memory in _named(word, inventory.memory)]
        return list({memory.name: memory for memory in found}.values()), []
    memories = [SmokeMemory("host", "host"), SmokeMemory("file", "file")]
    skips: list[Skip] = []
    for row in inventory.memory:
        if row.kind in NAMED_ONLY or row.spec is None:
            continue
        if not row.usable:
            skips.append(Skip(None, row.spec, row.note or "not usable"))
        elif row.spec not in {memory.name for memory in memories}:
            memories.append(_memory(row, named=False))
    for kind, why in NAMED_ONLY.items():
        specs = [row.spec for row in inventory.memory if row.kind == kind and row.usable and row.spec]
        if specs:
            listed = ", ".join(specs[:_NAMES_SHOWN]) + (
                f" and {len(specs) - _NAMES_SHOWN} more" if len(specs) > _NAMES_SHOWN else ""
            )
            skips.append(Skip(None, kind, f"{why}: only with --memory ({listed})"))
    nameless = (row for row in inventory.memory if row.spec is None)
    skips += [Skip(None, row.kind, f"{row.pci_address}: {row.note or row.description}") for row in nameless]
    return memories, skips


def _named(word: str, rows: Iterable[MemoryDevice]) -> list[SmokeMemory]:
    rows = list(rows)
    if word in ("host", "file"):
        return [SmokeMemory(word, word, named=True)]
    if word in KINDS and word not in NAMED_ONLY and word not in ("udmabuf", "dm"):
        # A kind alone means all of it that there is.
        found = [_memory(row, named=True) for row in rows if row.kind == word and row.spec and row.usable]
        if not found:
            raise HostError(
                f"--memory {word}: this host has none that can be used",
                why="; ".join(f"{row.spec}: {row.note}" for row in rows if row.kind == word)
                or "p2prw devices shows none",
                fix="p2prw devices",
                code="no_memory",
            )
        return found
    spec = parse_memory_spec(word)
    if spec.kind == "file":
        raise RequestError(
            f"--memory {word}: smoke writes to no file or block device of yours",
            why="it makes files of its own, in TMPDIR, and removes them",
            fix="--memory file   (TMPDIR=DIRECTORY chooses where)",
            code="usage",
        )
    if spec.options:
        raise RequestError(
            f"--memory {word}: smoke chooses sizes and data itself",
            why="each cell has its own",
            fix=f"--memory {word.partition(',')[0]}   (--quick and --full change the sizes)",
            code="usage",
        )
    name = f"{spec.kind}:{spec.arg}" if spec.arg else spec.kind
    row = next((row for row in rows if row.spec == name), None)
    return [_memory(row, named=True) if row else SmokeMemory(spec.kind, name, named=True)]


def _memory(row: MemoryDevice, *, named: bool) -> SmokeMemory:
    assert row.spec is not None
    if row.kind == "p2pmem" and row.available_bytes is not None:
        # Both ends may be of one pool, and an allocation is one contiguous piece.
        return SmokeMemory(row.kind, row.spec, row.available_bytes // 4 // _PAGE_BYTES * _PAGE_BYTES, named)
    return SmokeMemory(row.kind, row.spec, row.size_bytes or _ASKED_BYTES, named)


def _device(row: DeviceRow, name: str) -> SmokeDevice:
    info = row.info
    no_route = {
        one.kind: "; ".join(f"{attempt.route}: {attempt.why}" for attempt in one.refused)
        or "the CPU has no address for it"
        for one in row.routes
        if not one.routes
    }
    return SmokeDevice(
        name,
        _listen_address(info) or "127.0.0.1",
        info.provider,
        info.port,
        no_route,
        info.limits.max_dm_bytes,
        info.driver,
    )


def _unfit(info: DeviceInfo) -> str | None:
    """Return why a device cannot take part."""
    if info.provider != "verbs":
        return None
    if info.state != "ACTIVE":
        return f"port {info.port} is {info.state}"
    if not info.opened:
        return info.note or "it cannot be opened"
    return None if _listen_address(info) else "its GID table has no RoCEv2 row of a netdev that is up"


def _listen_address(info: DeviceInfo) -> str | None:
    """Return an address of the device: IPv4 first, routable before link-local; loopback for InfiniBand."""
    if info.address:
        scope = f"%{info.netdev}" if ipaddress.ip_address(info.address).is_link_local and ":" in info.address else ""
        return info.address + scope
    if info.link_layer == "InfiniBand":
        return "127.0.0.1"
    rows = [row for row in info.gids if row.type == "rocev2" and row.up]
    found = [(gids.gid_to_address(row.gid), row.netdev) for row in rows]
    found.sort(key=lambda pair: (pair[0].is_link_local, pair[0].version))
    if not found:
        return None
    address, netdev = found[0]
    return f"{address}%{netdev}" if address.version == 6 and address.is_link_local else str(address)


def _is_loopback(info: DeviceInfo) -> bool:
    return info.address is not None and ipaddress.ip_address(info.address).is_loopback


def _is_soft(name: str, info: DeviceInfo) -> bool:
    """Tell whether `name` is another name of this software device: `soft:lo`, `soft:127.0.0.1`."""
    return (
        info.provider == "soft"
        and info.address is not None
        and name.removeprefix("soft:").strip("[]") in (info.address, info.netdev)
    )
