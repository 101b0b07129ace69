"""Machines to test on: golden sysfs trees with mappable BARs, a small disk, a /proc made to order."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2prw.engine.topology.pci import list_pci_devices
from p2prw.engine.topology.sysfs import SysfsRoot

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture
def golden_sysfs(tmp_path: Path) -> Callable[[str], SysfsRoot]:
    """Return a function from a machine's name to a writable copy of its tree, with files as big as their BARs."""

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
            if device.p2pmem is not None and device.p2pmem.can_allocate:
                os.truncate(directory / "p2pmem/allocate", device.p2pmem.size_bytes)
        return sysfs

    return load


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a 1 MiB tmpfs; only root can, others skip."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "p2prw-test", str(directory)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def fake_proc(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a /proc with some memory, cgroup lines, mounts and swaps."""

    def make(
        available_kib: int | None = 1024 * 1024, cgroup: str = "", mountinfo: str = "", swaps: str = "Filename\n"
    ) -> Path:
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True, exist_ok=True)
        if available_kib is not None:
            text = f"MemTotal:       {2 * available_kib} kB\nMemFree:  1 kB\nMemAvailable:   {available_kib} kB\n"
            (proc / "meminfo").write_text(text)
        (proc / "self/cgroup").write_text(cgroup)
        (proc / "self/mountinfo").write_text(mountinfo)
        (proc / "swaps").write_text(swaps)
        return proc

    return make
