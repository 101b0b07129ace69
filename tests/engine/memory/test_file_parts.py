"""Names of unfinished sinks; orphans go, what is worked on or can be resumed stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2prw.engine.memory.file_parts import (
    leftover_note,
    lock_part,
    part_path,
    remove_orphans,
    resume_paths,
)
from p2prw.engine.memory.manifest import Manifest


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def manifest_with(path: str, blocks: int) -> None:
    manifest = Manifest(path, {}, part_is_new=False)
    for index in range(blocks):
        manifest.note(index, "ab" * 16)
    manifest.close()


@pytest.mark.parametrize("name", ["out", "x" * 255, "ü" * 127, "a@@@@@@@@b", "[a]*?.+"])
def test_names_fit_and_differ(tmp_path: Path, name: str) -> None:
    part, manifest = resume_paths(str(tmp_path / name))
    Path(part).touch()
    Path(manifest).touch()
    other, _ = resume_paths(str(tmp_path / (name[:-1] + "z")))
    assert other != part
    Path(part_path(str(tmp_path), name, "0" * 8)).touch()
    remove_orphans(str(tmp_path / name))
    assert names(tmp_path) == []


def test_orphans_go_and_others_stay(tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    orphan = part_path(str(tmp_path), "out", "11111111")
    alive = part_path(str(tmp_path), "out", "22222222")
    others = part_path(str(tmp_path), "out2", "11111111")
    for path in (orphan, alive, others):
        Path(path).touch()
    part, manifest = resume_paths(target)
    Path(part).touch()
    manifest_with(manifest, 2)
    worker = os.open(alive, os.O_RDWR)
    assert lock_part(worker)
    second = os.open(alive, os.O_RDWR)
    assert not lock_part(second)
    os.close(second)
    remove_orphans(target)
    kept = sorted(os.path.basename(path) for path in (alive, others, part, manifest))
    assert names(tmp_path) == kept
    os.close(worker)
    remove_orphans(target)
    assert os.path.basename(alive) not in names(tmp_path)


def test_a_part_that_noted_nothing_and_a_manifest_alone_go(tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    part, manifest = resume_paths(target)
    Path(part).touch()
    manifest_with(manifest, 0)
    assert leftover_note(target) is None
    remove_orphans(target)
    assert names(tmp_path) == []
    manifest_with(manifest, 3)
    assert leftover_note(target) is None
    remove_orphans(target)
    assert names(tmp_path) == []
    remove_orphans(str(tmp_path / "no" / "such" / "directory"))


def test_what_is_kept_is_named_with_what_to_type(tmp_path: Path) -> None:
    target = str(tmp_path / "o ut")
    part, manifest = resume_paths(target)
    Path(part).touch()
    manifest_with(manifest, 3)
    note = leftover_note(target)
    assert note is not None and "3 MiB" in note and "--resume" in note
    assert f"rm '{part}' '{manifest}'" in note


def test_a_part_that_was_cleared_away_is_not_locked(tmp_path: Path) -> None:
    path = tmp_path / "p"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    assert not lock_part(descriptor)
    os.close(descriptor)
