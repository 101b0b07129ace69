"""Collected machines answer as the machines do, and name nobody."""

from __future__ import annotations

import json

from p2prw.engine.topology.collect import collect, without_serial_number
from p2prw.engine.topology.memory_devices import list_memory_devices
from p2prw.engine.topology.pairs import Topology
from p2prw.engine.topology.pci import list_pci_devices
from p2prw.engine.topology.snapshot import SCHEMA, Machine, SnapshotRoot, dump_machine
from p2prw.engine.topology.sysfs import SysfsRoot


def again(sysfs: SysfsRoot) -> SnapshotRoot:
    return SnapshotRoot(Machine(json.loads(dump_machine(collect(sysfs)))))


def test_the_copy_gives_the_same_verdicts(builder) -> None:
    made = builder()
    made.root_bus("pci0000:00", (0x8086, 0x29C0))
    left, right = made.switch("0000:01:00.0", made.port("0000:00:01.0", "pci0000:00"), 2, acs=0x1D)
    made.nic("0000:03:00.0", left, "mlx5_0", group=(4, "DMA"))
    made.nic("0000:03:00.2", left, "mlx5_2", physfn="0000:03:00.0")
    made.nvme("0000:04:00.0", right, "nvme0", p2pmem=1 << 20)
    made.tree[f"sys/{made.places['0000:02:00.0']}"]["config"] = {"errno": "EACCES"}
    first = made.sysfs()
    copy = again(first)
    assert Topology(copy).all_pairs() == Topology(first).all_pairs()
    assert len(Topology(copy).all_pairs()) == 3
    assert collect(copy) == collect(first)
    assert Topology(copy).iommu_group("0000:03:00.0") == Topology(first).iommu_group("0000:03:00.0")
    chain = Topology(copy).chain("0000:03:00.2")
    assert chain is not None and chain.physical_function == "0000:03:00.0"


def test_golden_trees_of_files_come_out_the_same(golden_sysfs) -> None:
    for name in ("nvme-cmb", "fpga", "odd-bars"):
        sysfs = golden_sysfs(name)
        copy = again(sysfs)
        assert list_memory_devices(copy) == list_memory_devices(sysfs)
        assert [device.address for device in list_pci_devices(copy)] == [one.address for one in list_pci_devices(sysfs)]


def test_this_host() -> None:
    copy = again(SysfsRoot())
    assert list_pci_devices(copy) == list_pci_devices(SysfsRoot())
    assert Topology(copy).all_pairs() == Topology().all_pairs()


def test_serial_numbers_are_blanked(make_config) -> None:
    raw = make_config(kind="downstream", acs=0x1D)
    raw[0x148 + 2 : 0x148 + 4] = (1 | 0x200 << 4).to_bytes(2, "little")
    raw[0x200:0x20C] = (0x0003 | 1 << 16).to_bytes(4, "little") + bytes.fromhex("b8cef60300123456")
    blank = without_serial_number(bytes(raw))
    assert blank[0x204:0x20C] == bytes(8)
    assert blank[:0x204] == bytes(raw[:0x204]) and len(blank) == 4096
    assert without_serial_number(b"\xff" * 4096) == b"\xff" * 4096
    assert without_serial_number(b"") == b""


def test_rdma_devices_without_pci_are_kept(builder) -> None:
    made = builder()
    made.tree["sys/class/infiniband"] = {"rxe0": {"link": "sys/devices/virtual/infiniband/rxe0"}}
    made.tree["sys/devices/virtual/infiniband/rxe0"] = {"node_type": "1: CA", "node_guid": "0000:1234"}
    made.tree["sys/class/net"] = {"veth0": {"link": "sys/devices/virtual/net/veth0"}}
    made.tree["sys/devices/virtual/net/veth0"] = {"address": "02:00:00:00:00:01"}
    text = dump_machine(collect(made.sysfs()))
    assert "rxe0" in text and "veth0" not in text and "1234" not in text and "02:00" not in text
    assert json.loads(text)["schema"] == SCHEMA
