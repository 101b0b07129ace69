"""The PCI tree as one would draw it: the ways from some devices up to their host bridges. Plain data, any painter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2prw.engine.topology.endpoints import Endpoint
from p2prw.engine.topology.forwarding import forwarding
from p2prw.engine.topology.iommu import IommuGroup
from p2prw.engine.topology.pairs import Pair, Topology
from p2prw.engine.topology.pci import device_path
from p2prw.engine.topology.tree import HostBridge, PciFunction


@dataclass(frozen=True, slots=True)
class Node:
    """One function, or a host bridge (`function` None)."""

    name: str
    """PCI address, or `pci0000:00`."""
    parent: str | None
    function: PciFunction | None
    names: tuple[str, ...] = ()
    """What else it is called: `mlx5_0`, `nvme0`, `eth0`."""
    driver: str | None = None
    iommu: IommuGroup | None = None
    roles: tuple[str, ...] = ()
    """`client`, `provider`."""
    on_path: bool = False
    physical_function: str | None = None
    host_bridge: HostBridge | None = None
    forwards: str | None = None
    """Of a host bridge: whether the kernel lets P2PDMA pass between its root ports, in words."""


def draw(topology: Topology, pairs: Iterable[Pair]) -> tuple[Node, ...]:
    """Return the nodes above the devices of `pairs`, parents before children, in order of address.

    The path of a single pair is marked; of many, none is.
    """
    pairs = tuple(pairs)
    roles = _roles(pairs)
    marked = frozenset(pairs[0].verdict.path) if len(pairs) == 1 else frozenset()
    nodes: dict[str, Node] = {}
    for address in roles:
        chain = topology.chain(address)
        if chain is None:
            continue
        root = chain.host_bridge
        if root.short_name not in nodes:
            words = "; ".join(reason.text for reason in forwarding(root, root, topology.host).reasons)
            nodes[root.short_name] = Node(
                root.short_name, None, None, on_path=root.short_name in marked, host_bridge=root, forwards=words
            )
        above = root.short_name
        for function in reversed(chain.functions):
            if function.address not in nodes:
                base = device_path(function.address)
                names = [
                    name for kind in ("infiniband", "nvme", "net") for name in topology.sysfs.list(f"{base}/{kind}")
                ]
                nodes[function.address] = Node(
                    name=function.address,
                    parent=above,
                    function=function,
                    names=tuple(names),
                    driver=topology.sysfs.link_name(f"{base}/driver"),
                    iommu=topology.iommu_group(function.address),
                    roles=tuple(sorted(roles.get(function.address, ()))),
                    on_path=function.address in marked,
                    physical_function=chain.physical_function if function is chain.device else None,
                )
            above = function.address
    return tuple(_in_order(nodes))


def _roles(pairs: Iterable[Pair]) -> dict[str, set[str]]:
    roles: dict[str, set[str]] = {}
    for pair in pairs:
        ends: tuple[tuple[Endpoint, str], ...] = ((pair.client, "client"), (pair.provider, "provider"))
        for endpoint, role in ends:
            if endpoint.address is not None:
                roles.setdefault(endpoint.address, set()).add(role)
    return roles


def _in_order(nodes: dict[str, Node]) -> list[Node]:
    below: dict[str | None, list[Node]] = {}
    for node in sorted(nodes.values(), key=lambda one: (len(one.name), one.name)):
        below.setdefault(node.parent, []).append(node)
    found: list[Node] = []
    todo = below.get(None, [])[::-1]
    while todo:
        node = todo.pop()
        found.append(node)
        todo += below.get(node.name, [])[::-1]
    return found
