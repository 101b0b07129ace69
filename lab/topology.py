"""A PCI tree in YAML -> options for QEMU. Pure: opens nothing but the YAML file it is told to read.

The file is a tree as one draws it:

    about: two NVMe controllers under one switch
    machine: q35                       # -M
    cpu: EPYC                          # -cpu, where it matters to the kernel's P2PDMA rules
    kernel: [intel_iommu=on]           # added to the kernel's command line
    iommu: true                        # intel-iommu, without interrupt remapping
    devices:
      - root_port:
          - switch:
              - nvme: {serial: a, cmb: 128MiB}
              - nvme: {serial: b}
      - ivshmem: {name: shared, size: 16MiB}

`root_port` takes one device, `switch` one device for each of its downstream ports, `pci_bridge` (PCIe to PCI) any.
`functions` is one device of several functions (at most 8 of nvme or ivshmem), so that a port itself is what they share.
What stands at the top level sits on the root bus, at slots 0x10, 0x11, ... in order, so that its address is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from lab.errors import TopologyError

FOLDER = Path(__file__).resolve().parent / "topologies"
_FIRST_SLOT = 0x10
"""Above what virtme-ng puts on the root bus, and below q35's own 0x1f."""
_MIB = 1024 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,19}")  # NVMe serial numbers have 20 characters
_SIZE = re.compile(r"(\d+)MiB")
_TOP_KEYS = {"about", "machine", "cpu", "kernel", "iommu", "devices"}
_BRIDGES = {"root_port", "switch", "pci_bridge", "functions"}
_MOST_FUNCTIONS = 8


@dataclass(frozen=True, slots=True)
class BackingFile:
    """A file on the host that is a device's content in the guest."""

    name: str
    kind: str
    """`nvme` (the namespace) or `ivshmem` (BAR 2)."""
    length_bytes: int

    @property
    def file_name(self) -> str:
        """Its name in the run's folder of files."""
        return f"{self.kind}-{self.name}.img"


@dataclass(frozen=True, slots=True)
class Node:
    """One device, and what hangs below it."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """A machine, checked."""

    name: str
    about: str = ""
    machine: str | None = None
    cpu: str | None = None
    kernel: tuple[str, ...] = ()
    iommu: bool = False
    devices: tuple[Node, ...] = ()

    def files(self) -> tuple[BackingFile, ...]:
        """Return the files its devices need, in the order of the tree."""
        return tuple(_backing_file(node) for node in _walk(self.devices) if node.kind in ("nvme", "ivshmem"))

    def serials(self, *, with_cmb: bool = False) -> list[str]:
        """Return the NVMe controllers' serial numbers, in the order of the tree."""
        nodes = (node for node in _walk(self.devices) if node.kind == "nvme")
        return [node.options["serial"] for node in nodes if not with_cmb or "cmb" in node.options]


