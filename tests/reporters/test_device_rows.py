"""Rows of `p2prw devices` against the schema, and their plain text."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from p2prw.engine.inventory import take_inventory
from p2prw.engine.providers.verbs_scripted import write_sysfs
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.reporters.device_rows import device_lines, gid_text, inventory_rows
from p2prw.reporters.document import build
from p2prw.schema import load_schema

IPV4 = ("0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2")


@pytest.fixture
def rows(tmp_path):
    write_sysfs(tmp_path, "mlx5_0", driver="mlx5_core", gids=[IPV4])
    (tmp_path / "class/infiniband/mlx5_0/ports/1/rate").write_text("100 Gb/sec (4X EDR)\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/udmabuf").touch()
    return inventory_rows(take_inventory("auto", SysfsRoot(tmp_path), SysfsRoot(tmp_path / "dev")))


def test_rows_are_valid_and_say_only_what_is_known(rows):
    Draft202012Validator(load_schema()).validate(build("devices", results=rows))
    nic = rows[0]
    assert (nic["name"], nic["rate_gbit_per_s"], nic["gids"][0]["address"]) == ("mlx5_0", 100.0, "10.9.0.1")
    assert nic["limits"] is None and nic["active_mtu_bytes"] is None, "nobody could ask the device"
    assert nic["routes"]["vfio"]["routes"] == ["dmabuf", "bounce"]
    soft = next(row for row in rows if row["name"] == "soft0")
    assert soft["opened"] and soft["limits"]["max_sge"] == 32


@pytest.mark.parametrize("change", [{"mover": "gnome"}, {"limits": {}}, {"extra": 1}, {"row": "lunch"}])
def test_the_schema_refuses_other_rows(rows, change):
    with pytest.raises(ValidationError):
        Draft202012Validator(load_schema()).validate(build("devices", results=[{**rows[0], **change}]))


def test_plain_lines(rows):
    lines = device_lines(rows)
    assert lines[0].split() == ["DEVICE", "DRIVER", "MOVER", "STATE", "RATE", "MTU", "NETDEV", "ADDRESS"]
    assert lines[1].split() == ["mlx5_0", "mlx5_core", "nic", "ACTIVE", "100", "Gb/s", "-", "dummy0", "10.9.0.1"]
    assert any(line.startswith("udmabuf ") for line in lines)
    text = "\n".join(lines)
    assert "NOT SEEN" in text and "try:  " in text
    assert "gid 0" not in text


def test_verbose_adds_gids_limits_and_refusals(rows):
    text = "\n".join(device_lines(rows, verbose=True))
    assert "gid 0   rocev2 10.9.0.1 dummy0" in text
    assert "limits  unknown: the device was not opened" in text
    assert "0000:00:02.0, NUMA node 0" in text


def test_gids_as_people_write_them():
    assert gid_text("0" * 20 + "ffff0a090001") == "10.9.0.1"
    assert gid_text("fe80" + "0" * 26 + "01") == "fe80::1"


def test_a_host_without_anything(rows):
    assert device_lines([])[0] == "no device that can move bytes"
