"""`p2prw smoke` as a process: alone, against `serve --smoke`, stopped, and with a server that dies or falls silent."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

XSD = etree.XMLSchema(etree.parse(str(Path(__file__).parents[1] / "data/junit-10.xsd")))


def outcomes(document: dict[str, Any]) -> Counter[str]:
    return Counter(row["status"] for row in document["results"] if row["row"] == "cell")


def own_folders(where: Path) -> list[str]:
    return [name for name in os.listdir(where) if name.startswith("p2prw-smoke-")]


@pytest.fixture
def tmpdir_env(tmp_path):
    """A TMPDIR of its own, so that what is left behind is seen."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return {"TMPDIR": str(folder)}


def test_a_machine_without_rdma(p2prw, tmp_path, tmpdir_env):
    """What the purpose promises: exit 0, 24 cells at least, two kinds of memory, two devices, skips explained."""
    run = p2prw("smoke", "--junit", "smoke.xml", env=tmpdir_env).ok()
    cells = [row for row in run.document["results"] if row["row"] == "cell"]
    soft = [row for row in cells if row["device"] in ("soft0", "soft:::1")]
    expected_devices = {"soft0", "soft:::1"} if socket.has_dualstack_ipv6() else {"soft0"}
    assert {row["device"] for row in soft} == expected_devices
    assert len(soft) >= 18 * len(expected_devices)
    assert {row["status"] for row in cells} == {"pass"}
    assert {"host", "file"} <= {row["memory"] for row in soft}
    assert {row["operation"] for row in soft} == {"read", "write"}
    assert {row["size_class"] for row in soft} == {"small", "odd", "large"}
    assert {row["route"]["local"]["chosen"] for row in soft} == {"cpu"}
    skips = [row for row in run.document["results"] if row["row"] == "skip"]
    assert all(row["reason"] for row in skips)
    root = etree.parse(str(tmp_path / "smoke.xml")).getroot()
    XSD.assertValid(root)
    assert sum(int(suite.get("tests")) for suite in root) == len(cells) + len(skips)
    assert own_folders(tmp_path / "tmp") == []


def test_each_printed_command_does_its_cell_again(p2prw, tmp_path):
    """A few of them, file cells too, pasted into a shell; first what passes, then what fails."""
    document = p2prw("smoke", "--quick", "--device", "soft0", "--seed", "3").ok().document
    wanted = [("host", "write", "odd"), ("file", "write", "small"), ("file", "read", "odd")]
    rows = {(row["memory"], row["operation"], row["size_class"]): row for row in document["results"]}
    for key in wanted:
        assert again(rows[key], tmp_path) == (0, 0), rows[key]
    failing = p2prw(
        "smoke", "--quick", "--device", "soft0", "--memory", "host", "--seed", "3", "--inject", "corrupt=70"
    )
    assert failing.failed(4, "verify_mismatch")["try"].startswith("p2prw ")
    row = next(row for row in failing.document["results"] if row["status"] == "fail")
    assert again(row, tmp_path)[0] == 4


