"""What a transfer takes: memory that does not grow with its size, and disks that are full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024


def make_file(path: Path, size_mib: int) -> None:
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(size_mib):
            file.write(number.to_bytes(8, "little") + block[8:])


def same_file(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", str(one), str(other)], check=False).returncode == 0


@pytest.mark.slow
def test_a_big_file_passes_through_a_small_ring(server, p2prw, tmp_path, record_property):
    source, sink, back = tmp_path / "in.bin", tmp_path / "store.bin", tmp_path / "back.bin"
    make_file(source, 512)
    one = server(f"--region=store=file:{sink}")
    wrote = p2prw("write", f"{one.address}/store", "--from", f"file:{source}", measured=True).ok()
    assert same_file(source, sink)
    read = p2prw("read", f"{one.address}/store", "--to", f"file:{back}", measured=True).ok()
    assert same_file(sink, back)
    peaks = {"writer": wrote.peak_bytes, "reader": read.peak_bytes, "server": one.memory("VmHWM")}
    for name, peak in peaks.items():
        record_property(f"{name}_peak_mib", peak // MIB)
    assert max(peaks.values()) < 250_000_000, peaks


@pytest.mark.slow
def test_mapped_memory_weighs_what_it_is(server, p2prw, record_property):
    size = 1024 * MIB
    one = server(f"--region=a=host,size={size}")
    wrote = p2prw("write", f"{one.address}/a", "--from", f"host,size={size}", measured=True).ok()
    assert wrote.row["bytes"] == size
    peaks = {"writer": wrote.peak_bytes, "server": one.memory("VmHWM")}
    for name, peak in peaks.items():
        record_property(f"{name}_peak_mib", peak // MIB)
    assert max(peaks.values()) < size + 150 * MIB, peaks


def test_many_clients_leave_nothing_behind(server, p2prw, tmp_path, until):
    """Descriptors and memory of the server after clients of every kind are what they were after the first few."""
    one = server("--region=a=host,size=1MiB", f"--region=f=file:{tmp_path}/f.bin")

    def round_of_clients() -> None:
        p2prw("write", f"{one.address}/a", "--from", "host,size=1MiB").ok()
        p2prw("write", f"{one.address}/f", "--from", "host,size=64KiB").ok()
        p2prw("read", f"{one.address}/f", "--to", "host,size=64KiB").ok()
        p2prw("read", f"{one.address}/nothing", "--to", "host").failed(7, "unknown_region")

    before = one.descriptors()

    def nobody_there() -> bool:
        return bool(one.descriptors() == before)

    round_of_clients()
    # A client ends before the server has seen its connection end.
    until(nobody_there, 30, "the descriptors of the first clients to be closed")
    resident = one.memory("VmRSS")
    for _ in range(3):
        round_of_clients()
    until(nobody_there, 30, "the descriptors of the last clients to be closed")
    assert one.memory("VmRSS") - resident < 16 * MIB


# --- full disks -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "p2prw-test", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this host mounts no tmpfs: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_no_space_for_a_sink_here(small_disk, scratch, server, p2prw, parts, still_serves):
    # Zeros would take no room: they become holes.
    one = server("--region=a=host,size=16MiB,pattern=words:1")
    for words in (("--size", "16MiB"), ()):
        error = p2prw("read", f"{one.address}/a", "--to", f"file:{small_disk}/sink.bin", *words).failed(3, "no_space")
        assert error["side"] == "local" and error["errno"] == "ENOSPC"
        assert list(small_disk.iterdir()) == []
    # A sink that fits goes on fitting.
    p2prw("read", f"{one.address}/a", "--to", f"file:{small_disk}/sink.bin", "--size", "4MiB").ok()
    # And beside it there is no room for a second one: what stands there stays.
    p2prw("read", f"{one.address}/a", "--to", f"file:{small_disk}/sink.bin", "--size", "6MiB", "--overwrite").failed(
        3, "no_space"
    )
    assert [(path.name, path.stat().st_size) for path in small_disk.iterdir()] == [("sink.bin", 4 * MIB)]
    still_serves(one)


def test_no_space_for_a_sink_there(small_disk, server, p2prw, parts, still_serves):
    one = server(f"--region=f=file:{small_disk}/sink.bin", "--region=a=host,size=64KiB")
    error = p2prw("write", f"{one.address}/f", "--from", "host,size=16MiB").failed(7, "no_space")
    assert error["side"] == "remote"
    assert list(small_disk.iterdir()) == []
    p2prw("write", f"{one.address}/f", "--from", "host,size=4MiB").ok()
    p2prw("write", f"{one.address}/f", "--from", "host,size=16MiB").failed(7, "no_space")
    assert [(path.name, path.stat().st_size) for path in small_disk.iterdir()] == [("sink.bin", 4 * MIB)]
    still_serves(one)


def test_no_space_for_a_capture(small_disk, server, p2prw, still_serves):
    """The capture is an aid: what happens to it is said, whatever becomes of the transfer."""
    one = server("--region=a=host,size=16MiB")
    run = p2prw("write", f"{one.address}/a", "--from", "host,size=16MiB", "--pcap", small_disk / "wire.pcap")
    assert "Traceback" not in run.stderr
    document = run.document
    said = run.stderr + str(document["warnings"]) + str(document["error"])
    assert "wire.pcap" in said and "space" in said, run
    still_serves(one)
