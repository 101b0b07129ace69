"""Measurements over the kernel's rxe by both bindings: the form of the figures, never their size."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from p2prw import api
from p2prw.against.session import run_against
from p2prw.against.tools import parse_command
from p2prw.engine.bench.model import BenchRequest
from p2prw.engine.model import Operation, QueuePairOptions

# The lab is slow: a retransmission timer of 1 s.
OPTIONS = QueuePairOptions(timeout=18)
ADDRESS = "10.9.0.1"


@pytest.mark.parametrize("binding", ["pyverbs", "ibverbs"])
def test_write_bandwidth_and_read_latency(binding):
    how: dict[str, Any] = {"device": "rxe0", "verbs_binding": binding, "queue_pair": OPTIONS}
    with api.serving({"mem": "host,size=1MiB"}, listen=f"{ADDRESS}:0", insecure=True, **how) as address:
        wrote = api.bench(
            f"{address}/mem", sizes=(65536,), iterations=200, queue_pairs=2, post_list=8, verify=True, connection=how
        )
        read = api.bench(
            f"{address}/mem",
            operations=(Operation.READ,),
            tests=("lat", "bw"),
            sizes=(64, 4096),
            iterations=50,
            verify=True,
            connection=how,
        )
    for result in (wrote, read):
        assert (result.error, result.exit_code, result.verify.status) == (None, 0, "verified")
        assert result.environment["device"]["binding"] == binding
        assert result.local_route is not None and (result.local_route.chosen, result.local_route.driver) == (
            "pin",
            "rxe",
        )
        assert all(row.complete and row.elapsed_s > 0 and row.verify == "verified" for row in result.results)
    (row,) = wrote.results
    assert (row.messages, row.bytes, row.wqes_posted, row.wqes_per_message) == (400, 400 * 65536, 400, 1)
    assert row.bw_bytes_per_s and row.wqes_signalled < 400
    for row in read.results[:2]:
        assert row.lat_min_us is not None and row.lat_p50_us is not None and row.lat_max_us is not None
        assert 0 < row.lat_min_us <= row.lat_p50_us <= row.lat_max_us
        assert sum(bucket.count for bucket in row.histogram) == row.messages == 50


def test_a_sweep_over_device_memory_and_a_region_that_is_copied(nvme, ivshmem):
    """Controller memory is registered (odp) and can be measured; a BAR is reached by copies, and is refused."""
    regions = {"cmb": f"p2pmem:{nvme('a')},size=256KiB", "bar": f"bar:{ivshmem}/2,offset=8MiB,size=64KiB"}
    how: dict[str, Any] = {"device": "rxe0", "queue_pair": OPTIONS}
    with api.serving(regions, listen=f"{ADDRESS}:0", insecure=True, **how) as address:
        result = api.bench(f"{address}/cmb", sizes=(4096, 65536), iterations=20, verify=True, connection=how)
        refused = api.bench(f"{address}/bar", sizes=(4096,), iterations=20, connection=how)
    assert refused.error is not None and (refused.error.code, refused.exit_code) == ("staged_region", 3)
    assert (result.error, [row.verify for row in result.results]) == (None, ["verified", "verified"])
    assert result.remote_route is not None and (result.remote_route.chosen, result.remote_route.memory) == (
        "odp",
        "p2pmem",
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """A server process on rxe0: what watches memory or posts by itself does so on a CPU, and a GIL, of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> str:
        ready = tmp_path_factory.mktemp("serve") / "ready"
        command = [sys.executable, "-m", "p2prw", "serve", "--device", "rxe0", "--listen", f"{ADDRESS}:0", "--insecure"]
        started.append(subprocess.Popen([*command, "--timeout", "18", "--ready-file", str(ready), *words]))
        deadline_s = time.monotonic() + 60
        while not (ready.exists() and ready.read_text().endswith("\n")):
            assert started[-1].poll() is None and time.monotonic() < deadline_s, "the server is not there"
            time.sleep(0.1)
        return ready.read_text().strip()

    yield start
    for process in started:
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def served(server: Callable[..., str]) -> str:
    return server("--region", "mem=host,size=1MiB", "--region", "wo=host,size=64KiB,access=w")


