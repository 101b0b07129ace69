"""Whole scenarios in processes of their own: the matrix that CI runs, and everything that can end one too early."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from lxml import etree

from p2prw.scenario.schema import scenario_schema
from p2prw.schema import load_schema

MATRIX = """\
name: matrix
seed: 42
steps:
  - name: server
    matrix: {host: ["127.0.0.1", "[::1]"]}
    serve:
      listen: "${host}:0"
      overwrite: true
      regions: {memory: "host,size=1MiB", file: "file:${dir}/served.bin,size=1MiB"}
  - name: move
    matrix:
      size: [1, 4097, 256K]
      op: [write, read]
      region: [memory, file]
      host: ["127.0.0.1", "[::1]"]
    op: ${op}
    transfer: {peer: "${server.address}/${region}", from: "host,size=${size}", to: host, size: "${size}"}
    expect: [verify == verified, route == cpu]
  - name: refused by the device
    matrix: {host: ["127.0.0.1"]}
    write: {peer: "${server.address}/memory", from: "host,size=64K"}
    device: {name: soft0, inject: "rkey=100%"}
    expect: error == RemoteAccess
  - name: too slow
    matrix: {host: ["127.0.0.1"]}
    write: {peer: "${server.address}/memory", from: "host,size=64K"}
    expect: bw >= 900 GiB/s
vars: {dir: "."}
"""

SLOW = """\
steps:
  - {name: server, serve: {regions: {memory: "host,size=256MiB"}}}
  - {name: quick, read: {peer: "${server.address}/memory", to: host, size: 4K}}
  - name: slow
    read: {peer: "${server.address}/memory", to: host, chunk: 64KiB, connect_retry: 2s}
    device: {mtu: 256, no_gso: true, tx_depth: 1}
  - {name: later, read: {peer: "${server.address}/memory", to: host, size: 4K}}
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def words_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has just ended
        return []


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def valid_junit(path: Path) -> Any:
    """The one suite of a JUnit file that CI systems read."""
    root = etree.parse(str(path)).getroot()
    etree.XMLSchema(etree.parse(str(Path(__file__).parents[1] / "data/junit-10.xsd"))).assertValid(root)
    (suite,) = root
    return suite


def rows_of(document):
    return {row["name"]: row for row in document["results"]}


@pytest.mark.slow
def test_the_matrix_of_ci(p2prw, tmp_path, until):
    """3 sizes x 2 operations x 2 memories x 2 devices, a failure that is expected, a threshold that is missed."""
    (tmp_path / "served.bin").write_bytes(os.urandom(1 << 20))
    (tmp_path / "m.yaml").write_text(MATRIX)
    Draft202012Validator(scenario_schema()).validate(yaml.safe_load(MATRIX))
    run = p2prw("run", "m.yaml", "--junit", "j.xml", "--markdown", "m.md")
    assert run.code == 5, run.stderr
    document = run.document
    assert document["error"]["code"] == "threshold_missed" and document["partial"] is False
    rows = rows_of(document)
    moved = [row for row in rows.values() if row["step"] == "move"]
    assert len(moved) == 24 and {row["status"] for row in moved} == {"pass"}
    assert {row["result"]["verify"]["status"] for row in moved} == {"verified"}
    assert {row["result"]["environment"]["device"]["name"] for row in moved} == {"soft0", "soft:::1"}
    assert {row["result"]["route"]["remote"]["memory"] for row in moved} == {"host", "file"}
    refused = rows["refused by the device[host=127.0.0.1]"]
    assert (refused["status"], refused["exit_code"], refused["command_exit_code"]) == ("pass", 0, 7)
    assert refused["result"]["error"]["wc_status"] == "REM_ACCESS_ERR"
    slow = rows["too slow[host=127.0.0.1]"]
    assert (slow["status"], slow["exit_code"], slow["command_exit_code"]) == ("fail", 5, 0)
    junit = valid_junit(tmp_path / "j.xml")
    assert (junit.get("tests"), junit.get("failures"), junit.get("errors")) == ("28", "1", "0")
    assert "| FAIL |" in (tmp_path / "m.md").read_text()
    again = repeat(rows, tmp_path, until)
    for name, found in again.items():
        assert found == told(rows[name]["command_exit_code"], rows[name]["result"]), name


