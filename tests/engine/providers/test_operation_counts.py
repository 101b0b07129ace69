"""What the software device does for a fixed piece of work, in counts: a guard against slowness that no clock decides.

The figures in operation_counts.json are what was counted when they were recorded; a run may lie a little beside them
(Python versions differ), not far above, and not far below either: what got better is recorded, so that it stays. After
a change that is meant: UPDATE_OPERATION_COUNTS=1 pytest tests/engine/providers/test_operation_counts.py, and read the
diff.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from p2prw.engine.model import Opcode, QueuePairOptions, Sge
from p2prw.engine.roce.leaf import COMPILED

RECORDED = Path(__file__).parent / "operation_counts.json"
UPDATE = "UPDATE_OPERATION_COUNTS"
SLACK = {"sends": 0.0, "copied_out_bytes": 0.0}
SLACK_OF_OTHERS = 0.05
"""How far a count may lie from the recorded one, as a share of it."""
MIB = 1 << 20
WRITE, READ = Opcode.RDMA_WRITE, Opcode.RDMA_READ
# name -> opcode, messages, bytes of each, queue pairs, whether with compiled code
SCENARIOS = {
    "write_1mib": (WRITE, 4, MIB, 1, False),
    "read_1mib": (READ, 4, MIB, 1, False),
    "write_64b": (WRITE, 256, 64, 1, False),
    "read_64b": (READ, 128, 64, 1, False),
    "write_64kib_on_8_queue_pairs": (WRITE, 4, 64 * 1024, 8, False),
    "read_64kib_on_8_queue_pairs": (READ, 4, 64 * 1024, 8, False),
    "write_1mib_compiled": (WRITE, 4, MIB, 1, True),
    "read_1mib_compiled": (READ, 4, MIB, 1, True),
}


class CountingSocket:
    """The one door of a device, with a counter at it."""

    def __init__(self, device: Any, memory: memoryview, counts: dict[str, int]) -> None:
        self._real, self._memory, self._counts = device.wire.sock, memory.obj, counts
        device.wire.sock = self
        if device.wire._send_runs is not None:
            self._send, device.wire._send_runs = device.wire._send_runs, self.send_runs
            self._take, device.wire._take_runs = device.wire._take_runs, self.take_runs

    def send_runs(self, *arguments: Any) -> Any:
        result = self._send(*arguments)
        self._counts["sends"] += result[0]
        # Made anew for each burst, headers and all.
        data, mtu_bytes, packets = arguments[5:8]
        self._counts["copied_out_bytes"] += min(result[0] * packets, len(data) // mtu_bytes) * (mtu_bytes + 16)
        return result

    def take_runs(self, *arguments: Any) -> Any:
        result = self._take(*arguments)
        self._counts["receives"] += result[1]
        return result

    def sendmsg(self, buffers: Any, *more: Any) -> int:
        self._counts["sends"] += 1
        # Whatever is not a window into the registered memory was made for this send.
        self._counts["copied_out_bytes"] += sum(
            len(one) for one in buffers if not (isinstance(one, memoryview) and one.obj is self._memory)
        )
        return int(self._real.sendmsg(buffers, *more))

    def recvmsg_into(self, *arguments: Any) -> Any:
        self._counts["receives"] += 1
        return self._real.recvmsg_into(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def count(
    connect: Callable[..., Any], opcode: Opcode, messages: int, length: int, pairs: int, leaf: bool
) -> dict[str, int]:
    """Run a scenario between two devices in this process; both sides' operations, after one message to warm up."""
    pair = connect(options=QueuePairOptions(timeout=20), leaf=leaf)
    assert (pair.client.wire._send_runs is not None) == leaf
    for device in (pair.client, pair.server):
        if leaf and device.receive_buffer_bytes < 4 * MIB:
            pytest.skip("windows of 2 MiB need root, or: sysctl net.core.rmem_max=8388608")
        # What a host without privileges grants, so that windows are the same everywhere.
        device.receive_buffer_bytes = 4 * MIB if leaf else 208 * 1024
    queues = [pair.queue]
    for _ in range(pairs - 1):
        near, far = (device.create_queue_pair(QueuePairOptions(timeout=20)) for device in (pair.client, pair.server))
        far.connect(near.local)
        near.connect(far.local)
        queues.append(near)
    for queue in queues:
        queue.set_window(pair.server.receive_window_bytes() // pairs)
    (near_keys,), (far_keys,) = pair.near_keys.vec, pair.far_keys.remote_segments()
    sges = (Sge(near_keys.address, length, near_keys.lkey),)

    def run(number: int) -> None:
        left = dict.fromkeys(range(pairs), number)
        posted = [0] * pairs
        done = [0] * pairs
        while any(done[i] < left[i] for i in left):
            for i, queue in enumerate(queues):
                while posted[i] < number and posted[i] - done[i] < 64:
                    posted[i] += 1
                    signaled = posted[i] % 16 == 0 or posted[i] == number
                    queue.post_rdma(posted[i], opcode, sges, far_keys.address, far_keys.rkey, signaled=signaled)
            pair.client.pump()
            pair.server.pump()
            for i, queue in enumerate(queues):
                for completion in queue.poll():
                    assert not completion.status
                    done[i] = completion.wr_id

    run(1)
    counts = dict.fromkeys(("sends", "receives", "copied_out_bytes", "objects", "python_calls", "c_calls"), 0)
    CountingSocket(pair.client, pair.near.bytes, counts)
    CountingSocket(pair.server, pair.far.bytes, counts)
    counting = (CountingSocket.sendmsg, CountingSocket.recvmsg_into, CountingSocket.send_runs, CountingSocket.take_runs)
    own = {run.__code__, *(method.__code__ for method in counting)}

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if frame.f_code in own or "test_operation_counts" in frame.f_code.co_filename:
            return
        if event == "call":
            counts["python_calls"] += 1
            # A named tuple is made by its __new__, everything else of ours by its __init__.
            counts["objects"] += frame.f_code.co_name in ("__init__", "__new__", "<lambda>")
        elif event == "c_call":
            counts["c_calls"] += 1

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run(messages)
    finally:
        sys.setprofile(before)
    assert pair.queue.counters.retransmitted_packets == 0
    return counts


@pytest.mark.parametrize("name", SCENARIOS)
def test_operations_are_as_many_as_recorded(connect: Callable[..., Any], name: str) -> None:
    if SCENARIOS[name][-1] and COMPILED is None:
        pytest.skip("this installation has no compiled leaf (apt-get install gcc python3-dev, then install again)")
    counts = count(connect, *SCENARIOS[name])
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get(UPDATE):
        recorded[name] = counts
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    changed = [
        f"{what}: {counts[what]}, recorded {there} ({counts[what] / there - 1:+.1%})"
        for what, there in recorded[name].items()
        if abs(counts[what] - there) > there * SLACK.get(what, SLACK_OF_OTHERS)
    ]
    assert not changed, (
        f"{name}: " + "; ".join(changed) + f". More is slower: mend it. If it is meant, or less: {UPDATE}=1, run again "
        "and read the diff of operation_counts.json"
    )
