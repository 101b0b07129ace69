"""Whole or not at all."""

from __future__ import annotations

import os

import pytest

from p2prw.engine.server.ready_file import write_whole
from p2prw.errors import HostError


def test_it_replaces_what_was_there(tmp_path):
    path = tmp_path / "ready"
    write_whole(str(path), b"old", option="--x", code="x_file")
    write_whole(str(path), b"new", option="--x", code="x_file")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["ready"]


@pytest.mark.parametrize("place", ["missing/ready", "folder"])
def test_an_error_names_the_option_and_leaves_nothing(tmp_path, place):
    (tmp_path / "folder").mkdir()
    with pytest.raises(HostError) as caught:
        write_whole(str(tmp_path / place), b"x", option="--metrics-file", code="metrics_file")
    error = caught.value
    assert error.code == "metrics_file" and error.errno in ("ENOENT", "EISDIR") and "--metrics-file" in str(error.fix)
    assert os.listdir(tmp_path) == ["folder"]