def topology_names() -> list[str]:
    """Return the names of the topologies that come with the lab."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_topology(name: str) -> Topology:
    """Return the topology of that name, or of that YAML file. TopologyError says what there is."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        known = ", ".join(topology_names())
        raise TopologyError(f"no topology {name!r} ({error.strerror}); there are: {known}") from None
    try:
        return parse_topology(path.stem, yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise TopologyError(f"{path.name}: {error}") from None


def parse_topology(name: str, document: object) -> Topology:
    """Return the checked topology of a YAML document; TopologyError names the offending place."""
    if not isinstance(document, dict):
        raise TopologyError(f"{name}: a topology is a map with `devices`")
    unknown = sorted(str(key) for key in document if key not in _TOP_KEYS)
    if unknown:
        raise TopologyError(f"{name}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(_TOP_KEYS))}")
    topology = Topology(
        name=name,
        about=str(document.get("about", "")),
        machine=document.get("machine"),
        cpu=document.get("cpu"),
        kernel=tuple(str(word) for word in document.get("kernel", ())),
        iommu=bool(document.get("iommu", False)),
        devices=_parse_nodes(name, document.get("devices") or []),
    )
    names = [file.file_name for file in topology.files()]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise TopologyError(f"{name}: two devices share {twice[0]}; names are unique")
    return topology


def qemu_options(topology: Topology, folder: Path, *, cpu: str | None = None) -> list[str]:
    """Return the words for QEMU's command line; backing files lie in `folder`. `cpu` wins over the topology's own."""
    words: list[str] = []
    if topology.iommu:
        # The IOMMU stands before what it translates for; interrupt remapping needs more than software emulation has.
        words += ["-M", f"{topology.machine or 'q35'},kernel-irqchip=split"]
        words += ["-device", "intel-iommu,intremap=off,caching-mode=on"]
    elif topology.machine:
        words += ["-M", topology.machine]
    if cpu or topology.cpu:
        words += ["-cpu", cpu or topology.cpu or ""]
    builder = _Builder(folder)
    for slot, node in enumerate(topology.devices, _FIRST_SLOT):
        builder.add(node, "pcie.0", f",addr={slot:#x}")
    return words + builder.words


class _Builder:
    """Walks the tree, naming buses as it goes."""

    def __init__(self, folder: Path) -> None:
        self.words: list[str] = []
        self._folder = folder
        self._chassis = count(1)
        self._ids = count(0)

    def add(self, node: Node, bus: str, place: str) -> None:
        match node.kind:
            case "nvme":
                self._nvme(node, bus, place)
            case "ivshmem":
                self._ivshmem(node, bus, place)
            case "root_port":
                port = self._port("pcie-root-port", "rp", bus, place)
                for child in node.children:
                    self.add(child, port, "")
            case "switch":
                upstream = f"up{next(self._ids)}"
                self._device(f"x3130-upstream,id={upstream},bus={bus}{place}")
                for child in node.children:
                    self.add(child, self._port("xio3130-downstream", "dn", upstream, ""), "")
            case "functions":
                for function, child in enumerate(node.children):
                    where = f",addr=0x0.{function:#x}" if not place else f"{place}.{function:#x}"
                    self.add(child, bus, f"{where},multifunction=on")
            case _:
                bridge = f"pci{next(self._ids)}"
                self._device(f"pcie-pci-bridge,id={bridge},bus={bus}{place}")
                for slot, child in enumerate(node.children, 1):
                    self.add(child, bridge, f",addr={slot:#x}")

    def _device(self, text: str) -> None:
        self.words += ["-device", text]

    def _path(self, file: BackingFile) -> str:
        # QEMU ends a value at a comma; two commas are one.
        return str(self._folder / file.file_name).replace(",", ",,")

    def _port(self, device: str, prefix: str, bus: str, place: str) -> str:
        name = f"{prefix}{next(self._ids)}"
        # Every port with a slot needs a chassis number of its own, or QEMU refuses the second.
        self._device(f"{device},id={name},chassis={next(self._chassis)},slot=0,bus={bus}{place}")
        return name

    def _nvme(self, node: Node, bus: str, place: str) -> None:
        file = _backing_file(node)
        drive = f"drive-{file.name}"
        self.words += ["-drive", f"file={self._path(file)},if=none,id={drive},format=raw"]
        cmb = _size(node.options["cmb"], "cmb") // _MIB if "cmb" in node.options else 0
        memory = f",cmb_size_mb={cmb}" if cmb else ""
        self._device(f"nvme,drive={drive},serial={file.name}{memory},bus={bus}{place}")

    def _ivshmem(self, node: Node, bus: str, place: str) -> None:
        file = _backing_file(node)
        memory = f"mem-{file.name}"
        path, length = self._path(file), file.length_bytes
        self.words += ["-object", f"memory-backend-file,id={memory},share=on,mem-path={path},size={length}"]
        self._device(f"ivshmem-plain,memdev={memory},bus={bus}{place}")


def _backing_file(node: Node) -> BackingFile:
    if node.kind == "nvme":
        return BackingFile(node.options["serial"], "nvme", _size(node.options.get("size", "64MiB"), "size"))
    return BackingFile(node.options["name"], "ivshmem", _size(node.options.get("size", "16MiB"), "size"))


def _walk(nodes: tuple[Node, ...]) -> list[Node]:
    found: list[Node] = []
    for node in nodes:
        found += [node, *_walk(node.children)]
    return found


def _parse_nodes(where: str, raw: object) -> tuple[Node, ...]:
    if not isinstance(raw, list):
        raise TopologyError(f"{where}: devices are a list")
    return tuple(_parse_node(where, item) for item in raw)


def _parse_node(where: str, raw: object) -> Node:
    if not isinstance(raw, dict) or len(raw) != 1:
        raise TopologyError(f"{where}: a device is one word and what belongs to it, got {raw!r}")
    kind, value = next(iter(raw.items()))
    here = f"{where}/{kind}"
    if kind in _BRIDGES:
        children = _parse_nodes(here, value or [])
        if kind == "root_port" and len(children) > 1:
            raise TopologyError(f"{here}: a root port takes one device; use a switch or a second root port")
        if kind == "functions" and (
            len(children) > _MOST_FUNCTIONS or any(child.kind in _BRIDGES for child in children)
        ):
            raise TopologyError(f"{here}: at most {_MOST_FUNCTIONS} functions, each an nvme or ivshmem")
        return Node(kind, {}, children)
    if kind not in ("nvme", "ivshmem"):
        raise TopologyError(f"{here}: unknown device; there are {', '.join(sorted(_BRIDGES | {'nvme', 'ivshmem'}))}")
    keys = {"nvme": {"serial", "size", "cmb"}, "ivshmem": {"name", "size"}}[kind]
    name_key = "serial" if kind == "nvme" else "name"
    if not isinstance(value, dict) or not set(value) <= keys:
        raise TopologyError(f"{here}: its keys are {', '.join(sorted(keys))}, got {value!r}")
    if not isinstance(value.get(name_key), str) or not _NAME.fullmatch(value[name_key]):
        raise TopologyError(f"{here}: {name_key} is a short word in lower case, got {value.get(name_key)!r}")
    for key in ("size", "cmb"):
        if key in value:
            _size(value[key], f"{here}/{key}")
    return Node(kind, dict(value))


def _size(text: object, where: str) -> int:
    match = _SIZE.fullmatch(str(text))
    if not match or not int(match[1]):
        raise TopologyError(f"{where}: a size is a number and MiB, got {text!r}")
    return int(match[1]) * _MIB
