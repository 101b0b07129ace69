"""`p2prw bench` at the command line: words to request, perftest's habits, thresholds, what is shown; no peer at all."""

from __future__ import annotations

import json
import shlex
import sys
import types
from collections.abc import Generator
from typing import Any

import pytest

from p2prw.engine.bench.model import BenchProgress, BenchRequest, BenchResult, BenchRow
from p2prw.engine.model import Operation, RouteReport, VerifyReport

WRITE, READ = Operation.WRITE, Operation.READ
ROUTE = RouteReport("cpu", "cpu", False, "host", "soft0", "soft")
ROW = BenchRow(
    test="bw", operation="write", size_bytes=64, complete=True, queue_pairs=1, tx_depth=128, signal_every=32,
    post_list=None, wqes_per_message=1, warm_up_messages=1, messages=10, bytes=640, elapsed_s=0.1,
    msg_rate_per_s=100.0, bw_bytes_per_s=6400.0,
)  # fmt: skip


class FakeBench:
    """`p2prw.engine.bench.session`: records the request and plays one row."""

    def __init__(self) -> None:
        self.requests: list[BenchRequest] = []
        self.stops: list[Any] = []

    def run_bench(self, request: BenchRequest, *, stop: Any = None) -> Generator[Any, None, BenchResult]:
        self.requests.append(request)
        self.stops.append(stop)
        yield BenchProgress("bw", "write", 64, 1, 1, 5, 10, 0.05, None, 6400.0, 3)
        yield ROW
        return BenchResult(
            status="ok", exit_code=0, params={"peer": "h", "region": "r"},
            environment={
                "cpus": 2, "python": "3", "kernel": "6", "clock": "c", "device": {"name": "soft0", "driver": "soft"}
            },
            local_route=ROUTE, remote_route=ROUTE, results=(ROW,), verify=VerifyReport("unverified"),
            phases={"steady": 0.1},
        )  # fmt: skip


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> FakeBench:
    fake = FakeBench()
    module: Any = types.ModuleType("p2prw.engine.bench.session")
    module.run_bench = fake.run_bench
    monkeypatch.setitem(sys.modules, "p2prw.engine.bench.session", module)
    return fake


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"operations": (WRITE,), "tests": ("bw",), "sizes": None, "sweep": False, "queue_pairs": 1}),
        (["--op", "both", "--test", "all"], {"operations": (WRITE, READ), "tests": ("bw", "lat")}),
        (["-s", "65536"], {"sizes": (65536,)}),
        (["--size", "4K,64K,1M"], {"sizes": (4096, 65536, 1 << 20)}),
        (
            ["-a", "-n", "100", "-q", "4", "-l", "16"],
            {"sweep": True, "iterations": 100, "queue_pairs": 4, "post_list": 16},
        ),
        (["-s", "64K", "--walk", "64M"], {"walk_bytes": 64 << 20}),
        (["--walk", "none"], {"walk_bytes": None}),
        (["-D", "5"], {"duration_s": 5.0, "iterations": None}),
        (["-b"], {"both_ways": True}),
        (["--bidirectional"], {"both_ways": True}),
        (["--warm-up", "0", "--verify"], {"warm_up": 0, "verify": True}),
        (["--min-bw", "1 GiB/s"], {"min_bw_bytes_per_s": float(1 << 30)}),
        (["--min_bw", "8Gb/s"], {"min_bw_bytes_per_s": 1e9}),
        (["--max-lat", "p99=50us,p99.9=1ms"], {"max_latency_us": {"p99": 50.0, "p99.9": 1000.0}}),
        (["--report_gbits", "-N", "-F"], {}),
    ],
)
def test_words_become_the_request(run, bench, words, expected):
    assert run("bench", "10.0.0.1:99/scratch+4K", *words).exit_code == 0
    request = bench.requests[-1]
    assert (str(request.connection.peer), request.connection.region_offset) == ("10.0.0.1:99", 4096)
    assert request.connection.memory.kind == "host"
    for name, value in expected.items():
        assert getattr(request, name) == (pytest.approx(value) if name == "max_latency_us" else value), name


def test_perftests_line_is_understood_as_it_stands(run, bench):
    """Everything from a typical ib_write_bw line but the host."""
    words = shlex.split(
        "-d soft0 -i 1 -x 3 -p 18599 -s 65536 -n 5000 -t 128 -Q 32 -q 2 -m 1024 -l 4 -N -F --report_gbits"
    )
    assert run("bench", "127.0.0.1/scratch", *words).exit_code == 0
    request = bench.requests[-1]
    connection = request.connection
    assert (connection.device, connection.peer.port, connection.signal_every) == ("soft0", 18599, 32)
    pair = connection.queue_pair
    assert (pair.depth, pair.gid_index, pair.mtu_bytes) == (128, 3, 1024)
    assert (request.sizes, request.iterations, request.queue_pairs, request.post_list) == ((65536,), 5000, 2, 4)


