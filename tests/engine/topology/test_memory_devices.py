"""Memory that can be named: every kind in its row, and why one cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from p2prw.engine.topology.memory_devices import MemoryDevice, is_vfio, list_memory_devices
from p2prw.engine.topology.pci import list_pci_devices
from p2prw.engine.topology.sysfs import SysfsRoot

Load = Callable[[str], SysfsRoot]
NVIDIA, MELLANOX, INTEL = 0x10DE, 0x15B3, 0x8086
BAR_64_PREFETCHABLE = 0x14220C


def function(
    root: Path,
    address: str,
    *,
    vendor: int,
    class_code: int,
    driver: str | None,
    bars: tuple[tuple[int, int], ...] = ((0xC000_0000, 1 << 20),),
    group: int | None = None,
    infiniband: str | None = None,
) -> None:
    """Write one PCI function."""
    base = root / "bus/pci/devices" / address
    base.mkdir(parents=True)
    (base / "vendor").write_text(f"{vendor:#06x}\n")
    (base / "device").write_text("0x1234\n")
    (base / "class").write_text(f"{class_code:#08x}\n")
    (base / "numa_node").write_text("1\n")
    (base / "resource").write_text(
        "".join(f"{start:#018x} {start + size - 1:#018x} {BAR_64_PREFETCHABLE:#018x}\n" for start, size in bars)
    )
    for index in range(len(bars)):
        (base / f"resource{index}").touch()
    for name, target in (("driver", driver), ("iommu_group", group)):
        if target is not None:
            (base / name).symlink_to(f"../../elsewhere/{target}")
    if infiniband:
        (base / "infiniband" / infiniband).mkdir(parents=True)


def rows(root: Path) -> dict[str, MemoryDevice]:
    return {f"{row.kind} {row.spec}": row for row in list_memory_devices(SysfsRoot(root), SysfsRoot(root / "dev"))}


def test_bars_say_why_they_cannot_be_used(golden_sysfs: Load, tmp_path: Path) -> None:
    found = {row.spec: (row.usable, row.note) for row in list_memory_devices(golden_sysfs("odd-bars"), SysfsRoot("/x"))}
    assert found["bar:0000:06:00.0/2"] == (False, "I/O ports cannot be mapped")
    assert found["bar:0000:07:00.0/1"] == (False, "no address was assigned to it")
    assert found["p2pmem:0000:08:00.0"] == (False, "no p2pmem/allocate: needs Linux 6.2")


def test_bridges_offer_no_memory(golden_sysfs: Load) -> None:
    sysfs = golden_sysfs("nvme-cmb")
    assert "0000:00:01.0" in [device.address for device in list_pci_devices(sysfs)]
    assert [row.spec for row in list_memory_devices(sysfs, SysfsRoot("/x"))] == [
        "p2pmem:0000:01:00.0",
        "bar:0000:01:00.0/0",
        "bar:0000:01:00.0/4",
        "dm",
        "bar:0000:02:00.0/0",
    ]


def test_a_bar_row_has_its_facts(tmp_path: Path) -> None:
    function(tmp_path, "0000:01:00.0", vendor=INTEL, class_code=0x010802, driver="nvme", group=7)
    row = rows(tmp_path)["bar bar:0000:01:00.0/0"]
    assert (row.size_bytes, row.bar, row.prefetchable, row.is_64bit) == (1 << 20, 0, True, True)
    assert (row.driver, row.numa_node, row.iommu_group) == ("nvme", 1, 7)
    assert row.usable and row.note is not None and "--force-bound-device" in row.note


def test_an_nvidia_gpu_is_cuda_and_another_gpu_has_no_kind(tmp_path: Path) -> None:
    bars = ((0xC000_0000, 16 << 20), (0x20_0000_0000, 64 << 30))
    function(tmp_path, "0000:81:00.0", vendor=NVIDIA, class_code=0x030200, driver="nvidia", bars=bars)
    function(tmp_path, "0000:82:00.0", vendor=INTEL, class_code=0x030000, driver="xe")
    function(tmp_path, "0000:83:00.0", vendor=NVIDIA, class_code=0x030200, driver=None)
    found = {row.pci_address: row for row in rows(tmp_path).values() if row.kind in ("cuda", "gpu")}
    assert set(found) == {"0000:81:00.0", "0000:82:00.0"}, "without a driver nobody can reach it"
    cuda, other = found["0000:81:00.0"], found["0000:82:00.0"]
    assert (cuda.kind, cuda.usable, cuda.size_bytes, cuda.spec) == ("cuda", True, 64 << 30, None)
    assert cuda.note is not None and "nvidia-smi" in cuda.note
    assert (other.kind, other.usable) == ("gpu", False)


def test_memory_on_a_nic_is_there_where_its_driver_has_it(tmp_path: Path) -> None:
    function(tmp_path, "0000:41:00.0", vendor=MELLANOX, class_code=0x020000, driver="mlx5_core", infiniband="mlx5_0")
    function(tmp_path, "0000:42:00.0", vendor=INTEL, class_code=0x020000, driver="ice", infiniband="irdma0")
    (row,) = [row for row in rows(tmp_path).values() if row.kind == "dm"]
    assert (row.pci_address, row.size_bytes, row.usable) == ("0000:41:00.0", None, True)
    assert "mlx5_0" in row.description


@pytest.mark.parametrize(
    ("group", "file", "usable", "word"),
    [(9, True, True, None), (9, False, False, "/dev/vfio"), (None, False, False, "IOMMU")],
)
def test_vfio_functions(tmp_path: Path, group: int | None, file: bool, usable: bool, word: str | None) -> None:
    function(tmp_path, "0000:05:00.0", vendor=INTEL, class_code=0x020000, driver="vfio-pci", group=group)
    if file:
        (tmp_path / "dev/vfio").mkdir(parents=True)
        (tmp_path / "dev/vfio/9").touch()
    row = rows(tmp_path)["vfio vfio:0000:05:00.0/0"]
    assert row.usable is usable
    assert word is None or (row.note is not None and word in row.note)


def test_variants_of_vfio_are_vfio() -> None:
    assert is_vfio("vfio-pci") and is_vfio("mlx5_vfio_pci")
    assert not is_vfio("nvme") and not is_vfio(None)


def test_a_user_without_rights_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function(tmp_path, "0000:01:00.0", vendor=INTEL, class_code=0x010802, driver=None)
    (tmp_path / "bus/pci/devices/0000:01:00.0/p2pmem").mkdir()
    for name, text in (("size", "4096"), ("available", "4096"), ("published", "0"), ("allocate", "")):
        (tmp_path / "bus/pci/devices/0000:01:00.0/p2pmem" / name).write_text(text)
    assert all(row.usable for row in rows(tmp_path).values())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert {row.kind: (row.usable, row.note) for row in rows(tmp_path).values()} == {
        "p2pmem": (False, "this user may not open p2pmem/allocate (root's)"),
        "bar": (False, "this user may not open resource0 (root's)"),
    }


def test_dmabuf_exporters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not rows(tmp_path)
    (tmp_path / "dev/dma_heap").mkdir(parents=True)
    for name in ("udmabuf", "dma_heap/system"):
        (tmp_path / "dev" / name).touch()
    found = rows(tmp_path)
    assert {key for key, row in found.items() if row.usable} == {"udmabuf udmabuf", "dmaheap dmaheap:system"}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused = rows(tmp_path)["dmaheap dmaheap:system"]
    assert not refused.usable and refused.note is not None and "may not open" in refused.note
