"""Transfers that are killed -9 at chosen moments, on either side, and go on: nothing torn, little moved twice."""

from __future__ import annotations

import random
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
    content = random.Random(seed).randbytes(length)
    path.write_bytes(content)
    return content


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "kills"), [("write", 6), ("read", 3)])
def test_killed_on_either_side_again_and_again(server, p2prw, tmp_path, request, operation, kills, capsys):
    long = request.config.getoption("--long")
    length, kills = (2048 * MIB, 20) if long else (128 * MIB, kills)
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
