"""PCI devices of the golden machines, and of this host compared with sysfs read the plain way."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from p2prw.engine.topology.memory_devices import list_memory_devices
from p2prw.engine.topology.pci import (
    list_pci_devices,
    normalise_bdf,
    read_memory_decoding,
    read_pci_device,
)
from p2prw.engine.topology.sysfs import SysfsRoot

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
MACHINES = sorted(path.parent.name for path in GOLDEN.glob("*/sys"))
Load = Callable[[str], SysfsRoot]


@pytest.mark.parametrize("machine", MACHINES)
def test_golden_machines(machine: str, golden_sysfs: Load) -> None:
    sysfs = golden_sysfs(machine)
    found = {
        "devices": [dataclasses.asdict(device) for device in list_pci_devices(sysfs)],
        "memory": [
            dataclasses.asdict(memory) for memory in list_memory_devices(sysfs, SysfsRoot(sysfs.path / "no-dev"))
        ],
    }
    expected = GOLDEN / machine / "expected.json"
    if os.environ.get("P2PRW_UPDATE_GOLDEN"):
        expected.write_text(json.dumps(found, indent=1) + "\n")
    assert json.loads(json.dumps(found)) == json.loads(expected.read_text())


def test_bars_in_words(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("odd-bars")
    nic = read_pci_device(sysfs, "0000:06:00.0")
    odd = read_pci_device(sysfs, "0000:07:00.0")
    assert nic is not None and odd is not None
    assert [(bar.index, bar.description) for bar in nic.bars] == [
        (0, "32-bit non-prefetchable memory"),
        (2, "I/O ports"),
    ]
    assert nic.class_name == "Ethernet controller"
    assert nic.bar(1) is None
    assert [(bar.index, bar.is_assigned, bar.mappable) for bar in odd.bars] == [
        (0, True, True),
        (1, False, False),
        (3, True, False),
    ]


def test_memory_decoding(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("fpga")
    config = sysfs.absolute("bus/pci/devices/0000:03:00.0/config")
    assert read_memory_decoding(sysfs, "0000:03:00.0") is True
    assert read_memory_decoding(sysfs, "0000:04:00.0") is False
    # Firmware left decoding on and no driver counts: the command register is the truth.
    config.with_name("enable").write_text("0\n")
    assert read_memory_decoding(sysfs, "0000:03:00.0") is True
    config.write_bytes(b"\xff" * 64)
    assert read_memory_decoding(sysfs, "0000:03:00.0") is False
    config.unlink()
    assert read_memory_decoding(sysfs, "0000:03:00.0") is False
    config.with_name("enable").write_text("2\n")
    assert read_memory_decoding(sysfs, "0000:03:00.0") is True
    config.with_name("enable").unlink()
    assert read_memory_decoding(sysfs, "0000:03:00.0") is None


def test_a_garbled_resource_file_is_no_crash(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("fpga")
    sysfs.absolute("bus/pci/devices/0000:03:00.0/resource").write_text("what is this\n0x0 0x1\n")
    device = read_pci_device(sysfs, "0000:03:00.0")
    assert device is not None
    assert device.bars == ()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("1:0.7", "0000:01:00.7"),
        (" 10000:AF:1f.3 ", "10000:af:1f.3"),
        ("01:20.0", None),
        ("01:00.8", None),
        ("01:00", None),
        ("", None),
        ("0000:01:00.0/2", None),
    ],
)
def test_pci_addresses(text: str, address: str | None) -> None:
    assert normalise_bdf(text) == address


def test_this_host_as_the_plain_reader_sees_it() -> None:
    directory = Path("/sys/bus/pci/devices")
    if not directory.is_dir() or not any(directory.iterdir()):
        pytest.skip("this host shows no PCI devices in /sys/bus/pci/devices")
    for device in list_pci_devices(SysfsRoot()):
        path = directory / device.address
        assert device.vendor_id == int((path / "vendor").read_text(), 16)
        assert device.class_code == int((path / "class").read_text(), 16)
        driver = path / "driver"
        assert device.driver == (driver.resolve().name if driver.exists() else None)
        files = {int(name.name[8:]) for name in path.glob("resource[0-5]")}
        assert {bar.index for bar in device.bars if bar.mappable} == files
        for bar in device.bars:
            if bar.mappable:
                assert bar.length_bytes == (path / f"resource{bar.index}").stat().st_size