def told(code, document):
    """What must be the same when a row's command is pasted."""
    error = document["error"] and document["error"]["code"]
    return code, error, document["verify"]["status"], document["verify"]["local_digest"], document["route"]


def repeat(rows, directory, until):
    """Paste every printed command: the servers first, in the background; return row -> what came of it."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("P2PRW_")}
    env |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    program = f'p2prw() {{ exec {shlex.quote(sys.executable)} -m p2prw "$@"; }}\n'

    def start(command):
        return subprocess.Popen(
            ["bash", "-c", program + command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=directory,
            env=env,
        )

    def tell(name, client):
        stdout, stderr = client.communicate(timeout=120)
        assert stdout, (name, stderr)
        return told(client.returncode, json.loads(stdout))

    servers = [start(row["command"]) for row in rows.values() if row["action"] == "serve"]
    try:
        found = {}
        clients = [row for row in rows.values() if row["action"] != "serve"]
        assert all(row["servers"] for row in clients)
        # In their order: a read finds what the write before it left.
        for row in clients:
            found[row["name"]] = tell(row["name"], start(row["command"]))
        return found
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.communicate(timeout=30)


def begin_slow(p2prw, tmp_path, until, *options):
    """Start the slow scenario and return it, and its children, once the slow row is on its way."""
    (tmp_path / "s.yaml").write_text(SLOW)
    running = p2prw.start("run", "s.yaml", *options)
    pid = running.process.pid

    until(lambda: any(b"--chunk" in words_of(child) for child in children_of(pid)), 60, "the slow row")
    # It has to load itself and connect before bytes are on their way.
    time.sleep(2.0)
    return running, children_of(pid)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal(p2prw, tmp_path, until, number):
    running, children = begin_slow(p2prw, tmp_path, until, "--junit", "j.xml")
    run = running.interrupt(number)
    assert run.code == 128 + number
    document = run.document
    rows = rows_of(document)
    assert document["status"] == "interrupted" and document["partial"] is True
    assert [rows[name]["status"] for name in ("server", "quick", "slow", "later")] == [
        "pass",
        "pass",
        "fail",
        "not_run",
    ]
    assert rows["slow"]["exit_code"] == 128 + number and rows["slow"]["result"]["status"] == "interrupted"
    assert len(children) == 2 and not any(map(is_alive, children))
    assert valid_junit(tmp_path / "j.xml").get("tests") == "4"


@pytest.mark.slow
def test_kill_9_leaves_no_server(p2prw, tmp_path, until):
    running, children = begin_slow(p2prw, tmp_path, until)
    running.process.kill()
    running.process.communicate(timeout=30)
    until(lambda: not any(map(is_alive, children)), 30, "the end of all children")


@pytest.mark.slow
def test_a_peer_that_is_killed(p2prw, tmp_path, until):
    running, children = begin_slow(p2prw, tmp_path, until)
    (server,) = [child for child in children if b"serve" in words_of(child)]
    os.kill(server, signal.SIGKILL)
    run = running.finish()
    assert run.code == 1
    rows = rows_of(run.document)
    assert run.document["partial"] is True
    assert rows["slow"]["error_code"] in ("peer_lost", "retry_exceeded", "connect_refused")
    assert (rows["server"]["status"], rows["server"]["error_code"]) == ("fail", "server_died")
    assert rows["later"]["status"] == "fail" and rows["later"]["exit_code"] == 3


FULL_DISK = """\
steps:
  - {name: server, serve: {regions: {memory: "file:MARK,size=128K"}}}
  - {name: fits, read: {peer: "${server.address}/memory", to: "file:disk/one.bin"}}
  - {name: full, read: {peer: "${server.address}/memory", to: "file:disk/two.bin"}}
  - {name: later, read: {peer: "${server.address}/memory", to: host, size: 4K}}
