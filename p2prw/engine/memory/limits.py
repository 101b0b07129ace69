"""How much host memory there is to take: MemAvailable, cgroup limits, huge pages, NUMA nodes. Raises with figures.

An allocation that the kernel grants and cannot back ends in the OOM killer, in the middle of somebody's transfer; so it
is compared with what is there first. Sources: Documentation/filesystems/proc.rst (MemAvailable),
Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.current, memory.stat), cgroup-v1/memory.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from p2prw.engine.memory.spec import HUGEPAGE_BYTES
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import format_size

# What "no limit" looks like in cgroup v1: LONG_MAX rounded down to a page (mm/memcontrol.c).
_V1_UNLIMITED = 1 << 62
# Left for everybody else: an allocation of the very last page has the OOM killer look for a victim.
RESERVE_BYTES = 32 * 1024**2


@dataclass(frozen=True, slots=True)
class Headroom:
    """One bound on what may be allocated."""

    source: str
    """The file that says so."""
    available_bytes: int
    limit_bytes: int
    is_cgroup: bool


def check_host_memory(
    length_bytes: int, sysfs: SysfsRoot, *, proc: Path = Path("/proc"), what: str = "host memory"
) -> None:
    """Raise HostError `not_enough_memory` where the host or a cgroup of ours has less than `length_bytes` left."""
    rooms = [*cgroup_headrooms(sysfs, proc)]
    host = host_headroom(proc)
    if host is not None:
        rooms.append(host)
    for room in rooms:
        if length_bytes + RESERVE_BYTES <= room.available_bytes:
            continue
        usable = max(0, room.available_bytes - RESERVE_BYTES)
        raise HostError(
            f"cannot allocate {format_size(length_bytes)} of {what}",
            why=f"{room.source}: {format_size(room.available_bytes)} of {format_size(room.limit_bytes)} are left"
            f" ({format_size(RESERVE_BYTES)} stay free)",
            fix=_smaller(usable) + (" or raise the container's memory limit" if room.is_cgroup else " or free memory"),
            code="not_enough_memory",
            errno="ENOMEM",
        )


def host_headroom(proc: Path = Path("/proc")) -> Headroom | None:
    """Return MemAvailable; None where there is no /proc/meminfo."""
    fields = _key_values(proc / "meminfo")
    available = fields.get("MemAvailable")
    if available is None:
        return None
    return Headroom(f"{proc}/meminfo MemAvailable", available * 1024, fields.get("MemTotal", available) * 1024, False)


def cgroup_headrooms(sysfs: SysfsRoot, proc: Path = Path("/proc")) -> tuple[Headroom, ...]:
    """Return what each limited memory cgroup on the way to the root leaves us; empty where none is limited."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return ()
    rooms: list[Headroom] = []
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            rooms += _climb(sysfs.absolute("fs/cgroup"), path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _climb(sysfs.absolute("fs/cgroup/memory"), path, names)
    return tuple(rooms)


def check_hugepages(length_bytes: int, page: str, sysfs: SysfsRoot, node: int | None = None) -> None:
    """Raise HostError where fewer free huge pages of size `page` (`2M`, `1G`) are left than `length_bytes` needs."""
    page_bytes = HUGEPAGE_BYTES[page]
    needed = -(-length_bytes // page_bytes)
    name = f"hugepages-{page_bytes // 1024}kB"
    base = f"kernel/mm/hugepages/{name}" if node is None else f"devices/system/node/node{node}/hugepages/{name}"
    free = sysfs.read_int(f"{base}/free_hugepages")
    if free is not None and free >= needed:
        return
    total = sysfs.read_int(f"{base}/nr_hugepages") or 0
    boot = "hugepagesz=1G hugepages=N on the kernel command line, or "
    raise HostError(
        f"cannot take {needed} huge pages of {page}",
        why=f"this kernel has no {page} huge pages" if free is None else f"{free} of {total} are free ({base})",
        fix=hugepage_advice(page, total + needed - (free or 0), boot, node),
        code="no_hugepages",
        errno="ENOMEM",
    )


def hugepage_advice(page: str, count: int, boot: str = "", node: int | None = None) -> str:
    """Return what to type so that `count` huge pages exist."""
    if page == "2M" and node is None:
        return f"sudo sysctl vm.nr_hugepages={count}"
    name = f"hugepages-{HUGEPAGE_BYTES[page] // 1024}kB"
    base = "/sys/kernel/mm" if node is None else f"/sys/devices/system/node/node{node}"
    where = f"{base}/hugepages/{name}/nr_hugepages"
    return (boot if page == "1G" else "") + f"echo {count} | sudo tee {where} (sysctl vm.nr_hugepages is the 2M pool)"


def check_numa_node(node: int, length_bytes: int, sysfs: SysfsRoot) -> None:
    """Raise HostError where NUMA node `node` is missing or is smaller than `length_bytes`."""
    nodes = [name for name in sysfs.list("devices/system/node") if name.startswith("node") and name[4:].isdigit()]
    if f"node{node}" not in nodes:
        present = ", ".join(sorted((name[4:] for name in nodes), key=int)) or "none (no NUMA support)"
        raise HostError(
            f"there is no NUMA node {node}",
            why=f"the nodes of this host are: {present}",
            fix="leave numa= away, or take one of these nodes",
            code="no_numa_node",
        )
    total = _node_total_bytes(sysfs.read_text(f"devices/system/node/node{node}/meminfo"))
    if total is not None and total < length_bytes:
        raise HostError(
            f"NUMA node {node} is too small for {format_size(length_bytes)}",
            why=f"it has {format_size(total)} of memory",
            fix="another node, or leave numa= away",
            code="not_enough_memory",
            errno="ENOMEM",
        )


def _climb(mount: Path, path: str, names: tuple[str, str, str]) -> list[Headroom]:
    limit_name, usage_name, reclaimable_key = names
    relative = PurePosixPath(path.lstrip("/"))
    # Without a cgroup namespace of its own a container sees the host's path but only its own directory: the mount.
    if ".." in relative.parts or not (mount / relative).is_dir():
        relative = PurePosixPath()
    rooms = []
    for group in (relative, *relative.parents) if relative.parts else (relative,):
        directory = mount / group
        limit, usage = _number(directory / limit_name), _number(directory / usage_name)
        if limit is None or usage is None or limit >= _V1_UNLIMITED:
            continue
        # Clean page cache counts as used, but the kernel gives it up before it kills.
        reclaimable = _key_values(directory / "memory.stat").get(reclaimable_key, 0)
        rooms.append(Headroom(str(directory / limit_name), max(0, limit - usage + reclaimable), limit, True))
    return rooms


def _node_total_bytes(meminfo: str | None) -> int | None:
    for line in (meminfo or "").splitlines():
        words = line.split()
        if "MemTotal:" in words and words[-1] == "kB" and words[-2].isdigit():
            return int(words[-2]) * 1024
    return None


def _smaller(usable_bytes: int) -> str:
    # Whole MiB, so that it can be pasted.
    mebibytes = usable_bytes // 1024**2
    return f"size={mebibytes}MiB or less," if mebibytes else "free memory first,"


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        # "max" (no limit) is no number either.
        return None


def _key_values(path: Path) -> dict[str, int]:
    values = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            values[words[0]] = int(words[1])
    return values
