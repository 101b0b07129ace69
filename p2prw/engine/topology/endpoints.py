"""Names -> PCI functions: who can be a client of P2PDMA here, and whose memory can be its target.

A client may be named by its RDMA device, netdev, NVMe controller or namespace, or PCI address; memory by a spec
(`p2pmem:BDF`, `bar:BDF/N`, `vfio:BDF/N`), an NVMe name, or a PCI address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2prw.engine.topology import rules
from p2prw.engine.topology.pci import PCI_DEVICES, device_path, normalise_bdf
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, RequestError

# Where a name may stand, in this order: an RDMA device first, for that is what most will mean.
_CLASSES = ("infiniband", "nvme", "net", "block", "drm", "misc")
_MEMORY = re.compile(r"(p2pmem|bar|vfio):([^,/]+)(?:/[0-9]+)?(?:,.*)?")
_HOST_MEMORY = re.compile(r"(host|file|udmabuf|dmaheap)(:.*|,.*)?")
_NO_ADDRESS = re.compile(r"(cuda|dm)(:.*|,.*)?")

_NVME = 0x0108
_DISPLAYS = range(0x0300, 0x0400)
_ACCELERATORS = range(0x1200, 0x1300)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One device at either end of a question."""

    name: str
    """As a user would type it: `mlx5_0`, `nvme1`, `p2pmem:0000:01:00.0`."""
    kind: str
    """`rdma`, `nvme`, `net`, `p2pmem`, `vfio`, `gpu`, `pci`, ..."""
    address: str | None
    """None: no PCI device is behind it."""
    driver: str | None = None

    @property
    def moved_by_cpu(self) -> bool:
        """It is an RDMA device without a DMA engine of its own."""
        return self.address is None or self.driver in rules.CPU_DRIVERS


def find_client(sysfs: SysfsRoot, name: str) -> Endpoint:
    """Return the device a user named as the one that does DMA. HostError where it is not there."""
    if name == "soft" or name.startswith("soft:") or name == "soft0":
        return Endpoint(name, "soft", None, "soft")
    found = _by_address(sysfs, name) or _by_name(sysfs, name)
    if found is None:
        raise _not_there(name, "client", "an RDMA device, a netdev, an NVMe controller, or a PCI address")
    return found


def find_memory(sysfs: SysfsRoot, name: str) -> Endpoint:
    """Return the device whose memory a user named. HostError where it is not there, RequestError for other memory."""
    if _HOST_MEMORY.fullmatch(name) and not sysfs.exists(f"class/block/{name}"):
        raise RequestError(
            f"{name} is host memory",
            why="the question is about memory of a PCI device; every NIC reaches host memory",
            fix="p2prw topology MLX5_0 p2pmem:0000:01:00.0",
            code="host_memory",
        )
    if _NO_ADDRESS.fullmatch(name):
        raise RequestError(
            f"{name} names no PCI device",
            why="a GPU's number is CUDA's, and dm is the NIC's own memory",
            fix="give the PCI address: nvidia-smi -q | grep 'Bus Id'; p2prw devices",
            code="needs_pci_address",
        )
    spec = _MEMORY.fullmatch(name)
    found = _by_address(sysfs, spec[2]) if spec else _by_address(sysfs, name) or _by_name(sysfs, name)
    if found is None or found.address is None:
        raise _not_there(name, "memory", "p2pmem:BDF, bar:BDF/N, vfio:BDF/N, an NVMe controller, or a PCI address")
    return Endpoint(name, spec[1] if spec else found.kind, found.address, found.driver)


def list_clients(sysfs: SysfsRoot) -> tuple[Endpoint, ...]:
    """Return every device here that does DMA on others' behalf: RDMA devices, then NVMe controllers."""
    names = [*sysfs.list("class/infiniband"), *sysfs.list("class/nvme")]
    found = (_by_name(sysfs, name) for name in names)
    return tuple(endpoint for endpoint in found if endpoint is not None)


def list_providers(sysfs: SysfsRoot) -> tuple[Endpoint, ...]:
    """Return every PCI function whose memory P2PDMA may target: p2pmem, vfio-pci, GPUs and accelerators."""
    found = []
    for address in sysfs.list(PCI_DEVICES):
        base = device_path(address)
        if sysfs.exists(f"{base}/p2pmem"):
            found.append(Endpoint(f"p2pmem:{address}", "p2pmem", address, sysfs.link_name(f"{base}/driver")))
            continue
        driver = sysfs.link_name(f"{base}/driver")
        code = (sysfs.read_int(f"{base}/class") or 0) >> 8
        if driver == "vfio-pci":
            found.append(Endpoint(f"vfio:{address}", "vfio", address, driver))
        elif code in _DISPLAYS or code in _ACCELERATORS:
            found.append(Endpoint(address, "gpu" if code in _DISPLAYS else "accelerator", address, driver))
    return tuple(found)


def _by_address(sysfs: SysfsRoot, text: str) -> Endpoint | None:
    address = normalise_bdf(text)
    if address is None or not sysfs.exists(device_path(address)):
        return None
    base = device_path(address)
    kind = next((kind for kind in ("infiniband", "nvme", "net") if sysfs.list(f"{base}/{kind}")), "pci")
    return Endpoint(address, {"infiniband": "rdma"}.get(kind, kind), address, sysfs.link_name(f"{base}/driver"))


def _by_name(sysfs: SysfsRoot, name: str) -> Endpoint | None:
    if "/" in name or name in ("", ".", ".."):
        name = name.removeprefix("/dev/")
        if "/" in name or not name.strip("."):
            return None
    for kind in _CLASSES:
        real = sysfs.real_path(f"class/{kind}/{name}")
        if real is None:
            continue
        # NVMe namespaces of a multipath subsystem have no PCI path of their own; their controller has.
        parts = [*real.split("/"), *(sysfs.real_path(f"class/{kind}/{name}/device") or "").split("/")]
        address = next((part for part in reversed(parts) if normalise_bdf(part) == part), None)
        if address is None and kind == "block":
            controller = re.match(r"(nvme\d+)n\d+", name)
            return _by_name(sysfs, controller[1]) if controller else None
        driver = sysfs.link_name(f"{device_path(address)}/driver") if address else None
        if kind == "infiniband" and address is None:
            node = sysfs.read_text(f"class/infiniband/{name}/node_type") or ""
            driver = "siw" if node.startswith("4") else "rxe"
        shown = {"infiniband": "rdma", "block": "nvme" if name.startswith("nvme") else "block"}.get(kind, kind)
        return Endpoint(name, shown, address, driver)
    return None


def _not_there(name: str, what: str, forms: str) -> HostError:
    return HostError(
        f"there is no {what} {name!r} here",
        why=f"it is none of: {forms}",
        fix="p2prw topology (all pairs); p2prw devices",
        code="no_device",
        errno="ENODEV",
    )
