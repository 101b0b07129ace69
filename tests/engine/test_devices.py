"""Device names: what opens, what `auto` takes and why, and what is said of the rest."""

from __future__ import annotations

import errno
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from p2prw.engine.devices import list_devices, open_device
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, write_sysfs
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, RequestError

LOOPBACK = ("0000:0000:0000:0000:0000:ffff:7f00:0001", "RoCE v2")
ELSEWHERE = ("0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2")


@pytest.mark.parametrize("name", ["auto", "soft0", "soft:127.0.0.1"])
def test_the_software_device_opens_under_its_names(name):
    device, reason = open_device(name, local_address="127.0.0.1", role="client")
    try:
        assert device.info.provider == "soft" and device.info.mover == "cpu"
        assert device.info.address is not None and device.info.address.startswith("127.")
        assert device.info.name != "auto", "a result names the device, not the wish"
        assert reason
    finally:
        device.close()


@pytest.mark.parametrize("name", ["mlx5_0", "rxe0", "sof0", ""])
def test_a_device_that_is_not_there_is_an_environment_error(name, tmp_path):
    with pytest.raises(HostError) as caught:
        open_device(name, local_address="127.0.0.1", role="client", sysfs=SysfsRoot(tmp_path))
    assert (caught.value.exit_code, caught.value.code) == (3, "no_device")
    assert "p2prw devices" in str(caught.value.fix)


@pytest.fixture
def binding(monkeypatch):
    made = ScriptedBinding()
    monkeypatch.setattr("p2prw.engine.providers.verbs_binding.load_binding", lambda wanted="auto": made)
    monkeypatch.setattr("p2prw.engine.providers.verbs_open.load_binding", lambda wanted="auto": made)
    return made


def auto(root, address="127.0.0.1", **options):
    device, reason = open_device("auto", local_address=address, role="client", sysfs=SysfsRoot(root), **options)
    try:
        return device.info, reason
    finally:
        device.close()


def test_auto_takes_the_port_that_carries_the_way_to_the_peer(tmp_path, binding):
    write_sysfs(tmp_path, gids=[ELSEWHERE, LOOPBACK], netdev="eth7")
    info, reason = auto(tmp_path)
    assert (info.name, info.provider, info.binding) == ("rxe0", "verbs", "scripted")
    assert "127.0.0.1" in reason and "eth7" in reason and "gid 1" in reason


@pytest.mark.parametrize(
    ("sysfs", "word"),
    [
        ({"gids": [ELSEWHERE]}, "does not carry"),
        ({"gids": [LOOPBACK], "state": "1: DOWN"}, "DOWN"),
        ({"gids": [LOOPBACK], "driver": "siw", "node_type": "4: RNIC"}, "rdma_cm"),
    ],
)
def test_auto_takes_the_software_device_and_says_why_not_the_other(tmp_path, binding, sysfs, word):
    write_sysfs(tmp_path, **sysfs)
    info, reason = auto(tmp_path)
    assert info.provider == "soft" and word in reason


def test_auto_without_a_binding_goes_on_with_the_software_device_and_says_so(tmp_path, monkeypatch):
    def missing(wanted="auto"):
        raise HostError("no verbs binding is installed", fix="apt install python3-pyverbs")

    monkeypatch.setattr("p2prw.engine.providers.verbs_binding.load_binding", missing)
    write_sysfs(tmp_path, gids=[LOOPBACK])
    info, reason = auto(tmp_path)
    assert info.provider == "soft" and "apt install python3-pyverbs" in reason


def test_faults_and_captures_are_for_the_software_device(tmp_path, binding):
    write_sysfs(tmp_path, gids=[LOOPBACK])
    assert auto(tmp_path, inject="drop=1%")[0].provider == "soft"
    with pytest.raises(RequestError, match="--inject"):
        open_device("rxe0", local_address="127.0.0.1", role="client", inject="drop=1%", sysfs=SysfsRoot(tmp_path))


@pytest.mark.parametrize("name", ["soft0", "auto"])
def test_the_software_device_has_one_port(tmp_path, binding, name):
    """Another port is of a verbs device: who asked for it is not given what it did not ask for."""
    write_sysfs(tmp_path, gids=[LOOPBACK])
    with pytest.raises(RequestError, match="no port 2") as refused:
        open_device(name, local_address="127.0.0.1", role="client", ib_port=2, sysfs=SysfsRoot(tmp_path))
    assert refused.value.code == "no_port"


def test_the_list_holds_verbs_ports_and_software_devices(tmp_path, binding):
    assert {row.provider for row in list_devices(sysfs=SysfsRoot(tmp_path))} == {"soft"}
    write_sysfs(tmp_path, gids=[LOOPBACK])
    rows = list_devices(sysfs=SysfsRoot(tmp_path))
    assert rows[0].name == "rxe0" and rows[-1].provider == "soft"


@pytest.mark.parametrize("taken", [False, True])
def test_a_client_off_loopback_takes_4791_where_it_is_free(monkeypatch, taken):
    """A NIC sends to 4791 whatever it is told."""
    asked = []

    def open_soft_device(name, *, udp_port, **options):
        asked.append(udp_port)
        if taken and udp_port is not None:
            raise HostError("in use", errno=errno.EADDRINUSE)
        return SimpleNamespace(info=SimpleNamespace(address="10.9.0.1"))

    monkeypatch.setattr("p2prw.engine.providers.soft.open_soft_device", open_soft_device)
    open_device("soft:eth0", local_address="10.9.0.1", role="client")
    assert asked == ([4791, None] if taken else [4791])
    others: Any = (
        ("soft0", "10.9.0.1", "client"),
        ("soft:lo", "127.0.0.1", "client"),
        ("soft:eth0", "10.9.0.1", "server"),
    )
    for name, address, role in others:
        asked.clear()
        open_device(name, local_address=address, role=role)
        assert asked == [None], "the provider's own policy"


def test_no_binding_is_imported_where_no_device_is():
    code = (
        "import sys; from p2prw.engine.devices import open_device, list_devices; "
        "from p2prw.engine.topology.sysfs import SysfsRoot; list_devices(sysfs=SysfsRoot('/nowhere')); "
        "open_device('auto', local_address='127.0.0.1', "
        "role='client', sysfs=SysfsRoot('/nowhere'))[0].close(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('pyverbs', 'ibverbs') or 'verbs_open' in m])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
