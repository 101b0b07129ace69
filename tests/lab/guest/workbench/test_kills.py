"""Either side killed over rxe: the other ends in time with the right status, and the kernel has everything back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.events import ServeEvent
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Operation, PeerAddress, QueuePairOptions, ServedRegion, ServeRequest, Timeouts
from p2prw.engine.server.server import Server
from p2prw.engine.stop import StopRequest
from p2prw.units import MIB

ADDRESS = "10.9.0.1"
QUICK = Timeouts(connect_retry_s=30.0, handshake_s=30.0, idle_s=20.0)
OPTIONS = QueuePairOptions(timeout=16)
LIMIT_S = 30.0
"""The idle timeout, and what a guest on a busy machine needs on top."""

CLIENT = """
import os, signal, sys
from p2prw import api
from p2prw.engine.model import Operation, QueuePairOptions
target, memory = sys.argv[1:3]
request = api.make_request(Operation.WRITE, target, memory, device="rxe0", verify=False,
                           queue_pair=QueuePairOptions(timeout=18), chunk_bytes=4096, staging_chunk_bytes=65536)
told = False
for progress in api.transfer(request):
    if progress.bytes_done and not told:
        told = True
        print("moving", flush=True)
        # Here it stays until it is killed, however long the other side takes to look around.
        os.kill(os.getpid(), signal.SIGSTOP)
"""

SERVER = """
import sys
import time
from p2prw import api
regions = dict(word.split("=", 1) for word in sys.argv[2:])
with api.serving(regions, listen=sys.argv[1], device="rxe0", insecure=True):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def pool(nvme: Any) -> Callable[[str], int]:
    """Bytes that are left in a controller's P2P memory."""
    return lambda serial: int((Path("/sys/bus/pci/devices") / nvme(serial) / "p2pmem/available").read_text())


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a Python program and wait for its first line; killed afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: str, says: bytes) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == says
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(what: str, met: Callable[[], bool]) -> float:
    """Return after how many seconds `met` held."""
    began = time.monotonic()
    while not met():
        assert time.monotonic() - began < LIMIT_S, f"{what} did not come about"
        time.sleep(0.05)
    return time.monotonic() - began


def test_a_client_that_is_killed(child, rdma_objects, pool, nvme, tmp_path):
    """In the middle of a WRITE out of controller memory into a staged file."""
    before, free_bytes = rdma_objects(), pool("c")
    sink = ServedRegion(name="sink", memory=parse_memory_spec(f"file:{tmp_path}/killed.bin"))
    listen = PeerAddress(ADDRESS, 0)
    request = ServeRequest(
        regions=(sink,), listen=listen, device="rxe0", insecure=True, once=True, queue_pair=OPTIONS, timeouts=QUICK
    )
    events: list[ServeEvent] = []
    codes: list[int] = []
    stop = StopRequest()
    with Server(request) as server:
        thread = threading.Thread(target=lambda: codes.append(server.run(stop, events.append)))
        thread.start()
        try:
            memory = f"p2pmem:{nvme('c')},size=32MiB"
            client = child(CLIENT, f"{server.address}/sink", memory, says=b"moving\n")
            during = rdma_objects()
            assert during["qp"] >= before["qp"] + 2 and during["mr"] >= before["mr"] + 2, "both sides hold some"
            assert pool("c") <= free_bytes - 32 * MIB
            assert [path.name for path in tmp_path.iterdir()] != ["killed.bin"], "still under its temporary name"
            os.kill(client.pid, signal.SIGKILL)
            client.wait()
            wait_for("the end of the server", lambda: bool(codes))
        finally:
            stop.set()
            thread.join(LIMIT_S)
    assert codes == [1]
    (failed,) = [event for event in events if event.kind == "failed"]
    assert failed.fields["code"] == "peer_lost"
    assert list(tmp_path.iterdir()) == [], "neither the file nor its temporary one"
    assert rdma_objects() == before
    assert pool("c") == free_bytes


def test_a_server_that_is_killed(child, rdma_objects, pool, nvme, tmp_path):
    """In the middle of a WRITE into its controller memory."""
    before, free_bytes = rdma_objects(), pool("a")
    regions = (f"cmb=p2pmem:{nvme('a')},size=32MiB", f"sink=file:{tmp_path}/killed.bin")
    server = child(SERVER, f"{ADDRESS}:18777", *regions, says=b"ready\n")
    assert pool("a") <= free_bytes - 32 * MIB
    request = api.make_request(
        Operation.WRITE,
        f"{ADDRESS}:18777/cmb",
        "host,size=32MiB",
        device="rxe0",
        verify=False,
        chunk_bytes=4096,
        queue_pair=OPTIONS,
        timeouts=QUICK,
    )
    steps = api.transfer(request)
    killed_s = 0.0
    while True:
        try:
            progress = next(steps)
        except StopIteration as finished:
            result: Any = finished.value
            break
        if progress.bytes_done and not killed_s:
            during = rdma_objects()
            assert during["qp"] >= before["qp"] + 2 and during["mr"] >= before["mr"] + 2, "both sides hold some"
            os.kill(server.pid, signal.SIGKILL)
            killed_s = time.monotonic()
    assert killed_s and time.monotonic() - killed_s < LIMIT_S
    assert result.exit_code == 1 and result.partial
    assert result.error.code in ("peer_lost", "retry_exceeded")
    server.wait()
    assert rdma_objects() == before
    assert pool("a") == free_bytes
    assert not (tmp_path / "killed.bin").exists()
