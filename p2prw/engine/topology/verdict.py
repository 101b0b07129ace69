"""Whether the kernel lets a client DMA into a provider's memory, in its own terms and words. Pure.

A twin of calc_map_type_and_dist (drivers/pci/p2pdma.c) that gives all reasons and the mend, and that says *unknown*
where the kernel could see more than we may.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from p2prw.engine.topology import mend, rules
from p2prw.engine.topology.config_space import Unreadable
from p2prw.engine.topology.forwarding import Reason, forwarding
from p2prw.engine.topology.link import Link, narrowest
from p2prw.engine.topology.rules import HostFacts, Version, format_version
from p2prw.engine.topology.tree import Chain, PciFunction


class MapType(StrEnum):
    """enum pci_p2pdma_map_type, and two answers of ours."""

    BUS_ADDRESS = "bus_address"
    """PCI_P2PDMA_MAP_BUS_ADDR: switches route it below the root; no IOMMU sees it."""
    THROUGH_HOST_BRIDGE = "through_host_bridge"
    """PCI_P2PDMA_MAP_THRU_HOST_BRIDGE: up to the root complex and down again, which the kernel trusts here."""
    NOT_SUPPORTED = "not_supported"
    """PCI_P2PDMA_MAP_NOT_SUPPORTED."""
    UNKNOWN = "unknown"
    """Something that decides could not be read; the reasons say what would tell."""
    NO_DMA_PATH = "no_dma_path"
    """The client moves bytes with the CPU: the question does not arise."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one pair."""

    kind: MapType
    distance: int | None
    """Hops, as pci_p2pdma_distance counts them; None where there is no chain to count on."""
    common: str | None
    """The nearest common function: a bridge, or the device itself. None: only host bridges."""
    path: tuple[str, ...]
    """From the client to the provider, host bridges by name."""
    redirects: tuple[str, ...]
    """Functions whose ACS control register redirects, in the kernel's order."""
    reasons: tuple[Reason, ...]
    fixes: tuple[str, ...]
    """What to type or change, likeliest first."""
    holds_for: str
    """For which kernels; distributions may differ."""
    link: Link | None = None
    """The narrowest link of the path."""

    @property
    def works(self) -> bool | None:
        """The kernel maps it; None where that is not known."""
        if self.kind is MapType.UNKNOWN:
            return None
        return self.kind in (MapType.BUS_ADDRESS, MapType.THROUGH_HOST_BRIDGE)

    @property
    def why(self) -> str:
        """All reasons in one line."""
        return "; ".join(reason.text for reason in self.reasons)


def judge(provider: Chain, client: Chain, host: HostFacts) -> Verdict:
    """Return the verdict for DMA by `client` into memory of `provider`."""
    gone = tuple(f.address for f in (*provider.functions, *client.functions) if f.vendor_id is None)
    if gone:
        text = f"{', '.join(dict.fromkeys(gone))} went away while it was read"
        return unknown(Reason("gone", text, tuple(dict.fromkeys(gone))), mend.LOOK_AGAIN)
    up = client.addresses
    common = next((address for address in provider.addresses if address in up), None)
    to_common = list(takewhile(lambda f: f.address != common, provider.functions))
    from_client = list(takewhile(lambda f: f.address != common, client.functions))
    distance = len(to_common) + len(from_client)
    down = [f.address for f in reversed(to_common)]
    link = narrowest(f.link for f in (*to_common, *from_client))
    if common is None:
        bridges = dict.fromkeys((client.host_bridge.short_name, provider.host_bridge.short_name))
        path = (*up, *bridges, *down)
        reasons: tuple[Reason, ...] = (_no_common(provider, client),)
        return _through(provider, client, host, distance, None, path, (), reasons, link)
    path = (*(f.address for f in from_client), common, *down)
    # The common bridge counts, with the provider's side; the bridges above it do not.
    examined = [*provider.functions[: len(to_common) + 1], *from_client]
    redirecting = tuple(f for f in examined if f.config.acs and f.config.acs.redirects)
    unseen = tuple(f for f in examined if f.config.acs_unknown)
    if redirecting:
        reasons = (_redirect(provider, redirecting), *_unseen(unseen))
        return _through(provider, client, host, distance, common, path, redirecting, reasons, link)
    if unseen:
        root = forwarding(provider.host_bridge, client.host_bridge, host)
        otherwise = "through the host bridge" if root.allowed else "not at all, or only through the host bridge"
        doubt = Reason("acs_decides", f"bus addresses where ACS redirect is off there, {otherwise} where it is on")
        fixes = tuple(dict.fromkeys(mend.see(f.config.acs_unknown, f.address) for f in unseen if f.config.acs_unknown))
        return Verdict(
            MapType.UNKNOWN, distance, common, path, (), (*_unseen(unseen), doubt), fixes, _since(None), link
        )  # fmt: skip
    return Verdict(
        MapType.BUS_ADDRESS, distance, common, path, (), (_common(common, provider, client),), (), _since(None), link
    )


