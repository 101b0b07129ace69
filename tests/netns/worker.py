"""One end of a transfer between two network namespaces; run by test_loss.py, one process for each end.

Talks JSON lines: says who it is on stdout, is told about the other end on stdin, says how it went on stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import select
import sys
import time

from p2prw.engine.model import Access, Opcode, QueuePairAttributes, QueuePairOptions, Sge
from p2prw.engine.providers.soft import SoftDevice, open_soft_device

WR_BYTES = 256 * 1024
DEADLINE_S = 60


class Buffer:
    def __init__(self, content: bytearray) -> None:
        self.bytes = memoryview(content)
        self.view: memoryview | None = self.bytes
        self.length_bytes = len(content)
        self.cpu_address = 0

    def load(self, offset: int, length_bytes: int) -> memoryview:
        return self.bytes[offset : offset + length_bytes]

    def store(self, offset: int, data: bytes | memoryview) -> None:
        self.bytes[offset : offset + len(data)] = data


def wait(device: SoftDevice, *more: int) -> list[int]:
    descriptors = [*device.filenos(), *more]
    writable = list(device.filenos()) if device.wants_write() else []
    return select.select(descriptors, writable, [], device.next_timer_s())[0]


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["client", "server"])
    parser.add_argument("device")
    parser.add_argument("--operation", choices=["write", "read"], required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--gso", type=int, required=True)
    parser.add_argument("--timeout", type=int, required=True)
    args = parser.parse_args()
    is_source = (args.role == "client") == (args.operation == "write")
    content = random.Random(1).randbytes(args.size) if is_source else bytes(args.size)
    buffer = Buffer(bytearray(content))
    with open_soft_device(args.device, local_address=None, udp_port=None, role=args.role, gso=bool(args.gso)) as device:
        keys = device.register([buffer], Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE)
        pair = device.create_queue_pair(QueuePairOptions(timeout=args.timeout, retry_cnt=7))
        say(
            attributes=dataclasses.asdict(pair.local),
            segment=keys.remote_segments()[0],
            window_bytes=device.receive_window_bytes(),
            warnings=device.warnings,
        )
        other = json.loads(sys.stdin.readline())
        pair.connect(QueuePairAttributes(**other["attributes"]))
        # Lost packets cost a window: small enough that a busy machine works one off well within the timeout.
        pair.set_window(min(other["window_bytes"], (1 << 20) if args.gso else (1 << 18)))
        say(connected=True)
        failed = None
        if args.role == "server":
            while sys.stdin.fileno() not in wait(device, sys.stdin.fileno()):
                while device.pump():
                    pass
        else:
            sys.stdin.readline()
            failed = transfer(device, pair, keys.vec[0], other["segment"], args)
        counters = dataclasses.asdict(pair.counters)
        say(
            failed=failed,
            sha256=hashlib.sha256(buffer.bytes).hexdigest(),
            counters=counters,
            gso=device.gso,
            warnings=device.warnings,
        )


def transfer(device: SoftDevice, pair, near, far, args) -> str | None:
    opcode = Opcode.RDMA_WRITE if args.operation == "write" else Opcode.RDMA_READ
    address, _, rkey = far
    posted = done = 0
    deadline = time.monotonic() + DEADLINE_S
    while done < args.size:
        while posted < args.size and posted - done < 16 * WR_BYTES:
            sges = [Sge(near.address + posted, WR_BYTES, near.lkey)]
            pair.post_rdma(posted, opcode, sges, address + posted, rkey, signaled=True)
            posted += WR_BYTES
        worked = device.pump()
        for completion in pair.poll():
            if completion.status:
                return f"completion {completion.status.name} at {completion.wr_id}"
            done += WR_BYTES
        if time.monotonic() > deadline:
            return f"{done} bytes of {args.size} within {DEADLINE_S} s"
        if not worked and done < args.size:
            wait(device)
    return None


if __name__ == "__main__":
    main()
