"""Checks of the kernel: what it was built with, which modules are there, lockdown, and its clock."""

from __future__ import annotations

from collections.abc import Iterator

from p2prw.engine.doctor.findings import Ask, Finding, Status
from p2prw.engine.doctor.view import HostView

# Option -> (what of p2prw needs it, the memory kind or "verbs").
OPTIONS: dict[str, tuple[str, str]] = {
    "PCI_P2PDMA": ("p2pmem, and P2PDMA at all", "p2pmem"),
    "INFINIBAND_USER_ACCESS": ("verbs devices", "verbs"),
    "RDMA_RXE": ("rxe, software RoCE in the kernel", ""),
    "INFINIBAND_ON_DEMAND_PAGING": ("route odp, and dma-bufs on mlx5", ""),
    "VFIO_PCI": ("vfio memory", "vfio"),
    "VFIO_PCI_DMABUF": ("BARs of vfio-pci as dma-bufs (Linux 6.19)", "vfio"),
    "UDMABUF": ("udmabuf memory", "udmabuf"),
    "DMABUF_HEAPS": ("dmaheap memory", "dmaheap"),
}
# Module -> (what for, the memory kind or "verbs").
MODULES: dict[str, tuple[str, str]] = {
    "ib_uverbs": ("verbs from user space", "verbs"),
    "rdma_rxe": ("software RoCE in the kernel", ""),
    "nvme": ("NVMe controllers, whose CMB is p2pmem", "p2pmem"),
    "vfio_pci": ("functions handed to user space", "vfio"),
    "udmabuf": ("dma-bufs of anonymous memory", "udmabuf"),
}
_GOOD_CLOCKS = ("tsc", "kvm-clock", "hyperv", "xen", "arch_sys_counter", "timebase", "tod", "stp", "riscv_clocksource")
_SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit")


