"""Bytes that change where nobody should change them: exit 4, the first bad byte and what it looks like.

The other process is this one: it writes into the server's memory through /proc/PID/mem, or into a file region behind
the server's back, while a transfer runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024
SLOW = ("--mtu", 256, "--no-gso", "--tx-depth", 4, "--chunk", "64KiB")


class Intruder:
    """Finds the mapping of a region in another process and writes to it."""

    def __init__(self, pid: int, size_bytes: int) -> None:
        self.file = open(f"/proc/{pid}/mem", "r+b", buffering=0)  # noqa: SIM115
        # The region is the only mapping of at least its size that one can write to and that starts with its pattern.
        self.candidates = []
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(word, 16) for word in span.split("-"))
            if end - start >= size_bytes and rights.startswith("rw"):
                self.candidates.append((start, end))
        self.start = 0

    def find(self, mark: bytes) -> None:
        for start, end in self.candidates:
            position = start
            while position < end:
                try:
                    piece = os.pread(self.file.fileno(), min(MIB, end - position), position)
                except OSError:
                    break
                # Mappings are merged: the region may begin within one, at a page.
                for page in range(0, len(piece), 4096):
                    if piece.startswith(mark, page):
                        self.start = position + page
                        return
                position += MIB
        raise AssertionError("the region's bytes are nowhere in the server")

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self.file.fileno(), data, self.start + offset)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fileno(), size, self.start + offset)

    def wait_for(self, offset: int, data: bytes) -> None:
        end = time.monotonic() + 60
        while self.read(offset, len(data)) != data:
            assert time.monotonic() < end, "the transfer never came to this place"
            time.sleep(0.002)


@pytest.fixture
def intruder() -> Iterator[Callable[..., Intruder]]:
    opened: list[Intruder] = []

    def make(one, size_bytes: int, mark: bytes) -> Intruder:
        try:
            opened.append(Intruder(one.pid, size_bytes))
            opened[-1].find(mark)
        except PermissionError as error:
            pytest.skip(f"this host lets nobody write to another process: {error}")
        return opened[-1]

    yield make
    for one in opened:
        one.file.close()


SIZE = 16 * MIB
BAD = [
    (bytes(64), "all_zero"),
    (b"\xff" * 64, "all_ff"),
    (b"\x5a", "corrupt"),
]


def test_memory_that_changes_after_the_write(server, p2prw, tmp_path, data, intruder, still_serves):
    mark = b"region-of-this-test!" * 4
    (tmp_path / "mark.bin").write_bytes(mark + bytes(4096))
    one = server(f"--region=a=host,size={SIZE}")
    for index, (bytes_there, classification) in enumerate(BAD):
        p2prw("write", f"{one.address}/a", "--from", "file:mark.bin").ok()
        hidden = intruder(one, SIZE, mark)
        sent = data(SIZE, index)
        (tmp_path / "in.bin").write_bytes(sent)
        running = p2prw.start("write", f"{one.address}/a", "--from", "file:in.bin", *SLOW)
        # The first MiB has arrived: what is written there now stays.
        hidden.wait_for(MIB, sent[MIB : MIB + 8])
        where = 300_003 + 4096 * index
        hidden.write(where, bytes_there)
        run = running.finish()
        error = run.failed(4, "verify_mismatch")
        verify = run.document["verify"]
        assert verify["status"] == "mismatch" and verify["classification"] == classification, verify
        bad = next(offset for offset in range(len(bytes_there)) if bytes_there[offset] != sent[where + offset])
        assert verify["first_bad_offset"] == where + bad, verify
        assert verify["local_digest"] != verify["remote_digest"] and verify["why"]
        assert str(where + bad) in error["what"] and classification in error["what"]
        assert run.row["bytes"] == SIZE and run.document["partial"] is True
    still_serves(one)


def test_memory_that_keeps_changing(server, p2prw, tmp_path, data, intruder, still_serves):
    size = 64 * MIB
    mark = b"region-of-this-test?" * 4
    (tmp_path / "mark.bin").write_bytes(mark + bytes(4096))
    one = server(f"--region=a=host,size={size}")
    p2prw("write", f"{one.address}/a", "--from", "file:mark.bin").ok()
    hidden = intruder(one, size, mark)
    stop = threading.Event()

    def keep_writing() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            hidden.write(1000, count.to_bytes(8, "little"))
            time.sleep(0.0002)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        run = p2prw("write", f"{one.address}/a", "--from", f"host,size={size},pattern=words:3")
    finally:
        stop.set()
        writer.join()
    run.failed(4, "verify_unstable")
    verify = run.document["verify"]
    assert verify["status"] == "unstable" and verify["first_bad_offset"] == 0
    assert "remote" in verify["why"] and "something else writes" in verify["why"]
    text = p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB", json=False)
    assert text.code == 0 and "verified" in text.stdout
    still_serves(one)


def test_a_file_that_changes_while_it_is_read(server, p2prw, tmp_path, data, parts, still_serves):
    sent = data(64 * MIB, 5)
    store = tmp_path / "store.bin"
    store.write_bytes(sent)
    one = server(f"--region=a=file:{store},access=r", "--staging=2MiB", "--staging-chunk=256KiB", "--no-gso")
    count = len(one.lines)
    running = p2prw.start("read", f"{one.address}/a", "--to", "file:out.bin", *SLOW)
    one.wait_for_line("reads", after=count)
    time.sleep(0.5)
    # The first chunk has long been sent; its bytes in the file are others now.
    with store.open("r+b") as file:
        file.seek(77)
        file.write(bytes([sent[77] ^ 1]))
    run = running.finish()
    run.failed(4, "verify_mismatch")
    assert run.document["verify"]["first_bad_offset"] == 77
    assert not (tmp_path / "out.bin").exists() and parts(tmp_path) == []
    still_serves(one)


def test_a_file_that_shrinks_while_it_is_read(server, p2prw, tmp_path, data, parts, still_serves):
    """No SIGBUS, no half file: an error that names what happened."""
    store = tmp_path / "store.bin"
    store.write_bytes(data(64 * MIB, 6))
    one = server(f"--region=a=file:{store},access=r", "--staging=2MiB", "--staging-chunk=256KiB", "--no-gso")
    count = len(one.lines)
    running = p2prw.start("read", f"{one.address}/a", "--to", "file:out.bin", *SLOW)
    one.wait_for_line("reads", after=count)
    time.sleep(0.5)
    os.truncate(store, 100)
    run = running.finish()
    error = run.failed(7, "source_changed")
    assert error["side"] == "remote"
    assert not (tmp_path / "out.bin").exists() and parts(tmp_path) == []
    still_serves(one)


def test_a_source_that_shrinks_while_it_is_written(server, p2prw, tmp_path, data, parts, still_serves):
    source = tmp_path / "in.bin"
    source.write_bytes(data(64 * MIB, 7))
    one = server(f"--region=a=file:{tmp_path}/sink.bin")
    count = len(one.lines)
    target = f"{one.address}/a"
    running = p2prw.start(
        "write", target, "--from", "file:in.bin", "--staging", "2MiB", "--staging-chunk", "256KiB", *SLOW
    )
    one.wait_for_line("writes", after=count)
    time.sleep(0.5)
    os.truncate(source, 100)
    run = running.finish()
    error = run.failed(3, "source_changed")
    assert error["side"] == "local"
    assert not (tmp_path / "sink.bin").exists() and parts(tmp_path) == []
    still_serves(one)
