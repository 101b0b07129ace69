"""Checks of the PCI side: the IOMMU, ACS redirect, and the kernel's verdict on pairs of devices."""

from __future__ import annotations

from collections.abc import Iterator

from p2prw.engine.doctor.findings import Ask, Finding, Status
from p2prw.engine.doctor.view import HostView
from p2prw.engine.topology.config_space import Unreadable
from p2prw.engine.topology.endpoints import list_clients, list_providers
from p2prw.engine.topology.pairs import Pair
from p2prw.engine.topology.pci import PCI_DEVICES, device_path
from p2prw.engine.topology.verdict import MapType
from p2prw.errors import HostError
from p2prw.units import counted

_BRIDGE = 0x0604
_MOST_PAIRS = 1024
"""More are for `p2prw topology`: a doctor must not take minutes."""
_WORDS = {"identity": "passes addresses through", "DMA": "translates", "DMA-FQ": "translates", "blocked": "blocks DMA"}


def check_iommu(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Whether an IOMMU is on and what its groups do; P2P by bus address bypasses it, VFIO needs it."""
    units = host.sysfs.list("class/iommu")
    groups = host.sysfs.list("kernel/iommu_groups")
    types: dict[str, int] = {}
    for group in groups:
        kind = host.sysfs.read_text(f"kernel/iommu_groups/{group}/type") or "unknown"
        types[kind] = types.get(kind, 0) + 1
    asked = [word for word in host.boot_parameters if "iommu" in word]
    details = {"units": list(units), "groups": types, "boot_parameters": asked}
    if not groups:
        needs = ask.kind == "vfio"
        yield Finding(
            "iommu",
            Status.FAIL if needs else Status.OK,
            "no IOMMU is on: device addresses are physical ones",
            "vfio-pci needs one (or its noiommu mode)" if needs else None,
            "intel_iommu=on or amd_iommu=on on the kernel command line, and VT-d or AMD-Vi in the firmware"
            if needs
            else None,
            details=details,
        )
        return
    shown = ", ".join(f"{count} {_WORDS.get(kind, kind)} ({kind})" for kind, count in sorted(types.items()))
    yield Finding("iommu", Status.OK, f"IOMMU {', '.join(units) or 'on'}, groups: {shown}", details=details)


def check_acs(host: HostView, ask: Ask) -> Iterator[Finding]:
    """ACS redirect on bridges sends peer-to-peer traffic up to the root complex; unread is unknown, never "off"."""
    bridges = [address for address in host.sysfs.list(PCI_DEVICES) if _is_bridge(host, address)]
    redirecting, unknown = [], []
    for address in bridges:
        chain = host.topology.chain(address)
        if chain is None:
            continue
        config = chain.device.config
        if config.acs_unknown:
            unknown.append((address, config.acs_unknown))
        elif config.acs and config.acs.redirects:
            redirecting.append(address)
    details = {"bridges": len(bridges), "redirecting": redirecting, "unknown": [address for address, _ in unknown]}
    if unknown:
        yield Finding(
            "acs",
            Status.UNKNOWN,
            f"ACS of {len(unknown)} of {counted(len(bridges), 'PCI bridge')} is not known",
            "; ".join(dict.fromkeys(why.value for _, why in unknown)),
            "sudo p2prw doctor"
            if any(why in (Unreadable.NEEDS_ROOT, Unreadable.MISSING) for _, why in unknown)
            else f"sudo lspci -vvv -s {unknown[0][0]}",
            details=details,
        )
    if redirecting:
        providers = list_providers(host.sysfs)
        yield Finding(
            "acs_redirect",
            Status.WARN if providers else Status.OK,
            f"ACS redirect is set on {len(redirecting)} of {counted(len(bridges), 'PCI bridge')}",
            f"peer-to-peer traffic below {', '.join(redirecting[:3])}{', ...' if len(redirecting) > 3 else ''} goes up "
            "to the root complex; the kernel sets it where an IOMMU is on, to keep groups apart",
            "p2prw topology   (says which pairs it is about, and how to clear it for them)" if providers else None,
            details=details,
        )
    elif not unknown:
        shown = (
            f"no ACS redirect on {counted(len(bridges), 'PCI bridge')}" if bridges else "no PCI bridge is to be seen"
        )
        yield Finding("acs", Status.OK, shown, details=details)


def _is_bridge(host: HostView, address: str) -> bool:
    return (host.sysfs.read_int(f"{device_path(address)}/class") or 0) >> 8 == _BRIDGE


def check_pair(host: HostView, ask: Ask) -> Iterator[Finding]:
    """The verdict for the pair that was named: `p2prw topology NIC MEM` says more of it."""
    if ask.pair is None:
        return
    subject = " ".join(ask.pair)
    try:
        pair = host.topology.pair(*ask.pair)
    except HostError as error:
        if error.code == "not_permitted":
            raise
        yield Finding(
            "pair", Status.FAIL, error.what, error.why, error.fix or "p2prw devices", subject=subject,
            details={"code": error.code},
        )  # fmt: skip
        return
    verdict = pair.verdict
    status = {True: Status.OK, False: Status.FAIL, None: Status.UNKNOWN}[verdict.works]
    fixes = "; or ".join(verdict.fixes)
    yield Finding(
        "pair",
        status,
        f"{pair.client.name} -> {pair.provider.name}: {_VERDICTS[verdict.kind]}",
        _reasons(pair) or None,
        None if status is Status.OK else fixes or f"p2prw topology {subject}",
        subject=subject,
        details={
            "verdict": verdict.kind.value,
            "distance": verdict.distance,
            "path": list(verdict.path),
            "redirects": list(verdict.redirects),
            "holds_for": verdict.holds_for,
        },
    )


def _reasons(pair: Pair) -> str:
    """All reasons but the kernel's own closing line, which says the first one again."""
    return "; ".join(reason.text for reason in pair.verdict.reasons if reason.code != "refused")


_VERDICTS = {
    MapType.BUS_ADDRESS: "works, by bus address (switches route it below the root)",
    MapType.THROUGH_HOST_BRIDGE: "works, through the host bridge",
    MapType.NOT_SUPPORTED: "not supported by the kernel",
    MapType.UNKNOWN: "not known",
    MapType.NO_DMA_PATH: "no P2PDMA: the CPU moves the bytes",
}


def check_all_pairs(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Every NIC with every provider, counted; silent where there is no such pair."""
    clients = [one for one in list_clients(host.sysfs) if one.kind == "rdma" and not one.moved_by_cpu]
    providers = list_providers(host.sysfs)
    number = len(clients) * len(providers)
    if number == 0 or ask.pair is not None:
        return
    if number > _MOST_PAIRS:
        yield Finding("pairs", Status.OK, f"{number} pairs of NIC and device memory: p2prw topology judges them")
        return
    pairs = host.topology.pairs(clients, providers)
    works = [pair for pair in pairs if pair.verdict.works]
    refused = [pair for pair in pairs if pair.verdict.works is False]
    details = {kind.value: sum(pair.verdict.kind is kind for pair in pairs) for kind in MapType}
    title = f"P2PDMA works for {len(works)} of {counted(number, 'pair')} of NIC and device memory"
    if not refused and len(works) == number:
        yield Finding("pairs", Status.OK, title, details=details)
        return
    if not refused:
        unseen = number - len(works)
        title = f"whether P2PDMA works is not known for {unseen} of {counted(number, 'pair')} of NIC and device memory"
    first: Pair = (refused or [pair for pair in pairs if not pair.verdict.works])[0]
    yield Finding(
        "pairs",
        Status.WARN if refused else Status.UNKNOWN,
        title,
        f"{first.client.name} {first.provider.name}: {_reasons(first)}",
        f"p2prw topology {first.client.name} {first.provider.name}" if refused else "sudo p2prw doctor",
        details=details,
    )
