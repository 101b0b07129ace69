"""What is left to allocate, from files that say so: host, cgroup v2 and v1, huge pages, NUMA nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p2prw.engine.memory.limits import (
    RESERVE_BYTES,
    cgroup_headrooms,
    check_host_memory,
    check_hugepages,
    check_numa_node,
    host_headroom,
)
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

MIB = 1024**2


def cgroup(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (directory / name.replace("__", ".")).write_text(f"{value}\n")


def test_more_than_the_host_has(fake_proc: Callable[..., Path], tmp_path: Path) -> None:
    sysfs, proc = SysfsRoot(tmp_path / "sys"), fake_proc(available_kib=100 * 1024)
    check_host_memory(100 * MIB - RESERVE_BYTES, sysfs, proc=proc)
    with pytest.raises(HostError) as caught:
        check_host_memory(100 * MIB - RESERVE_BYTES + 1, sysfs, proc=proc)
    error = caught.value
    assert (error.code, error.errno, error.exit_code) == ("not_enough_memory", "ENOMEM", 3)
    assert "100 MiB of 200 MiB are left" in (error.why or "")
    assert "size=68MiB" in (error.fix or "")


def test_nothing_known_nothing_refused(fake_proc: Callable[..., Path], tmp_path: Path) -> None:
    proc = fake_proc(available_kib=None)
    (proc / "self/cgroup").unlink()
    assert host_headroom(proc) is None
    check_host_memory(1 << 60, SysfsRoot(tmp_path), proc=proc)


def test_cgroup_v2_and_its_parents(fake_proc: Callable[..., Path], tmp_path: Path) -> None:
    sysfs = SysfsRoot(tmp_path / "sys")
    root = tmp_path / "sys/fs/cgroup"
    cgroup(root / "pod/job", memory__max=1000 * MIB, memory__current=900 * MIB)
    (root / "pod/job/memory.stat").write_text(f"anon 1\ninactive_file {300 * MIB}\n")
    cgroup(root / "pod", memory__max=200 * MIB, memory__current=100 * MIB)
    cgroup(root, memory__max="max", memory__current=1)
    proc = fake_proc(cgroup="0::/pod/job\n")
    rooms = {Path(room.source).parent.name: room.available_bytes for room in cgroup_headrooms(sysfs, proc)}
    assert rooms == {"job": 400 * MIB, "pod": 100 * MIB}
    with pytest.raises(HostError) as caught:
        check_host_memory(150 * MIB, sysfs, proc=proc)
    assert "pod/memory.max" in (caught.value.why or "")
    assert "container" in (caught.value.fix or "")


@pytest.mark.parametrize("path", ["/system.slice/docker-1.scope", "/../../up", "/"])
def test_a_container_sees_only_its_mount(fake_proc: Callable[..., Path], tmp_path: Path, path: str) -> None:
    cgroup(tmp_path / "sys/fs/cgroup", memory__max=64 * MIB, memory__current=60 * MIB)
    rooms = cgroup_headrooms(SysfsRoot(tmp_path / "sys"), fake_proc(cgroup=f"0::{path}\n"))
    assert [room.available_bytes for room in rooms] == [4 * MIB]


def test_cgroup_v1(fake_proc: Callable[..., Path], tmp_path: Path) -> None:
    root = tmp_path / "sys/fs/cgroup/memory"
    cgroup(root / "job", memory__limit_in_bytes=64 * MIB, memory__usage_in_bytes=60 * MIB)
    (root / "job/memory.stat").write_text(f"total_inactive_file {MIB}\n")
    cgroup(root, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=1)
    proc = fake_proc(cgroup="12:cpu,cpuacct:/job\n5:memory:/job\n1:name=systemd:/job\nnonsense\n")
    rooms = cgroup_headrooms(SysfsRoot(tmp_path / "sys"), proc)
    assert [(room.available_bytes, room.limit_bytes, room.is_cgroup) for room in rooms] == [(5 * MIB, 64 * MIB, True)]


def test_huge_pages(golden_sysfs: Callable[[str], SysfsRoot]) -> None:
    sysfs = golden_sysfs("fpga")
    check_hugepages(8 * MIB, "2M", sysfs)
    with pytest.raises(HostError) as caught:
        check_hugepages(8 * MIB + 1, "2M", sysfs)
    assert caught.value.code == "no_hugepages"
    assert "4 of 8 are free" in (caught.value.why or "")
    assert caught.value.fix == "sudo sysctl vm.nr_hugepages=9"
    with pytest.raises(HostError) as caught:
        check_hugepages(1, "1G", sysfs)
    assert "hugepagesz=1G" in (caught.value.fix or "")
    with pytest.raises(HostError) as caught:
        check_hugepages(1, "2M", sysfs, node=1)
    assert "no 2M huge pages" in (caught.value.why or "")
    assert "node1/hugepages/hugepages-2048kB" in (caught.value.fix or "")


def test_numa_nodes(golden_sysfs: Callable[[str], SysfsRoot]) -> None:
    sysfs = golden_sysfs("fpga")
    check_numa_node(1, 2048 * MIB, sysfs)
    with pytest.raises(HostError) as caught:
        check_numa_node(0, 2048 * MIB, sysfs)
    assert (caught.value.code, caught.value.why) == ("not_enough_memory", "it has 1 GiB of memory")
    with pytest.raises(HostError) as caught:
        check_numa_node(7, 1, sysfs)
    assert (caught.value.code, caught.value.why) == ("no_numa_node", "the nodes of this host are: 0, 1")
    with pytest.raises(HostError) as caught:
        check_numa_node(0, 1, golden_sysfs("nvme-cmb"))
    assert "no NUMA support" in (caught.value.why or "")
