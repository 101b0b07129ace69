"""Verbs devices: three ways to have none, ports, GIDs, MTU, dma-bufs; each with its own cure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from p2prw.engine.doctor.findings import Ask
from p2prw.engine.doctor.verbs import (
    check_binding,
    check_devices,
    check_dmabuf_import,
    check_gids,
    check_mtu,
    check_ports,
)
from p2prw.engine.doctor.view import BindingState
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.providers.verbs import describe
from p2prw.engine.providers.verbs_binding import HcaFacts, PortFacts
from p2prw.engine.providers.verbs_scripted import write_sysfs
from p2prw.engine.providers.verbs_sysfs import read_hca, read_port
from p2prw.errors import HostError

IPV4 = ("0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2")
LINK_LOCAL = ("fe80:0000:0000:0000:0000:00ff:fe00:0001", "RoCE v2")
ROCE_V1 = ("0000:0000:0000:0000:0000:ffff:0a09:0001", "IB/RoCE v1")
NAMED = Ask(device="mlx5_0")


@pytest.fixture
def nic(host, tmp_path):
    """A host with one NIC: `nic(state="1: DOWN")`."""

    def make(name="mlx5_0", **options):
        options = {"driver": "mlx5_core", "gids": [IPV4], "netdev": "ens1", **options}
        write_sysfs(tmp_path / "sys", name, **options)
        return host()

    return make


def test_three_states_of_the_binding(nic, one, probe):
    view = nic()
    assert one(check_binding, view).id == "verbs_binding"
    probe.binding_state = BindingState(None, "no_binding", "no Python module pyverbs", "apt install python3-pyverbs")
    missing = one(check_binding, view, NAMED)
    probe.binding_state = BindingState(None, "binding_unusable", "ImportError", "pip uninstall pyverbs")
    unusable = one(check_binding, view, NAMED)
    assert (missing.id, missing.status) == ("verbs_binding_missing", "fail")
    assert (unusable.id, unusable.status) == ("verbs_binding_unusable", "fail")
    assert missing.fix != unusable.fix
    assert one(check_binding, view).status == "warn"


def test_nobody_misses_a_binding_where_no_device_is(host, one, probe):
    probe.binding_state = BindingState(None, "no_binding", "no Python module pyverbs")
    assert one(check_binding, host()).status == "ok"
    probe.binding_state = BindingState(None, "binding_unusable", "ImportError", "pip uninstall pyverbs")
    assert one(check_binding, host()).status == "warn", "a broken one is worth a word"


def test_no_device_is_no_fault_until_one_is_named(host, one):
    finding = one(check_devices, host())
    assert (finding.status, "software device" in finding.title) == ("warn", True)
    named = one(check_devices, host(), NAMED)
    assert named.status == "fail" and "has: none" in str(named.why)


def test_a_named_device_is_opened_as_a_transfer_opens_it(nic, probe):
    view = nic()
    assert [(one.id, one.status) for one in check_devices(view, NAMED)] == [
        ("verbs_device", "ok"),
        ("device_opens", "ok"),
    ]
    assert probe.calls == [("open", "mlx5_0", 1)]
    probe.open_error = HostError("cannot open mlx5_0", why="no right", fix="ls -l /dev/infiniband", errno="EACCES")
    (_, opens) = check_devices(view, NAMED)
    assert (opens.status, opens.details["errno"]) == ("fail", "EACCES")


def test_a_device_that_p2prw_cannot_drive(nic, one):
    view = nic("siw0", driver="siw", node_type="4: RNIC")
    assert one(check_devices, view).status == "warn"
    assert not list(check_ports(view, Ask())), "nobody asks for its port"
    assert next(iter(check_devices(view, Ask(device="siw0")))).status == "fail"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"state": "1: DOWN"}, "ip link set dev ens1 up"),
        ({"state": "1: DOWN", "physical": "2: Polling"}, "ethtool"),
        ({"state": "2: INIT", "link_layer": "InfiniBand"}, "opensm"),
    ],
)
def test_a_port_that_is_down(nic, one, tmp_path: Path, options, word):
    physical = options.pop("physical", "3: Disabled") if "physical" in options else "3: Disabled"
    view = nic(**{key: value for key, value in options.items() if key != "physical"})
    (tmp_path / "sys/class/infiniband/mlx5_0/ports/1/phys_state").write_text(f"{physical}\n")
    finding = one(check_ports, view)
    assert (finding.status, finding.subject) == ("warn", "mlx5_0/1")
    assert word in str(finding.fix)
    assert one(check_ports, view, NAMED).status == "fail"
    assert not list(check_ports(view, Ask(device="mlx5_0", ib_port=2))), "the port that was named"


def test_an_active_port(nic, one):
    assert one(check_ports, nic()).status == "ok"


@pytest.mark.parametrize(
    ("gids", "id", "status"),
    [
        ([IPV4, LINK_LOCAL], "gids", "ok"),
        ([LINK_LOCAL], "gids_link_local", "warn"),
        ([ROCE_V1], "gids_missing", "fail"),
        ([], "gids_missing", "fail"),
    ],
)
def test_gids(nic, one, gids, id, status):
    finding = one(check_gids, nic(gids=gids), NAMED)
    assert (finding.id, finding.status) == (id, status)


def test_infiniband_needs_no_rocev2_gid(nic):
    assert not list(check_gids(nic(link_layer="InfiniBand", gids=[]), Ask()))


@pytest.mark.parametrize(
    ("netdev_mtu", "active", "status", "word"),
    [
        (9000, 4096, "ok", "path MTU 4096"),
        (1500, 1024, "ok", "mtu 4200"),
        (9000, 1024, "warn", "has room for 4096"),
        (200, 256, "warn", "too small"),
    ],
)
def test_mtu(nic, one, probe, tmp_path: Path, netdev_mtu, active, status, word):
    view = nic()
    (tmp_path / "sys/class/net/ens1/mtu").write_text(f"{netdev_mtu}\n")
    hca, port = read_hca(view.sysfs, "mlx5_0"), read_port(view.sysfs, "mlx5_0", 1)
    assert hca is not None and port is not None
    probe.devices = (describe(hca, port, HcaFacts(1, 1, 1, 1, 1, 1), PortFacts(active, 1 << 20, 0), "pyverbs"),)
    finding = one(check_mtu, view)
    assert finding.status == status and word in finding.title
    probe.devices = (dataclasses.replace(probe.devices[0], opened=False),)
    assert one(check_mtu, view).details["active_mtu_bytes"] is None, "nobody asked the port"


@pytest.mark.parametrize(
    ("driver", "memory", "status"),
    [
        ("mlx5_core", None, "ok"),
        ("mlx5_core", "vfio:0000:01:00.0/2", "ok"),
        ("mlx4_core", None, "ok"),
        ("mlx4_core", "udmabuf,size=1MiB", "warn"),
        ("mlx4_core", "cuda:0,size=1MiB", "fail"),
        ("efa", "udmabuf,size=1MiB", "ok"),
        ("bnxt_en", "vfio:0000:01:00.0/2", "warn"),
    ],
)
def test_dmabuf_import(nic, one, driver, memory, status):
    ask = Ask(memory=parse_memory_spec(memory) if memory else None)
    assert one(check_dmabuf_import, nic(driver=driver), ask).status == status
