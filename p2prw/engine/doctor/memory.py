"""Checks of memory: what may be locked, p2pmem providers, who holds BARs, dma-buf exporters, the memory asked for."""

from __future__ import annotations

from collections.abc import Iterator

from p2prw.engine.doctor.findings import Ask, Finding, Status
from p2prw.engine.doctor.view import CAP_IPC_LOCK, HostView
from p2prw.engine.providers.verbs_sysfs import hca_names
from p2prw.errors import P2prwError
from p2prw.units import MIB, counted, format_size

STAGING_BYTES = 32 * MIB
"""What a transfer of a file registers by default (TransferRequest.staging_bytes)."""
# ulimit -l cannot pass the hard limit; prlimit as root can, for the shell it is typed in.
_RAISE = (
    "sudo prlimit --pid $$ --memlock=unlimited:unlimited   (for good: LimitMEMLOCK=infinity in a systemd unit, "
    "/etc/security/limits.conf, docker run --ulimit memlock=-1)"
)


def check_locked_memory(host: HostView, ask: Ask) -> Iterator[Finding]:
    """ibv_reg_mr charges RLIMIT_MEMLOCK unless the process has CAP_IPC_LOCK (drivers/infiniband/core/umem.c)."""
    limit = host.locked_memory_bytes
    if limit is None:
        yield Finding("locked_memory", Status.UNKNOWN, "the limit of locked memory is not known", fix="ulimit -l")
        return
    if limit < 0 or host.has_capability(CAP_IPC_LOCK):
        shown = "unlimited" if limit < 0 else f"{format_size(limit)}, which CAP_IPC_LOCK lifts"
        yield Finding("locked_memory", Status.OK, f"locked memory: {shown}", details={"limit_bytes": limit})
        return
    details = {"limit_bytes": limit, "staging_bytes": STAGING_BYTES}
    if limit >= 2 * STAGING_BYTES:
        title = f"locked memory: {format_size(limit)}; a verbs device registers no more than that"
        yield Finding("locked_memory", Status.OK, title, details=details)
        return
    if not hca_names(host.sysfs) and ask.verbs_device is None:
        title = f"locked memory: {format_size(limit)} (only verbs devices need more)"
        yield Finding("locked_memory", Status.OK, title, details=details)
        return
    yield Finding(
        "locked_memory",
        ask.lacking(verbs=True),
        f"only {format_size(limit)} of memory may be locked",
        f"a verbs device locks all it registers, {format_size(STAGING_BYTES)} for staging alone; beyond the limit "
        "registrations end with ENOMEM",
        _RAISE,
        details=details,
    )


def check_p2pmem(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Providers of P2P memory, and whether they have any left."""
    rows = [row for row in host.memory if row.kind == "p2pmem"]
    if not rows:
        yield Finding(
            "p2pmem",
            Status.FAIL if ask.kind == "p2pmem" else Status.OK,
            "no provider of P2P memory (p2pmem)",
            "no driver gave the kernel any: it takes an NVMe controller with a CMB, and CONFIG_PCI_P2PDMA",
            "sudo nvme cmb-info /dev/nvme0; grep PCI_P2PDMA /boot/config-*",
        )
    for row in rows:
        size, free = row.size_bytes or 0, row.available_bytes or 0
        details = {"size_bytes": size, "available_bytes": free, "driver": row.driver}
        if row.usable and free:
            title = f"{row.spec} ({row.driver}): {format_size(free)} of {format_size(size)} free"
            yield Finding("p2pmem", Status.OK, title, subject=row.spec, details=details)
            continue
        allocate = f"bus/pci/devices/{row.pci_address}/p2pmem/allocate"
        if row.usable:
            what, why = "nothing is free", "kernel users (nvmet) and mappings of other processes hold it"
            fix = f"sudo fuser -v /sys/{allocate}"
        else:
            what, why = row.note or "it cannot be allocated", "user space allocates through p2pmem/allocate"
            fix = f"sudo setfacl -m u:$USER:rw /sys/{allocate}   (or sudo p2prw ...)"
            fix = fix if host.sysfs.exists(allocate) else "uname -r   (boot Linux 6.2 or later)"
        yield Finding(
            "p2pmem",
            ask.lacking(kind="p2pmem"),
            f"{row.spec}: {what}",
            why,
            fix,
            subject=row.spec,
            details=details,
        )


def check_bars(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Who holds the BARs that `bar:` can name."""
    bars = [row for row in host.memory if row.kind == "bar"]
    usable = [row for row in bars if row.usable]
    held = sorted({f"{row.pci_address} ({row.driver})" for row in usable if row.driver})
    free = [row for row in usable if not row.driver]
    if not bars:
        yield Finding("bars", Status.OK, "no PCI BAR is to be seen")
    else:
        title = f"{counted(len(bars), 'BAR')}: {len(free)} free, {len(usable) - len(free)} held by drivers"
        if len(bars) > len(usable):
            title += f", {len(bars) - len(usable)} cannot be mapped"
        yield Finding("bars", Status.OK, title, details={"held": held, "free": [row.spec for row in free]})
    asked = ask.memory.arg if ask.memory is not None and ask.memory.kind == "bar" else None
    for row in bars:
        if asked is None or row.driver is None or row.spec != f"bar:{asked}":
            continue
        yield Finding(
            "bar_holder",
            Status.WARN,
            f"{row.spec} is held by driver {row.driver}",
            "its driver uses it: writing into it can hang the device or the host",
            f"echo {row.pci_address} | sudo tee /sys/bus/pci/devices/{row.pci_address}/driver/unbind",
            subject=row.spec,
        )


def check_exporters(host: HostView, ask: Ask) -> Iterator[Finding]:
    """dma-buf exporters of host memory; they are of use with a NIC that imports dma-bufs."""
    rows = [row for row in host.memory if row.kind in ("udmabuf", "dmaheap")]
    if rows:
        shown = ", ".join(f"{row.spec}{'' if row.usable else ' (no right)'}" for row in rows)
        yield Finding("dmabuf_exporters", Status.OK, f"dma-buf exporters: {shown}")
    else:
        yield Finding("dmabuf_exporters", Status.OK, "no dma-buf exporter (/dev/udmabuf, /dev/dma_heap)")
    if ask.kind in ("udmabuf", "dmaheap") and not any(row.usable and row.kind == ask.kind for row in rows):
        wanted = "/dev/udmabuf" if ask.kind == "udmabuf" else "/dev/dma_heap/system"
        there = any(row.kind == ask.kind for row in rows)
        yield Finding(
            "dmabuf_exporter",
            Status.FAIL,
            f"{wanted} " + ("may not be opened by this user" if there else "is not there"),
            "it belongs to root, or to group kvm" if there else "its module is not loaded, or the container lacks it",
            f"sudo setfacl -m u:$USER:rw {wanted}" if there else "sudo modprobe udmabuf; ls /dev/udmabuf /dev/dma_heap",
            subject=ask.kind,
        )


def check_asked_memory(host: HostView, ask: Ask) -> Iterator[Finding]:
    """The memory that was named, checked as a transfer checks it before it contacts anybody."""
    if ask.memory is None or host.probe is None:
        return
    spec = ask.memory.text or ask.memory.kind
    try:
        host.probe.check_memory(ask.memory)
    except P2prwError as error:
        yield Finding(
            "memory",
            Status.FAIL,
            error.what,
            error.why,
            error.fix or "p2prw devices",
            subject=spec,
            details={"code": error.code, "errno": error.errno},
        )
    else:
        yield Finding("memory", Status.OK, f"{spec} can be used", subject=spec)
