"""What the engine's tests share: a scripted pair of ends joined by a loop, a served pair over the wire, machines."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from p2prw.engine.control.channel import Channel
from p2prw.engine.deadline import Deadline
from p2prw.engine.ends import DirectLocal, DirectRemote
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Operation, QueuePairOptions, RemoteSegment, Sge
from p2prw.engine.providers.scripted import ManualClock, Script, ScriptedDevice, ScriptedFabric, ScriptedQueuePair
from p2prw.engine.rw import RwLimits
from p2prw.engine.stop import StopRequest
from p2prw.engine.topology.snapshot import SCHEMA, Machine, SnapshotRoot, encode_bytes
from p2prw.engine.transfer import LoopSettings, TransferLoop


@dataclass
class Rig:
    """A loop over a scripted device; `far` is the peer's memory, `peer` the other end of the control channel."""

    loop: TransferLoop
    device: ScriptedDevice
    queue_pair: ScriptedQueuePair
    near: bytearray
    far: bytearray
    clock: ManualClock
    stop: StopRequest
    peer: Channel


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Build rigs; everything is closed afterwards."""
    with ExitStack() as stack:

        def make(
            length: int = 1 << 20,
            operation: Operation = Operation.WRITE,
            *,
            script: Script | None = None,
            depth: int = 8,
            signal_every: int = 2,
            chunk: int = 4096,
            segments: int = 1,
            flush: bool = False,
            idle_s: float = 30.0,
            limit_s: float | None = None,
            tick_s: float = 0.0,
        ) -> Rig:
            clock, stop, fabric = ManualClock(), StopRequest(), ScriptedFabric()

            def ticking() -> float:
                clock.advance(tick_s)
                return clock.now

            time = ticking if tick_s else clock
            device = ScriptedDevice("near", fabric=fabric, script=script, clock=time)
            other = ScriptedDevice("far", fabric=fabric, clock=clock)
            near = bytearray(bytes(range(1, 256)) * (length // 255 + 1))[:length]
            far = bytearray(length)
            if operation is Operation.READ:
                near, far = far, near
            options = QueuePairOptions(depth=depth)
            pair, peer_pair = device.create_queue_pair(options), other.create_queue_pair(options)
            pair.connect(peer_pair.local)
            peer_pair.connect(pair.local)
            local = device.register(HostMemory.from_buffer(near).buffers(), Access.LOCAL_WRITE)
            rights = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ
            remote: list[RemoteSegment] = []
            piece = -(-length // segments)
            for start in range(0, length, piece):
                size = min(piece, length - start)
                one = other.register(HostMemory.from_buffer(far).buffers(), rights, offset=start, length_bytes=size)
                remote += one.remote_segments()
            scratch = device.register(HostMemory.from_buffer(bytearray(64)).buffers(), Access.LOCAL_WRITE)
            ours, theirs = socket.socketpair()
            channel, peer = stack.enter_context(Channel(ours)), stack.enter_context(Channel(theirs))
            loop = TransferLoop(
                device=device,
                queue_pair=pair,
                channel=channel,
                local=DirectLocal(local.vec),
                remote=DirectRemote(remote),
                total_bytes=length,
                settings=LoopSettings(
                    direction=operation,
                    limits=RwLimits(max_write_sge=4, max_read_sge=4, max_bytes_per_wr=chunk),
                    depth=depth,
                    signal_every=signal_every,
                    idle_s=idle_s,
                    drain_s=1.0,
                ),
                deadline=Deadline(time, stop, limit_s),
                flush_sge=Sge(*scratch.vec[0]) if flush else None,
            )
            return Rig(loop, device, pair, near, far, clock, stop, peer)

        yield make


# --- invented machines (tests/golden/README.md) ------------------------------------------------------------------

# PCI Express device/port types, as bits 7:4 of the capability's flags.
TYPES = {"endpoint": 0x0, "root port": 0x4, "upstream": 0x5, "downstream": 0x6, "pcie to pci": 0x7, "integrated": 0x9}
AER, ACS = 0x0001, 0x000D
INTEL = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nflags\t\t: fpu vme sse2\n"
AMD = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nflags\t\t: fpu vme sse2\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
GEN4 = ("16.0 GT/s PCIe", "16")
ON = 0x1D
"""SV RR CR UF: what the kernel turns on at every port when an IOMMU is on."""


def config_bytes(
    vendor: int = 0x8086, device: int = 0x1234, kind: str | None = "endpoint", acs: int | None = None, **more: Any
) -> bytearray:
    """Return 4096 bytes with a PCI Express capability at 0x40, AER at 0x100 and ACS at 0x148 (control `acs`).

    `kind` None is conventional PCI, 256 bytes. `supported` is the ACS capability register.
    """
    raw = bytearray(256 if kind is None else 4096)
    raw[0:4] = vendor.to_bytes(2, "little") + device.to_bytes(2, "little")
    raw[0x0E] = 0 if kind in ("endpoint", "integrated", None) else 1
    if kind is not None:
        raw[0x06] = 0x10
        raw[0x34] = 0x40
        raw[0x40:0x44] = bytes([0x10, 0x00, TYPES[kind] << 4 | 2, 0x00])
        ext_caps = [(AER, bytes(0x44))]
        if acs is not None:
            ext_caps.append((ACS, more.get("supported", 0x5F).to_bytes(2, "little") + acs.to_bytes(2, "little")))
        position = 0x100
        for index, (identity, body) in enumerate(ext_caps):
            following = position + 4 + len(body) if index + 1 < len(ext_caps) else 0
            raw[position : position + 4] = (identity | 1 << 16 | following << 20).to_bytes(4, "little")
            raw[position + 4 : position + 4 + len(body)] = body
            position = following
    return raw


class MachineBuilder:
    """Puts an invented machine together, function by function; `document` is its machine.json."""

    def __init__(self, cpuinfo: str | None = INTEL, kernel: str | None = "6.17.0", note: str = "") -> None:
        self.note = note
        self.tree: dict[str, dict[str, Any]] = {"sys/bus/pci/devices": {}}
        if cpuinfo is not None:
            self.tree["proc"] = {"cpuinfo": cpuinfo}
        if kernel is not None:
            self.tree["proc/sys/kernel"] = {"osrelease": kernel}
        self.places: dict[str, str] = {}

    def root_bus(self, name: str, first: tuple[int, int] | None = None, **more: Any) -> str:
        """Add a host bridge; `first` are the ids of its function 00.0."""
        self.places[name] = more.pop("place", f"devices/{name}")
        if first:
            words: dict[str, Any] = {"kind": "integrated", "code": 0x060000} | more
            self.function(f"{name.removeprefix('pci')}:00.0", name, *first, **words)
        return name

    def function(
        self,
        address: str,
        above: str,
        vendor: int = 0x8086,
        device: int = 0x1234,
        *,
        kind: str | None = "endpoint",
        code: int = 0x020000,
        acs: int | None = None,
        link: tuple[str, str] | None = None,
        config: bytes | None = None,
        size: int | None = None,
        **more: Any,
    ) -> str:
        """Add a function below `above`. Words: driver, infiniband, nvme, net, p2pmem (bytes), group, physfn."""
        place = f"{self.places[above]}/{address}"
        self.places[address] = place
        raw = bytes(config if config is not None else config_bytes(vendor, device, kind, acs))
        entries: dict[str, Any] = {
            "vendor": f"0x{vendor:04x}",
            "device": f"0x{device:04x}",
            "class": f"0x{code:06x}",
            "config": encode_bytes(raw, size),
        }
        if link:
            entries |= {"current_link_speed": link[0], "current_link_width": link[1]}
        if "driver" in more:
            entries["driver"] = {"link": f"sys/bus/pci/drivers/{more['driver']}"}
            self.tree.setdefault(f"sys/bus/pci/drivers/{more['driver']}", {})
        if "group" in more:
            number, mode = more["group"]
            entries["iommu_group"] = {"link": f"sys/kernel/iommu_groups/{number}"}
            self.tree[f"sys/kernel/iommu_groups/{number}"] = {"type": mode}
        if "physfn" in more:
            entries["physfn"] = {"link": f"sys/{self.places[more['physfn']]}"}
        if "p2pmem" in more:
            self.tree[f"sys/{place}/p2pmem"] = {
                **dict.fromkeys(("size", "available"), str(more["p2pmem"])),
                "published": "1",
                "allocate": {"size": 0},
            }
        for kind_of_class in ("infiniband", "nvme", "net"):
            if kind_of_class in more:
                name = more[kind_of_class]
                self.tree.setdefault(f"sys/class/{kind_of_class}", {})[name] = {
                    "link": f"sys/{place}/{kind_of_class}/{name}"
                }
                own: dict[str, Any] = {"device": {"link": f"sys/{place}"}}
                self.tree[f"sys/{place}/{kind_of_class}/{name}"] = own
                if kind_of_class == "infiniband":
                    own["node_type"] = "1: CA"
        self.tree[f"sys/{place}"] = entries
        self.tree["sys/bus/pci/devices"][address] = {"link": f"sys/{place}"}
        return address

    def port(self, address: str, above: str, kind: str = "root port", **given: Any) -> str:
        """Add a bridge."""
        more: dict[str, Any] = {
            "vendor": 0x8086,
            "device": 0x347A,
            "code": 0x060400,
            "driver": "pcieport",
            "link": GEN4,
        } | given
        return self.function(address, above, kind=kind, **more)

    def nic(self, address: str, above: str, name: str, **given: Any) -> str:
        """Add an RDMA NIC."""
        more: dict[str, Any] = {"link": GEN4, "driver": "mlx5_core", "net": f"en{name}"} | given
        return self.function(address, above, 0x15B3, 0x101D, infiniband=name, **more)

    def nvme(self, address: str, above: str, name: str, **given: Any) -> str:
        """Add an NVMe controller."""
        more: dict[str, Any] = {"link": ("16.0 GT/s PCIe", "4"), "driver": "nvme"} | given
        return self.function(address, above, 0x144D, 0xA80A, code=0x010802, nvme=name, **more)

    def gpu(self, address: str, above: str, **given: Any) -> str:
        """Add a GPU."""
        more: dict[str, Any] = {"link": GEN4, "driver": "nvidia"} | given
        return self.function(address, above, 0x10DE, 0x20B0, code=0x030200, **more)

    def switch(self, address_of_upstream: str, above: str, ports: int, **more: Any) -> list[str]:
        """Add a switch and return its downstream ports; `acs` is that of the downstream ports."""
        up = self.port(address_of_upstream, above, "upstream", vendor=0x10B5, device=0x8796)
        domain, bus = address_of_upstream.split(":")[:2]
        below = f"{domain}:{int(bus, 16) + 1:02x}"
        return [
            self.port(f"{below}:{number:02x}.0", up, "downstream", vendor=0x10B5, device=0x8796, **more)
            for number in range(ports)
        ]

    def document(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "note": self.note, "tree": self.tree}

    def sysfs(self) -> SnapshotRoot:
        return SnapshotRoot(Machine(self.document()))


@pytest.fixture
def builder() -> type[MachineBuilder]:
    return MachineBuilder


@pytest.fixture
def make_config() -> Callable[..., bytearray]:
    return config_bytes
