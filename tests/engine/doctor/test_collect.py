"""The collection names nobody, is small, and gives the same findings as the host it was taken from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from p2prw.engine.doctor.checks import examine
from p2prw.engine.doctor.collect import anonymous_gid, collect_host, without_addresses_in_names, write_collection
from p2prw.engine.doctor.findings import Ask
from p2prw.engine.doctor.view import HostView
from p2prw.engine.topology.snapshot import Machine, SnapshotRoot, open_tree
from p2prw.errors import HostError

NIC = "sys/devices/pci0000:00/0000:00:02.0"
DISK = "sys/devices/pci0000:00/0000:00:03.0"
IB = f"{NIC}/infiniband/rocex0c42a1abcdef"
NET = f"{NIC}/net/enx0c42a1abcdef"

SECRETS = (
    "0c42a1abcdef",  # the MAC address in names that udev made
    "0c:42:a1",  # and as an attribute
    "efcdab0003a1420c",  # Device Serial Number, as configuration space holds it
    "0a09",  # 10.9.0.1 as a GID
    "10.9.0.1",
    "c0de",  # fd00:c0de::/32
    "0e42:a1ff",  # the GUID half of the link-local GID
    "S3RIAL",
    "MOD3L",
    "V1TAL",
    "topsecret",
    "build-host-7",
    "deadbeef-uuid",
    "hunter2",
)


def config_with_serial_number() -> bytes:
    raw = bytearray(4096)
    raw[0:4] = b"\xb3\x15\x1d\x10"
    raw[0x100:0x104] = (0x0003 | 1 << 16).to_bytes(4, "little")
    raw[0x104:0x10C] = bytes.fromhex("efcdab0003a1420c")
    return bytes(raw)


@pytest.fixture
def secretive(host) -> HostView:
    """A host in which everything that could name somebody does."""
    view: HostView = host(
        {
            f"{NIC}/vendor": "0x15b3", f"{NIC}/device": "0x101d", f"{NIC}/class": "0x020000",
            f"{NIC}/resource": "0x0000000080000000 0x00000000800fffff 0x000000000014220c", f"{NIC}/resource0": "",
            f"{NIC}/config": config_with_serial_number(),
            f"{NIC}/vpd": "V1TAL S3RIAL",
            f"{NIC}/serial_number": "0c-42-a1-ff-ff-ab-cd-ef",
            f"{NIC}/driver": "->../../../bus/pci/drivers/mlx5_core",
            "sys/bus/pci/drivers/mlx5_core/bind": "",
            f"{IB}/node_type": "1: CA", f"{IB}/node_guid": "0c42:a1ff:ffab:cdef",
            f"{IB}/node_desc": "build-host-7 HCA-1",
            f"{IB}/sys_image_guid": "0c42:a1ff:ffab:cdef", f"{IB}/board_id": "S3RIAL", f"{IB}/device": "->../..",
            f"{IB}/ports/1/state": "4: ACTIVE", f"{IB}/ports/1/phys_state": "5: LinkUp",
            f"{IB}/ports/1/link_layer": "Ethernet", f"{IB}/ports/1/rate": "100 Gb/sec (4X EDR)",
            f"{IB}/ports/1/gids/0": "fe80:0000:0000:0000:0e42:a1ff:feab:cdef",
            f"{IB}/ports/1/gid_attrs/types/0": "RoCE v2",
            f"{IB}/ports/1/gids/1": "0000:0000:0000:0000:0000:ffff:0a09:0001",
            f"{IB}/ports/1/gid_attrs/types/1": "RoCE v2",
            f"{IB}/ports/1/gids/2": "fd00:c0de:0000:0000:0000:0000:0000:0001",
            f"{IB}/ports/1/gid_attrs/types/2": "RoCE v2",
            **{f"{IB}/ports/1/gid_attrs/ndevs/{index}": "enx0c42a1abcdef" for index in range(3)},
            f"{NET}/address": "0c:42:a1:ab:cd:ef", f"{NET}/mtu": "9000", f"{NET}/operstate": "up",
            f"{NET}/ifalias": "uplink of build-host-7", f"{NET}/device": "->../..",
            "sys/class/infiniband/rocex0c42a1abcdef": f"->../../../{IB}",
            "sys/class/net/enx0c42a1abcdef": f"->../../../{NET}",
            "sys/class/infiniband_verbs/uverbs0/ibdev": "rocex0c42a1abcdef", "dev/infiniband/uverbs0": "topsecret",
            f"{DISK}/vendor": "0x144d", f"{DISK}/class": "0x010802", f"{DISK}/nvme/nvme0/serial": "S3RIAL",
            f"{DISK}/nvme/nvme0/model": "MOD3L", f"{DISK}/nvme/nvme0/subsysnqn": "nqn.2014.org:uuid:deadbeef-uuid",
            "sys/class/nvme/nvme0": f"->../../../{DISK}/nvme/nvme0",
            "sys/bus/pci/devices/0000:00:02.0": f"->../../../../{NIC}",
            "sys/bus/pci/devices/0000:00:03.0": f"->../../../../{DISK}",
            "sys/class/dmi/id/product_serial": "S3RIAL",
            "sys/kernel/security/lockdown": "none [integrity] confidentiality",
            "proc/sys/kernel/hostname": "build-host-7", "proc/sys/kernel/osrelease": "7.3.4",
            "proc/cpuinfo": "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nSerial\t\t: S3RIAL\n",
            "proc/cmdline": "BOOT_IMAGE=/topsecret root=UUID=deadbeef-uuid ip=10.9.0.1 hostname=build-host-7 "
            "rd.luks=hunter2 intel_iommu=on iommu=pt pci=disable_acs_redir=0000:00:02.0 systemd.set_credential=hunter2",
            "proc/self/limits": "Max locked memory         65536              65536              bytes",
            "proc/self/status": "Name:\ttopsecret\nCapEff:\t0000000000000000",
            "proc/self/environ": "TOKEN=hunter2",
            "boot/config-7.3.4": 'CONFIG_PCI_P2PDMA=y\nCONFIG_LOCALVERSION="-build-host-7"',
            "lib/modules/7.3.4/modules.dep": "kernel/ib_uverbs.ko:\nupdates/topsecret.ko:",
            "sys/module/topsecret/parameters/key": "hunter2",
        },
        SECRET_TOKEN="hunter2",
    )  # fmt: skip
    return view


def test_the_secrets_are_there_to_be_found(secretive, tmp_path):
    """Else the next test would prove nothing."""
    everything = " ".join(f"{path} {path.read_bytes().hex() if path.name == 'config' else path.read_text()}"
                          for path in tmp_path.rglob("*") if path.is_file())  # fmt: skip
    missing = [secret for secret in SECRETS if secret not in everything]
    assert not missing


def test_it_names_nobody(secretive, tmp_path):
    text = write_collection(secretive, tmp_path / "out").read_text()
    assert not [secret for secret in SECRETS if secret.lower() in text.lower()]
    assert "enx000000000001" in text and "rocex000000000001" in text, "equal addresses stay equal"
    assert "intel_iommu=on iommu=pt pci=disable_acs_redir=0000:00:02.0" in text
    assert "192.0.2" not in text and "0000:0000:0000:0000:0000:ffff:c000:0202" in text


def test_findings_of_the_copy_are_those_of_the_host(secretive, tmp_path):
    """But for what is tried rather than read, and the names that were replaced."""
    copy = HostView(open_tree(write_collection(secretive, tmp_path / "out").parent))
    original = HostView(secretive.sysfs)

    def said(view: HostView) -> list[tuple[str, str, str | None]]:
        return [(one.id, one.status.value, one.subject and one.subject[:5]) for one in examine(view, Ask())]

    assert said(copy) == said(original)
    assert ("lockdown", "warn", None) in said(copy) and ("locked_memory", "warn", None) in said(copy)
    gids = next(one for one in examine(copy) if one.id == "gids")
    assert gids.details["rocev2"] == ["fe80::1", "192.0.2.2", "2001:db8::3"]


def test_what_could_not_be_read_says_so_in_the_copy(secretive, monkeypatch):
    plain = type(secretive.sysfs).read_bytes

    def refuse(self, relative, limit_bytes=65536):
        if relative.endswith("lockdown"):
            raise HostError("no right", code="not_permitted", errno="EACCES")
        return plain(self, relative, limit_bytes)

    monkeypatch.setattr(type(secretive.sysfs), "read_bytes", refuse)
    tree = collect_host(secretive)
    assert tree["sys/kernel/security"]["lockdown"] == {"errno": "EACCES"}
    copy = HostView(SnapshotRoot(Machine({"schema": "p2prw-machine/1", "tree": tree})))
    assert next(one for one in examine(copy) if one.id == "lockdown").status == "unknown"


def test_a_device_file_without_right_keeps_that(secretive, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert collect_host(secretive)["dev/infiniband"]["uverbs0"] == {"errno": "EACCES"}


def test_nothing_is_overwritten(secretive, tmp_path):
    write_collection(secretive, tmp_path / "out")
    with pytest.raises(HostError, match="exists already"):
        write_collection(secretive, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(HostError) as caught:
        write_collection(secretive, tmp_path / "file" / "sub")
    assert caught.value.errno == "ENOTDIR"


def test_this_host_fits_into_a_megabyte(tmp_path):
    from p2prw.engine.doctor.probe import this_host

    path: Path = write_collection(this_host({}), tmp_path)
    assert 0 < path.stat().st_size < 1 << 20
    assert json.loads(path.read_text())["schema"] == "p2prw-machine/1"


@pytest.mark.parametrize(
    ("gid", "index", "expected"),
    [
        ("fe800000000000000e42a1fffeabcdef", 0, "fe800000000000000000000000000001"),
        ("00000000000000000000ffff0a090001", 1, "00000000000000000000ffffc0000202"),
        ("00000000000000000000ffffa9fe0101", 1, "00000000000000000000ffffa9fe0002"),
        ("fd00c0de000000000000000000000001", 300, "20010db800000000000000000000012d"),
    ],
)
def test_addresses_keep_their_family(gid, index, expected):
    assert anonymous_gid(gid, index) == expected


def test_names_that_hold_no_address_stay():
    text = '"ens1f0": "mlx5_0 enx0123456789ab ibx0123456789abcdef pci0000:00 ffffffffffff"'
    assert without_addresses_in_names(text) == (
        '"ens1f0": "mlx5_0 enx000000000001 ibx0000000000000002 pci0000:00 ffffffffffff"'
    )
