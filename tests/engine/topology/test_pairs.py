"""Pairs by name: one, all, and the notes that need more than two chains."""

from __future__ import annotations

import pytest

from p2prw.engine.topology.pairs import Topology
from p2prw.engine.topology.verdict import MapType
from p2prw.errors import HostError

GUEST = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t\t: fpu hypervisor sse2\n"


def switched(builder, cpuinfo=None, group=None, **more):
    made = builder(cpuinfo) if cpuinfo else builder()
    made.root_bus("pci0000:00", (0x8086, 0x29C0))
    left, right = made.switch("0000:01:00.0", made.port("0000:00:01.0", "pci0000:00"), 2, **more)
    words = {"group": group} if group else {}
    made.nic("0000:03:00.0", left, "mlx5_0", **words)
    made.nvme("0000:04:00.0", right, "nvme0", p2pmem=1 << 20, **words)
    return made


def test_one_pair(builder) -> None:
    pair = Topology(switched(builder).sysfs()).pair("mlx5_0", "p2pmem:04:00.0")
    assert (pair.verdict.kind, pair.verdict.distance) == (MapType.BUS_ADDRESS, 4)
    assert (pair.client.address, pair.provider.address) == ("0000:03:00.0", "0000:04:00.0")


def test_all_pairs(builder) -> None:
    found = {(p.client.name, p.provider.name): p.verdict.kind for p in Topology(switched(builder).sysfs()).all_pairs()}
    assert found == {
        ("mlx5_0", "p2pmem:0000:04:00.0"): MapType.BUS_ADDRESS,
        ("nvme0", "p2pmem:0000:04:00.0"): MapType.BUS_ADDRESS,
    }


def test_who_moves_with_the_cpu_is_not_judged(builder) -> None:
    topology = Topology(switched(builder).sysfs())
    assert topology.pair("soft0", "nvme0").verdict.kind is MapType.NO_DMA_PATH
    with pytest.raises(HostError):
        topology.pair("mlx5_7", "nvme0")


def test_a_guest_with_an_iommu_is_warned(builder) -> None:
    """tests/lab/guest/iommu_acs/test_lost_bytes.py: the kernel allows it, QEMU loses the bytes."""
    warned = Topology(switched(builder, GUEST, (3, "DMA-FQ")).sysfs()).pair("mlx5_0", "nvme0").verdict
    assert (warned.kind, warned.reasons[-1].code) == (MapType.BUS_ADDRESS, "guest_iommu")
    for made in (
        switched(builder, GUEST, (3, "identity")),
        switched(builder, GUEST),
        switched(builder, None, (3, "DMA")),
    ):
        verdict = Topology(made.sysfs()).pair("mlx5_0", "nvme0").verdict
        assert "guest_iommu" not in [reason.code for reason in verdict.reasons]
    own = Topology(switched(builder, GUEST, (3, "DMA")).sysfs()).pair("nvme0", "nvme0").verdict
    assert own.distance == 0 and "guest_iommu" not in [reason.code for reason in own.reasons]


def test_a_device_whose_path_makes_no_sense(builder) -> None:
    made = switched(builder)
    made.tree["sys/bus/pci/devices"]["0000:09:00.0"] = {"link": "sys/devices/pci0000:00"}
    verdict = Topology(made.sysfs()).pair("mlx5_0", "09:00.0").verdict
    assert (verdict.kind, verdict.reasons[0].code) == (MapType.UNKNOWN, "gone")


def test_groups_are_read_once(builder) -> None:
    topology = Topology(switched(builder, None, (3, "DMA")).sysfs())
    assert topology.iommu_group("0000:03:00.0") is topology.iommu_group("0000:03:00.0")
