"""Opening and listing verbs devices: every way in which it fails says what to type."""

from __future__ import annotations

import pytest

from p2prw.engine.providers import verbs_open
from p2prw.engine.providers.verbs_open import list_verbs_devices, open_verbs_device
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, write_sysfs
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError


def test_an_unknown_name_lists_those_that_are_there(tmp_path):
    write_sysfs(tmp_path, "rxe7")
    with pytest.raises(HostError) as caught:
        open_verbs_device("mlx5_0", binding=ScriptedBinding(), sysfs=SysfsRoot(tmp_path))
    assert caught.value.code == "no_device" and "rxe7" in str(caught.value.why)
    assert "rdma link add" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("sysfs", "port", "code", "word"),
    [
        ({"state": "1: DOWN"}, 1, "port_down", "ip link set"),
        ({}, 2, "no_port", "--ib-port 1"),
        ({"driver": "siw", "node_type": "4: RNIC"}, 1, "not_in_this_release", "soft"),
        ({"driver": "efa"}, 1, "not_in_this_release", "soft"),
    ],
)
def test_what_cannot_be_opened_says_why(tmp_path, sysfs, port, code, word):
    write_sysfs(tmp_path, **sysfs)
    with pytest.raises(HostError) as caught:
        open_verbs_device("rxe0", port=port, binding=ScriptedBinding(), sysfs=SysfsRoot(tmp_path))
    assert (caught.value.code, caught.value.exit_code) == (code, 3) and word in str(caught.value.fix)


def test_a_device_that_does_not_open_names_the_binding(tmp_path):
    write_sysfs(tmp_path, "rxe1")
    with pytest.raises(HostError, match="scripted") as caught:
        open_verbs_device("rxe1", binding=ScriptedBinding(), sysfs=SysfsRoot(tmp_path))
    assert caught.value.errno == "ENODEV" and "modprobe ib_uverbs" in str(caught.value.fix)


def test_the_list_has_limits_where_a_binding_opens_and_a_reason_where_not(tmp_path, monkeypatch):
    write_sysfs(tmp_path, "rxe0", gids=[("0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2")])
    write_sysfs(tmp_path, "siw0", driver="siw", node_type="4: RNIC")
    write_sysfs(tmp_path, "rxe9")
    binding = ScriptedBinding()
    monkeypatch.setattr(verbs_open, "load_binding", lambda wanted: binding)
    rows = {row.name: row for row in list_verbs_devices(sysfs=SysfsRoot(tmp_path))}
    assert (rows["rxe0"].active_mtu_bytes, rows["rxe0"].address, rows["rxe0"].binding) == (4096, "10.9.0.1", "scripted")
    assert "rdma_cm" in str(rows["siw0"].note)
    assert "cannot be opened" in str(rows["rxe9"].note)
    assert binding.script.contexts_open == 0

    def missing(wanted):
        raise HostError("no verbs binding is installed", fix="apt install python3-pyverbs")

    monkeypatch.setattr(verbs_open, "load_binding", missing)
    (row,) = [row for row in list_verbs_devices(sysfs=SysfsRoot(tmp_path)) if row.name == "rxe0"]
    assert "apt install python3-pyverbs" in str(row.note) and row.binding is None


def test_nothing_is_imported_where_there_is_no_device(tmp_path, monkeypatch):
    monkeypatch.setattr(verbs_open, "load_binding", lambda wanted: pytest.fail("imported"))
    assert list_verbs_devices(sysfs=SysfsRoot(tmp_path)) == ()
