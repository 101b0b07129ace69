"""Chains of PCI functions from a device up to its root port, read from the path sysfs gives the device.

Only the chains that are asked for are read, each function once. Sources: drivers/pci/p2pdma.c (pci_host_bridge_dev),
include/linux/pci.h (pci_upstream_bridge: a VF hangs below its PF's bridge, and so it does in sysfs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2prw.engine.topology.config_space import ConfigSpace, PortType, parse_config
from p2prw.engine.topology.link import Link, parse_link
from p2prw.engine.topology.pci import device_path
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_ROOT_BUS = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One function of a chain."""

    address: str
    vendor_id: int | None
    """None: the file was not there, so the function went away while it was read."""
    device_id: int | None
    class_code: int | None
    config: ConfigSpace
    link: Link | None

    @property
    def label(self) -> str:
        """`8086:09a2`."""
        return f"{self.vendor_id or 0:04x}:{self.device_id or 0:04x}"


@dataclass(frozen=True, slots=True)
class HostBridge:
    """Where chains end. Two chains with equal `name` share it."""

    name: str
    """Its path in sysfs, `pci0000:00`; longer for one inside another domain's device (VMD)."""
    first: PciFunction | None
    """The first function on its root bus: the kernel knows a host bridge by it."""

    @property
    def short_name(self) -> str:
        """`pci0000:00`."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Chain:
    """A device and the bridges above it: `functions[0]` is the device, the last one sits on the root bus."""

    functions: tuple[PciFunction, ...]
    host_bridge: HostBridge
    physical_function: str | None = None
    """The PF's address, where the device is a VF."""

    @property
    def device(self) -> PciFunction:
        """The device the chain was asked for."""
        return self.functions[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Device first."""
        return tuple(function.address for function in self.functions)


class PciTree:
    """Reads chains and keeps what it read: a matrix of pairs opens no file twice."""

    def __init__(self, sysfs: SysfsRoot) -> None:
        self.sysfs = sysfs
        self._functions: dict[str, PciFunction] = {}
        self._bridges: dict[str, HostBridge] = {}
        self._chains: dict[str, Chain | None] = {}

    def chain(self, address: str) -> Chain | None:
        """Return the chain of a function; None where it is not there (any more)."""
        if address not in self._chains:
            self._chains[address] = self._read_chain(address)
        return self._chains[address]

    def _read_chain(self, address: str) -> Chain | None:
        parts = (self.sysfs.real_path(device_path(address)) or "").split("/")
        roots = [index for index, part in enumerate(parts) if _ROOT_BUS.fullmatch(part)]
        # The last root bus counts: a device of a VMD domain has the VMD's own path before it.
        above = parts[roots[-1] + 1 :] if roots else parts
        if not roots or not above or above[-1] != address or not all(map(_FUNCTION.fullmatch, above)):
            return None
        start = len(parts) - len(above)
        places = ["/".join(parts[: start + count + 1]) for count in range(len(above))]
        functions = tuple(self._function(name, place) for name, place in zip(above, places, strict=True))
        return Chain(
            functions=functions[::-1],
            host_bridge=self._host_bridge("/".join(parts[:start])),
            physical_function=self.sysfs.link_name(f"{places[-1]}/physfn"),
        )

    def _function(self, address: str, place: str) -> PciFunction:
        if place not in self._functions:
            self._functions[place] = self._read_function(address, place)
        return self._functions[place]

    def _read_function(self, address: str, place: str) -> PciFunction:
        """Open six files: what a verdict and a picture need, no more."""
        config = parse_config(self._bytes(f"{place}/config"), self.sysfs.size_bytes(f"{place}/config"))
        return PciFunction(
            address=address,
            vendor_id=self._hex(f"{place}/vendor"),
            device_id=self._hex(f"{place}/device"),
            class_code=self._hex(f"{place}/class"),
            config=config,
            link=parse_link(self._text(f"{place}/current_link_speed"), self._text(f"{place}/current_link_width")),
        )

    def _bytes(self, path: str) -> bytes | None:
        """Not allowed is not known: the verdict says so instead of the whole command failing."""
        try:
            return self.sysfs.read_bytes(path, 4096)
        except HostError:
            return None

    def _text(self, path: str) -> str | None:
        raw = self._bytes(path)
        return None if raw is None else raw.decode("ascii", "replace").strip()

    def _hex(self, path: str) -> int | None:
        text = self._text(path) or ""
        return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text) else None

    def _host_bridge(self, path: str) -> HostBridge:
        if path not in self._bridges:
            # The kernel takes the first of its list, which is in order of address but for hot-added functions.
            on_bus = [name for name in self.sysfs.list(path) if _FUNCTION.fullmatch(name)]
            first = self._function(on_bus[0], f"{path}/{on_bus[0]}") if on_bus else None
            self._bridges[path] = HostBridge(path.removeprefix("devices/"), first)
        return self._bridges[path]


def is_host_bridge_device(function: PciFunction) -> bool | None:
    """Tell whether the kernel takes it as a host bridge's representative (devfn 00.0, or a root port).

    None where its type cannot be read.
    """
    if function.address.endswith(":00.0"):
        return True
    if function.config.port_type is None:
        return None
    return function.config.port_type is PortType.ROOT_PORT
