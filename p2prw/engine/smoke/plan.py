"""Which cells there are: devices x pairs of memory x operations x size classes. Pure; all chance comes from the seed.

A pair is this end's memory and the other end's region. Every kind takes each end once, with host memory at the other.
`--full` crosses all on one device of each driver, and host memory and files on every further address of the software
device; `--quick` leaves the other end to host memory. For each size READ comes first: what it finds in
the region then is never what this end's memory held a moment ago.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from p2prw.engine.model import Operation
from p2prw.engine.pattern import mix64
from p2prw.engine.smoke.commands import client_command, serve_command, target_of
from p2prw.engine.smoke.model import (
    LARGE_BYTES,
    MOST_ODD_OFFSET,
    SMALL_BYTES,
    Cell,
    LoopbackServer,
    Preset,
    SizeClass,
    Skip,
    SmokeDevice,
    SmokeMemory,
    SmokePlan,
    SmokeRegion,
    SmokeRequest,
)
from p2prw.engine.smoke.regions import file_spec, region_bytes, served_region, spec_of
from p2prw.units import KIB

_LEAST_ODD, _MOST_ODD = 4097, 32 * KIB - 1
_LEAST_LARGE = 64 * KIB
"""With less room than this there is no cell of that size: it would show nothing that `odd` does not."""
FIXED_KINDS = frozenset({"bar", "vfio"})
"""What is one place of the machine; other memory is allocated anew at each opening."""
EVERYWHERE = frozenset({"host", "file"})
"""Tried on every device also by --quick; how a driver reaches other memory is the same on all of its devices."""
NOT_SERVED = frozenset({"host", "dm", "vfio"})
"""Not offered by a loopback beside host memory: dm belongs to one opened device, a VFIO group can be opened once."""
Pair = tuple[SmokeMemory, SmokeRegion]


def make_plan(
    request: SmokeRequest,
    devices: Sequence[SmokeDevice],
    memories: Sequence[SmokeMemory],
    peer_regions: Sequence[SmokeRegion] | None,
    folder: str,
) -> SmokePlan:
    """Return all cells and what is left out. `folder` is for our own files; `peer_regions` None is a loopback."""
    cells: list[Cell] = []
    skips: list[Skip] = []
    servers: dict[str, LoopbackServer] = {}
    for device in devices:
        regions = peer_regions
        preset = _preset_on(request, device, devices)
        if regions is None:
            far = [memory for memory in memories if _no_way(request, device, memory, devices) is None]
            server = servers[device.place] = _loopback(request, device, far, folder)
            regions = [
                SmokeRegion(region.name, memory.name, int(region.memory.options["size"]))
                for memory, region in zip(_remote_memories(request, device, far), server.regions, strict=True)
            ]
        reachable: list[SmokeMemory] = []
        for memory in memories:
            reason = _no_way(request, device, memory, devices)
            if reason is not None:
                skips.append(Skip(device.place, memory.name, reason))
            else:
                reachable.append(replace(memory, most_bytes=device.dm_bytes) if memory.kind == "dm" else memory)
        for pair in _pairs(preset, reachable, regions):
            fitting = list(_cells_of_pair(request, device, pair, servers.get(device.place), folder, len(cells)))
            if not fitting:
                skips.append(Skip(device.place, pair[0].name, "too small for any cell", pair[1].memory))
            cells += fitting
    return SmokePlan(tuple(cells), tuple(skips), servers)


def _no_way(
    request: SmokeRequest, device: SmokeDevice, memory: SmokeMemory, devices: Sequence[SmokeDevice]
) -> str | None:
    """Return why `memory` has no cell on `device`."""
    if memory.kind in device.no_route:
        return device.no_route[memory.kind]
    first = next((one for one in devices if one.driver == device.driver), device)
    if memory.kind in EVERYWHERE or first is device:
        return None
    if request.preset is Preset.QUICK:
        return f"--quick tries it on one device of a driver, here {first.place}"
    if request.preset is Preset.FULL and device.provider == "soft":
        return f"its way there is that of {first.place}, another address of the same device"
    return None


def _preset_on(request: SmokeRequest, device: SmokeDevice, devices: Sequence[SmokeDevice]) -> Preset:
    """Return whose pairs a device gets: those of --full on the first of each driver, and on each address of ours."""
    first = next((one for one in devices if one.driver == device.driver), device)
    if request.preset is Preset.FULL and first is not device and device.provider != "soft":
        return Preset.USUAL
    return request.preset


def _pairs(preset: Preset, memories: Sequence[SmokeMemory], regions: Sequence[SmokeRegion]) -> Iterator[Pair]:
    for memory in memories:
        for region in regions:
            if memory.kind in FIXED_KINDS and region.memory == memory.name:
                continue  # both ends would be the same bytes
            plain_region = region.memory == "host"
            if preset is Preset.FULL or plain_region or (preset is Preset.USUAL and memory.kind == "host"):
                yield memory, region


def _remote_memories(request: SmokeRequest, device: SmokeDevice, memories: Sequence[SmokeMemory]) -> list[SmokeMemory]:
    """Return what a loopback's server offers: host memory always, every other kind where it takes that end too."""
    host = SmokeMemory("host", "host")
    if request.preset is Preset.QUICK:
        return [host]
    others = [m for m in memories if m.kind not in NOT_SERVED and m.kind not in device.no_route]
    return [host, *others]


