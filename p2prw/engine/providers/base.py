"""The seam between the engine and everything that can move bytes: libibverbs, our software device, a script.

A provider opens devices. A device registers mapped buffers, makes reliable connected queue pairs and is driven by
polling: nothing happens behind the caller's back. `pump` is where a software device does its work; on hardware it is a
no-op.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from p2prw.engine.memory.base import MappedBuffer
from p2prw.engine.model import (
    Access,
    Completion,
    DeviceInfo,
    DmaVec,
    Opcode,
    QueuePairAttributes,
    QueuePairOptions,
    RemoteSegment,
    Sge,
)


@dataclass(slots=True)
class QueuePairCounters:
    """Cumulative since creation."""

    packets_sent: int = 0
    packets_received: int = 0
    retransmitted_packets: int = 0
    sequence_naks: int = 0
    rnr_naks: int = 0
    timeouts: int = 0
    duplicates: int = 0
    icrc_errors: int = 0
    peer_bytes: int = 0
    """What the peer wrote to us or asked to read, each once; only the software device sees that."""
    peer_bytes_again: int = 0
    """What was sent to it once more because it asked: READ responses that were lost, or that it says were."""


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """What a device holds now, and what it has seen since it was opened; for the metrics of a server."""

    queue_pairs: int
    registrations: int
    retransmitted_packets: int = 0
    dropped_packets: Mapping[str, int] = field(default_factory=dict)
    """Packets that reached no queue pair, by reason in snake_case; what hardware drops it counts in sysfs."""


class Registration(Protocol):
    """Buffers a device may reach. Keys are gone after `close`."""

    vec: DmaVec
    """One segment for each buffer, in order."""

    def remote_segments(self) -> tuple[RemoteSegment, ...]:
        """Return what a peer needs to reach the buffers."""

    def close(self) -> None:
        """Deregister; a peer that uses the keys afterwards gets REM_ACCESS_ERR. Safe to call twice."""


class QueuePair(Protocol):
    """One reliable connected queue pair."""

    local: QueuePairAttributes
    depth: int
    """Most WQEs outstanding at a time."""
    counters: QueuePairCounters

    def connect(self, remote: QueuePairAttributes) -> None:
        """Go to RTR and RTS towards `remote`; the path MTU is the smaller of both. HostError when refused."""

    def post_rdma(
        self, wr_id: int, opcode: Opcode, sges: Sequence[Sge], remote_addr: int, rkey: int, *, signaled: bool
    ) -> None:
        """Post one RDMA_WRITE or RDMA_READ. The caller keeps at most `depth` outstanding (LocalProtocolError beyond).

        The data of a WRITE is read from memory when it is sent, and read again when it is sent again: the memory
        must not change before the completion. An unsignalled WR is retired by the completion of a later one.
        """

    def set_window(self, window_bytes: int) -> None:
        """Bound the bytes on the wire towards the peer (granted receive buffer); no-op on hardware."""

    def poll(self, max_completions: int = 64) -> list[Completion]:
        """Return completions, oldest first; call `Device.pump` in between. Errors complete unsignalled WRs too."""

    def close(self) -> None:
        """Destroy; what is outstanding is dropped. Safe to call twice."""


class Chain(Protocol):
    """One work request many times over, built once and posted again and again. It is its queue pair's: closed first."""

    def post(self, wr_id: int, count: int) -> None:
        """Post it `count` times, with ids wr_id, wr_id + 1, ...; counts as `count` times `post_rdma`.

        The last one is signalled, and each `signal_every`-th before it, counted from the end.
        """

    def close(self) -> None:
        """Free it; what was posted goes on. Safe to call twice."""


@runtime_checkable
class ChainingQueuePair(Protocol):
    """A queue pair that can do it: where Python costs more than the work request itself."""

    def build_chain(
        self, opcode: Opcode, sges: Sequence[Sge], remote_addr: int, rkey: int, *, length: int, signal_every: int
    ) -> Chain:
        """Build a chain of which at most `length` are posted at a time."""


class Device(Protocol):
    """One port of one device, opened."""

    info: DeviceInfo

    def register(
        self,
        buffers: Sequence[MappedBuffer],
        access: Access,
        *,
        offset: int = 0,
        length_bytes: int | None = None,
    ) -> Registration:
        """Register the byte range [offset, offset + length) of the buffers taken as one string of bytes.

        Each registration has its own keys. HostError with errno where the device cannot.
        """

    def create_queue_pair(self, options: QueuePairOptions) -> QueuePair:
        """Create a queue pair in INIT with a random PSN; HostError where limits are exceeded."""

    def receive_window_bytes(self) -> int:
        """Return what all peers together may have on the wire towards us (half the granted receive buffer)."""

    def pump(self) -> bool:
        """Receive, run timers, send; bounded work. Return True when anything happened (call again at once)."""

    def filenos(self) -> tuple[int, ...]:
        """Return descriptors that turn readable when `pump` has work; empty: poll by time."""

    def wants_write(self) -> bool:
        """Return True while a send waits for room in a socket buffer: wait for writable too."""

    def next_timer_s(self) -> float | None:
        """Return seconds until `pump` must be called though nothing arrives; None: no timer runs."""

    def usage(self) -> DeviceUsage:
        """Return what is held and what went wrong; cheap enough to ask many times a second."""

    def close(self) -> None:
        """Close queue pairs, registrations, sockets. Safe to call twice."""


@runtime_checkable
class TellingDevice(Protocol):
    """A device that knows which of its queue pairs have completions, so that not all need be polled."""

    def take_completed(self) -> Collection[int]:
        """Return the QPNs of the queue pairs that have got something to poll since the last call."""
