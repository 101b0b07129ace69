"""The one door to subprocesses: output through pipes, deadlines, and nothing left alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2prw.scenario.child import Child, end_all, wait_any

SERVE = ("serve", "--region", "a=host,size=64KiB", "--listen", "127.0.0.1:0", "--json")


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_output_exit_code_and_time(environ):
    child = Child(("version", "--json"), environ)
    while not child.ended:
        wait_any([child], 30)
    assert child.exit_code == 0 and json.loads(child.stdout)["command"] == "version"
    assert 0 < child.elapsed_s < 30
    child.close()


def test_errors_come_through_stderr(environ):
    child = Child(("write",), environ)
    while not child.ended:
        wait_any([child], 30)
    assert child.exit_code == 2 and "try:" in child.stderr_tail
    child.close()


def test_the_directory_we_are_in_is_no_place_for_modules(environ, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "click.py").write_text("raise SystemExit(99)")
    child = Child(("version",), environ)
    while not child.ended:
        wait_any([child], 30)
    assert child.exit_code == 0, child.stderr_tail
    child.close()


def test_waiting_has_a_deadline_and_ending_leaves_nothing(environ, tmp_path):
    children = [Child((*SERVE, "--ready-file", str(tmp_path / name)), environ) for name in ("a", "b")]
    started = time.monotonic()
    wait_any(children, 0.2)
    assert time.monotonic() - started < 20
    for name in ("a", "b"):
        wait_for(tmp_path / name)
    end_all(children, 20)
    assert [child.exit_code for child in children] == [0, 0]
    assert all(json.loads(child.stdout)["command"] == "serve" for child in children)


def test_what_does_not_end_is_killed(environ, tmp_path):
    child = Child((*SERVE, "--ready-file", str(tmp_path / "a")), environ)
    wait_for(tmp_path / "a")
    child.signal(signal.SIGSTOP)
    end_all([child], 0.2)
    assert child.exit_code == -signal.SIGKILL and child.ended


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_die_with_us(environ, tmp_path, number):
    """Even kill -9 of the process that runs a scenario leaves no server behind."""
    words = (*SERVE, "--ready-file", str(tmp_path / "a"))
    program = f"import os, time; from p2prw.scenario.child import Child; c = Child({words!r}, dict(os.environ)); "
    program += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(c.process.pid)); time.sleep(60)"
    path = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen([sys.executable, "-c", program], env={**environ, "PYTHONPATH": path})
    try:
        wait_for(tmp_path / "a")
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
    finally:
        os.kill(parent.pid, number)
        parent.wait(30)
    end = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < end, "the server lives on"
        time.sleep(0.05)
