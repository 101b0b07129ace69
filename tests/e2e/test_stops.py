"""Transfers that end before their end: signals, limits, and peers that die, hang or go silent."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

SLOW = ("--mtu", 256, "--no-gso", "--tx-depth", 4, "--chunk", "64KiB")
BIG = "host,size=256MiB"


def begin(p2prw, one, operation, memory, *options, region="a", **how):
    """Start a slow transfer and return it once bytes are on their way."""
    count = len(one.lines)
    words = (operation, f"{one.address}/{region}", "--from" if operation == "write" else "--to", memory, *SLOW)
    running = p2prw.start(*words, *options, **how)
    one.wait_for_line(f"{operation}s ", after=count)
    # From the grant to the first completions.
    time.sleep(0.7)
    return running


def moved_some(document):
    (row,) = document["results"]
    assert 0 < row["bytes"] < row["size_bytes"], row
    assert document["partial"] is True
    return row["bytes"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_a_write(server, p2prw, tmp_path, parts, still_serves, number):
    one = server(f"--region=a=file:{tmp_path}/sink.bin")
    run = begin(p2prw, one, "write", BIG).interrupt(number)
    moved_some(run.interrupted(number))
    still_serves(one)
    assert not (tmp_path / "sink.bin").exists() and parts(tmp_path) == []


def test_signal_in_a_read_leaves_no_sink(server, p2prw, tmp_path, parts, still_serves):
    one = server(f"--region=a={BIG}")
    (tmp_path / "old.bin").write_bytes(b"old")
    run = begin(p2prw, one, "read", "file:new.bin").interrupt()
    moved_some(run.interrupted())
    assert not (tmp_path / "new.bin").exists() and parts(tmp_path) == []
    run = begin(p2prw, one, "read", "file:old.bin", "--overwrite").interrupt()
    moved_some(run.interrupted())
    assert (tmp_path / "old.bin").read_bytes() == b"old" and parts(tmp_path) == []
    still_serves(one)


def test_signal_for_a_person_and_for_a_stream(server, p2prw):
    one = server(f"--region=a={BIG}")
    text = begin(p2prw, one, "write", BIG, json=False).interrupt()
    assert text.code == 130 and "Traceback" not in text.stderr
    assert "interrupted" in text.stderr and "partial" in text.stdout + text.stderr, text
    stream = begin(p2prw, one, "write", BIG, "--json-stream", json=False).interrupt()
    events = [json.loads(line) for line in stream.stdout.splitlines()]
    assert stream.code == 130 and events[-1]["result"]["exit_code"] == 130
    assert any(event["event"] == "progress" for event in events)


def test_signal_while_connecting_and_two_signals(p2prw, server):
    one = server(f"--region=a={BIG}")
    port = one.port
    one.stop()
    running = p2prw.start("write", f"127.0.0.1:{port}/a", "--from", "host,size=64KiB", "--connect-retry", "30s")
    time.sleep(1.0)
    started = time.monotonic()
    running.interrupt().interrupted()
    assert time.monotonic() - started < 15


def test_two_signals_end_it_at_once(server, p2prw, still_serves):
    one = server(f"--region=a={BIG}")
    # The server stands still, so that the drain would take its whole time.
    running = begin(p2prw, one, "write", BIG, "--drain-timeout", "30s")
    os.kill(one.pid, signal.SIGSTOP)
    try:
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert running.process.poll() is None
        started = time.monotonic()
        running.interrupt().interrupted()
        assert time.monotonic() - started < 15
    finally:
        os.kill(one.pid, signal.SIGCONT)
    one.wait_for_line("peer_lost")
    still_serves(one)


def test_time_limit(server, p2prw, tmp_path, parts, still_serves):
    one = server(f"--region=a={BIG}")
    run = p2prw("read", f"{one.address}/a", "--to", "file:sink.bin", "--time-limit", "1.5s", *SLOW)
    error = run.failed(6, "time_limit")
    assert "bytes were moved" in error["why"] and "--time-limit" in error["try"] and run.wall_s < 20
    moved_some(run.document)
    assert not (tmp_path / "sink.bin").exists() and parts(tmp_path) == []
    still_serves(one)
    gone = one.port
    one.stop()
    run = p2prw("read", f"127.0.0.1:{gone}/a", "--to", "host", "--time-limit", "500ms", "--connect-retry", "20s")
    # Both are true; the worse one is told (contract, section 3), and it says what to do.
    run.failed(3, "connect_refused")
    assert run.wall_s < 20


def test_server_time_limit(server, p2prw):
    one = server("--region=a=host,size=64KiB", "--time-limit", "1s", "--json")
    one.may_fail = True
    assert one.join() == 6
    assert json.loads(one.stdout)["exit_code"] == 6


def test_server_ends_well_on_both_signals(server, p2prw):
    for number in (signal.SIGINT, signal.SIGTERM):
        one = server("--region=a=host,size=64KiB", "--json")
        p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB").ok()
        assert one.stop(number) == 0, one.log()
        document = json.loads(one.stdout)
        assert document["status"] == "ok" and [event["kind"] for event in document["results"]].count("granted") == 1


@pytest.mark.parametrize("operation", ["write", "read"])
def test_server_killed_in_mid_transfer(server, p2prw, tmp_path, parts, operation):
    one = server(f"--region=a={BIG}")
    one.may_fail = True
    running = begin(p2prw, one, operation, BIG if operation == "write" else "file:sink.bin")
    started = time.monotonic()
    one.process.kill()
    run = running.finish(60)
    assert time.monotonic() - started < 10
    error = run.failed(1, "peer_lost")
    bytes_done = moved_some(run.document)
    assert f"{bytes_done} of {256 * 1024 * 1024} bytes were moved" in error["why"]
    assert not (tmp_path / "sink.bin").exists() and parts(tmp_path) == []


def test_server_stopped_in_mid_transfer(server, p2prw, tmp_path, parts, still_serves):
    """A peer whose kernel answers but whose process does not: the queue pair's retries or --idle-timeout end it."""
    one = server(f"--region=a={BIG}")
    running = begin(p2prw, one, "read", "file:sink.bin", "--idle-timeout", "2s")
    os.kill(one.pid, signal.SIGSTOP)
    try:
        run = running.finish(60)
    finally:
        os.kill(one.pid, signal.SIGCONT)
    error = run.failed(1, "idle_timeout", "retry_exceeded")
    assert "bytes were moved" in error["why"] or " of " in error["what"]
    moved_some(run.document)
    assert not (tmp_path / "sink.bin").exists() and parts(tmp_path) == []
    still_serves(one)


