"""Whole transfers between the software device and rxe, both ways; dead peers; what is left open; bigger ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.model import Operation, QueuePairOptions, Timeouts
from p2prw.units import MIB

OPTIONS = QueuePairOptions(timeout=18)
QUICK = Timeouts(connect_retry_s=20.0, handshake_s=20.0, idle_s=20.0)
RXE, SOFT = "10.9.1.1", "10.9.1.2"


@pytest.mark.parametrize("operation", ["write", "read"])
def test_software_client_and_rxe_server(in_peer, operation):
    regions = {"mem": "host,size=4MiB,pattern=words:3"}
    with api.serving(regions, listen=f"{RXE}:0", insecure=True, queue_pair=OPTIONS) as address, in_peer():
        move: Any = api.write if operation == "write" else api.read
        memory = "host,size=2MiB,pattern=words:8" if operation == "write" else "host"
        result = move(f"{address}/mem+5", memory, size_bytes=MIB + 1, queue_pair=OPTIONS, timeouts=QUICK)
    assert (result.error, result.exit_code, result.verify.status) == (None, 0, "verified")
    assert (result.local_route.driver, result.remote_route.driver) == ("soft", "rxe")


@pytest.mark.parametrize("operation", ["write", "read"])
def test_rxe_client_and_software_server(in_peer, operation):
    with in_peer():
        served = api.serving({"mem": "host,size=4MiB,pattern=words:3"}, listen=f"{SOFT}:0", insecure=True)
        address = served.__enter__()
    try:
        move: Any = api.write if operation == "write" else api.read
        memory = "host,size=2MiB,pattern=words:8" if operation == "write" else "host"
        result = move(f"{address}/mem+5", memory, size_bytes=MIB + 1, queue_pair=OPTIONS, timeouts=QUICK)
    finally:
        served.__exit__(None, None, None)
    assert (result.error, result.exit_code, result.verify.status) == (None, 0, "verified")
    assert (result.local_route.driver, result.remote_route.driver) == ("rxe", "soft")


def test_bigger_ones(nvme):
    """64 MiB WRITE of host memory, 16 MiB READ of controller memory."""
    regions = {"mem": "host,size=64MiB", "cmb": f"p2pmem:{nvme('a')},size=16MiB"}
    with api.serving(regions, listen="10.9.0.1:0", insecure=True, queue_pair=OPTIONS) as address:
        wrote: Any = api.write(f"{address}/mem", "host,size=64MiB,pattern=words:1", queue_pair=OPTIONS)
        read: Any = api.read(f"{address}/cmb", "host", queue_pair=OPTIONS)
    for result, size in ((wrote, 64 * MIB), (read, 16 * MIB)):
        assert (result.error, result.exit_code, result.results[0].bytes) == (None, 0, size)
        assert result.results[0].bw_bytes_per_s > 1e6, "emulated, and still some tens of MB/s"


SERVER = """
import sys, time
from p2prw import api
from p2prw.engine.model import QueuePairOptions
with api.serving({"mem": "host,size=256MiB"}, listen="10.9.0.1:18777", insecure=True):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_server_that_is_killed_ends_the_client_in_time():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        request = api.make_request(
            Operation.WRITE,
            "10.9.0.1:18777/mem",
            "host,size=256MiB",
            verify=False,
            queue_pair=QueuePairOptions(timeout=16),
            timeouts=QUICK,
        )
        steps = api.transfer(request)
        killed_s = 0.0
        try:
            while True:
                progress = next(steps)
                if progress.bytes_done and not killed_s:
                    os.kill(server.pid, signal.SIGKILL)
                    killed_s = time.monotonic()
        except StopIteration as end:
            result = end.value
    assert killed_s and time.monotonic() - killed_s < 30
    assert result.exit_code == 1 and result.partial
    assert result.error.code in ("peer_lost", "retry_exceeded", "remote_access")


def test_nothing_is_left_in_the_kernel(text_of):
    for kind in ("qp", "mr", "cq", "pd"):
        rows = [
            line for line in text_of("rdma", "resource", "show", kind).splitlines() if f"pid {os.getpid()} " in line
        ]
        assert not rows, f"{kind}: {rows}"
