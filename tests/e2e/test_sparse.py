"""Sparse files: holes travel as zeros, and are holes again at the sink, whichever end it is at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2prw.engine.memory.file_holes import PIECE_BYTES
from p2prw.units import KIB, MIB

SIZE = 24 * MIB + 777
DATA = ((0, 100), (3 * MIB + 5, 200 * KIB), (9 * MIB, 2 * MIB), (SIZE - 10, 10))
"""(offset, length) of what is no hole."""
MOST_HELD = sum(length + 2 * PIECE_BYTES for _, length in DATA)


def held_bytes(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return path.stat().st_blocks * 512


@pytest.fixture
def source(tmp_path, data):
    path = tmp_path / "source.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, length in DATA:
            file.seek(offset)
            file.write(data(length, offset))
    assert held_bytes(path) <= MOST_HELD
    return path


@pytest.mark.parametrize("words", [(), ("--resume",), ("--no-verify",)], ids=["plain", "resume", "unverified"])
def test_a_sparse_file_stays_sparse_in_both_directions(server, p2prw, tmp_path, source, words):
    one = server(f"--region=sink=file:{tmp_path}/there.img", f"--region=source=file:{source},access=r")
    runs = (
        p2prw("write", f"{one.address}/sink", "--from", f"file:{source}", *words),
        p2prw("read", f"{one.address}/source", "--to", f"file:{tmp_path}/here.img", *words),
    )
    for run, path in zip(runs, (tmp_path / "there.img", tmp_path / "here.img"), strict=True):
        assert run.code == 0 and run.row["bytes"] == SIZE, "every zero was moved"
        assert run.document["verify"]["status"] == ("unverified" if "--no-verify" in words else "verified")
        assert path.read_bytes() == source.read_bytes()
        assert held_bytes(path) <= MOST_HELD


def test_a_range_of_a_file_that_is_there_becomes_sparse_and_the_rest_is_kept(server, p2prw, tmp_path, source):
    target = tmp_path / "there.img"
    target.write_bytes(b"x" * (SIZE + 2 * MIB))
    one = server(f"--region=sink=file:{target}", "--overwrite")
    p2prw("write", f"{one.address}/sink+{MIB}", "--from", f"file:{source}").ok()
    assert target.read_bytes() == b"x" * MIB + source.read_bytes() + b"x" * MIB
    assert held_bytes(target) <= MOST_HELD + 2 * MIB + 2 * PIECE_BYTES
