"""Two software devices on loopback and a socket that fails on command, for all tests of the software device."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from p2prw.engine.model import Access, Completion, Opcode, QueuePairOptions, Sge, WcStatus
from p2prw.engine.providers.base import QueuePair, Registration
from p2prw.engine.providers.soft import SoftDevice, open_soft_device

ALL = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
SIZE = 1 << 20
PATTERN = bytes(range(256)) * (SIZE // 256)
DEADLINE_S = 30


class Buffer:
    def __init__(self, content: bytes) -> None:
        self.bytes = memoryview(bytearray(content))
        self.view: memoryview | None = self.bytes
        self.length_bytes = len(content)
        self.cpu_address = 0

    def load(self, offset: int, length_bytes: int) -> memoryview:
        return self.bytes[offset : offset + length_bytes]

    def store(self, offset: int, data: bytes | memoryview) -> None:
        self.bytes[offset : offset + len(data)] = data


class Pair:
    """Client and server devices in one process, 1 MiB of memory and a connected queue pair each."""

    def __init__(self, client: SoftDevice, server: SoftDevice, options: QueuePairOptions) -> None:
        self.client, self.server = client, server
        self.near, self.far = Buffer(PATTERN), Buffer(bytes(SIZE))
        self.near_keys: Registration = client.register([self.near], Access.LOCAL_WRITE)
        self.far_keys: Registration = server.register([self.far], ALL)
        self.queue: QueuePair = client.create_queue_pair(options)
        self.far_queue: QueuePair = server.create_queue_pair(options)
        self.far_queue.connect(self.queue.local)
        self.queue.connect(self.far_queue.local)

    def post(self, opcode: Opcode, offset: int = 0, length: int = SIZE, wr_id: int = 1) -> None:
        (near,), (far,) = self.near_keys.vec, self.far_keys.remote_segments()
        sges = [Sge(near.address + offset, length, near.lkey)]
        self.queue.post_rdma(wr_id, opcode, sges, far.address + offset, far.rkey, signaled=True)

    def settle(self, until: Callable[[], bool] | None = None) -> list[Completion]:
        """Pump both sides until something completes (or `until` holds)."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            worked = self.client.pump() | self.server.pump()
            if until is not None:
                if until():
                    return []
            elif found := self.queue.poll():
                return found
            if not worked:
                waits = [t for t in (self.client.next_timer_s(), self.server.next_timer_s()) if t is not None]
                time.sleep(min([0.002, *waits]))
        raise AssertionError(f"nothing completed within {DEADLINE_S} s: {self.queue!r}")

    def run(self, opcode: Opcode, **post: int) -> WcStatus:
        self.post(opcode, **post)
        (completion,) = self.settle()
        return completion.status


Connect = Callable[..., Pair]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open a client and a server on ports of their own (4791 may belong to others on this machine)."""
    opened: list[SoftDevice] = []

    def make(
        address: str = "127.0.0.1",
        *,
        client: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        options: QueuePairOptions | None = None,
        **both: Any,
    ) -> Pair:
        for role, more in (("client", client), ("server", server)):
            arguments: dict[str, Any] = {"local_address": None, "udp_port": 0, "role": role, **both, **(more or {})}
            opened.append(open_soft_device(f"soft:{address}", **arguments))
        # 16: 0.27 s, so that a lost packet costs little here.
        return Pair(opened[-2], opened[-1], options or QueuePairOptions(timeout=16))

    yield make
    for device in opened:
        device.close()


class FakeSocket:
    """The real socket, but for what the next sends and receives raise."""

    def __init__(self, device: SoftDevice) -> None:
        self.real = device.wire.sock
        self.send_errors: list[int] = []
        self.receive_errors: list[int] = []
        self.refuse_segments: int | None = None
        self.loses_segments = False
        self.sent: list[tuple[int, bool]] = []
        """(bytes, segmented) of each send that went out."""
        device.wire.sock = self  # type: ignore[assignment]
        # Nothing gets past it.
        device.wire._send_runs = device.wire._take_runs = None
        device.wire._may_train = False

    def sendmsg(self, buffers: Any, ancillary: Any, flags: int, destination: Any) -> int:
        if self.send_errors:
            number = self.send_errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        if ancillary and self.refuse_segments is not None:
            raise OSError(self.refuse_segments, "no segmentation here")
        self.sent.append((sum(map(len, buffers)), bool(ancillary)))
        if ancillary and self.loses_segments:
            return self.sent[-1][0]
        return self.real.sendmsg(buffers, ancillary, flags, destination)

    def recvmsg_into(self, *args: Any) -> Any:
        if self.receive_errors:
            number = self.receive_errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        return self.real.recvmsg_into(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def fake_socket() -> Callable[[SoftDevice], FakeSocket]:
    """Put a socket that fails on command under a device."""
    return FakeSocket


@pytest.fixture
def pattern() -> bytes:
    """What the near memory holds: 1 MiB."""
    return PATTERN
