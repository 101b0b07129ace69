"""Golden sysfs trees (tests/golden), copied so that a test may change them. `builder` is one folder up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from p2prw.engine.topology.sysfs import SysfsRoot

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture
def golden_sysfs(tmp_path: Path) -> Callable[[str], SysfsRoot]:
    """Return a function from a machine's name to a writable copy of its tree."""

    def load(machine: str) -> SysfsRoot:
        shutil.copytree(GOLDEN / machine / "sys", tmp_path / machine, symlinks=True)
        return SysfsRoot(tmp_path / machine)

    return load
