"""Cells of a plan: each pair, each operation, each class, from one seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.model import PeerAddress
from p2prw.engine.smoke.model import (
    LARGE_BYTES,
    Preset,
    SizeClass,
    SmokeDevice,
    SmokeMemory,
    SmokeRegion,
    SmokeRequest,
)
from p2prw.engine.smoke.plan import make_plan

HOST, FILE = SmokeMemory("host", "host"), SmokeMemory("file", "file")
SOFT = SmokeDevice("soft0", "127.0.0.1", "soft")


def pairs(plan):
    return list(dict.fromkeys((cell.local, cell.remote) for cell in plan.cells))


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        (Preset.QUICK, [("host", "host"), ("file", "host")]),
        (Preset.USUAL, [("host", "host"), ("host", "file"), ("file", "host")]),
        (Preset.FULL, [("host", "host"), ("host", "file"), ("file", "host"), ("file", "file")]),
    ],
)
def test_every_kind_takes_each_end(ask, preset, wanted):
    plan = make_plan(ask(preset=preset), [SOFT], [HOST, FILE], None, "/t")
    assert pairs(plan) == wanted
    counts = Counter((cell.local, cell.remote, cell.operation, cell.size_class) for cell in plan.cells)
    assert set(counts.values()) == {1}
    assert len(counts) == 6 * len(wanted)
    assert [cell.number for cell in plan.cells] == list(range(len(plan.cells)))
    assert max(cell.size_bytes for cell in plan.cells) == LARGE_BYTES[preset]


def test_two_kinds_on_two_devices_make_twenty_four_cells(ask):
    v6 = SmokeDevice("soft:::1", "::1", "soft")
    plan = make_plan(ask(preset=Preset.QUICK), [SOFT, v6], [HOST, FILE], None, "/t")
    assert len(plan.cells) == 24
    assert set(plan.servers) == {"soft0", "soft:::1"}
    assert not plan.skips


def test_full_crosses_all_once_for_each_driver(ask):
    """How a driver reaches memory is the same on all of its devices: a lab guest had 2160 cells, ten times the same."""
    memory = SmokeMemory("p2pmem", "p2pmem:0000:01:00.0")
    devices = [
        SmokeDevice("rxe0", "10.0.0.1", "verbs", driver="rxe"),
        SmokeDevice("rxe1", "10.0.0.2", "verbs", driver="rxe"),
        SmokeDevice("soft0", "127.0.0.1", "soft", driver="soft"),
        SmokeDevice("soft:::1", "::1", "soft", driver="soft"),
    ]
    plan = make_plan(ask(preset=Preset.FULL), devices, [HOST, FILE, memory], None, "/t")
    found: dict[str, set[tuple[str, str]]] = {name: set() for name in plan.servers}
    for cell in plan.cells:
        found[cell.place].add((cell.local.partition(":")[0], cell.remote.partition(":")[0]))
    kinds = ("host", "file", "p2pmem")
    every = {(here, there) for here in kinds for there in kinds}
    assert found["rxe0"] == found["soft0"] == every
    assert found["rxe1"] == {(here, there) for here, there in every if "host" in (here, there)}
    assert found["soft:::1"] == {(here, there) for here in kinds[:2] for there in kinds[:2]}
    assert [region.memory.kind for region in plan.servers["soft:::1"].regions] == ["host", "file"]
    (skip,) = plan.skips
    assert (skip.device, skip.memory) == ("soft:::1", "p2pmem:0000:01:00.0") and "soft0" in skip.reason


@given(st.integers(0, (1 << 64) - 1))
def test_odd_is_odd_and_everything_fits(seed):
    plan = make_plan(SmokeRequest(seed=seed), [SOFT], [HOST, FILE], None, "/t")
    lengths = {region.name: int(region.memory.options["size"]) for region in plan.servers["soft0"].regions}
    for cell in plan.cells:
        assert cell.offset_bytes + cell.size_bytes <= lengths[cell.region]
        if cell.size_class is SizeClass.ODD:
            assert cell.size_bytes % 2
            assert cell.offset_bytes % 2
            assert cell.size_bytes > 4096
        else:
            assert cell.offset_bytes == 0


def test_no_two_cells_move_the_same_bytes_and_a_seed_repeats_all(ask):
    plan = make_plan(ask(), [SOFT], [HOST, FILE], None, "/t")
    seeds = [cell.seed for cell in plan.cells]
    seeds += [
        int(region.memory.options["pattern"].partition(":")[2])
        for region in plan.servers["soft0"].regions
        if "pattern" in region.memory.options
    ]
    assert len(set(seeds)) == len(seeds)
    assert make_plan(ask(), [SOFT], [HOST, FILE], None, "/t") == plan
    assert make_plan(ask(seed=8), [SOFT], [HOST, FILE], None, "/t") != plan


def test_read_comes_first_for_each_size(ask):
    plan = make_plan(ask(), [SOFT], [HOST], None, "/t")
    assert [(cell.size_class, cell.operation) for cell in plan.cells] == [
        (size, operation) for size in ("small", "odd", "large") for operation in ("read", "write")
    ]


def test_what_a_device_has_no_way_to_is_skipped_with_the_reason(ask):
    device = replace(SOFT, no_route={"cuda": "the CPU has no address for it"})
    plan = make_plan(ask(), [device], [HOST, SmokeMemory("cuda", "cuda:0")], None, "/t")
    assert {cell.kind for cell in plan.cells} == {"host"}
    assert [(skip.device, skip.memory, skip.reason) for skip in plan.skips] == [
        ("soft0", "cuda:0", "the CPU has no address for it")
    ]
    assert [region.name for region in plan.servers["soft0"].regions] == ["smoke-host"]


def test_little_memory_gives_small_cells(ask):
    scarce = SmokeMemory("p2pmem", "p2pmem:0000:01:00.0", 128 * 1024)
    plan = make_plan(ask(), [SOFT], [scarce], None, "/t")
    assert {cell.size_class for cell in plan.cells} == set(SizeClass)
    assert max(cell.size_bytes for cell in plan.cells) == 128 * 1024
    tiny = replace(scarce, most_bytes=4096)
    assert {cell.size_class for cell in make_plan(ask(), [SOFT], [tiny], None, "/t").cells} == {SizeClass.SMALL}
    none = make_plan(ask(), [SOFT], [replace(scarce, most_bytes=0)], None, "/t")
    assert not none.cells
    assert none.skips[0].reason == "too small for any cell"


def test_a_bar_is_never_both_ends(ask):
    bar = SmokeMemory("bar", "bar:0000:00:04.0/2", 1 << 20, named=True)
    other = replace(bar, name="bar:0000:00:05.0/2")
    plan = make_plan(ask(preset=Preset.FULL), [SOFT], [bar, other], None, "/t")
    assert (bar.name, bar.name) not in pairs(plan)
    assert {(bar.name, other.name), (other.name, bar.name), (bar.name, "host")} <= set(pairs(plan))


def test_memory_of_a_nic_is_what_that_nic_has_and_vfio_is_opened_once(ask):
    nic = SmokeDevice("mlx5_0", "10.0.0.1", "verbs", dm_bytes=128 * 1024)
    memories = [HOST, SmokeMemory("dm", "dm", 16 << 20), SmokeMemory("vfio", "vfio:0000:00:05.0/0", 1 << 20)]
    plan = make_plan(ask(), [nic], memories, None, "/t")
    assert max(cell.size_bytes for cell in plan.cells if cell.kind == "dm") == 128 * 1024
    assert [region.name for region in plan.servers["mlx5_0"].regions] == ["smoke-host"]
    assert ("vfio:0000:00:05.0/0", "host") in pairs(plan)


def test_quick_tries_other_memory_on_one_device_of_a_driver(ask):
    devices = [SmokeDevice(name, "10.0.0.1", "verbs", driver=name[:3]) for name in ("rxe0", "rxe1", "mlx5_0")]
    cmb = SmokeMemory("p2pmem", "p2pmem:0000:01:00.0", 4 << 20)
    plan = make_plan(ask(preset=Preset.QUICK), devices, [HOST, cmb], None, "/t")
    assert Counter((cell.device, cell.kind) for cell in plan.cells) == {
        ("rxe0", "host"): 6,
        ("rxe0", "p2pmem"): 6,
        ("rxe1", "host"): 6,
        ("mlx5_0", "host"): 6,
        ("mlx5_0", "p2pmem"): 6,
    }
    assert [(skip.device, skip.memory) for skip in plan.skips] == [("rxe1", cmb.name)]
    usual = make_plan(ask(), devices, [HOST, cmb], None, "/t")
    assert not usual.skips


def test_two_ports_have_two_servers(ask):
    ports = [SmokeDevice("mlx5_0", f"10.0.0.{port}", "verbs", port) for port in (1, 2)]
    plan = make_plan(ask(preset=Preset.QUICK), ports, [HOST], None, "/t")
    assert {place: server.address for place, server in plan.servers.items()} == {
        "mlx5_0": "10.0.0.1",
        "mlx5_0/2": "10.0.0.2",
    }
    assert [cell.place for cell in plan.cells] == ["mlx5_0"] * 6 + ["mlx5_0/2"] * 6
    assert all(("--ib-port 2" in cell.command) == (cell.ib_port == 2) for cell in plan.cells)


def test_against_a_peer_there_is_no_server(ask):
    peer = PeerAddress("10.0.0.1")
    regions = [SmokeRegion("smoke-host", "host", 1 << 20), SmokeRegion("smoke-udmabuf", "udmabuf", 1 << 20)]
    auto = SmokeDevice("auto", "", "auto")
    plan = make_plan(ask(peer=peer), [auto], [HOST, FILE], regions, "/t")
    assert pairs(plan) == [("host", "host"), ("host", "udmabuf"), ("file", "host")]
    assert not plan.servers
    assert all(cell.peer == peer and cell.serve_command is None for cell in plan.cells)
    assert all(
        cell.command.split()[2].startswith("10.0.0.1:18515/smoke-") for cell in plan.cells if cell.kind == "host"
    )
