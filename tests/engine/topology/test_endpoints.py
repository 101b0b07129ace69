"""Names: everything a user may call a device, and what is refused with a way out."""

from __future__ import annotations

import pytest

from p2prw.engine.topology.endpoints import Endpoint, find_client, find_memory, list_clients, list_providers
from p2prw.errors import HostError, RequestError


@pytest.fixture
def sysfs(builder):
    made = builder()
    made.root_bus("pci0000:00", (0x8086, 0x09A2))
    made.nic("0000:00:01.0", "pci0000:00", "mlx5_0")
    made.nic("0000:00:02.0", "pci0000:00", "hfi1_0", driver="hfi1")
    made.nvme("0000:00:03.0", "pci0000:00", "nvme0", p2pmem=1 << 20)
    made.gpu("0000:00:04.0", "pci0000:00")
    made.function("0000:00:05.0", "pci0000:00", driver="vfio-pci")
    made.function("0000:00:06.0", "pci0000:00", code=0x120000)
    made.tree["sys/class/infiniband"]["rxe0"] = {"link": "sys/devices/virtual/infiniband/rxe0"}
    made.tree["sys/devices/virtual/infiniband/rxe0"] = {"node_type": "1: CA"}
    made.tree["sys/class/infiniband"]["siw0"] = {"link": "sys/devices/virtual/infiniband/siw0"}
    made.tree["sys/devices/virtual/infiniband/siw0"] = {"node_type": "4: RNIC"}
    # A scalable function: an auxiliary device below the NIC's function.
    below = f"sys/{made.places['0000:00:01.0']}/mlx5_core.sf.4/infiniband/mlx5_4"
    made.tree["sys/class/infiniband"]["mlx5_4"] = {"link": below}
    made.tree[below] = {"node_type": "1: CA"}
    made.tree["sys/class/block"] = {"nvme0n1": {"link": "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1"}}
    made.tree["sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1"] = {}
    made.tree["sys/class/net"]["veth0"] = {"link": "sys/devices/virtual/net/veth0"}
    made.tree["sys/devices/virtual/net/veth0"] = {}
    return made.sysfs()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlx5_0", Endpoint("mlx5_0", "rdma", "0000:00:01.0", "mlx5_core")),
        ("mlx5_4", Endpoint("mlx5_4", "rdma", "0000:00:01.0", "mlx5_core")),
        ("enmlx5_0", Endpoint("enmlx5_0", "net", "0000:00:01.0", "mlx5_core")),
        ("nvme0", Endpoint("nvme0", "nvme", "0000:00:03.0", "nvme")),
        ("00:01.0", Endpoint("0000:00:01.0", "rdma", "0000:00:01.0", "mlx5_core")),
        ("0000:00:05.0", Endpoint("0000:00:05.0", "pci", "0000:00:05.0", "vfio-pci")),
        ("hfi1_0", Endpoint("hfi1_0", "rdma", "0000:00:02.0", "hfi1")),
        ("rxe0", Endpoint("rxe0", "rdma", None, "rxe")),
        ("siw0", Endpoint("siw0", "rdma", None, "siw")),
        ("soft0", Endpoint("soft0", "soft", None, "soft")),
        ("soft:eth0", Endpoint("soft:eth0", "soft", None, "soft")),
        ("veth0", Endpoint("veth0", "net", None, None)),
    ],
)
def test_clients(sysfs, name, expected) -> None:
    found = find_client(sysfs, name)
    assert found == expected
    assert found.moved_by_cpu == (name in ("hfi1_0", "rxe0", "siw0", "soft0", "soft:eth0", "veth0"))


def test_a_namespace_of_a_subsystem_is_its_controllers(sysfs) -> None:
    for name in ("nvme0n1", "/dev/nvme0n1"):
        assert find_client(sysfs, name).address == "0000:00:03.0"


@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("p2pmem:0000:00:03.0", "p2pmem", "0000:00:03.0"),
        ("p2pmem:00:03.0,size=1MiB", "p2pmem", "0000:00:03.0"),
        ("bar:0000:00:04.0/1", "bar", "0000:00:04.0"),
        ("vfio:0000:00:05.0/2,offset=4K", "vfio", "0000:00:05.0"),
        ("nvme0", "nvme", "0000:00:03.0"),
        ("00:04.0", "pci", "0000:00:04.0"),
    ],
)
def test_memory(sysfs, name, kind, address) -> None:
    found = find_memory(sysfs, name)
    assert (found.name, found.kind, found.address) == (name, kind, address)


@pytest.mark.parametrize("name", ["mlx5_9", "", "..", "../mlx5_0", "00:1f.7", "zz:00.0", "a/b", "bar:zz/1"])
def test_who_is_not_there(sysfs, name) -> None:
    for find in (find_client, find_memory):
        with pytest.raises(HostError) as caught:
            find(sysfs, name)
        assert (caught.value.code, caught.value.exit_code) == ("no_device", 3)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("host,size=1M", "host_memory"),
        ("file:/x", "host_memory"),
        ("cuda:0", "needs_pci_address"),
        ("dm", "needs_pci_address"),
    ],
)
def test_memory_that_is_no_pci_device(sysfs, name, code) -> None:
    with pytest.raises(RequestError) as caught:
        find_memory(sysfs, name)
    assert caught.value.code == code and caught.value.fix


def test_memory_of_a_software_device_is_not_there(sysfs) -> None:
    with pytest.raises(HostError):
        find_memory(sysfs, "rxe0")


def test_lists(sysfs) -> None:
    assert [one.name for one in list_clients(sysfs)] == ["hfi1_0", "mlx5_0", "mlx5_4", "rxe0", "siw0", "nvme0"]
    assert [(one.name, one.kind) for one in list_providers(sysfs)] == [
        ("p2pmem:0000:00:03.0", "p2pmem"),
        ("0000:00:04.0", "gpu"),
        ("vfio:0000:00:05.0", "vfio"),
        ("0000:00:06.0", "accelerator"),
    ]
