"""How fast is the software device on one host, and how much of what the kernel's sockets can do at all is that?

    python benchmarks/loopback.py [--size 1GiB] [--runs 5] [--read] [--copied] [--json PATH]

The measurements alternate, each between two processes over loopback UDP with segmentation offload, 4096 byte packets:

    prebuilt  one burst, made beforehand, is sent again and again and thrown away: no packet is made, checked or placed.
              A window that counts acknowledgements, nothing else.
    copied    the same, but each burst lies elsewhere in the sender's memory and is copied into the receiver's: what
              memory alone costs once it is more than a cache holds (only with --copied).
    device    one-sided WRITEs of 1 MiB between two `soft` devices through the device interface, ICRC made and checked.
    read      the same with READs (only with --read).

Each side of a device has its own memory (`--region`, walked over and over), touched before the clock starts.
Rate = bytes / (first send to last acknowledgement), monotonic clock. Peak memory is VmHWM of each process. The figures
are bound by one core a side: they say nothing about a network. `median_cpu_s_of_busier_side` is steadier than the rate
on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import platform
import select
import socket
import statistics
import struct
import sys
import time
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from random import SystemRandom
from typing import Any

from p2prw.engine.model import Access, Opcode, QueuePairOptions, Sge
from p2prw.engine.providers.soft import open_soft_device
from p2prw.engine.providers.soft_address import resolve_device
from p2prw.engine.providers.soft_socket import UDP_SEGMENT, open_socket
from p2prw.engine.roce.leaf import choose_codec
from p2prw.units import MIB, parse_size

MTU = 4096
SEGMENT = 8 + 4 + MTU + 4
PER_BURST = 15
BURST = PER_BURST * SEGMENT
WR_BYTES = MIB
DEPTH = 32
RUN_LIMIT_S = 120
WINDOW_BYTES = 2 * MIB
ACK_EVERY_BYTES = WINDOW_BYTES // 8


class HostBuffer:
    """Plain memory as the devices want it."""

    def __init__(self, length_bytes: int, fill: bytes) -> None:
        self.bytes = memoryview(mmap.mmap(-1, length_bytes))
        self.view: memoryview | None = self.bytes
        for start in range(0, length_bytes, len(fill)):
            self.bytes[start : start + len(fill)] = fill
        self.length_bytes = length_bytes
        self.cpu_address = 0

    def load(self, offset: int, length_bytes: int) -> memoryview:
        return self.bytes[offset : offset + length_bytes]

    def store(self, offset: int, data: bytes | memoryview) -> None:
        self.bytes[offset : offset + len(data)] = data


def peak_memory_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def own_use(cpu_at_start: float) -> dict[str, float]:
    """What this side used: CPU seconds of the measured stretch, peak memory of the whole process."""
    return {"cpu_s": time.process_time() - cpu_at_start, "peak_memory_bytes": peak_memory_bytes()}


# --- prebuilt: the kernel alone -------------------------------------------------------------------------------


def plain_socket(role: Any) -> tuple[socket.socket, tuple[str, int]]:
    bound = open_socket(
        resolve_device("soft0", None),
        udp_port=0,
        role=role,
        gso=True,
        pinned=False,
        random_bits=SystemRandom().getrandbits,
    )
    return bound.sock, (bound.local.address, bound.udp_port)


def prebuilt_receiver(pipe: Connection, total: int, region: int, *, copied: bool = False) -> None:
    sock, here = plain_socket("server")
    pipe.send(here)
    peer = pipe.recv()
    buffers, ancillary_bytes = [memoryview(bytearray(65536))], socket.CMSG_SPACE(4)
    sink, at = memoryview(bytearray(region if copied else BURST)), 0
    sink[:] = bytes(len(sink))
    done = acked = 0
    pipe.send("ready")
    cpu = time.process_time()
    while done < total:
        try:
            got = sock.recvmsg_into(buffers, ancillary_bytes)[0]
        except BlockingIOError:
            continue
        done += got
        if copied:
            at = at if at + got <= len(sink) else 0
            sink[at : at + got] = buffers[0][:got]
            at += got
        if done - acked >= ACK_EVERY_BYTES or done >= total:
            acked = done
            sock.sendto(struct.pack(">Q", done), peer)
    pipe.send(own_use(cpu))


def prebuilt_sender(pipe: Connection, total: int, region: int, *, copied: bool = False) -> dict[str, Any]:
    sock, here = plain_socket("client")
    peer = pipe.recv()
    pipe.send(here)
    source = memoryview(os.urandom(region if copied else BURST))
    bursts = cycle([[source[at : at + BURST]] for at in range(0, len(source) - BURST + 1, BURST)])
    ancillary = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("H", SEGMENT))]
    pipe.recv()
    sent = acked = 0
    start, cpu = time.monotonic(), time.process_time()
    while acked < total:
        while sent < total and sent - acked < WINDOW_BYTES:
            sock.sendmsg(next(bursts), ancillary, 0, peer)
            sent += BURST
        try:
            acked = struct.unpack(">Q", sock.recv(64))[0]
        except BlockingIOError:
            continue
    elapsed = time.monotonic() - start
    return {"elapsed_s": elapsed, "sender": own_use(cpu), "receiver": pipe.recv()}


def copied_receiver(pipe: Connection, total: int, region: int) -> None:
    prebuilt_receiver(pipe, total, region, copied=True)


def copied_sender(pipe: Connection, total: int, region: int) -> dict[str, Any]:
    return prebuilt_sender(pipe, total, region, copied=True)


# --- device ---------------------------------------------------------------------------------------------------


def device_receiver(pipe: Connection, total: int, region: int) -> None:
    buffer = HostBuffer(region, bytes(MIB))
    with open_soft_device("soft0", local_address=None, udp_port=0, role="server") as device:
        registration = device.register([buffer], Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ)
        pair = device.create_queue_pair(QueuePairOptions(mtu_bytes=MTU))
        pipe.send((pair.local, registration.remote_segments()[0], device.receive_window_bytes()))
        pair.connect(pipe.recv())
        pipe.send("ready")
        cpu = time.process_time()
        fileno = device.filenos()[0]
        while not pipe.poll():
            while device.pump():
                pass
            select.select([fileno, pipe.fileno()], [fileno] if device.wants_write() else [], [], device.next_timer_s())
        pipe.recv()
        pipe.send(own_use(cpu))


def device_sender(pipe: Connection, total: int, region: int, opcode: Opcode = Opcode.RDMA_WRITE) -> dict[str, Any]:
    buffer = HostBuffer(region, os.urandom(MIB))
    with open_soft_device("soft0", local_address=None, udp_port=None, role="client") as device:
        local = device.register([buffer], Access.LOCAL_WRITE).vec[0]
        pair = device.create_queue_pair(QueuePairOptions(mtu_bytes=MTU, depth=DEPTH))
        remote, target, window = pipe.recv()
        pair.connect(remote)
        pair.set_window(min(window, WINDOW_BYTES))
        pipe.send(pair.local)
        pipe.recv()
        fileno = device.filenos()[0]
        posted = done = 0
        start, cpu = time.monotonic(), time.process_time()
        while done < total:
            while posted < total and posted - done < DEPTH * WR_BYTES:
                offset = posted % region
                sges = [Sge(local.address + offset, WR_BYTES, local.lkey)]
                pair.post_rdma(posted, opcode, sges, target.address + offset, target.rkey, signaled=True)
                posted += WR_BYTES
            worked = device.pump()
            for completion in pair.poll():
                if completion.status:
                    raise RuntimeError(f"completion with {completion.status!r}")
                done += WR_BYTES
            if not worked and done < total:
                select.select([fileno], [fileno] if device.wants_write() else [], [], device.next_timer_s())
        elapsed = time.monotonic() - start
        counters, used = pair.counters, own_use(cpu)
        pipe.send("done")
        return {
            "elapsed_s": elapsed,
            "sender": used,
            "receiver": pipe.recv(),
            "retransmitted_packets": counters.retransmitted_packets,
            "timeouts": counters.timeouts,
        }


def read_client(pipe: Connection, total: int, region: int) -> dict[str, Any]:
    return device_sender(pipe, total, region, Opcode.RDMA_READ)


# --- running --------------------------------------------------------------------------------------------------

SIDES = {
    "prebuilt": (prebuilt_sender, prebuilt_receiver),
    "copied": (copied_sender, copied_receiver),
    "device": (device_sender, device_receiver),
    "read": (read_client, device_receiver),
}


def send_side(kind: str, pipe: Connection, results: Connection, total: int, region: int) -> None:
    results.send(SIDES[kind][0](pipe, total, region))


def measure(kind: str, total: int, region: int) -> dict[str, Any]:
    # Spawned, so that peak memory is each side's own.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    results, results_end = context.Pipe()
    sides = [
        context.Process(target=SIDES[kind][1], args=(there, total, region), daemon=True),
        context.Process(target=send_side, args=(kind, here, results_end, total, region), daemon=True),
    ]
    for side in sides:
        side.start()
    try:
        deadline = time.monotonic() + RUN_LIMIT_S
        while not results.poll(0.2):
            if any(side.exitcode for side in sides) or time.monotonic() > deadline:
                raise SystemExit(f"{kind}: a side failed, or took more than {RUN_LIMIT_S} s")
        figures: dict[str, Any] = results.recv()
    finally:
        for side in sides:
            side.join(5)
            if side.is_alive():
                side.terminate()
    return {**figures, "bw_bytes_per_s": total / figures["elapsed_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="1GiB", help="bytes moved in each run")
    parser.add_argument("--region", default="256MiB", help="memory on each side, walked over until size is reached")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--copied", action="store_true", help="measure the prebuilt loop through memory too")
    parser.add_argument("--read", action="store_true", help="measure READ too")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    total, region = parse_size(args.size), parse_size(args.region)
    if region % MIB or total % MIB or not total:
        parser.error("sizes are whole MiB")
    kinds = [kind for kind in SIDES if getattr(args, kind, True)]
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(args.runs):
        for kind in kinds:
            runs[kind].append(measure(kind, total, region))
            print(f"{kind:8} {runs[kind][-1]['bw_bytes_per_s'] / 1e9:.3f} GB/s", file=sys.stderr)
    cpu = {
        kind: statistics.median(max(run["sender"]["cpu_s"], run["receiver"]["cpu_s"]) for run in rows)
        for kind, rows in runs.items()
    }
    medians = {kind: statistics.median(run["bw_bytes_per_s"] for run in rows) for kind, rows in runs.items()}
    document = {
        "benchmark": "loopback",
        "size_bytes": total,
        "region_bytes": region,
        "path_mtu_bytes": MTU,
        "window_bytes": WINDOW_BYTES,
        "median_bw_bytes_per_s": medians,
        "device_to_prebuilt": medians["device"] / medians["prebuilt"],
        "median_cpu_s_of_busier_side": cpu,
        "runs": runs,
        "environment": {
            "kernel": platform.release(),
            "python": platform.python_version(),
            "codec": choose_codec().name,
            "cpus": os.cpu_count(),
            "load_1min": os.getloadavg()[0],
        },
    }
    text = json.dumps(document, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
