"""Whole measurements against a real server in this process, over the software device."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.bench.model import BenchProgress, BenchRequest, BenchResult, BenchRow
from p2prw.engine.bench.session import run_bench
from p2prw.engine.model import Operation, QueuePairOptions, Timeouts
from p2prw.engine.pattern import Pattern
from p2prw.engine.stop import StopRequest
from p2prw.units import KIB, MIB

WRITE, READ = Operation.WRITE, Operation.READ
BOTH = (WRITE, READ)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("served") / "file.bin"
    path.write_bytes(bytes(1 << 16))
    with api.serving({"mem": "host,size=1MiB,pattern=words:5", "file": f"file:{path}"}) as address:
        yield str(address)


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with api.serving({"ro": "host,size=64KiB"}, access="r") as address:
        yield str(address)


@pytest.fixture
def measure(served):
    """Run to the end: (rows as they came, samples, result)."""

    def run(
        region: str = "mem", *, at: str = "", stop: StopRequest | None = None, memory: str = "host", **wishes: Any
    ) -> tuple[list[BenchRow], list[BenchProgress], BenchResult]:
        connection = api.make_request(WRITE, f"{at or served}/{region}", memory, **wishes.pop("connection", {}))
        steps = run_bench(BenchRequest(connection=connection, **wishes), stop=stop)
        rows: list[BenchRow] = []
        samples: list[BenchProgress] = []
        while True:
            try:
                event = next(steps)
            except StopIteration as finished:
                return rows, samples, finished.value
            if isinstance(event, BenchRow):
                rows.append(event)
            else:
                samples.append(event)

    return run


def test_both_operations_and_tests_at_every_size_verified(measure):
    rows, _, result = measure(operations=BOTH, tests=("bw", "lat"), sizes=(1, 4097, 65536), iterations=20, verify=True)
    assert (result.error, result.exit_code, result.status, result.partial) == (None, 0, "ok", False)
    assert [(row.test, row.operation, row.size_bytes) for row in rows] == [
        (test, operation, size)
        for operation in ("write", "read")
        for test in ("bw", "lat")
        for size in (1, 4097, 65536)
    ]
    assert tuple(rows) == result.results
    for row in rows:
        assert (row.complete, row.messages, row.bytes, row.verify) == (True, 20, 20 * row.size_bytes, "verified")
        assert row.elapsed_s > 0 and row.bw_bytes_per_s == pytest.approx(row.bytes / row.elapsed_s)
        assert (row.lat_p50_us is not None) == (row.test == "lat") == bool(row.histogram)
    assert result.verify.status == "verified"


def test_what_the_figures_depend_on_is_in_the_result(measure):
    _, _, result = measure(iterations=5, connection={"queue_pair": QueuePairOptions(depth=16)})
    assert result.local_route is not None and result.remote_route is not None
    assert (result.local_route.chosen, result.remote_route.chosen) == ("cpu", "cpu")
    facts = result.environment
    assert facts["device"]["name"].startswith("soft") and facts["negotiated"]["path_mtu_bytes"] == 4096
    assert facts["cpus"] > 0 and facts["python"] and "clock" in facts and facts["clock_resolution_s"] > 0
    assert set(result.phases) >= {"open", "map", "register", "exchange", "connect", "steady", "close"}
    assert result.results[0].tx_depth == 16 and result.results[0].verify == "unverified"
    assert result.verify.status == "unverified" and result.verify.why


def test_a_sweep_ends_where_the_region_ends_and_says_so(measure):
    rows, _, result = measure("mem+786432", operations=BOTH, sweep=True, iterations=2)
    assert [row.size_bytes for row in rows] == 2 * [1 << power for power in range(1, 19)]
    assert len(result.warnings) == 1 and "262144" in result.warnings[0]


def test_a_sweep_of_several_queue_pairs_shares_the_region(measure):
    rows, _, result = measure("mem+786432", queue_pairs=4, sweep=True, iterations=2)
    assert rows[-1].size_bytes == 65536 and rows[-1].messages == 8 and result.exit_code == 0


def test_a_sweep_without_room_is_refused(measure):
    _, _, result = measure("mem+1048575", sweep=True)
    assert result.error is not None and (result.error.code, result.exit_code) == ("region_too_small", 3)


def test_chains_as_long_as_the_queue_go_on_whatever_the_signals(measure):
    """What a chain leaves unsignalled never completes by itself: it would keep the next one waiting for ever."""
    connection = {"queue_pair": QueuePairOptions(depth=8), "signal_every": 3}
    rows, _, result = measure(sizes=(64,), iterations=40, post_list=8, connection=connection)
    assert result.error is None and [(row.messages, row.signal_every) for row in rows] == [(40, 1)]


def test_several_queue_pairs_write_side_by_side(measure):
    rows, _, result = measure(
        operations=BOTH, queue_pairs=3, sizes=(64 * KIB,), iterations=16, post_list=4, verify=True
    )
    assert (result.error, [row.messages for row in rows]) == (None, [48, 48])
    assert all((row.queue_pairs, row.post_list, row.verify) == (3, 4, "verified") for row in rows)


def test_a_walk_writes_all_of_it_and_is_in_the_row(measure, tmp_path):
    with api.serving({"blank": "host,size=64KiB"}) as address:
        filled = {"memory": "host,size=64KiB,pattern=words:5"}
        walk = {"sizes": (4096,), "walk_bytes": 65536, "iterations": 16, "warm_up": 0}
        (row,), _, result = measure("blank", at=str(address), **filled, **walk)
        assert (result.error, row.walk_bytes, row.walk_places, row.messages) == (None, 65536, 16, 16)
        assert result.params["walk_bytes"] == 65536 and result.verify.why == "a walk is not compared"
        assert api.read(f"{address}/blank", f"file:{tmp_path}/arrived").error is None
        expected = bytearray(65536)
        Pattern("words", 5).fill(memoryview(expected), 0)
        assert (tmp_path / "arrived").read_bytes() == expected, "every message went to its own place"
        for operation, test in ((READ, "bw"), (READ, "lat"), (WRITE, "lat")):
            (row,), _, result = measure("blank", at=str(address), operations=(operation,), tests=(test,), **walk)
            assert (result.error, row.walk_bytes, row.messages) == (None, 65536, 16)


def test_a_sweep_of_a_walk_ends_where_the_walk_does(measure):
    rows, _, result = measure(sweep=True, walk_bytes=4096, iterations=2)
    assert result.error is None and [row.size_bytes for row in rows] == [1 << power for power in range(1, 13)]
    assert "4096 bytes" in result.warnings[0]


def test_a_walk_of_each_queue_pair_is_in_its_own_piece(measure):
    walk = {"sizes": (4096,), "walk_bytes": 65536, "iterations": 32}
    (row,), _, result = measure(queue_pairs=16, **walk)
    assert (result.error, row.messages, row.queue_pairs) == (None, 512, 16)
    _, _, result = measure(queue_pairs=17, **walk)
    assert (result.exit_code, result.error.code) == (7, "region_too_small"), "the region has room for sixteen walks"
    assert result.error.fix == "a region of 1088KiB there, or less of -q, -s and --walk"


def test_a_run_by_time_yields_progress(measure):
    rows, samples, _ = measure(duration_s=0.6, sizes=(4096,))
    assert rows[0].elapsed_s >= 0.6 and rows[0].messages > 0
    assert len(samples) >= 2
    last = samples[-1]
    assert (last.messages_total, last.duration_s, last.step, last.steps) == (None, 0.6, 1, 1)
    assert 0 < last.messages_done <= rows[0].messages and last.bw_bytes_per_s > 0


def test_a_run_by_time_has_a_bounded_queue_and_one_by_number_the_whole(measure):
    """What is in flight when the time is up is waited for."""
    (by_time,), _, _ = measure(duration_s=0.1, sizes=(MIB,))
    (by_number,), _, _ = measure(iterations=3, sizes=(MIB,))
    assert (by_time.tx_depth, by_number.tx_depth) == (64, 128)


def test_work_requests_are_as_many_as_were_asked_for(measure):
    rows, _, _ = measure(iterations=64, warm_up=0, sizes=(512,), connection={"signal_every": 8})
    assert (rows[0].wqes_posted, rows[0].wqes_signalled, rows[0].warm_up_messages) == (64, 8, 0)


@pytest.mark.parametrize(
    ("region", "wishes", "code", "exit_code"),
    [
        ("nothing", {}, "unknown_region", 7),
        ("mem", {"sizes": (2 * MIB,)}, "region_too_small", 7),
        ("mem", {"sizes": (512 * KIB,), "queue_pairs": 3}, "region_too_small", 7),
        ("file", {"operations": (READ,), "sizes": (4096,)}, "staged_region", 3),
        ("mem", {"sizes": (4096,), "memory": "host,size=1024"}, "size_does_not_fit", 2),
        ("mem", {"min_bw_bytes_per_s": 1e15, "iterations": 5}, "threshold_missed", 5),
    ],
)
def test_what_cannot_be_measured_says_why(measure, region, wishes, code, exit_code):
    _, _, result = measure(region, **wishes)
    assert result.error is not None and (result.error.code, result.exit_code) == (code, exit_code)
    assert result.status == "failed" and (result.error.why or result.error.fix)
    assert bool(result.results) == (code == "threshold_missed") and not result.partial


@pytest.mark.parametrize(("walk_bytes", "said"), [(None, "--sizes 4KiB"), (65536, "--walk 64KiB")])
def test_local_memory_without_room_names_what_was_asked_for(measure, walk_bytes, said):
    _, _, result = measure(sizes=(4096,), walk_bytes=walk_bytes, memory="host,size=1024", iterations=20)
    assert result.error.what == f"{said} is more than the local memory holds"
    assert result.error.why == "host,size=1024 is 1 KiB" and "leave --local-memory away" in result.error.fix


def test_a_region_that_may_not_be_written_is_refused(measure, guarded):
    _, _, result = measure("ro", at=guarded)
    assert result.error is not None and (result.error.code, result.exit_code) == ("read_only", 7)
    _, _, result = measure("ro", at=guarded, operations=(READ,), iterations=3, verify=True)
    assert result.exit_code == 0 and result.verify.status == "verified"


def test_a_stop_keeps_the_rows_and_lets_go_of_the_lease(measure):
    stop = StopRequest()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    rows, _, result = measure(sizes=(64, 4096), iterations=1 << 30, stop=stop)
    timer.join()
    assert (result.status, result.exit_code, result.partial) == ("interrupted", 130, True)
    assert rows == [] and len(result.results) == 1
    row = result.results[0]
    assert not row.complete and row.messages > 0 and row.bw_bytes_per_s
    assert measure(iterations=2)[2].exit_code == 0, "the lease is free again"


def test_a_time_limit_ends_6_with_what_was_measured(measure):
    _, _, result = measure(iterations=1 << 30, connection={"timeouts": Timeouts(time_limit_s=2.0)}, sizes=(64,))
    assert (result.exit_code, result.partial) == (6, True) and result.results[0].messages > 0


def test_a_dropped_generator_lets_go_of_everything(served, measure):
    connection = api.make_request(WRITE, f"{served}/mem", "host")
    steps = run_bench(BenchRequest(connection=connection, duration_s=30.0))
    next(steps)
    steps.close()
    deadline = time.monotonic() + 5
    while (result := measure(iterations=2)[2]).exit_code != 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert result.exit_code == 0


def test_two_measurements_of_one_region_exclude_each_other(served, measure):
    connection = api.make_request(WRITE, f"{served}/mem", "host")
    steps = run_bench(BenchRequest(connection=connection, duration_s=30.0))
    next(steps)
    _, _, result = measure(iterations=2)
    steps.close()
    assert result.error is not None and (result.error.code, result.exit_code) == ("busy", 7)
