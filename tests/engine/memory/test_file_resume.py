"""A sink that is killed at any moment goes on: crashes between the steps of noting, of committing, of copying."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.digest import BLOCK_BYTES, digest_block
from p2prw.engine.memory import file_sink
from p2prw.engine.memory.file_holes import PIECE_BYTES
from p2prw.engine.memory.file_parts import resume_paths
from p2prw.engine.memory.file_resume import ResumableSink, most_unsynced_blocks
from p2prw.engine.memory.file_sink import FileSink
from p2prw.engine.memory.manifest import Manifest
from p2prw.engine.memory.spec import make_spec
from p2prw.engine.model import SourceIdentity
from p2prw.errors import HostError

SOURCE = SourceIdentity("file", 0, 5, 77)
LENGTH = 4 * BLOCK_BYTES + 1000
DATA = random.Random(3).randbytes(LENGTH)
DIGESTS = [digest_block(DATA[start : start + BLOCK_BYTES]) for start in range(0, LENGTH, BLOCK_BYTES)]


def sink_at(path: Path, *, source: SourceIdentity = SOURCE, **where: Any) -> ResumableSink:
    spec = make_spec("file", str(path), {})
    values = {"range_end": LENGTH, "keep_rest": False, "overwrite": False, **where}
    return ResumableSink(spec, str(path), source=source, **values)


def put(sink: FileSink, start: int, end: int, step: int = BLOCK_BYTES, shift: int = 0) -> None:
    for offset in range(start, end, step):
        sink.write_at(offset + shift, memoryview(DATA[offset : min(offset + step, end)]))


def held(sink: ResumableSink, start: int = 0) -> list[str]:
    for _ in sink.prepare_steps():
        pass
    return list(sink.held_digests(start, sink.length_bytes - start))


class Killed(BaseException):
    """Stands for kill -9: no handler of ours runs after it."""


def drop(sink: ResumableSink) -> None:
    """What the kernel does for a killed process: descriptors and locks go, nothing else happens."""
    for descriptor in (sink.descriptor, sink._manifest.descriptor if sink._manifest else -1):
        os.close(descriptor)
    sink.descriptor = -1
    sink.closed = True


def test_what_arrived_is_gone_on_with(tmp_path: Path) -> None:
    target = tmp_path / "out"
    sink = sink_at(target)
    assert not sink.keeps and sink.restarted is None and held(sink) == [""] * 5
    put(sink, BLOCK_BYTES, 3 * BLOCK_BYTES)
    assert sink.keeps
    sink.close()
    assert not target.exists() and len(os.listdir(tmp_path)) == 2
    sink = sink_at(target)
    assert held(sink) == ["", DIGESTS[1], DIGESTS[2], "", ""]
    put(sink, 0, BLOCK_BYTES)
    put(sink, 3 * BLOCK_BYTES, LENGTH)
    assert held(sink) == DIGESTS
    sink.commit()
    sink.commit()
    assert not sink.keeps
    sink.close()
    assert os.listdir(tmp_path) == ["out"] and target.read_bytes() == DATA


def test_blocks_may_come_in_pieces_and_in_any_order(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out", range_start=300, range_end=300 + LENGTH)
    pieces = [(start, min(start + 70_001, LENGTH)) for start in range(0, LENGTH, 70_001)]
    random.Random(1).shuffle(pieces)
    for start, end in pieces[:-1]:
        put(sink, start, end, step=BLOCK_BYTES, shift=300)
    missing = pieces[-1][0] // BLOCK_BYTES
    assert [index for index, digest in enumerate(held(sink, 300)) if not digest] == sorted(
        {missing, (pieces[-1][1] - 1) // BLOCK_BYTES}
    )
    put(sink, *pieces[-1], shift=300)
    assert held(sink, 300) == DIGESTS
    sink.abort()
    sink.close()
    assert os.listdir(tmp_path) == []


def test_nothing_arrived_leaves_nothing(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out")
    sink.write_at(0, memoryview(b"only a part of a block"))
    sink.close()
    sink.close()
    assert os.listdir(tmp_path) == []


def test_a_changed_source_starts_over(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out")
    put(sink, 0, 2 * BLOCK_BYTES)
    sink.close()
    sink = sink_at(tmp_path / "out", source=SourceIdentity("file", 0, 5, 78))
    assert sink.restarted == "the source was modified" and held(sink) == [""] * 5
    into = bytearray(10)
    sink.read_at(0, memoryview(into))
    assert bytes(into) == bytes(10), "bytes of the other source must not show through"
    sink.close()
    assert os.listdir(tmp_path) == []
    sink = sink_at(tmp_path / "out")
    put(sink, 0, 2 * BLOCK_BYTES)
    sink.forget()
    assert held(sink) == [""] * 5
    sink.close()
    assert os.listdir(tmp_path) == []


def test_what_changed_on_the_disk_does_not_count(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out")
    put(sink, 0, 3 * BLOCK_BYTES)
    sink.close()
    part, _ = resume_paths(str(tmp_path / "out"))
    with open(part, "r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"!")
    sink = sink_at(tmp_path / "out")
    assert held(sink) == [DIGESTS[0], "", DIGESTS[2], "", ""]
    sink.close()
    os.truncate(part, BLOCK_BYTES + 10)
    sink = sink_at(tmp_path / "out")
    assert held(sink) == [DIGESTS[0], "", "", "", ""]
    sink.close()


def test_killed_between_sync_and_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = sink_at(tmp_path / "out")
    put(sink, 0, BLOCK_BYTES)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)

    def crash(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "note", crash)
        with pytest.raises(Killed):
            put(sink, BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert len(synced) == 1, "it died before the note, after the sync"
    drop(sink)
    sink = sink_at(tmp_path / "out")
    assert held(sink) == [DIGESTS[0], "", "", "", ""]
    sink.close()


def test_never_noted_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = sink_at(tmp_path / "out")
    happened: list[str] = []
    note = Manifest.note

    def noting(manifest: Manifest, index: int, digest: str) -> None:
        happened.append("note")
        note(manifest, index, digest)

    monkeypatch.setattr(os, "fdatasync", lambda _: happened.append("sync"))
    monkeypatch.setattr(Manifest, "note", noting)
    put(sink, 0, LENGTH, step=2 * BLOCK_BYTES)
    assert happened == ["sync", "note", "note"] * 2 + ["sync", "note"]
    sink.abort()


def test_a_sync_that_fails_notes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = sink_at(tmp_path / "out")

    def fail(_: int) -> None:
        raise OSError(5, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(HostError) as caught:
            put(sink, 0, BLOCK_BYTES)
    assert caught.value.code == "io_error" and not sink.keeps
    put(sink, BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert [bool(digest) for digest in held(sink)] == [False, True, False, False, False]
    sink.close()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("step", ["rename", "unlink", "manifest"])
def test_killed_while_it_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, overwrite: bool) -> None:
    """Before the rename, between link() and unlink(), between the rename and the removal of the manifest."""
    target = tmp_path / "out"
    old = b"old" if overwrite else None
    if old is not None:
        target.write_bytes(old)
    sink = sink_at(target, overwrite=overwrite)
    put(sink, 0, LENGTH)

    def crash(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "rename":
            patch.setattr(FileSink, "_rename", crash)
        elif step == "unlink":
            patch.setattr(os, "unlink", crash)
        else:
            patch.setattr(Manifest, "remove", crash)
        if step == "unlink" and overwrite:
            # rename() is one step: there is nothing between.
            patch.setattr(os, "replace", crash)
        with pytest.raises(Killed):
            sink.commit()
    drop(sink)
    whole = step == "manifest" or (step == "unlink" and not overwrite)
    assert (target.read_bytes() if target.exists() else None) == (DATA if whole else old)
    sink = sink_at(target, overwrite=True)
    # The target itself is never gone on with: a write would show through under its name.
    assert held(sink) == ([""] * 5 if whole else DIGESTS)
    if whole:
        sink.write_at(0, memoryview(b"new"))
        assert target.read_bytes() == DATA
    sink.close()
    if not whole:
        sink = sink_at(target, overwrite=True)
        sink.commit()
        assert target.read_bytes() == DATA
        sink.close()
    assert os.listdir(tmp_path) == ["out"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    sink = sink_at(tmp_path / "out")
    with pytest.raises(HostError) as caught:
        sink_at(tmp_path / "out")
    assert caught.value.code == "busy" and caught.value.fix
    put(sink, 0, LENGTH)
    sink.commit()
    sink.close()
    assert (tmp_path / "out").read_bytes() == DATA


def test_the_rest_is_the_targets_as_it_is_now(tmp_path: Path) -> None:
    """A write further in keeps the rest, and takes it anew when it goes on; what has arrived stays."""
    target = tmp_path / "out"
    target.write_bytes(b"a" * (2 * BLOCK_BYTES + 3 * LENGTH))
    where: dict[str, Any] = {"range_start": 777, "range_end": 777 + LENGTH, "keep_rest": True, "overwrite": True}
    sink = sink_at(target, **where)
    put(sink, 0, 2 * BLOCK_BYTES, shift=777)
    sink.close()
    target.write_bytes(b"b" * (777 + LENGTH + 500))
    sink = sink_at(target, **where)
    assert held(sink, 777) == [*DIGESTS[:2], "", "", ""]
    put(sink, 2 * BLOCK_BYTES, LENGTH, shift=777)
    sink.commit()
    sink.close()
    assert target.read_bytes() == b"b" * 777 + DATA + b"b" * 500


def test_many_threads_note_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda _: threading.Event().wait(0.002))
    sink = sink_at(tmp_path / "out")
    held(sink)
    threads = [
        threading.Thread(target=put, args=(sink, index * BLOCK_BYTES, min((index + 1) * BLOCK_BYTES, LENGTH), 100_000))
        for index in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert held(sink) == DIGESTS and not sink._unsynced
    sink.close()
    assert most_unsynced_blocks(0) == 0 and most_unsynced_blocks(1 << 50) == 16


def test_a_resumed_sink_needs_no_second_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = sink_at(tmp_path / "out")
    put(sink, 0, BLOCK_BYTES)
    sink.close()
    asked: list[int] = []
    monkeypatch.setattr(file_sink, "check_space", lambda path, directory, needed: asked.append(needed))
    sink = sink_at(tmp_path / "out")
    held(sink)
    assert asked == [0]
    sink.close()


KILL_ITSELF = """
import os, signal, sys
from p2prw.engine.memory import file_resume
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.engine.memory.manifest import Manifest
from p2prw.engine.memory.spec import make_spec
from p2prw.engine.model import SourceIdentity
path, where, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sink = ResumableSink(make_spec("file", path, {}), path, source=SourceIdentity("file", 0, 5, 77), range_end=length,
                     keep_rest=False, overwrite=False)