@pytest.mark.parametrize("binding", ["pyverbs", "ibverbs"])
def test_a_ping_pong_is_half_a_round_trip(served, binding):
    how: dict[str, Any] = {"device": "rxe0", "verbs_binding": binding, "queue_pair": OPTIONS}
    result = api.bench(
        f"{served}/mem", tests=("lat",), lat_by="ping-pong", sizes=(2, 4096), iterations=100, warm_up=10,
        verify=True, connection=how,
    )  # fmt: skip
    assert (result.error, result.exit_code, result.environment["device"]["binding"]) == (None, 0, binding)
    for row in result.results:
        assert (row.lat_by, row.messages, row.wqes_posted, row.verify) == ("ping-pong", 100, 100, "verified")
        assert row.lat_min_us is not None and row.lat_p50_us is not None and 0 < row.lat_min_us <= row.lat_p50_us


@pytest.mark.parametrize("binding", ["pyverbs", "ibverbs"])
@pytest.mark.parametrize("operation", list(Operation))
def test_both_directions_at_once(served, operation, binding):
    how: dict[str, Any] = {"device": "rxe0", "verbs_binding": binding, "queue_pair": OPTIONS}
    result = api.bench(
        f"{served}/mem", operations=(operation,), both_ways=True, sizes=(64, 65536), iterations=100, queue_pairs=2,
        verify=True, connection=how,
    )  # fmt: skip
    assert (result.error, result.exit_code) == (None, 0)
    for row in result.results:
        assert (row.both_ways, row.complete, row.verify, row.out_messages) == (True, True, "verified", 200)
        assert row.in_messages and row.in_bw_bytes_per_s and row.out_bw_bytes_per_s


@pytest.mark.parametrize(
    ("region", "wishes", "code"),
    [
        ("wo", {"tests": ("lat",), "lat_by": "ping-pong"}, "bad_right"),
        ("wo", {"both_ways": True}, "bad_right"),
    ],
)
def test_what_may_not_be_read_is_not_posted(served, region, wishes, code):
    how: dict[str, Any] = {"device": "rxe0", "queue_pair": OPTIONS}
    result = api.bench(f"{served}/{region}", sizes=(8,), iterations=20, connection=how, **wishes)
    assert result.error is not None and (result.error.code, result.exit_code) == (code, 7)


def test_a_passive_server_refuses_both(server):
    address = server("--region", "mem=host,size=1MiB", "--passive")
    how: dict[str, Any] = {"device": "rxe0", "queue_pair": OPTIONS}
    for wishes in ({"both_ways": True}, {"tests": ("lat",), "lat_by": "ping-pong"}):
        result = api.bench(f"{address}/mem", sizes=(8,), iterations=20, connection=how, **wishes)
        assert result.error is not None and (result.error.code, result.exit_code) == ("passive", 7)


def test_perftest_is_asked_for_both_directions_too(served):
    """One pair, for the form."""
    how: dict[str, Any] = {"device": "rxe0", "queue_pair": replace(OPTIONS, gid_index=1)}
    connection = api.make_request(Operation.WRITE, f"{served}/mem", "host", **how)
    request = BenchRequest(connection=connection, both_ways=True, sizes=(65536,), iterations=100)
    result = api.finish(run_against(request, parse_command("ib_write_bw -x 1 -N"), 1, os.environ))
    assert (result.error, result.exit_code) == (None, 0)
    against = result.against
    assert against is not None and " -b" in against.client and " -b" in against.server
    assert against.p2prw.bw_bytes_per_s == (result.results[0].bw_bytes_per_s,) and against.other.bw_median_bytes_per_s
