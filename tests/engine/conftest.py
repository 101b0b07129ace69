"""Golden sysfs trees (tests/golden): copied, with files as big as the BARs they stand for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from p2prw.engine.topology.pci import list_pci_devices
from p2prw.engine.topology.sysfs import SysfsRoot

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture
def golden_sysfs(tmp_path: Path) -> Callable[[str], SysfsRoot]:
    """Return a function from a machine's name to a writable copy of its tree with mappable BARs."""

    def load(machine: str) -> SysfsRoot:
        target = tmp_path / machine
        shutil.copytree(GOLDEN / machine / "sys", target, symlinks=True)
        sysfs = SysfsRoot(target)
        for device in list_pci_devices(sysfs):
            directory = target / "bus/pci/devices" / device.address
            for bar in device.bars:
                for name in (f"resource{bar.index}", f"resource{bar.index}_wc"):
                    if (directory / name).exists():
                        os.truncate(directory / name, bar.length_bytes)
            allocate = directory / "p2pmem/allocate"
            if allocate.exists():
                assert device.p2pmem is not None
                os.truncate(allocate, device.p2pmem.size_bytes)
        return sysfs

    return load