@pytest.mark.parametrize("how", ["at its limit", "by a second signal"])
def test_server_ended_in_mid_transfer(server, p2prw, tmp_path, parts, how):
    """SIGTERM ends it with 0 also while a client is at work; the client is told, and knows what was moved."""
    limit_s = 1 if how == "at its limit" else 60
    one = server(f"--region=a=file:{tmp_path}/store.bin", "--stop-timeout", f"{limit_s}s")
    running = begin(p2prw, one, "write", BIG)
    one.process.send_signal(signal.SIGTERM)
    one.wait_for_line(f"stopping: 1 transfer may take another {limit_s} s")
    if limit_s > 1:
        one.process.send_signal(signal.SIGINT)
    assert one.join() == 0
    run = running.finish(60)
    error = run.failed(7, "server_stopped")
    assert error["side"] == "remote" and "--resume" in error["try"]
    moved_some(run.document)
    assert not (tmp_path / "store.bin").exists() and parts(tmp_path) == []


def test_server_asked_to_stop_lets_a_transfer_finish(server, p2prw, tmp_path):
    one = server(f"--region=a=file:{tmp_path}/store.bin", "--region=b=host,size=64KiB", "--json", "--stop-timeout=2m")
    count = len(one.lines)
    running = p2prw.start("write", f"{one.address}/a", "--from", "host,size=4MiB,pattern=words:7")
    one.wait_for_line("writes ", after=count)
    # It stands still meanwhile, so that it cannot be done too early.
    running.process.send_signal(signal.SIGSTOP)
    try:
        one.process.send_signal(signal.SIGTERM)
        one.wait_for_line("stopping: ")
        p2prw("write", f"{one.address}/b", "--from", "host,size=64KiB").failed(7, "stopping")
    finally:
        running.process.send_signal(signal.SIGCONT)
    run = running.finish().ok()
    assert run.row["bytes"] == (tmp_path / "store.bin").stat().st_size == 4 * 1024 * 1024
    assert one.join() == 0
    assert json.loads(one.stdout)["status"] == "ok"


@pytest.mark.parametrize("memory", [BIG, "file:store.bin"])
def test_client_killed_in_mid_transfer(server, p2prw, tmp_path, parts, still_serves, until, memory):
    one = server(f"--region=a={memory}")
    before = one.descriptors()
    running = begin(p2prw, one, "write", BIG)
    running.process.kill()
    running.process.wait(30)
    # The kernel closes the control connection, that frees the lease.
    one.wait_for_line("peer_lost", 10)
    p2prw("write", f"{one.address}/a", "--from", "host,size=1MiB,pattern=words:1").ok()
    p2prw("read", f"{one.address}/a", "--to", "file:back.bin", "--size", "1MiB").ok()
    assert parts(tmp_path) == []
    if memory.startswith("file"):
        assert (tmp_path / "store.bin").read_bytes() == (tmp_path / "back.bin").read_bytes()
    still_serves(one)
    # A client ends before the server has seen its connection end.
    until(lambda: one.descriptors() == before, 30, "all descriptors to be closed")


def test_client_stopped_in_mid_transfer(server, p2prw, tmp_path, parts, still_serves, until):
    """A client that holds a lease in silence loses it."""
    one = server(f"--region=a=file:{tmp_path}/store.bin", "--idle-timeout", "1.5s")
    running = begin(p2prw, one, "write", BIG)
    running.process.send_signal(signal.SIGSTOP)
    try:
        one.wait_for_line("nothing was heard for 1.5 s")
        until(lambda: parts(tmp_path) == [], 30, "the unfinished sink to go")
        still_serves(one)
    finally:
        running.process.send_signal(signal.SIGCONT)
    run = running.finish(60)
    run.failed(7, "idle")
    assert not (tmp_path / "store.bin").exists()
