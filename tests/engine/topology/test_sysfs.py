"""The door to sysfs: absent is None, forbidden is an error, links stay inside the tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError


@pytest.fixture
def sysfs(tmp_path: Path) -> SysfsRoot:
    (tmp_path / "class/net/eth0").mkdir(parents=True)
    (tmp_path / "class/net/eth0/mtu").write_text("1500\n")
    (tmp_path / "class/net/eth0/speed").write_text("fast\n")
    (tmp_path / "class/net/eth0/flags").write_text("0x1003\n")
    (tmp_path / "class/net/eth0/driver").symlink_to("../../../bus/drivers/virtio")
    (tmp_path / "class/net/eth1").symlink_to("eth0")
    (tmp_path / "out").symlink_to("/proc")
    return SysfsRoot(tmp_path)


def test_reads_attributes(sysfs: SysfsRoot) -> None:
    assert sysfs.read_text("class/net/eth0/mtu") == "1500"
    assert sysfs.read_bytes("class/net/eth0/mtu") == b"1500\n"
    assert sysfs.read_bytes("class/net/eth0/mtu", 2) == b"15"
    assert sysfs.read_int("class/net/eth0/mtu") == 1500
    assert sysfs.read_int("class/net/eth0/flags") == 0x1003
    assert sysfs.read_int("class/net/eth0/speed") is None
    assert sysfs.list("class/net") == ("eth0", "eth1")
    assert sysfs.exists("class/net/eth0")
    assert sysfs.absolute("class") == sysfs.path / "class"


def test_absent_is_none_or_empty(sysfs: SysfsRoot) -> None:
    assert sysfs.read_text("class/net/eth9/mtu") is None
    assert sysfs.read_text("class/net/eth0/mtu/deeper") is None
    assert sysfs.read_text("class/net") is None
    assert sysfs.read_int("nothing") is None
    assert sysfs.list("nothing") == ()
    assert sysfs.list("class/net/eth0/mtu") == ()
    assert sysfs.link_name("nothing") is None
    assert sysfs.link_name("class/net/eth0/mtu") is None
    assert not sysfs.exists("nothing")


def test_links(sysfs: SysfsRoot) -> None:
    assert sysfs.link_name("class/net/eth0/driver") == "virtio"
    assert sysfs.real_path("class/net/eth1") == "class/net/eth0"
    assert sysfs.real_path("class/net/eth0/driver") is None
    assert sysfs.real_path("out") is None


def test_forbidden_is_an_error(sysfs: SysfsRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Root may read everything, so the kernel's answer is played.
    monkeypatch.setattr("p2prw.engine.topology.sysfs.open_descriptor", refuse)
    with pytest.raises(HostError) as caught:
        sysfs.read_text("class/net/eth0/mtu")
    assert caught.value.code == "not_permitted"
    assert caught.value.errno == "EACCES"
    assert "root" in (caught.value.fix or "")
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(HostError):
        sysfs.list("class/net")


def test_the_real_one_is_the_default() -> None:
    assert SysfsRoot().path == Path("/sys")
    assert repr(SysfsRoot()) == "SysfsRoot('/sys')"
