"""What takes part: devices that can, memory that is nobody else's, and a reason for all the rest."""

from __future__ import annotations

import pytest

from p2prw.engine.model import GidEntry
from p2prw.engine.smoke.discover import find_devices, find_memories
from p2prw.errors import HostError, RequestError

MIB = 1 << 20


def names(devices):
    return [one.name for one in devices]


def test_verbs_and_both_loopbacks_take_part_and_the_rest_is_explained(host):
    devices, skips = find_devices(host(), (), every_address=False)
    assert names(devices) == ["rxe0", "soft0", "soft:::1"]
    assert [(skip.device, skip.memory) for skip in skips] == [("soft:eth0", None)]
    assert "--device soft:eth0" in skips[0].reason


def test_full_takes_every_address(host):
    devices, skips = find_devices(host(), (), every_address=True)
    assert names(devices) == ["rxe0", "soft0", "soft:::1", "soft:eth0"]
    assert not skips


def test_a_server_listens_on_the_devices_routable_address(host):
    devices, _ = find_devices(host(), (), every_address=True)
    assert [one.address for one in devices] == ["10.9.0.1", "127.0.0.1", "::1", "10.0.0.5"]


def test_link_local_gids_need_their_netdev(host, info):
    only = info("rxe0", gids=(GidEntry(0, "fe80" + "0" * 27 + "1", "rocev2", "eth1"),))
    devices, _ = find_devices(host([only]), (), every_address=False)
    assert devices[0].address == "fe80::1%eth1"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "DOWN"}, "port 1 is DOWN"),
        ({"opened": False, "note": "needs rdma_cm"}, "needs rdma_cm"),
        ({"gids": (GidEntry(0, "0" * 31 + "1", "rocev1"),)}, "no RoCEv2 row"),
    ],
)
def test_a_device_that_cannot_is_a_skip_and_when_it_was_wanted_an_error(host, info, changes, reason):
    inventory = host([info("rxe0", **changes), info("soft0", address="127.0.0.1")])
    devices, skips = find_devices(inventory, (), every_address=False)
    assert names(devices) == ["soft0"]
    assert skips[0].device == "rxe0"
    assert reason in skips[0].reason
    with pytest.raises(HostError, match=reason):
        find_devices(inventory, ("rxe0",), every_address=False)


def test_wanted_devices_in_their_order_and_by_other_names(host):
    devices, skips = find_devices(host(), ("soft:10.0.0.5", "rxe0", "soft:lo"), every_address=False)
    assert names(devices) == ["soft:10.0.0.5", "rxe0", "soft:lo"]
    assert [one.address for one in devices] == ["10.0.0.5", "10.9.0.1", "127.0.0.1"]
    assert not skips
    with pytest.raises(HostError, match="no device named 'mlx5_9'"):
        find_devices(host(), ("mlx5_9",), every_address=False)


def test_each_port_of_a_device_is_a_place_of_its_own(host, info):
    inventory = host([info("mlx5_0", port=1), info("mlx5_0", port=2), info("mlx5_0", port=3, state="DOWN")])
    found, skips = find_devices(inventory, (), every_address=False)
    assert [one.place for one in found] == ["mlx5_0", "mlx5_0/2"]
    assert [skip.device for skip in skips] == ["mlx5_0/3"]
    named, _ = find_devices(inventory, ("mlx5_0",), every_address=False)
    assert named == found


def test_memory_without_a_mapping_has_no_route_on_a_software_device(host):
    devices, _ = find_devices(host(), ("soft0", "rxe0"), every_address=False)
    assert set(devices[0].no_route) == {"dm", "cuda"}
    assert "dm" in devices[1].no_route
    assert "p2pmem" not in devices[1].no_route


def test_bars_and_vfio_are_left_alone_unless_named(host, found):
    rows = [found("bar", f"bar:0000:00:04.0/{n}", size_bytes=4096) for n in range(6)]
    rows += [found("vfio", "vfio:0000:00:05.0/0", size_bytes=MIB), found("bar", "bar:0000:00:06.0/0", usable=False)]
    memories, skips = find_memories(host(memories=rows), ())
    assert [memory.kind for memory in memories] == ["host", "file"]
    bars, vfio = skips
    assert (bars.memory, vfio.memory) == ("bar", "vfio")
    assert "bar:0000:00:04.0/3 and 2 more" in bars.reason
    assert "--memory" in bars.reason
    (named,), _ = find_memories(host(memories=rows), ("bar:0000:00:04.0/2",))
    assert (named.name, named.most_bytes, named.named) == ("bar:0000:00:04.0/2", 4096, True)


def test_memory_that_is_allocated_for_us_takes_part(host, found):
    rows = [
        found("p2pmem", "p2pmem:0000:01:00.0", available_bytes=10 * MIB + 4096),
        found("udmabuf", "udmabuf"),
        found("dmaheap", "dmaheap:system", usable=False, note="this user may not open it"),
        found("gpu", None, pci_address="0000:03:00.0", usable=False, note="no memory kind for driver amdgpu"),
    ]
    memories, skips = find_memories(host(memories=rows), ())
    assert [(one.name, one.most_bytes) for one in memories][2:] == [
        ("p2pmem:0000:01:00.0", (10 * MIB + 4096) // 4 // 4096 * 4096),
        ("udmabuf", 16 * MIB),
    ]
    assert [(skip.memory, skip.reason) for skip in skips] == [
        ("dmaheap:system", "this user may not open it"),
        ("gpu", "0000:03:00.0: no memory kind for driver amdgpu"),
    ]


def test_a_kind_alone_means_all_of_it(host, found):
    rows = [found("p2pmem", f"p2pmem:0000:0{n}:00.0", available_bytes=MIB) for n in (1, 2)]
    memories, _ = find_memories(host(memories=rows), ("p2pmem", "host", "p2pmem:0000:02:00.0"))
    assert [memory.name for memory in memories] == ["p2pmem:0000:01:00.0", "p2pmem:0000:02:00.0", "host"]
    assert all(memory.named for memory in memories)
    with pytest.raises(HostError, match="--memory p2pmem"):
        find_memories(host(), ("p2pmem",))


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("file:/dev/nvme0n1", "no file or block device of yours"),
        ("host,size=1MiB", "chooses sizes"),
        ("ram", "no memory kind"),
        ("bar", "needs pci"),
    ],
)
def test_words_that_are_refused(host, word, what):
    with pytest.raises(RequestError, match=what):
        find_memories(host(), (word,))
