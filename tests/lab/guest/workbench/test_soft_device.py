"""p2prw's software device over real device memory: a BAR whose bytes are seen from outside, controller memory."""

from __future__ import annotations

import random

import pytest

from p2prw import api
from p2prw.engine.model import RouteReport

SIZE = (256 << 10) + 1
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(nvme, ivshmem):
    """One server for all: a BAR range, and memory of two controllers."""
    regions = {
        "bar": f"bar:{ivshmem}/2,offset=1MiB,size=4MiB",
        "cmb": f"p2pmem:{nvme('a')},size=4MiB",
        "other": f"p2pmem:{nvme('c')},size=4MiB",
    }
    with api.serving(regions) as address:
        yield address


def source_file(tmp_path, seed):
    data = random.Random(seed).randbytes(SIZE)
    path = tmp_path / f"source{seed}"
    path.write_bytes(data)
    return path, data


def way(report: RouteReport | None) -> tuple[str, str, bool]:
    """Route, memory kind, and whether a NIC went to device memory by itself (never here: the CPU carries)."""
    assert report is not None
    return report.chosen, report.memory, report.peer_to_peer


def test_write_into_a_bar_seen_from_outside(server, outside, tmp_path) -> None:
    path, data = source_file(tmp_path, 1)
    result = api.write(f"{server}/bar+3", f"file:{path}")
    assert (result.status, result.verify.status) == ("ok", "verified"), result.error
    assert way(result.remote_route) == ("cpu", "bar", False)
    assert outside.peek("ivshmem-shared", MIB + 3, SIZE) == data
    assert outside.peek("ivshmem-shared", MIB + 3 + SIZE, 64) == bytes(64), "nothing beyond the end"


def test_read_out_of_a_bar_written_from_outside(server, outside, tmp_path) -> None:
    data = random.Random(2).randbytes(SIZE)
    outside.poke("ivshmem-shared", 3 * MIB + 5, data)
    sink = tmp_path / "sink"
    result = api.read(f"{server}/bar+{2 * MIB + 5}", f"file:{sink},size={SIZE}", size_bytes=SIZE)
    assert (result.status, result.verify.status) == ("ok", "verified"), result.error
    assert sink.read_bytes() == data


def test_local_bar_is_a_sink(server, ivshmem, outside, tmp_path) -> None:
    path, data = source_file(tmp_path, 4)
    assert api.write(f"{server}/cmb", f"file:{path}").status == "ok"
    result = api.read(f"{server}/cmb", f"bar:{ivshmem}/2,offset=8MiB,size={SIZE}")
    assert (result.status, result.verify.status) == ("ok", "verified"), result.error
    assert way(result.local_route) == ("cpu", "bar", False)
    assert outside.peek("ivshmem-shared", 8 * MIB, SIZE) == data


def test_controller_memory_there_and_back(server, tmp_path) -> None:
    path, data = source_file(tmp_path, 5)
    written = api.write(f"{server}/cmb+1MiB", f"file:{path}")
    assert (written.status, written.verify.status) == ("ok", "verified"), written.error
    assert way(written.remote_route) == ("cpu", "p2pmem", False)
    sink = tmp_path / "sink"
    read = api.read(f"{server}/cmb+1MiB", f"file:{sink},size={SIZE}", size_bytes=SIZE)
    assert (read.status, read.verify.status) == ("ok", "verified"), read.error
    assert sink.read_bytes() == data


def test_controller_memory_to_controller_memory(server, nvme, tmp_path) -> None:
    path, data = source_file(tmp_path, 6)
    assert api.write(f"{server}/cmb", f"file:{path}").status == "ok"
    # The local end is memory of the same controller; the remote end of another one.
    moved = api.read(f"{server}/cmb", f"p2pmem:{nvme('c')},size={SIZE}")
    assert (moved.status, moved.verify.status) == ("ok", "verified"), moved.error
    assert way(moved.local_route) == ("cpu", "p2pmem", False)
    assert moved.results[0].bytes == SIZE == len(data)
