"""Whether the root complex forwards between two host bridges, as far as the kernel trusts it to. Pure.

A twin of cpu_supports_p2pdma, host_bridge_whitelist and pci_host_bridge_dev (drivers/pci/p2pdma.c).
"""

from __future__ import annotations

from dataclasses import dataclass

from p2prw.engine.topology import rules
from p2prw.engine.topology.rules import HostFacts, Version, format_version
from p2prw.engine.topology.tree import HostBridge, is_host_bridge_device


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that the verdict rests on."""

    code: str
    """Stable, snake_case."""
    text: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forwarding:
    """The answer, and since when it is so."""

    allowed: bool | None
    """None: not known."""
    reasons: tuple[Reason, ...]
    since: Version | None = None
    later: Version | None = None
    """Not allowed by this kernel, but from that release on."""


def forwarding(provider: HostBridge, client: HostBridge, host: HostFacts) -> Forwarding:
    """Return whether DMA that has come up to the root complex may go down again to the provider."""
    if host.processor is None:
        listed = _listed(provider, client, host)
        if listed.allowed:
            return listed
        reason = Reason(
            "processor_unknown", "the processor is not known, and an AMD Zen one forwards between root ports"
        )
        return Forwarding(None, (reason, *listed.reasons))
    if host.processor.is_zen:
        text = (
            f"the processor ({host.processor.description}) is an AMD Zen or later: the kernel trusts all its root ports"
        )
        return Forwarding(True, (Reason("amd_zen", text),))
    return _listed(provider, client, host)


def _listed(provider: HostBridge, client: HostBridge, host: HostFacts) -> Forwarding:
    """host_bridge_whitelist: one look for one host bridge, both must fit for two."""
    if provider.name == client.name:
        return _entry(provider, True, host)
    both = [_entry(provider, False, host), _entry(client, False, host)]
    reasons = tuple(dict.fromkeys(reason for one in both for reason in one.reasons))
    allowed = False if any(one.allowed is False for one in both) else None if None in (
        both[0].allowed, both[1].allowed) else True  # fmt: skip
    later = max((one.later for one in both if one.later), default=None)
    # A later kernel helps only where nothing else stands in the way.
    if any(one.allowed is False and not one.later for one in both):
        later = None
    return Forwarding(allowed, reasons, max((one.since for one in both if one.since), default=None), later)


def _entry(bridge: HostBridge, same: bool, host: HostFacts) -> Forwarding:
    first = bridge.first
    name = bridge.short_name
    if first is None or first.vendor_id is None or first.device_id is None:
        text = f"no function on the root bus of {name} can be read, and the kernel knows a host bridge by it"
        return Forwarding(False if first is None else None, (Reason("host_bridge_unknown", text, (name,)),))
    rule = rules.host_bridge_rule(first.vendor_id, first.device_id)
    if rule is None:
        text = f"host bridge not in P2PDMA whitelist: {first.label} ({first.address} of {name})"
        return Forwarding(False, (Reason("host_bridge_not_listed", text, (first.address,)),))
    who = f"host bridge {first.label} ({rule.name}, {name})"
    taken = is_host_bridge_device(first)
    if taken is False:
        text = (
            f"{first.address}, the first function of {name}, is neither 00.0 nor a root port: the kernel does not ask"
        )
        return Forwarding(False, (Reason("host_bridge_not_listed", text, (first.address,)),))
    if taken is None:
        text = f"{who} is in the whitelist, but whether {first.address} is a root port cannot be seen"
        return Forwarding(None, (Reason("host_bridge_unknown", text, (first.address,)),))
    if rule.same_host_bridge and not same:
        text = f"{who} is in the whitelist only for two root ports of the same host bridge"
        return Forwarding(False, (Reason("same_host_bridge_only", text, (first.address,)),))
    if rule.since and host.kernel and host.kernel < rule.since:
        text = f"{who} is in the whitelist from {format_version(rule.since)} on, this is {format_version(host.kernel)}"
        return Forwarding(False, (Reason("host_bridge_not_listed", text, (first.address,)),), later=rule.since)
    return Forwarding(True, (Reason("host_bridge_listed", f"{who} is in the P2PDMA whitelist", (name,)),), rule.since)