"""


@pytest.mark.slow
@pytest.mark.netns
def test_a_disk_that_is_full_in_the_middle(tmp_path):
    """A real disk of 192 KiB, in a mount namespace of its own: the second file finds no room."""
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o size=192k tmpfs disk"
    tried = subprocess.run(["unshare", "-m", "sh", "-c", mount], cwd=tmp_path, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a small disk cannot be mounted: {tried.stderr.strip()} (as root: pytest --force-netns)")
    mark = tmp_path / "served.bin"
    mark.write_bytes(bytes(range(256)) * 512)
    (tmp_path / "s.yaml").write_text(FULL_DISK.replace("MARK", str(mark)))
    p2prw = f"{shlex.quote(sys.executable)} -m p2prw run s.yaml --json --junit disk/j.xml"
    script = f"{mount} && {{ {p2prw}; code=$?; ls -A disk > left; exit $code; }}"
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    document = json.loads(run.stdout)
    rows = rows_of(document)
    assert run.returncode == document["exit_code"] == 3, run.stderr
    assert document["partial"] is True and document["error"]["code"] == "no_space"
    assert rows["full"]["result"]["error"]["errno"] == "ENOSPC" and rows["full"]["status"] == "fail"
    assert [rows[name]["status"] for name in ("server", "fits", "later")] == ["pass"] * 3
    assert (tmp_path / "left").read_text().split() == ["j.xml", "one.bin"], "no part of the second file"
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and str(mark) in command_of(pid)]


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_figures_of_bench_steps(p2prw, tmp_path):
    (tmp_path / "s.yaml").write_text(
        SLOW.partition("  - {name: quick")[0]
        + """\
  - name: latency
    bench: {peer: "${server.address}/memory", test: lat, sizes: "2,64", iters: 50}
    expect: [lat_p99 <= 30 s, lat_p50 <= 1 us]
  - name: rate
    bench: {peer: "${server.address}/memory", op: read, sizes: 4K, iters: 50}
    expect: [bw >= 1 B/s, route == cpu]
"""
    )
    run = p2prw("run", "s.yaml")
    rows = rows_of(run.document)
    assert run.code == 5 and run.document["partial"] is False, run.stderr
    p99, p50 = rows["latency"]["expect"]
    assert (p99["outcome"], p50["outcome"]) == ("met", "missed")
    # Of two sizes the slower one counts.
    assert p99["measured"] == max(row["lat_p99_us"] for row in rows["latency"]["result"]["results"]) / 1e6
    assert rows["rate"]["status"] == "pass" and rows["rate"]["bw_bytes_per_s"] > 0


@pytest.mark.slow
def test_reports_that_cannot_be_written_are_refused_before_anything_runs(p2prw, tmp_path):
    (tmp_path / "s.yaml").write_text("steps: [{name: v, read: {peer: 127.0.0.1:1/a, to: host, connect_retry: 0}}]")
    run = p2prw("run", "s.yaml", "--junit", "none/j.xml")
    assert run.code == 3 and "none/j.xml" in run.document["error"]["what"] and run.document["results"] == []


@pytest.mark.slow
def test_a_stream_tells_every_row(p2prw, tmp_path):
    (tmp_path / "s.yaml").write_text(SLOW.partition("  - name: slow")[0])
    run = p2prw("run", "s.yaml", "--json-stream", json=False)
    events = [json.loads(line) for line in run.stdout.splitlines()]
    validator = Draft202012Validator(load_schema("stream.schema.json"))
    for event in events:
        validator.validate(event)
    told = [(event["state"], event["row"]["name"]) for event in events if event["event"] == "row"]
    assert told == [("started", "server"), ("started", "quick"), ("finished", "quick"), ("finished", "server")]
    assert events[-1]["result"]["exit_code"] == 0 == run.code