def unknown(reason: Reason, *fixes: str) -> Verdict:
    """Return the verdict where there is no chain to judge."""
    return Verdict(MapType.UNKNOWN, None, None, (), (), (reason,), fixes, "any kernel")


def no_dma_path(device: str, driver: str) -> Verdict:
    """Return the answer for a device that is no DMA engine: soft, rxe, siw, hfi1, qib."""
    text = f"{device} ({driver}) moves bytes with the CPU: there is no DMA path to judge, and nothing is peer to peer"
    return Verdict(
        MapType.NO_DMA_PATH, None, None, (), (), (Reason("cpu_moves", text, (device,)),), mend.NEEDS_A_NIC, "any kernel"
    )


def _through(
    provider: Chain,
    client: Chain,
    host: HostFacts,
    distance: int,
    common: str | None,
    path: tuple[str, ...],
    redirecting: tuple[PciFunction, ...],
    reasons: tuple[Reason, ...],
    link: Link | None,
) -> Verdict:
    """What must pass the root complex is the host bridge's matter."""
    found = forwarding(provider.host_bridge, client.host_bridge, host)
    if common is not None:
        # Redirected traffic goes up to the root complex and comes down again: the whole chain carries it.
        link = narrowest(f.link for f in (*provider.functions, *client.functions))
    kind = {True: MapType.THROUGH_HOST_BRIDGE, False: MapType.NOT_SUPPORTED, None: MapType.UNKNOWN}[found.allowed]
    fixes = mend.disable_acs(redirecting, provider.device.address) if redirecting else ()
    reasons = (*reasons, *found.reasons)
    if found.allowed is None:
        fixes = (*mend.see_host(reasons), *fixes)
    elif not found.allowed:
        if common is None:
            reasons = (*reasons, _refused(provider))
            fixes = mend.one_switch(client.device.address, provider.device.address)
        if found.later:
            fixes = (f"{format_version(found.later)} or later knows this host bridge", *fixes)
    return Verdict(
        kind,
        distance,
        common,
        path,
        tuple(f.address for f in redirecting),
        reasons,
        fixes,
        _until(found.later) if found.later else _since(found.since),
        link,
    )


def _common(common: str, provider: Chain, client: Chain) -> Reason:
    if provider.device.address == client.device.address:
        return Reason("same_function", f"{common} reads and writes its own memory", (common,))
    return Reason("common_bridge", f"{common} is above both and no ACS redirect is set on the way", (common,))


def _no_common(provider: Chain, client: Chain) -> Reason:
    bridges = sorted({client.host_bridge.short_name, provider.host_bridge.short_name})
    where = f"only {bridges[0]} is above both" if len(bridges) == 1 else f"they hang below {' and '.join(bridges)}"
    return Reason(
        "no_common_bridge",
        f"the client and provider ({provider.device.address}) do not share an upstream bridge: {where}",
        (provider.addresses[-1], client.addresses[-1]),
    )


def _redirect(provider: Chain, redirecting: tuple[PciFunction, ...]) -> Reason:
    bits = ", ".join(f"{f.address} {' '.join(f.config.acs.enabled())}" for f in redirecting if f.config.acs)
    return Reason(
        "acs_redirect",
        f"ACS redirect is set between the client and provider ({provider.device.address}): {bits}",
        tuple(f.address for f in redirecting),
    )


def _refused(provider: Chain) -> Reason:
    # The kernel's line in dmesg, so that whoever searches for it finds it.
    return Reason(
        "refused",
        "cannot be used for peer-to-peer DMA as the client and provider "
        f"({provider.device.address}) do not share an upstream bridge or whitelisted host bridge",
    )


def _unseen(functions: tuple[PciFunction, ...]) -> tuple[Reason, ...]:
    by_why: dict[Unreadable, list[str]] = {}
    for function in functions:
        if function.config.acs_unknown:
            by_why.setdefault(function.config.acs_unknown, []).append(function.address)
    return tuple(
        Reason("acs_unknown", f"ACS of {', '.join(names)} is not known: {why.value}", tuple(names))
        for why, names in by_why.items()
    )


def _since(version: Version | None) -> str:
    return f"{format_version(max(version or rules.FIRST_FROM_USER_SPACE, rules.FIRST_FROM_USER_SPACE))} and later"


def _until(later: Version) -> str:
    return f"kernels before {format_version(later)}; through_host_bridge from then on"
