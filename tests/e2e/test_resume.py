"""Transfers that are killed -9 at chosen moments, on either side, and go on: nothing torn, little moved twice."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from p2prw.engine.attach import resume_shape
from p2prw.engine.digest import BLOCK_BYTES
from p2prw.engine.memory.file_parts import lock_part, resume_paths
from p2prw.engine.memory.file_resume import most_unsynced_blocks
from p2prw.engine.memory.manifest import noted_blocks
from p2prw.units import MIB


@dataclass
class Sink:
    """An unfinished sink as it lies on the disk."""

    target: Path
    content: bytes
    before: bytes | None = None
    seen: list[int] = field(default_factory=list)

    @property
    def noted(self) -> int:
        return noted_blocks(resume_paths(str(self.target))[1]) or 0

    def wait_for(self, blocks: int, running) -> None:
        """Wait until so many blocks are noted. What is under the final name is looked at all the while."""
        end = time.monotonic() + 120
        while self.noted < blocks:
            assert running.poll() is None, f"it ended at block {self.noted} of {blocks}"
            assert time.monotonic() < end, f"{self.noted} of {blocks} blocks"
            self.check_name()
            time.sleep(0.002)

    def settle(self) -> None:
        """Wait until nobody works on it any more: a server notes what had come when its client was killed."""
        end = time.monotonic() + 60
        with open(resume_paths(str(self.target))[0], "rb") as part:
            while not lock_part(part.fileno()):
                assert time.monotonic() < end, "somebody still holds it"
                time.sleep(0.01)

    def check_name(self) -> None:
        if self.before is None:
            assert not self.target.exists()
        else:
            assert self.target.read_bytes() == self.before

    def check_whole(self) -> None:
        assert self.target.read_bytes() == self.content
        assert not [path.name for path in self.target.parent.iterdir() if ".p2prw-" in path.name]


def most_lost_bytes(length: int) -> int:
    """What can be on its way, or not yet noted, at any one moment."""
    chunk, slots = resume_shape(32 * MIB, 4 * MIB, length)
    return chunk * slots + most_unsynced_blocks(length) * BLOCK_BYTES


def random_file(path: Path, length: int, seed: int) -> bytes:
    numbers = random.Random(seed)
    content = b"".join(numbers.randbytes(min(64 * MIB, length - start)) for start in range(0, length, 64 * MIB))
    path.write_bytes(content)
    return content


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "length", "kills"), [("write", 256 * MIB, 6), ("read", 128 * MIB, 3)])
def test_killed_on_either_side_again_and_again(server, p2prw, tmp_path, request, operation, length, kills, capsys):
    long = request.config.getoption("--long")
    length, kills = (2048 * MIB, 20) if long else (length, kills)
    folder = tmp_path / "there"
    folder.mkdir()
    content = random_file(tmp_path / "in.bin", length, 7)
    sink = Sink(folder / "out.bin" if operation == "write" else tmp_path / "back.bin", content)
    region = f"--region=a=file:{folder / 'out.bin' if operation == 'write' else tmp_path / 'in.bin'}"
    memory = ("--from", f"file:{tmp_path}/in.bin") if operation == "write" else ("--to", "file:back.bin")
    moved_again: list[int] = []
    one = server(region)
    for number in range(kills):
        held = sink.noted
        running = p2prw.start(operation, f"{one.address}/a", *memory, "--resume")
        sink.wait_for((number + 1) * (length // BLOCK_BYTES) // (kills + 1), running.process)
        if number % 2:
            one.may_fail = True
            one.process.kill()
            one.join()
            run = running.finish()
            run.failed(1, "peer_lost", "retry_exceeded", "flushed")
            # What was noted before was neither forgotten nor moved.
            assert run.row["skipped_bytes"] == held * BLOCK_BYTES
            assert any("--resume goes on from there" in warning for warning in run.document["warnings"])
            moved_again.append(run.row["bytes"] - (sink.noted - held) * BLOCK_BYTES)
            one = server(region)
        else:
            running.process.kill()
            running.process.communicate()
            sink.settle()
            # A killed client cannot say what it moved: all that may have been on its way counts as moved.
            moved_again.append(most_lost_bytes(length))
        sink.check_name()
    held = sink.noted
    last = p2prw(operation, f"{one.address}/a", *memory, "--resume", deadline_s=300).ok()
    assert last.row["skipped_bytes"] == held * BLOCK_BYTES
    assert last.row["bytes"] == length - held * BLOCK_BYTES
    sink.check_whole()
    average = sum(moved_again) / kills / length
    with capsys.disabled():
        if long:
            sys.stderr.write(f"\n{operation}: {length} bytes, {kills} kills, {average:.2%} moved again a kill\n")
    assert average <= 0.05, moved_again


def test_retries_outlive_the_server(server, p2prw, tmp_path):
    """The server is killed and started again under a running client: one command, one verified result."""
    content = random_file(tmp_path / "in.bin", 96 * MIB, 11)
    sink = Sink(tmp_path / "there" / "out.bin", content)
    sink.target.parent.mkdir()
    region = f"--region=a=file:{sink.target}"
    one = server(region)
    running = p2prw.start("write", f"{one.address}/a", "--from", "file:in.bin", "--retries", 5)
    sink.wait_for(30, running.process)
    one.may_fail = True
    one.process.kill()
    one.join()
    server(region, listen=one.address)
    run = running.finish().ok()
    sink.check_whole()
    assert run.row["reconnects"] >= 1 and run.row["skipped_bytes"] == 0
    assert len(content) <= run.row["bytes"] <= len(content) + 2 * most_lost_bytes(len(content))
    assert any("tried again after" in warning for warning in run.document["warnings"])


def test_retries_end(server, p2prw, tmp_path):
    random_file(tmp_path / "in.bin", 64 * MIB, 12)
    sink = Sink(tmp_path / "out.bin", b"")
    one = server(f"--region=a=file:{sink.target}")
    where = ("write", f"{one.address}/a", "--from", "file:in.bin", "--retries", 1, "--connect-retry", "200ms")
    running = p2prw.start(*where)
    sink.wait_for(10, running.process)
    one.may_fail = True
    one.process.kill()
    one.join()
    run = running.finish()
    # The lost peer is the worse news than the refused connect after it (contract, section 3).
    run.failed(1, "peer_lost", "retry_exceeded", "flushed")
    assert run.row["reconnects"] == 1
    # A wrong address does not pass: it is told at once.
    started = time.monotonic()
    p2prw(*where).failed(3, "connect_refused")
    assert time.monotonic() - started < 15


def test_interrupted_told_and_gone_on_with(server, p2prw, tmp_path, parts):
    """Ctrl-C with --resume keeps; a plain transfer names what is kept and leaves it; a changed source starts over."""
    content = random_file(tmp_path / "in.bin", 64 * MIB, 13)
    there = tmp_path / "there"
    there.mkdir()
    sink = Sink(there / "out.bin", content)
    one = server(f"--region=a=file:{sink.target},access=rw")
    words = ("write", f"{one.address}/a", "--from", "file:in.bin")
    running = p2prw.start(*words, "--resume")
    sink.wait_for(10, running.process)
    document = running.interrupt().interrupted()
    assert any("--resume goes on from there" in warning for warning in document["warnings"])
    sink.settle()
    assert sink.noted >= 10 and not sink.target.exists()

    plain = p2prw(*words, "--size", "1M").ok()
    assert any("--resume goes on with it" in warning for warning in plain.document["warnings"])
    assert sink.target.read_bytes() == content[:MIB] and len(parts(there)) == 1

    changed = bytearray(content)
    changed[-1] ^= 1
    (tmp_path / "in.bin").write_bytes(changed)
    sink.content = bytes(changed)
    run = p2prw(*words, "--resume").ok()
    assert run.row["skipped_bytes"] == 0 and run.row["bytes"] == len(content)
    assert any("starting over" in warning for warning in run.document["warnings"])
    sink.check_whole()


def test_two_signals_leave_what_the_next_run_clears_away_or_goes_on_with(server, p2prw, tmp_path, parts):
    content = random_file(tmp_path / "in.bin", 64 * MIB, 14)
    one = server(f"--region=a=file:{tmp_path}/in.bin,access=r")
    sink = Sink(tmp_path / "out.bin", content)
    words = ("read", f"{one.address}/a", "--to", "file:out.bin")

    def leave_at_once(running):
        """The server stands still, so that the first signal's drain lasts until the second."""
        os.kill(one.pid, signal.SIGSTOP)
        try:
            # What had been answered before is used up, and READs are out that nobody answers.
            time.sleep(1.0)
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            return running.interrupt()
        finally:
            os.kill(one.pid, signal.SIGCONT)

    slow = ("--mtu", 256, "--no-gso", "--tx-depth", 4, "--chunk", "64KiB", "--drain-timeout", "30s")
    running = p2prw.start(*words, *slow)
    end = time.monotonic() + 30
    while not parts(tmp_path):
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(1.0)
    assert leave_at_once(running).code == 130
    assert len(parts(tmp_path)) == 1, "left as it was"

    running = p2prw.start(*words, *slow, "--resume")
    sink.wait_for(4, running.process)
    assert len(parts(tmp_path)) == 1, "the orphan is gone"
    run = leave_at_once(running)
    assert run.code == 130 and "--resume goes on from there" in run.stderr
    held = sink.noted
    last = p2prw(*words, "--resume").ok()
    assert last.row["skipped_bytes"] == held * BLOCK_BYTES > 0
    sink.check_whole()


def test_memory_of_a_server_is_compared(server, p2prw, tmp_path):
    """Nothing is noted there; what it holds already is not moved again."""
    content = random_file(tmp_path / "in.bin", 8 * MIB, 15)
    one = server("--region=a=host,size=8MiB")
    words = ("write", f"{one.address}/a", "--from", "file:in.bin", "--resume")
    assert p2prw(*words).ok().row["bytes"] == len(content)
    changed = bytearray(content)
    changed[3 * MIB + 5] ^= 1
    (tmp_path / "in.bin").write_bytes(changed)
    row = p2prw(*words).ok().row
    assert (row["bytes"], row["skipped_bytes"]) == (MIB, 7 * MIB)
    host = p2prw("read", f"{one.address}/a", "--to", "host", "--resume").ok()
    assert host.row["skipped_bytes"] == 0 and any("keeps nothing" in note for note in host.document["warnings"])
    p2prw(*words, "--shared").failed(2, "usage")
