"""What to type or to change, for each reason that P2PDMA is refused or not known. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from p2prw.engine.topology.config_space import Unreadable

if TYPE_CHECKING:
    from p2prw.engine.topology.forwarding import Reason
    from p2prw.engine.topology.tree import PciFunction

LOOK_AGAIN = "run it again; lspci shows what is there now"
AS_ROOT = "run as root to read ACS: sudo p2prw topology"
NEEDS_A_NIC = ("take a NIC whose hardware moves the bytes: p2prw devices lists who moves them",)


def disable_acs(redirecting: Sequence[PciFunction], provider: str) -> tuple[str, ...]:
    """Return the kernel parameter, and the same until the next boot."""
    names = ";".join(function.address for function in redirecting)
    now = "; ".join(
        f"setpci -s {function.address} ECAP_ACS+0x6.w={function.config.acs.cleared:04x}"
        for function in redirecting
        if function.config.acs
    )
    return (
        f"to disable ACS redirect for this path, add the kernel parameter: pci=disable_acs_redir={names}",
        f"until the next boot: {now}; then unbind and bind the driver of {provider}, for the kernel keeps its first "
        "answer (both weaken the isolation of IOMMU groups)",
    )


def one_switch(client: str, provider: str) -> tuple[str, ...]:
    """Return what helps where only the root complex joins two devices."""
    return (
        f"put {client} and {provider} under one PCIe switch",
        "leave --route away: the bytes then go through host memory (bounce)",
    )


def see(why: Unreadable, address: str) -> str:
    """Return what would tell."""
    match why:
        case Unreadable.NEEDS_ROOT | Unreadable.MISSING:
            return AS_ROOT
        case Unreadable.NO_ANSWER | Unreadable.ALL_ONES:
            return f"wake it up (echo on > /sys/bus/pci/devices/{address}/power/control) and run it again"
        case _:
            return f"lspci -vvv -s {address} as root; a whole copy of its configuration space"


def see_host(reasons: Sequence[Reason]) -> tuple[str, ...]:
    """Return what would tell whether the root complex forwards."""
    codes = {reason.code for reason in reasons}
    found = []
    if "processor_unknown" in codes:
        found.append("look at the machine itself, or keep proc/cpuinfo beside its sys")
    if "host_bridge_unknown" in codes:
        found.append(AS_ROOT)
    return tuple(found)
