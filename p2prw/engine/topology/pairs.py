"""The door for everybody else: verdicts for named devices, one pair or all of them, of this host or of a copied tree.

Opens no device and needs no privilege; without it the answer may be *unknown*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from p2prw.engine.topology.endpoints import Endpoint, find_client, find_memory, list_clients, list_providers
from p2prw.engine.topology.forwarding import Reason
from p2prw.engine.topology.host import read_host_facts
from p2prw.engine.topology.iommu import IommuGroup, read_iommu_group
from p2prw.engine.topology.rules import HostFacts
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.engine.topology.tree import Chain, PciTree
from p2prw.engine.topology.verdict import MapType, Verdict, judge, no_dma_path, unknown

_GUEST_IOMMU = (
    "this is a guest with an IOMMU: bus addresses bypass it, and QEMU's loses such bytes without an error; verify"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One question and its answer."""

    client: Endpoint
    provider: Endpoint
    verdict: Verdict


class Topology:
    """Reads what is asked for, once."""

    def __init__(self, sysfs: SysfsRoot | None = None, host: HostFacts | None = None) -> None:
        self.sysfs = sysfs or SysfsRoot()
        self.host = host or read_host_facts(self.sysfs)
        self._tree = PciTree(self.sysfs)
        self._groups: dict[str, IommuGroup | None] = {}

    def pair(self, client: str, memory: str) -> Pair:
        """Return the verdict for two names. HostError where one is not there."""
        return self.judge(find_client(self.sysfs, client), find_memory(self.sysfs, memory))

    def all_pairs(self) -> tuple[Pair, ...]:
        """Return the verdict of every client with every provider."""
        return self.pairs(list_clients(self.sysfs), list_providers(self.sysfs))

    def pairs(self, clients: Iterable[Endpoint], providers: Iterable[Endpoint]) -> tuple[Pair, ...]:
        """Return the verdict of each of `clients` with each of `providers`."""
        providers = tuple(providers)
        return tuple(self.judge(client, provider) for client in clients for provider in providers)

    def judge(self, client: Endpoint, provider: Endpoint) -> Pair:
        """Return the verdict for two devices."""
        return Pair(client, provider, self._judge(client, provider))

    def chain(self, address: str) -> Chain | None:
        """Return a function's way up to the root."""
        return self._tree.chain(address)

    def iommu_group(self, address: str) -> IommuGroup | None:
        """Return a function's IOMMU group."""
        if address not in self._groups:
            self._groups[address] = read_iommu_group(self.sysfs, address)
        return self._groups[address]

    def _judge(self, client: Endpoint, provider: Endpoint) -> Verdict:
        if client.moved_by_cpu:
            return no_dma_path(client.name, client.driver or "no PCI device")
        chains = [self.chain(endpoint.address or "") for endpoint in (provider, client)]
        if chains[0] is None or chains[1] is None:
            gone = provider if chains[0] is None else client
            return unknown(
                Reason("gone", f"{gone.address or gone.name} is not in sysfs (any more)", (gone.address or gone.name,)),
                "run it again; lspci shows what is there now",
            )
        verdict = judge(chains[0], chains[1], self.host)
        if verdict.kind is MapType.BUS_ADDRESS and verdict.distance and self.host.is_guest:
            group = self.iommu_group(client.address or "")
            if group is not None and group.translates:
                return replace(verdict, reasons=(*verdict.reasons, Reason("guest_iommu", _GUEST_IOMMU)))
        return verdict
