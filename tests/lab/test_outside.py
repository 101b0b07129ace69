"""The window between guest and host, with both ends in one process."""

from __future__ import annotations

import json
import threading

import pytest

from lab.outside import OutsideError, OutsideGuest, OutsideHost


@pytest.fixture
def window(tmp_path):
    path = tmp_path / "backing"
    path.write_bytes(bytes(range(16)))
    host = OutsideHost(tmp_path / "asks", {"disk": path})
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(0.002):
            host.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    yield OutsideGuest(tmp_path / "asks", timeout_s=10), path
    stop.set()
    thread.join()


def test_peek_and_poke(window) -> None:
    guest, path = window
    assert guest.peek("disk", 4, 3) == b"\4\5\6"
    guest.poke("disk", 5, b"xy")
    assert guest.peek("disk", 4, 4) == b"\4xy\7"
    assert path.read_bytes()[5:7] == b"xy"
    assert not [other for other in path.parent.joinpath("asks").iterdir() if other.suffix != ".part"]


@pytest.mark.parametrize("name", ["../backing", "/etc/passwd", "other"])
def test_only_known_names(window, name) -> None:
    guest, _ = window
    with pytest.raises(OutsideError, match="KeyError"):
        guest.peek(name, 0, 1)


def test_bad_requests_are_answered(window, tmp_path) -> None:
    guest, _ = window
    with pytest.raises(OutsideError, match="ValueError"):
        guest.peek("disk", 0, 1 << 40)
    with pytest.raises(OutsideError, match="OSError"):
        guest.peek("disk", -1, 1)


def test_silence_ends(tmp_path) -> None:
    with pytest.raises(OutsideError, match="did not answer"):
        OutsideGuest(tmp_path, timeout_s=0.05).peek("disk", 0, 1)
    (request,) = tmp_path.glob("*.ask")
    assert json.loads(request.read_text()) == {"file": "disk", "offset": 0, "length": 1}
