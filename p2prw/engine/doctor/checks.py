"""The list of checks, and running them. One more check is one more line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from p2prw.engine.doctor import containers, kernel, memory, pci, software, verbs
from p2prw.engine.doctor.findings import Ask, Finding, Status
from p2prw.engine.doctor.view import HostView
from p2prw.engine.providers.verbs_sysfs import hca_names
from p2prw.errors import HostError

CheckFunction = Callable[[HostView, Ask], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """One entry of the list."""

    id: str
    """The id of what is said when the check itself is not allowed to look."""
    theme: str
    run: CheckFunction


CHECKS: tuple[Check, ...] = (
    Check("software_device", "Software device", software.check_software_device),
    Check("udp_4791", "Software device", software.check_roce_port),
    Check("verbs_device", "RDMA", verbs.check_devices),
    Check("verbs_binding", "RDMA", verbs.check_binding),
    Check("port_state", "RDMA", verbs.check_ports),
    Check("gids", "RDMA", verbs.check_gids),
    Check("mtu", "RDMA", verbs.check_mtu),
    Check("dmabuf_import", "RDMA", verbs.check_dmabuf_import),
    Check("memory", "Memory", memory.check_asked_memory),
    Check("locked_memory", "Memory", memory.check_locked_memory),
    Check("p2pmem", "Memory", memory.check_p2pmem),
    Check("bars", "Memory", memory.check_bars),
    Check("dmabuf_exporters", "Memory", memory.check_exporters),
    Check("pair", "PCI", pci.check_pair),
    Check("pairs", "PCI", pci.check_all_pairs),
    Check("acs", "PCI", pci.check_acs),
    Check("iommu", "PCI", pci.check_iommu),
    Check("kernel_options", "Kernel", kernel.check_options),
    Check("modules", "Kernel", kernel.check_modules),
    Check("lockdown", "Kernel", kernel.check_lockdown),
    Check("strict_devmem", "Kernel", kernel.check_strict_devmem),
    Check("clock_source", "Kernel", kernel.check_clock),
    Check("container", "Access", containers.check_container),
    Check("device_file", "Access", containers.check_device_files),
    Check("rdma_namespaces", "Access", containers.check_rdma_namespaces),
    Check("network_namespace", "Access", containers.check_network_namespace),
)


def examine(host: HostView, ask: Ask | None = None, checks: Iterable[Check] = CHECKS) -> tuple[Finding, ...]:
    """Run the checks in order. One that may not look says *unknown*; what it said before that counts."""
    ask = ask or Ask()
    if ask.pair and ask.device == "auto" and ask.pair[0] in hca_names(host.sysfs):
        # A pair may also be named by netdev, NVMe controller or PCI address; then no verbs device is meant.
        ask = replace(ask, device=ask.pair[0])
    found: list[Finding] = []
    for check in checks:
        try:
            for finding in check.run(host, ask):
                # One by one: what was said before an error counts.
                found.append(replace(finding, theme=check.theme))  # noqa: PERF401
        except HostError as error:
            found.append(
                Finding(
                    check.id,
                    Status.UNKNOWN,
                    error.what,
                    error.why,
                    error.fix or "sudo p2prw doctor",
                    theme=check.theme,
                    details={"code": error.code, "errno": error.errno},
                )
            )
    return tuple(found)


def failures(findings: Iterable[Finding], *, strict: bool = False) -> tuple[Finding, ...]:
    """Return what makes `p2prw doctor` end with 3; `strict` counts warnings too. Unknown never does."""
    bad = {Status.FAIL, Status.WARN} if strict else {Status.FAIL}
    return tuple(finding for finding in findings if finding.status in bad)