def check_options(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Which parts p2prw can use were built into this kernel."""
    config = host.config
    if config is None:
        yield Finding(
            "kernel_options",
            Status.UNKNOWN,
            f"what kernel {host.release or '(of unknown version)'} was built with is not known",
            "there is no /proc/config.gz, no /boot/config and none beside the modules that this user may read",
            "sudo modprobe configs; zgrep -E 'PCI_P2PDMA|RDMA_RXE|VFIO_PCI_DMABUF|UDMABUF' /proc/config.gz",
        )
        return
    missing = [option for option in OPTIONS if not config.has(option)]
    # What a pool in sysfs shows is there, whatever a stale file says.
    if "PCI_P2PDMA" in missing and _has_pool(host):
        missing.remove("PCI_P2PDMA")
    details = {f"CONFIG_{option}": option not in missing for option in OPTIONS} | {"source": config.source}
    if not missing:
        yield Finding("kernel_options", Status.OK, f"kernel {host.release} has all options p2prw uses", details=details)
        return
    needed = [option for option in missing if _is_needed(OPTIONS[option][1], ask)]
    named = needed or missing
    yield Finding(
        "kernel_options",
        Status.FAIL if needed else Status.WARN,
        f"kernel {host.release} was built without "
        + (f"CONFIG_{named[0]}" if len(named) == 1 else f"{len(named)} options that p2prw can use"),
        "; ".join(f"{OPTIONS[option][0]}: CONFIG_{option}" for option in named) + f" ({config.source})",
        f"boot a kernel that has {'it' if len(named) == 1 else 'them'}: grep -E '{'|'.join(named)}' /boot/config-*",
        details=details,
    )


def _has_pool(host: HostView) -> bool:
    devices = "bus/pci/devices"
    return any(host.sysfs.exists(f"{devices}/{address}/p2pmem/size") for address in host.sysfs.list(devices))


def _is_needed(by: str, ask: Ask) -> bool:
    return ask.lacking(verbs=by == "verbs", kind=by) is Status.FAIL


def check_modules(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Whether the modules that are needed are loaded; the rest is listed."""
    states = {name: host.module_state(name) for name in MODULES}
    has_devices = bool(host.sysfs.list("class/infiniband"))
    loaded = [name for name, state in states.items() if state == "loaded"]
    quiet = True
    for name, state in states.items():
        what, by = MODULES[name]
        needed = _is_needed(by, ask) or (name == "ib_uverbs" and has_devices)
        if state == "loaded" or not needed:
            continue
        quiet = False
        known = {"available": "it is there and not loaded", "absent": f"kernel {host.release} has no such module"}
        yield Finding(
            "module",
            Status.UNKNOWN if state == "unknown" else Status.FAIL if _is_needed(by, ask) else Status.WARN,
            f"module {name} is not loaded",
            f"it brings {what}; {known.get(state, 'and no list of modules of this kernel is at hand')}",
            f"sudo modprobe {name}"
            if state != "absent"
            else f"apt install linux-modules-extra-{host.release}; modprobe {name}   (Ubuntu's package of the rest)",
            subject=name,
            details={"state": state},
        )
    if quiet:
        shown = ", ".join(loaded) or "none of " + ", ".join(MODULES)
        yield Finding("modules", Status.OK, f"modules loaded: {shown}", details=states)


def check_lockdown(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Lockdown (Secure Boot) forbids mapping BARs, to root too: drivers/pci/pci-sysfs.c, LOCKDOWN_PCI_ACCESS."""
    text = host.sysfs.read_text("kernel/security/lockdown")
    if text is None:
        if host.config is not None and not host.config.has("SECURITY_LOCKDOWN_LSM"):
            yield Finding("lockdown", Status.OK, "this kernel has no lockdown")
            return
        yield Finding(
            "lockdown",
            Status.UNKNOWN,
            "whether the kernel is locked down is not known",
            "/sys/kernel/security/lockdown is not there: securityfs is not mounted, as in containers",
            "sudo mount -t securityfs securityfs /sys/kernel/security; cat /sys/kernel/security/lockdown",
        )
        return
    mode = text.partition("[")[2].partition("]")[0] or text
    if mode == "none":
        yield Finding("lockdown", Status.OK, "no kernel lockdown", details={"mode": mode})
        return
    yield Finding(
        "lockdown",
        ask.lacking(kind="bar"),
        f"the kernel is locked down ({mode}): BARs cannot be mapped, by root neither",
        "Secure Boot switches it on; bar memory ends with EPERM, p2pmem and vfio are not concerned",
        "mokutil --sb-state; then Secure Boot off in the firmware, or vfio-pci and vfio:BDF/N instead of bar:BDF/N",
        details={"mode": mode},
    )


def check_strict_devmem(host: HostView, ask: Ask) -> Iterator[Finding]:
    """CONFIG_IO_STRICT_DEVMEM keeps user space out of BARs that a driver holds: resourceN then gives EINVAL."""
    if "iomem=relaxed" in host.boot_parameters:
        yield Finding("strict_devmem", Status.OK, "iomem=relaxed: BARs that a driver holds can be mapped")
        return
    if host.config is None:
        # The check of options has said that there is none.
        if ask.kind != "bar":
            return
        yield Finding(
            "strict_devmem",
            Status.UNKNOWN,
            "whether BARs that a driver holds can be mapped is not known",
            "no kernel configuration at hand says whether CONFIG_IO_STRICT_DEVMEM is on",
            "grep IO_STRICT_DEVMEM /boot/config-*",
        )
        return
    strict = host.config.has("IO_STRICT_DEVMEM")
    yield Finding(
        "strict_devmem",
        Status.OK,
        "BARs that a driver holds cannot be mapped (CONFIG_IO_STRICT_DEVMEM); free ones can"
        if strict
        else "BARs that a driver holds can be mapped too",
        details={"io_strict_devmem": strict},
    )


def check_clock(host: HostView, ask: Ask) -> Iterator[Finding]:
    """A slow clock source makes every look at the clock a read of a device: rates and timeouts suffer."""
    base = "devices/system/clocksource/clocksource0"
    name = host.sysfs.read_text(f"{base}/current_clocksource")
    if name is None:
        yield Finding(
            "clock_source",
            Status.UNKNOWN,
            "the clock source is not known",
            f"there is no {host.sysfs.absolute(base)}",
            "dmesg | grep -i clocksource",
        )
        return
    if name.startswith(_SLOW_CLOCKS):
        yield Finding(
            "clock_source",
            Status.WARN,
            f"the clock source is {name}: reading the time is slow",
            "the kernel found the processor's own counter unstable, or was told so; measured rates are lower than real",
            f"dmesg | grep -i -E 'tsc|clocksource'; echo tsc | sudo tee /sys/{base}/current_clocksource",
            details={"clock_source": name},
        )
        return
    known = name.startswith(_GOOD_CLOCKS)
    yield Finding(
        "clock_source",
        Status.OK,
        f"clock source {name}" + ("" if known else " (not one we know)"),
        details={"clock_source": name},
    )
