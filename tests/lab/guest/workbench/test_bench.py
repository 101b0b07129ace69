"""Measurements over the kernel's rxe by both bindings: the form of the figures, never their size."""

from __future__ import annotations

from typing import Any

import pytest

from p2prw import api
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