data = sys.stdin.buffer.read()
note, notes = Manifest.note, []
def note_and_die(*said):
    notes.append(said)
    if where == "before-note" and len(notes) == 3:
        die()
    note(*said)
    if where == "after-note" and len(notes) == 3:
        die()
Manifest.note = note_and_die
if where == "rename":
    ResumableSink._rename = die
for offset in range(0, length, 1 << 20):
    sink.write_at(offset, memoryview(data)[offset:offset + (1 << 20)])
sink.commit()
"""


@pytest.mark.parametrize(("where", "blocks"), [("before-note", 2), ("after-note", 3), ("rename", 5)])
def test_a_real_kill(tmp_path: Path, where: str, blocks: int) -> None:
    target = tmp_path / "out"
    command = [sys.executable, "-c", KILL_ITSELF, str(target), where, str(LENGTH)]
    ended = subprocess.run(command, input=DATA, timeout=60)
    assert ended.returncode == -signal.SIGKILL and not target.exists()
    sink = sink_at(target)
    assert held(sink) == DIGESTS[:blocks] + [""] * (5 - blocks)
    put(sink, blocks * BLOCK_BYTES, LENGTH)
    sink.commit()
    sink.close()
    assert target.read_bytes() == DATA and os.listdir(tmp_path) == ["out"]


# --- holes ------------------------------------------------------------------------------------------------------


def held_bytes(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return path.stat().st_blocks * 512


def test_a_sparse_sink_that_goes_on_stays_sparse(tmp_path: Path) -> None:
    """Zeros that had arrived are not reserved anew, those that come now are holes too, and both are noted."""
    target = tmp_path / "out"
    data = bytearray(LENGTH)
    data[:1000], data[2 * BLOCK_BYTES : 3 * BLOCK_BYTES] = DATA[:1000], DATA[:BLOCK_BYTES]
    view = memoryview(data)
    first = sink_at(target)
    for offset in (0, BLOCK_BYTES):
        first.write_at(offset, view[offset : offset + BLOCK_BYTES])
    drop(first)
    (part,) = tmp_path.glob("*.part")
    # What has not arrived is reserved still.
    assert LENGTH - 2 * BLOCK_BYTES < held_bytes(part) < LENGTH - BLOCK_BYTES
    second = sink_at(target)
    assert [bool(digest) for digest in held(second)] == [True, True, False, False, False]
    for offset in range(2 * BLOCK_BYTES, LENGTH, BLOCK_BYTES):
        second.write_at(offset, view[offset : min(offset + BLOCK_BYTES, LENGTH)])
    assert list(second.held_digests(0, LENGTH)) == [
        digest_block(bytes(view[start : start + BLOCK_BYTES])) for start in range(0, LENGTH, BLOCK_BYTES)
    ]
    second.commit()
    second.close()
    assert target.read_bytes() == data
    assert held_bytes(target) == PIECE_BYTES + BLOCK_BYTES


def test_a_block_that_had_arrived_and_comes_as_zeros_is_zeros(tmp_path: Path) -> None:
    """The source changed meanwhile, and the transfer starts over on the same part."""
    target = tmp_path / "out"
    first = sink_at(target)
    put(first, 0, LENGTH)
    drop(first)
    second = sink_at(target)
    second.forget()
    second.write_at(0, memoryview(bytes(LENGTH)))
    second.commit()
    second.close()
    assert target.read_bytes() == bytes(LENGTH) and held_bytes(target) == 0