def _loopback(
    request: SmokeRequest, device: SmokeDevice, memories: Sequence[SmokeMemory], folder: str
) -> LoopbackServer:
    wanted = LARGE_BYTES[request.preset] + MOST_ODD_OFFSET
    regions = []
    files = []
    for number, memory in enumerate(_remote_memories(request, device, memories)):
        length = region_bytes(memory, wanted)
        path = None
        if memory.kind == "file":
            path = f"{folder}/region-{device.place.replace('/', '_')}.bin"
            files.append((path, length))
        # Seeds of regions are counted down: none is a cell's.
        regions.append(served_region(memory, length, mix64(request.seed, -1 - number), path))
    return LoopbackServer(device.name, device.ib_port, device.address, tuple(regions), tuple(files))


def _cells_of_pair(
    request: SmokeRequest, device: SmokeDevice, pair: Pair, server: LoopbackServer | None, folder: str, first: int
) -> Iterator[Cell]:
    memory, region = pair
    number = first
    for size_class in SizeClass:
        for operation in (Operation.READ, Operation.WRITE):
            seed = mix64(request.seed, number)
            place = _place(size_class, request.preset, seed, memory, region)
            if place is None:
                continue
            size, offset = place
            if memory.kind == "file":
                spec = file_spec(f"{folder}/{'source' if operation is Operation.WRITE else 'sink'}-{number}.bin")
            else:
                spec = spec_of(memory.kind, memory.name, size, seed)
            target = target_of(request.peer, device.address, region.name, offset)
            served = next((one for one in server.regions if one.name == region.name), None) if server else None
            where = {"device": device.name, "ib_port": device.ib_port, "request": request}
            yield Cell(
                number=number,
                device=device.name,
                ib_port=device.ib_port,
                local=memory.name,
                kind=memory.kind,
                memory=spec,
                remote=region.memory,
                region=region.name,
                operation=operation,
                size_class=size_class,
                size_bytes=size,
                offset_bytes=offset,
                seed=seed,
                peer=request.peer,
                command=client_command(operation, target, spec, size, **where),  # type: ignore[arg-type]
                serve_command=serve_command(served, device.address, **where) if served else None,  # type: ignore[arg-type]
            )
            number += 1


def _place(
    size_class: SizeClass, preset: Preset, seed: int, memory: SmokeMemory, region: SmokeRegion
) -> tuple[int, int] | None:
    """Return (size, offset in the region) in bytes; None where there is no room for the class."""
    room = region.length_bytes if memory.most_bytes is None else min(region.length_bytes, memory.most_bytes)
    if size_class is SizeClass.SMALL:
        return (SMALL_BYTES, 0) if room >= SMALL_BYTES else None
    if size_class is SizeClass.LARGE:
        size = min(LARGE_BYTES[preset], room)
        return (size, 0) if size >= _LEAST_LARGE else None
    offset = _odd(mix64(seed, 0), 1, MOST_ODD_OFFSET - 1)
    size = _odd(mix64(seed, 1), _LEAST_ODD, _MOST_ODD)
    return (size, offset) if size + offset <= room else None


def _odd(chance: int, low: int, high: int) -> int:
    """Return an odd number in [low, high], both odd."""
    return low + 2 * (chance % ((high - low) // 2 + 1))
