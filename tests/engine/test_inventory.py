"""What `p2prw devices` knows: routes by class, and every blind spot named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from p2prw.engine.inventory import _with_numbers, _with_sizes, take_inventory
from p2prw.engine.memory.cuda_driver import CudaDriver
from p2prw.engine.model import DeviceLimits
from p2prw.engine.providers.soft import list_soft_devices
from p2prw.engine.providers.verbs_scripted import write_sysfs
from p2prw.engine.topology.memory_devices import MemoryDevice
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

IPV4 = ("0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2")


def take(root: Path):
    return take_inventory("auto", SysfsRoot(root), SysfsRoot(root / "dev"))


def routes_of(root: Path, name: str) -> dict[str, tuple[str, ...]]:
    (row,) = [row for row in take(root).devices if row.info.name == name]
    return {one.kind: one.routes for one in row.routes}


def test_an_empty_host_has_the_software_device_and_says_what_it_cannot_see(tmp_path):
    inventory = take(tmp_path)
    assert {row.info.provider for row in inventory.devices} == {"soft"}
    assert {one.kind: one.routes for one in inventory.devices[0].routes}["host"] == ("cpu",)
    assert {one.what for one in inventory.unseen} == {"verbs devices", "PCI memory", "udmabuf", "dma-buf heaps"}
    assert all(one.why and one.fix for one in inventory.unseen)


@pytest.mark.parametrize(
    ("driver", "kind", "routes"),
    [
        ("rxe", "host", ("pin",)),
        ("rxe", "p2pmem", ("pin", "odp", "bounce")),
        ("rxe", "udmabuf", ("bounce",)),
        ("rxe", "vfio", ("bounce",)),
        ("rxe", "dm", ()),
        ("mlx5_core", "vfio", ("dmabuf", "bounce")),
        ("mlx5_core", "cuda", ("dmabuf", "pin")),
        ("mlx5_core", "dm", ("dm",)),
        ("mlx4_core", "udmabuf", ("bounce",)),
        ("efa", "host", ()),
    ],
)
def test_routes_by_class(tmp_path, driver, kind, routes):
    write_sysfs(tmp_path, "dev0", driver=driver, gids=[IPV4])
    assert routes_of(tmp_path, "dev0")[kind] == routes


def test_a_refusal_has_its_reason(tmp_path):
    write_sysfs(tmp_path, "dev0", driver="rxe", gids=[IPV4])
    write_sysfs(tmp_path, "siw0", driver="siw", node_type="4: RNIC", gids=[IPV4])
    rows = {row.info.name: {one.kind: one for one in row.routes} for row in take(tmp_path).devices}
    (refused,) = rows["dev0"]["udmabuf"].refused
    assert refused.route == "dmabuf" and "cannot import" in str(refused.why)
    assert not rows["siw0"]["host"].routes and "rdma_cm" in str(rows["siw0"]["host"].refused[0].why)


def gpu(address="0000:81:00.0"):
    return MemoryDevice("cuda", None, address, 64 << 30, None, "nvidia", 0, "a GPU", True, "cuda:N")


def test_gpus_have_the_numbers_of_cuda():
    driver = SimpleNamespace(count=lambda: 2, pci_address=lambda number: ["0000:c1:00.0", "0000:81:00.0"][number])
    other = MemoryDevice("bar", "bar:0000:81:00.0/1", "0000:81:00.0", 1, None, "nvidia", 0, "a BAR", True, None)
    rows = _with_numbers((gpu(), gpu("0000:01:00.0"), other), lambda: cast("CudaDriver", driver))
    assert [row.spec for row in rows] == ["cuda:1", None, "bar:0000:81:00.0/1"]


def test_without_libcuda_gpus_have_no_number_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("p2prw.engine.inventory.list_memory_devices", lambda *_: (gpu(),))

    def missing(memory):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("p2prw.engine.inventory._with_numbers", missing)
    inventory = take(tmp_path)
    assert inventory.memory[0].spec is None
    assert "libcuda.so.1" in next(one.why for one in inventory.unseen if one.what == "numbers of GPUs")


@pytest.mark.parametrize(("size", "usable"), [(131072, True), (0, False)])
def test_memory_on_a_nic_has_the_size_that_the_device_says(size, usable):
    info = replace(list_soft_devices()[0], pci_address="0000:41:00.0", limits=DeviceLimits(max_dm_bytes=size))
    row = MemoryDevice("dm", "dm", "0000:41:00.0", None, None, "mlx5_core", 0, "a NIC", True, "unknown")
    (sized,) = _with_sizes((info,), (row,))
    assert (sized.size_bytes, sized.usable) == (size, usable)
    assert _with_sizes((replace(info, opened=False),), (row,)) == (row,), "nobody could ask"


def test_what_may_not_be_read_is_a_row_and_no_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise HostError("cannot read config: Permission denied", fix="run as root", code="not_permitted")

    monkeypatch.setattr("p2prw.engine.inventory.list_memory_devices", refuse)
    monkeypatch.setattr("p2prw.engine.inventory.list_devices", refuse)
    inventory = take(tmp_path)
    assert inventory.devices == inventory.memory == ()
    assert [one.fix for one in inventory.unseen[:2]] == ["run as root", "run as root"]