def test_each_way_of_speaking(run, bench):
    text = run("bench", "h/r")
    assert "MSG/s" in text.stdout and "soft0 [soft]" in text.stdout and "bench write -> h:18515/r" in text.stderr
    perftest = run("bench", "h/r", "--format", "perftest", "--report_gbits")
    assert perftest.stdout.splitlines()[0].startswith(" #bytes     #iterations    BW peak[Gb/sec]")
    assert len(perftest.stdout.splitlines()) == 2
    document, _ = run.json("bench", "h/r", "--json")
    assert document["results"][0]["messages"] == 10
    stream = [json.loads(line) for line in run("bench", "h/r", "--json-stream").stdout.splitlines()]
    assert [line["event"] for line in stream] == ["measured", "result"]
    assert run("bench", "h/r", "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["h/r", "--min-bw", "fast"], "bad_rate"),
        (["h/r", "--min-bw", "5 MiB"], "bad_rate"),
        (["h/r", "--max-lat", "p99"], "bad_value"),
        (["h/r", "--max-lat", "p98=1us"], "bad_value"),
        (["h/r", "--max-lat", "p99=soon"], "bad_duration"),
        (["h/r", "-s", "4K,,8K"], "bad_size"),
        (["h/r", "-s", "0"], "bad_size"),
        (["h/r", "-n", "0"], "bad_value"),
        (["h/r", "--test", "speed"], "bad_value"),
        (["h"], "bad_target"),
        ([], "missing_peer"),
        (["h/r", "--from", "host"], "unknown_option"),
    ],
)
def test_usage_errors_are_one_document_that_ends_2(run, bench, words, code):
    document, result = run.json("bench", *words, "--json")
    assert (document["error"]["code"], result.exit_code) == (code, 2)
    assert document["error"]["why"] and document["error"]["try"]
    assert bench.requests == []


def test_wishes_that_exclude_each_other_are_usage_too(run):
    document, result = run.json("bench", "127.0.0.1:1/r", "-a", "-s", "4K", "--json")
    assert (document["error"]["code"], result.exit_code) == ("usage", 2)


@pytest.mark.parametrize("option", ["-n", "-D", "-q"])
def test_other_commands_name_bench_for_its_options(run, option):
    result = run("write", "h/r", "--from", "host", option, "5")
    assert result.exit_code == 2 and "p2prw bench PEER/REGION --op write" in result.stderr


def test_a_picture_is_drawn_where_it_can_be_and_refused_at_once_where_not(run, bench, tmp_path):
    picture = tmp_path / "sizes.svg"
    assert run("bench", "h/r", "--plot", str(picture)).exit_code == 0
    assert picture.read_text().startswith("<svg") and "h/r over soft0" in picture.read_text()
    measured = len(bench.requests)
    for bad in (tmp_path / "no" / "such.svg", tmp_path):
        document, result = run.json("bench", "h/r", "--plot", str(bad), "--json")
        assert (document["error"]["code"], result.exit_code) == ("cannot_write_plot", 3)
    document, result = run.json("bench", "h/r", "--plot", str(tmp_path / "sizes.png"), "--json")
    assert (document["error"]["code"], result.exit_code) == ("bad_plot", 2)
    assert document["error"]["try"] == f"--plot {tmp_path / 'sizes.svg'}"
    assert len(bench.requests) == measured, "nothing was measured for a picture that cannot be kept"


def test_settings_come_from_the_environment_and_are_shown(run, bench):
    assert run("bench", "h/r", env={"P2PRW_ITERS": "7", "P2PRW_OP": "read"}).exit_code == 0
    assert (bench.requests[-1].iterations, bench.requests[-1].operations) == (7, (READ,))
    shown = run("bench", "h/r", "-a", "--show-config")
    assert shown.exit_code == 0 and "min_bw" in shown.stdout and "post_list" in shown.stdout


def test_a_file_has_a_map_of_its_own_and_shares_that_of_transfers(run, bench, tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("device: {tx_depth: 16}\ntransfer: {peer: h/r, idle_timeout: 7}\n"
                    "bench: {op: read, iters: 9, sizes: '4K,1M', max_lat: p99=2ms}\n")  # fmt: skip
    assert run("bench", "-c", str(path), "-n", "11").exit_code == 0
    request = bench.requests[-1]
    assert (request.operations, request.iterations, request.sizes) == ((READ,), 11, (4096, 1 << 20))
    assert (request.depth, request.connection.timeouts.idle_s, request.max_latency_us) == (16, 7, {"p99": 2000})
    shown, _ = run.json("bench", "-c", str(path), "--show-config", "--json")
    origins = {row["name"]: row["origin"] for row in shown["results"]}
    assert origins["op"].startswith(f"file {path}:3:") and origins["qp"] == "default"
    path.write_text("bench: {itters: 9}\n")
    document, result = run.json("bench", "h/r", "-c", str(path), "--json")
    assert (document["error"]["code"], result.exit_code) == ("unknown_key", 2) and "iters" in document["error"]["try"]


def test_another_tool_is_checked_before_anything_runs(run, bench):
    for words in (["--against", "iperf3"], ["--against", "ib_read_bw"], ["--against", "ib_write_bw -s 4K"]):
        document, result = run.json("bench", "127.0.0.1/r", *words, "--json")
        assert (document["error"]["code"], result.exit_code) in (("bad_against", 2), ("unlike", 2))
    assert bench.requests == []
