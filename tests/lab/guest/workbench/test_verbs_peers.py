"""Bigger transfers over rxe, and what all tests before them have left open."""

from __future__ import annotations

from typing import Any

from p2prw import api
from p2prw.engine.model import QueuePairOptions, Timeouts
from p2prw.units import MIB

OPTIONS = QueuePairOptions(timeout=18)


def test_bigger_ones(nvme):
    """64 MiB WRITE of host memory, 16 MiB READ of controller memory."""
    regions = {"mem": "host,size=64MiB", "cmb": f"p2pmem:{nvme('a')},size=16MiB"}
    # A pattern of 64 MiB takes its time under emulation, and a server waits for its client meanwhile.
    options: dict[str, Any] = {"queue_pair": OPTIONS, "timeouts": Timeouts(handshake_s=60.0, idle_s=60.0)}
    with api.serving(regions, listen="10.9.0.1:0", insecure=True, **options) as address:
        wrote: Any = api.write(f"{address}/mem", "host,size=64MiB,pattern=words:1", **options)
        read: Any = api.read(f"{address}/cmb", "host", **options)
    for result, size in ((wrote, 64 * MIB), (read, 16 * MIB)):
        assert (result.error, result.exit_code) == (None, 0)
        assert result.results[0].bytes == size
        assert result.results[0].bw_bytes_per_s > 1e6, "emulated, and still some tens of MB/s"


def test_nothing_is_left_in_the_kernel(rdma_objects):
    assert rdma_objects() == {"qp": 0, "mr": 0, "cq": 0, "pd": 0}
