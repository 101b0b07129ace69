"""What sysfs says of verbs devices: drivers told apart, GIDs typed, counters read, nothing invented."""

from __future__ import annotations

import pytest

from p2prw.engine.providers.verbs_scripted import write_sysfs
from p2prw.engine.providers.verbs_sysfs import hca_names, read_counters, read_hca, read_port, read_state
from p2prw.engine.topology.sysfs import SysfsRoot

IPV4 = "0000:0000:0000:0000:0000:ffff:0a09:0001"


def test_no_rdma_core_means_no_devices(tmp_path):
    assert hca_names(SysfsRoot(tmp_path)) == ()
    assert read_hca(SysfsRoot(tmp_path), "rxe0") is None
    assert read_port(SysfsRoot(tmp_path), "rxe0", 1) is None


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b"])
def test_a_name_is_no_path(tmp_path, name):
    write_sysfs(tmp_path)
    assert read_hca(SysfsRoot(tmp_path), name) is None


@pytest.mark.parametrize(
    ("driver", "node_type", "expected", "mover", "iwarp"),
    [
        ("rxe", "1: CA", "rxe", "cpu", False),
        ("siw", "4: RNIC", "siw", "cpu", True),
        ("mlx5_core", "1: CA", "mlx5_core", "nic", False),
        ("mlx5_core.rdma", "1: CA", "mlx5_core", "nic", False),
        ("hfi1", "1: CA", "hfi1", "cpu", False),
        ("ib_qib", "1: CA", "qib", "cpu", False),
        ("efa", "1: CA", "efa", "nic", False),
    ],
)
def test_drivers_and_who_moves_the_bytes(tmp_path, driver, node_type, expected, mover, iwarp):
    write_sysfs(tmp_path, "dev0", driver=driver, node_type=node_type)
    hca = read_hca(SysfsRoot(tmp_path), "dev0")
    assert hca is not None
    assert (hca.driver, hca.mover, hca.iwarp, hca.ports) == (expected, mover, iwarp, (1,))
    software = driver in ("rxe", "siw")
    assert hca.pci_address == (None if software else "0000:00:02.0")
    assert hca.numa_node == (None if software else 0)


@pytest.mark.parametrize(("driver", "node_type", "word"), [("siw", "4: RNIC", "rdma_cm"), ("efa", "1: CA", "SRD")])
def test_what_cannot_be_connected_says_what_it_needs(tmp_path, driver, node_type, word):
    write_sysfs(tmp_path, "dev0", driver=driver, node_type=node_type)
    hca = read_hca(SysfsRoot(tmp_path), "dev0")
    assert hca is not None and hca.unfit is not None and word in hca.unfit


def test_gid_tables_are_typed_and_zero_gids_are_skipped(tmp_path):
    zero = ":".join(["0000"] * 8)
    write_sysfs(
        tmp_path, gids=[("fe80:0000:0000:0000:0000:00ff:fe00:0001", "IB/RoCE v1"), (zero, ""), (IPV4, "RoCE v2")]
    )
    port = read_port(SysfsRoot(tmp_path), "rxe0", 1)
    assert port is not None
    assert [(g.index, g.type, g.netdev, g.up) for g in port.gids] == [
        (0, "rocev1", "dummy0", True),
        (2, "rocev2", "dummy0", True),
    ]
    assert port.gids[1].gid == "00000000000000000000ffff0a090001"
    assert (port.state, port.netdev) == ("ACTIVE", "dummy0")


@pytest.mark.parametrize(
    ("operstate", "up"), [("up", True), ("unknown", True), ("down", False), ("lowerlayerdown", False)]
)
def test_a_gid_is_up_as_its_netdev_is(tmp_path, operstate, up):
    write_sysfs(tmp_path, operstate=operstate)
    port = read_port(SysfsRoot(tmp_path), "rxe0", 1)
    assert port is not None and port.gids[0].up is up


def test_infiniband_gids_have_their_own_type(tmp_path):
    write_sysfs(tmp_path, link_layer="InfiniBand", gids=[("fe80:0000:0000:0000:0002:c903:00a1:b2c3", "IB/RoCE v1")])
    port = read_port(SysfsRoot(tmp_path), "rxe0", 1)
    assert port is not None and port.gids[0].type == "ib"


def test_state_and_counters(tmp_path):
    write_sysfs(tmp_path, state="1: DOWN")
    root = SysfsRoot(tmp_path)
    assert read_state(root, "rxe0", 1) == "DOWN" and read_state(root, "rxe0", 2) is None
    assert read_counters(root, "rxe0", 1) == {}
    counters = tmp_path / "class/infiniband/rxe0/ports/1"
    (counters / "hw_counters/rcvd_pkts").write_text("7\n")
    (counters / "counters").mkdir()
    (counters / "counters/port_rcv_packets").write_text("9\n")
    (counters / "counters/port_xmit_packets").write_text("5\n")
    assert read_counters(root, "rxe0", 1) == {"packets_received": 7, "packets_sent": 5}
