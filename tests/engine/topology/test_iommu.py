"""IOMMU groups and modes."""

from __future__ import annotations

from p2prw.engine.topology.iommu import IommuGroup, read_iommu_group


def test_groups(builder) -> None:
    machine = builder()
    machine.root_bus("pci0000:00", (0x8086, 0x09A2))
    machine.nic("0000:00:01.0", "pci0000:00", "mlx5_0", group=(7, "DMA-FQ"))
    machine.nic("0000:00:02.0", "pci0000:00", "mlx5_1", group=(8, "identity"))
    machine.nic("0000:00:03.0", "pci0000:00", "mlx5_2")
    sysfs = machine.sysfs()
    first, second = (read_iommu_group(sysfs, f"0000:00:0{number}.0") for number in (1, 2))
    assert first == IommuGroup("7", "DMA-FQ") and first.translates
    assert second == IommuGroup("8", "identity") and not second.translates
    assert read_iommu_group(sysfs, "0000:00:03.0") is None
    assert first.description == "group 7, DMA-FQ: translated, flushed in batches"


def test_a_kernel_that_does_not_say(builder) -> None:
    machine = builder()
    machine.root_bus("pci0000:00", (0x8086, 0x09A2))
    machine.nic("0000:00:01.0", "pci0000:00", "mlx5_0", group=(7, "DMA"))
    del machine.tree["sys/kernel/iommu_groups/7"]["type"]
    found = read_iommu_group(machine.sysfs(), "0000:00:01.0")
    assert found == IommuGroup("7", None) and not found.translates
    assert found.description == "group 7, mode unknown"
