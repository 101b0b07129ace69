"""`p2prw bench` as processes over the software device: figures, thresholds, refusals, signals, lost peers."""

from __future__ import annotations

import json
import signal
import time

import pytest


def measured(run, code=0):
    assert run.code == code, run
    assert "Traceback" not in run.stderr, run
    return run.document["results"]


def test_every_test_and_operation_verified(p2prw, scratch, still_serves):
    rows = measured(
        p2prw(
            "bench", f"{scratch.address}/a", "--op", "both", "--test", "all", "-s", "1,4097,64K", "-n", 30, "--verify"
        )
    )
    assert [(row["operation"], row["test"], row["size_bytes"]) for row in rows] == [
        (operation, test, size)
        for operation in ("write", "read")
        for test in ("bw", "lat")
        for size in (1, 4097, 65536)
    ]
    assert all(row["complete"] and row["messages"] == 30 and row["verify"] == "verified" for row in rows)
    assert all((row["lat_p99_us"] is None) == (row["test"] == "bw") for row in rows)
    still_serves(scratch)


def test_a_sweep_of_two_queue_pairs_into_perftests_columns_and_a_picture(p2prw, scratch, tmp_path):
    run = p2prw(
        "bench", f"{scratch.address}/b", "-a", "-q", 2, "-n", 3, "--format", "perftest", "-N", "-F",
        "--plot", "sizes.svg", json=False,
    )  # fmt: skip
    assert run.code == 0, run
    head, *rows = run.stdout.splitlines()
    assert head.startswith(" #bytes     #iterations    BW peak[MiB/sec]")
    assert [int(row.split()[0]) for row in rows] == [1 << power for power in range(1, 22)], (
        "2 MiB is half of the region"
    )
    assert all(row.split()[1:3] == ["6", "0.00"] for row in rows)
    assert (tmp_path / "sizes.svg").read_text().startswith("<svg")


def test_lines_come_as_they_are_measured(p2prw, scratch):
    run = p2prw("bench", f"{scratch.address}/c", "-s", "64,128", "-D", "0.2", "--json-stream", json=False)
    events = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.code == 0 and [event["event"] for event in events] == ["measured", "measured", "result"], run
    assert [event["row"] for event in events[:2]] == events[2]["result"]["results"]


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (("ro",), 7, "read_only"),
        (("wo", "--op", "read"), 7, "write_only"),
        (("file", "--op", "read"), 3, "staged_region"),
        (("nowhere",), 7, "unknown_region"),
        (("d", "-s", "8M"), 7, "region_too_small"),
        (("d", "-n", "5", "--min-bw", "1000000 GiB/s"), 5, "threshold_missed"),
        (("d", "-n", "5", "--test", "lat", "--max-lat", "max=1us"), 5, "threshold_missed"),
        (("d", "-n", "5", "-D", "1"), 2, "usage"),
    ],
)
def test_what_is_refused_or_missed_ends_with_its_code(p2prw, scratch, words, exit_code, code):
    region, *options = words
    p2prw("bench", f"{scratch.address}/{region}", *options).failed(exit_code, code)


def test_a_write_only_region_is_measured_and_verified_without_a_flush(p2prw, scratch):
    (row,) = measured(p2prw("bench", f"{scratch.address}/wo", "-s", "4K", "-n", 20, "--verify"))
    assert row["verify"] == "verified"


@pytest.mark.parametrize("test", ["bw", "lat"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_was_measured(p2prw, scratch, still_serves, test, number):
    count = len(scratch.lines)
    running = p2prw.start("bench", f"{scratch.address}/a", "--test", test, "-s", "4K", "-n", 1 << 39)
    scratch.wait_for_line("writes 4 KiB", after=count)
    time.sleep(1.0)
    document = running.interrupt(number).interrupted(number)
    (row,) = document["results"]
    assert document["partial"] is True and row["complete"] is False and row["messages"] > 0
    assert row["bw_bytes_per_s"] > 0 and (row["lat_p50_us"] is not None) == (test == "lat")
    still_serves(scratch)


def test_a_server_that_dies_leaves_what_was_measured(server, p2prw):
    one = server("--region=a=host,size=1MiB")
    one.may_fail = True
    count = len(one.lines)
    running = p2prw.start("bench", f"{one.address}/a", "-s", "64,4K", "-D", 3, "--idle-timeout", "3s", "--retry-cnt", 1)
    one.wait_for_line("writes 4 KiB", after=count)
    time.sleep(4.5)  # the first size is through, the second on its way
    one.process.send_signal(signal.SIGKILL)
    run = running.finish(60)
    error = run.failed(1, "peer_lost", "retry_exceeded", "idle_timeout")
    document = run.document
    assert document["partial"] is True and error["what"]
    assert [row["complete"] for row in document["results"]] == [True, False]
    assert all(row["messages"] > 0 for row in document["results"])


def test_data_that_is_spoilt_on_the_way_is_found_only_by_verify(p2prw, scratch):
    """A flipped bit under a right ICRC (`corrupt=`): the figures are fine, the memory is not."""
    words = ("bench", f"{scratch.address}/d", "-s", "64K", "-n", 1, "--warm-up", 0, "--inject", "corrupt=5000")
    assert measured(p2prw(*words))[0]["verify"] == "unverified"
    run = p2prw(*words, "--verify")
    run.failed(4, "verify_mismatch")
    assert run.document["verify"]["first_bad_offset"] == 5000


def test_loss_slows_it_down_and_is_counted(p2prw, scratch):
    (row,) = measured(
        p2prw(
            "bench",
            f"{scratch.address}/a",
            "-s",
            "64K",
            "-n",
            100,
            "--inject",
            "drop=1%,seed=3",
            "--verify",
            "--timeout",
            14,
        )
    )
    assert row["complete"] and row["verify"] == "verified" and row["retransmitted_packets"] > 0


@pytest.mark.parametrize("operation", ["write", "read"])
def test_both_directions_between_processes_verified(p2prw, scratch, still_serves, operation):
    rows = measured(
        p2prw("bench", f"{scratch.address}/a", "-b", "--op", operation, "-s", "64,64K", "-n", 200, "-q", 2, "--verify")
    )
    for row in rows:
        assert (row["both_ways"], row["complete"], row["verify"]) == (True, True, "verified")
        assert row["out_messages"] == 400 and row["in_messages"] > 0
        assert row["bw_bytes_per_s"] == pytest.approx(row["out_bw_bytes_per_s"] + row["in_bw_bytes_per_s"])
    still_serves(scratch)


def test_a_client_that_is_killed_in_the_middle_of_both_directions_is_let_go(p2prw, scratch, still_serves):
    count = len(scratch.lines)
    running = p2prw.start("bench", f"{scratch.address}/a", "-b", "-s", "4K", "-n", 1 << 39)
    scratch.wait_for_line("writes 4 KiB", after=count)
    time.sleep(0.5)
    running.end()
    still_serves(scratch)
