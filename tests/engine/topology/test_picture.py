"""What is drawn: the ways from the devices up, parents first, the path of one pair marked."""

from __future__ import annotations

import pytest

from p2prw.engine.topology.pairs import Topology
from p2prw.engine.topology.picture import draw


@pytest.fixture
def topology(builder) -> Topology:
    made = builder()
    made.root_bus("pci0000:00", (0x8086, 0x3E30))
    left, right = made.switch("0000:01:00.0", made.port("0000:00:01.0", "pci0000:00"), 2)
    made.nic("0000:03:00.0", left, "mlx5_0", group=(3, "DMA"))
    made.nvme("0000:04:00.0", right, "nvme0", p2pmem=1 << 20)
    made.nic("0000:05:00.0", made.port("0000:00:02.0", "pci0000:00"), "mlx5_1")
    made.function("0000:00:1f.0", "pci0000:00")
    return Topology(made.sysfs())


def test_one_pair(topology) -> None:
    nodes = draw(topology, [topology.pair("mlx5_0", "nvme0")])
    assert [node.name for node in nodes] == [
        "pci0000:00", "0000:00:01.0", "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:02:01.0", "0000:04:00.0",
    ]  # fmt: skip
    by_name = {node.name: node for node in nodes}
    assert {node.name for node in nodes if not node.on_path} == {"pci0000:00", "0000:00:01.0"}
    assert all(node.parent is None or node.parent in by_name for node in nodes)
    nic = by_name["0000:03:00.0"]
    assert (nic.names, nic.roles, nic.driver) == (("mlx5_0", "enmlx5_0"), ("client",), "mlx5_core")
    assert nic.iommu is not None and nic.iommu.number == "3"
    assert by_name["0000:04:00.0"].roles == ("provider",)
    assert "not in P2PDMA whitelist" in (by_name["pci0000:00"].forwards or "")


def test_all_pairs_mark_no_path(topology) -> None:
    nodes = draw(topology, topology.all_pairs())
    assert not any(node.on_path for node in nodes)
    assert "0000:05:00.0" in [node.name for node in nodes] and "0000:00:1f.0" not in [node.name for node in nodes]
    assert next(node for node in nodes if node.name == "0000:04:00.0").roles == ("client", "provider")


def test_through_the_host_bridge_is_marked(topology) -> None:
    nodes = draw(topology, [topology.pair("mlx5_1", "nvme0")])
    assert next(node for node in nodes if node.name == "pci0000:00").on_path


def test_who_has_no_place_is_not_drawn(topology) -> None:
    assert draw(topology, [topology.pair("soft0", "nvme0")])[0].name == "pci0000:00"
    assert draw(topology, []) == ()
