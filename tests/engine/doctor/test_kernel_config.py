"""The kernel's configuration is found where it lies, and what cannot be found is None."""

from __future__ import annotations

import gzip

import pytest

from p2prw.engine.doctor.kernel_config import parse_kernel_config, read_kernel_config
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

TEXT = "CONFIG_PCI_P2PDMA=y\nCONFIG_RDMA_RXE=m\n# CONFIG_UDMABUF is not set\nCONFIG_HZ=250\n# comment\n"


def test_switches_are_read_and_numbers_left_out():
    assert parse_kernel_config(TEXT) == {"PCI_P2PDMA": "y", "RDMA_RXE": "m", "UDMABUF": "n"}
    assert parse_kernel_config("\x00\xff garbage\n") == {}


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("proc/config.gz", gzip.compress(TEXT.encode(), mtime=0)),
        ("boot/config-7.3", TEXT.encode()),
        ("lib/modules/7.3/config", TEXT.encode()),
        ("usr/lib/modules/7.3/config", TEXT.encode()),
        ("lib/modules/7.3/build/.config", TEXT.encode()),
    ],
)
def test_places(files, place, content):
    root = files({place: content})
    config = read_kernel_config(SysfsRoot(root / "proc"), SysfsRoot(root), "7.3")
    assert config is not None and config.source == f"/{place}"
    assert config.has("PCI_P2PDMA") and config.has("RDMA_RXE")
    assert not config.has("UDMABUF") and not config.has("NEVER_HEARD_OF")


def test_broken_gzip_and_forbidden_files_are_passed_over(files, monkeypatch):
    root = files({"proc/config.gz": gzip.compress(TEXT.encode())[:20], "lib/modules/7.3/config": TEXT})
    config = read_kernel_config(SysfsRoot(root / "proc"), SysfsRoot(root), "7.3")
    assert config is not None and config.source == "/lib/modules/7.3/config"
    plain = SysfsRoot.read_bytes

    def refuse(self, relative, limit_bytes=65536):
        if relative.startswith("boot/"):
            raise HostError("no right", code="not_permitted")
        return plain(self, relative, limit_bytes)

    monkeypatch.setattr(SysfsRoot, "read_bytes", refuse)
    assert read_kernel_config(SysfsRoot(root / "proc"), SysfsRoot(root), "7.3") is not None
    assert read_kernel_config(SysfsRoot(root / "nowhere"), SysfsRoot(root / "nowhere"), "7.3") is None
    assert read_kernel_config(SysfsRoot(root / "nowhere"), SysfsRoot(root), "") is None
