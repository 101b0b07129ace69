"""Another tool's server and client: deadlines, and nothing left alive."""

from __future__ import annotations

import os
import time

import pytest

from p2prw.against import child
from p2prw.against.child import free_port, open_ports, run_pair
from p2prw.engine.deadline import Deadline
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError, InterruptedTransfer, TimeLimitError


def run(tool: str, how: str = "", *, limit_s: float | None = None, stop: StopRequest | None = None) -> str:
    port = free_port(os.getpid(), open_ports())
    deadline = Deadline(time.monotonic, StopRequest() if stop is None else stop, limit_s)
    words = ("-p", str(port))
    assigned = {"FAKE": how} if how else {}
    return run_pair((tool, *words), (tool, *words, "127.0.0.1"), os.environ, port, deadline, assigned=assigned)


def test_the_client_is_run_when_the_server_listens_and_its_output_comes_back(fake_tool):
    assert "15327.386" in run(fake_tool)


def test_a_server_that_stays_is_ended(fake_tool):
    started = time.monotonic()
    assert "15327.386" in run(fake_tool, "stays")
    assert time.monotonic() - started < 50


@pytest.mark.parametrize(("how", "what"), [("deaf", "did not listen"), ("fails", "ended with 1")])
def test_failures_say_what_the_tool_said(fake_tool, how, what):
    with pytest.raises(HostError, match=what) as caught:
        run(fake_tool, how)
    assert caught.value.code == "tool_failed" and "trans" in (caught.value.why or "")
    assert f"run it by hand: FAKE={how} {fake_tool} -p " in (caught.value.fix or "")


def test_a_tool_that_hangs_has_a_deadline(fake_tool, monkeypatch):
    monkeypatch.setattr(child, "RUN_LIMIT_S", 0.3)
    with pytest.raises(HostError, match="did not end in"):
        run(fake_tool, "hangs")


def test_the_time_limit_and_ctrl_c_end_it_too(fake_tool):
    with pytest.raises(TimeLimitError):
        run(fake_tool, "hangs", limit_s=0.5)
    stop = StopRequest()
    stop.set()
    with pytest.raises(InterruptedTransfer):
        run(fake_tool, "hangs", stop=stop)


@pytest.mark.parametrize(("name", "package"), [("ib_write_bw", "perftest"), ("ucx_perftest", "ucx-utils")])
def test_a_missing_tool_names_its_package(tmp_path, name, package):
    with pytest.raises(HostError) as caught:
        run(str(tmp_path / name))
    assert caught.value.code == "no_tool" and package in (caught.value.fix or "")


def test_ports_are_read_from_the_kernels_tables(tmp_path):
    head = "  sl  local_address rem_address   st\n"
    (tmp_path / "tcp").write_text(head + "0: 0100007F:4E20 00000000:0000 0A\n1: 0100007F:4E21 0100007F:1 01\n")
    (tmp_path / "udp").write_text(head + "0: 00000000:4E22 00000000:0000 07\n")
    assert open_ports(tmp_path) == {20000, 20002}
    assert free_port(0, {20000, 20001}) == 20002