def again(row: dict[str, Any], directory: Path) -> tuple[int, int]:
    """Run the server and the client of a cell as they stand, but for a free port; return the client's and its code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = f"{shlex.quote(sys.executable)} -m p2prw"
    options: dict[str, Any] = {
        "shell": True,
        "cwd": directory,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "P2PRW_PORT": str(port)}
    server = subprocess.Popen(
        row["serve_command"].replace("p2prw serve", f"exec {program} serve"), env=environ, **options
    )
    try:
        client = row["command"].replace(f"p2prw {row['operation']}", f"{program} {row['operation']}")
        code = subprocess.run(client, env=environ, timeout=60, check=False, **options).returncode
        return code, server.wait(30)
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_loses_no_cell(p2prw, tmp_path, tmpdir_env, until, number):
    running = p2prw.start("smoke", "--full", "--seed", "1", "--junit", "smoke.xml", env=tmpdir_env)
    until(lambda: own_folders(tmp_path / "tmp"), 30, "the first file of the smoke test")
    time.sleep(1.0)
    run = running.interrupt(number)
    document = run.interrupted(number)
    counts = outcomes(document)
    assert document["partial"] is True
    assert counts["not_run"] >= 1
    assert document["summary"]["cells"] == counts.total() >= 48
    assert document["summary"]["not_run"] == counts["not_run"]
    root = etree.parse(str(tmp_path / "smoke.xml")).getroot()
    XSD.assertValid(root)
    assert sum(int(suite.get("errors")) for suite in root) == counts["not_run"]
    assert own_folders(tmp_path / "tmp") == []
    # Its servers were threads of the process that is gone: nobody holds the loopback's RoCE port.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 4791))


def test_the_time_limit_of_all(p2prw, tmpdir_env):
    run = p2prw("smoke", "--full", "--time-limit", "2s", env=tmpdir_env)
    assert run.failed(6, "time_limit")
    assert run.document["partial"] is True
    assert outcomes(run.document)["not_run"] > 0
    assert outcomes(run.document)["fail"] == 0


# --- against a peer ---


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("a secret of eight bytes and more\n")
    path.chmod(0o600)
    return path


def test_a_peer(p2prw, server, token, tmp_path):
    one = server("--smoke", "--region", "mine=host,size=64KiB", "--token-file", token)
    run = p2prw("smoke", one.address, "--token-file", token).ok()
    cells = [row for row in run.document["results"] if row["row"] == "cell"]
    assert {row["region"] for row in cells} >= {"smoke-host"}
    assert "mine" not in {row["region"] for row in cells}, "nobody said that this one may be written"
    assert {row["memory"] for row in cells} >= {"host", "file"}
    assert all(row["serve_command"] is None and "--token-file" in row["command"] for row in cells)
    assert run.document["params"]["peer"] == one.address
    assert p2prw("smoke", one.address).failed(7, "auth_required")


def test_two_smoke_tests_at_one_server(p2prw, server):
    """They want the same regions; each waits for the moments in which the other holds them."""
    one = server("--smoke")
    for run in p2prw.together(("smoke", one.address, "--quick"), ("smoke", one.address, "--quick")):
        run.ok()


def test_a_server_that_dies_in_the_middle(p2prw, server, until):
    one = server("--smoke")
    one.may_fail = True
    running = p2prw.start("smoke", one.address, "--full", "--json-stream", json=False)
    seen: list[dict[str, Any]] = []
    for line in running.process.stdout:
        seen.append(json.loads(line))
        if sum(event["event"] == "cell" for event in seen) == 3:
            os.kill(one.pid, signal.SIGKILL)
        if seen[-1]["event"] == "result":
            break
    run = running.finish()
    document = seen[-1]["result"]
    counts = outcomes(document)
    assert run.code == document["exit_code"] in (1, 3)
    assert counts["pass"] >= 3
    assert 1 <= counts["fail"] <= 4
    assert counts["not_run"] == document["summary"]["cells"] - counts["pass"] - counts["fail"] > 0
    assert document["partial"] is True
    assert run.wall_s < 60


def test_a_server_that_falls_silent_fails_the_cell_in_time(p2prw, server, until):
    one = server("--smoke")
    running = p2prw.start("smoke", one.address, "--full", "--idle-timeout", "2s", "--handshake-timeout", "2s",
                          "--time-limit", "20s", "--json-stream", json=False)  # fmt: skip
    seen: list[dict[str, Any]] = []
    try:
        for line in running.process.stdout:
            seen.append(json.loads(line))
            if sum(event["event"] == "cell" for event in seen) == 3:
                os.kill(one.pid, signal.SIGSTOP)
            if seen[-1]["event"] == "cell" and seen[-1]["cell"]["status"] == "fail":
                os.kill(one.pid, signal.SIGCONT)
                break
        assert seen[-1]["cell"]["error"]["code"] in ("deadline", "peer_lost", "retry_exceeded", "transport_retry"), (
            seen[-1]
        )
        assert seen[-1]["cell"]["exit_code"] == 1
    finally:
        os.kill(one.pid, signal.SIGCONT)
    running.process.send_signal(signal.SIGINT)
    rest = [json.loads(line) for line in running.process.stdout]
    assert rest[-1]["event"] == "result"
    running.finish()


def test_a_full_disk_for_the_report(p2prw):
    """All cells passed, and still one document, which says what is missing."""
    run = p2prw("smoke", "--quick", "--device", "soft0", "--junit", "/dev/full")
    assert run.code == 3
    error = run.document["error"]
    assert (error["code"], error["errno"]) == ("report_file", "ENOSPC")
    assert outcomes(run.document) == {"pass": 12}
