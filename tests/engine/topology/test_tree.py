"""Chains: what is above a device, how few files it takes, and trees that are not whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2prw.engine.topology.config_space import PortType, Unreadable
from p2prw.engine.topology.snapshot import Machine, SnapshotRoot
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.engine.topology.tree import PciTree


@pytest.fixture
def machine(builder):
    made = builder()
    made.root_bus("pci0000:00", (0x8086, 0x09A2))
    port = made.port("0000:00:01.0", "pci0000:00", acs=0x1D)
    left, right = made.switch("0000:01:00.0", port, 2)
    made.nic("0000:03:00.0", left, "mlx5_0")
    made.nvme("0000:04:00.0", right, "nvme0", p2pmem=1 << 20)
    return made


def test_a_chain(machine) -> None:
    chain = PciTree(machine.sysfs()).chain("0000:03:00.0")
    assert chain is not None
    assert chain.addresses == ("0000:03:00.0", "0000:02:00.0", "0000:01:00.0", "0000:00:01.0")
    assert [function.config.port_type for function in chain.functions] == [
        PortType.ENDPOINT, PortType.DOWNSTREAM, PortType.UPSTREAM, PortType.ROOT_PORT,
    ]  # fmt: skip
    assert chain.device.label == "15b3:101d"
    assert chain.functions[-1].config.acs is not None and chain.functions[-1].config.acs.redirects
    assert (chain.host_bridge.name, chain.host_bridge.short_name) == ("pci0000:00", "pci0000:00")
    assert chain.host_bridge.first is not None and chain.host_bridge.first.address == "0000:00:00.0"
    assert chain.physical_function is None


def test_the_lowest_address_stands_for_the_host_bridge(builder) -> None:
    made = builder()
    made.root_bus("pci0000:00")
    made.port("0000:00:1c.0", "pci0000:00")
    made.port("0000:00:01.0", "pci0000:00")
    made.function("0000:00:01.1", "pci0000:00")
    chain = PciTree(made.sysfs()).chain("0000:00:1c.0")
    assert chain is not None and chain.host_bridge.first is not None
    assert chain.host_bridge.first.address == "0000:00:01.0"


def test_a_vf_hangs_below_its_pfs_bridge(builder) -> None:
    made = builder()
    made.root_bus("pci0000:00", (0x8086, 0x09A2))
    port = made.port("0000:00:01.0", "pci0000:00")
    made.nic("0000:01:00.0", port, "mlx5_0")
    made.nic("0000:01:00.2", port, "mlx5_2", physfn="0000:01:00.0")
    chain = PciTree(made.sysfs()).chain("0000:01:00.2")
    assert chain is not None
    assert chain.physical_function == "0000:01:00.0"
    assert chain.addresses == ("0000:01:00.2", "0000:00:01.0")


def test_a_domain_inside_a_device(builder) -> None:
    """VMD: its root bus hangs below the VMD's own function, and pci_upstream_bridge stops there."""
    made = builder()
    made.root_bus("pci0000:00", (0x8086, 0x09A2))
    made.function("0000:00:0e.0", "pci0000:00", 0x8086, 0x467F, code=0x010400)
    made.root_bus("pci10000:e0", place=f"{made.places['0000:00:0e.0']}/pci10000:e0")
    port = made.port("10000:e0:06.0", "pci10000:e0")
    made.nvme("10000:e1:00.0", port, "nvme0")
    chain = PciTree(made.sysfs()).chain("10000:e1:00.0")
    assert chain is not None
    assert chain.addresses == ("10000:e1:00.0", "10000:e0:06.0")
    assert chain.host_bridge.short_name == "pci10000:e0"


@pytest.mark.parametrize("address", ["0000:09:00.0", "", "..", "0000:03:00.0/..", "driver"])
def test_no_such_device(machine, address) -> None:
    assert PciTree(machine.sysfs()).chain(address) is None


