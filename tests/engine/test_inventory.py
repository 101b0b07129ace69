"""What `p2prw devices` knows: routes by class, and every blind spot named."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2prw.engine.inventory import take_inventory
from p2prw.engine.providers.verbs_scripted import write_sysfs
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


def test_what_may_not_be_read_is_a_row_and_no_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise HostError("cannot read config: Permission denied", fix="run as root", code="not_permitted")

    monkeypatch.setattr("p2prw.engine.inventory.list_memory_devices", refuse)
    monkeypatch.setattr("p2prw.engine.inventory.list_devices", refuse)
    inventory = take(tmp_path)
    assert inventory.devices == inventory.memory == ()
    assert [one.fix for one in inventory.unseen[:2]] == ["run as root", "run as root"]
