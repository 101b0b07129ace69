"""What the rules ask of the host besides PCI, read from the proc that lies beside a sysfs tree."""

from __future__ import annotations

import re

from p2prw.engine.topology.rules import HostFacts, parse_kernel, parse_processor
from p2prw.engine.topology.sysfs import SysfsRoot


def read_host_facts(sysfs: SysfsRoot) -> HostFacts:
    """Return processor and kernel of the machine whose /sys this is; None where a copied tree has no proc."""
    proc = sysfs.beside("proc")
    cpuinfo = proc.read_text("cpuinfo")
    return HostFacts(
        processor=parse_processor(cpuinfo),
        kernel=parse_kernel(proc.read_text("sys/kernel/osrelease")),
        is_guest=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo or "", re.MULTILINE)),
    )