def test_a_device_that_goes_away_between_two_files(machine) -> None:
    place = machine.places["0000:02:00.0"]
    for name in ("vendor", "config", "class"):
        machine.tree[f"sys/{place}"][name] = {"errno": "ENODEV"}
    chain = PciTree(machine.sysfs()).chain("0000:03:00.0")
    assert chain is not None
    port = chain.functions[1]
    assert (port.vendor_id, port.class_code) == (None, None)
    assert port.config.acs_unknown is Unreadable.MISSING


def test_what_may_not_be_read_is_not_known(machine) -> None:
    machine.tree[f"sys/{machine.places['0000:02:00.0']}"]["config"] = {"errno": "EACCES"}
    chain = PciTree(machine.sysfs()).chain("0000:03:00.0")
    assert chain is not None
    assert chain.functions[1].config.acs_unknown is Unreadable.MISSING


@pytest.mark.parametrize("text", ["", "8086", "0xzz", "-0x1", "0x" + "8" * 40, "\x00\xff"])
def test_garbage_for_a_number(machine, text) -> None:
    machine.tree[f"sys/{machine.places['0000:02:00.0']}"]["vendor"] = text
    chain = PciTree(machine.sysfs()).chain("0000:03:00.0")
    assert chain is not None and chain.functions[1].vendor_id is None


class CountingRoot(SnapshotRoot):
    """Counts what is opened."""

    __slots__ = ("opened",)

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.opened: list[str] = []

    def read_bytes(self, relative: str, limit_bytes: int = 65536) -> bytes | None:
        self.opened.append(relative)
        return super().read_bytes(relative, limit_bytes)


def test_six_files_for_each_function_of_the_chains_and_none_of_any_other(builder) -> None:
    """10,000 functions: a pair reads its own chains and the host bridge's first function, each file once."""
    made = builder()
    made.root_bus("pci0000:00", (0x8086, 0x09A2))
    domain = 0
    for number in range(9_990 // 3):
        domain = number // 100
        if number % 100 == 0 and domain:
            made.root_bus(f"pci{domain:04x}:00", (0x8086, 0x09A2))
        root = f"pci{domain:04x}:00"
        port = made.port(f"{domain:04x}:00:{1 + number % 100 // 8:02x}.{number % 8}", root)
        bus = number % 100 + 1
        made.nic(f"{domain:04x}:{bus:02x}:00.0", port, f"mlx5_{2 * number}")
        made.nic(f"{domain:04x}:{bus:02x}:00.1", port, f"mlx5_{2 * number + 1}")
    assert len(made.tree["sys/bus/pci/devices"]) >= 9_990
    counting = CountingRoot(Machine(made.document()))
    tree = PciTree(counting)
    first, second = tree.chain("0000:01:00.0"), tree.chain(f"{domain:04x}:09:00.1")
    assert first is not None and second is not None
    places: dict[str, int] = {}
    for path in counting.opened:
        places[str(Path(path).parent)] = places.get(str(Path(path).parent), 0) + 1
    assert max(places.values()) == 6
    assert {Path(place).name for place in places} == {
        *first.addresses, *second.addresses, "0000:00:00.0", f"{domain:04x}:00:00.0",
    }  # fmt: skip
    assert tree.chain("0000:01:00.0") is first
    assert len(counting.opened) == 6 * len(places), "nothing twice"


def test_this_host_as_the_plain_reader_sees_it() -> None:
    devices = Path("/sys/bus/pci/devices")
    if not devices.is_dir() or not any(devices.iterdir()):
        pytest.skip("this host shows no PCI devices in /sys/bus/pci/devices")
    tree = PciTree(SysfsRoot())
    for link in devices.iterdir():
        real = link.resolve()
        above = [part for part in real.parts if part.count(":") == 2]
        root = next(parent for parent in real.parents if parent.name.startswith("pci"))
        chain = tree.chain(link.name)
        assert chain is not None
        assert list(chain.addresses) == above[::-1]
        assert chain.host_bridge.short_name == root.name
        assert chain.device.vendor_id == int((link / "vendor").read_text(), 16)
        assert chain.device.config.length_bytes == len((link / "config").read_bytes())
        lowest = min(path.name for path in root.iterdir() if path.name.count(":") == 2 and "pcie" not in path.name)
        assert chain.host_bridge.first is not None and chain.host_bridge.first.address == lowest
