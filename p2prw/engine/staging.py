"""A ring of chunks that staged memory passes through, filled and drained by worker threads, polled by one loop.

Staged memory (files, bounced BARs) cannot be registered; these chunks are, once. What they are made of, and how bytes
get between them and the memory, is the stage's: host memory and `read_at`/`write_at` here, P2P memory and a drive's DMA
in `memory.via`. Both happen on threads and release the GIL. A thread touches nothing but its job, the slot it was given
and the source; everything else happens in the loop that calls `poll`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal, Protocol

from p2prw.engine.memory.base import MappedBuffer, MemorySource
from p2prw.engine.memory.host import open_scratch
from p2prw.errors import HostError, LocalProtocolError, P2prwError, RequestError

# One call on a worker: long enough to be worth the switch, short enough that closing is not kept waiting.
PIECE_BYTES = 4 * 1024**2


@dataclass(slots=True)
class StagingJob:
    """One copy between a slot and the memory."""

    kind: Literal["fill", "drain"]
    slot: int
    offset: int
    """In the memory."""
    length_bytes: int
    error: P2prwError | None = None


class Stage(Protocol):
    """What slots are made of. Positions are bytes of `buffer`, offsets those of the staged memory."""

    @property
    def buffer(self) -> MappedBuffer:
        """All slots, one after the other: what is to be registered."""

    def fill(self, position: int, offset: int, length_bytes: int) -> int:
        """Bring the memory's bytes into the buffer; return the count, short only at the memory's end."""

    def drain(self, position: int, offset: int, length_bytes: int) -> None:
        """Bring the buffer's bytes to the memory."""

    def close(self) -> None:
        """Free what the slots are made of."""


class HostStage:
    """Slots in host memory, copied by the staged memory's own `read_at` and `write_at`."""

    def __init__(self, memory: MemorySource, length_bytes: int) -> None:
        self._memory = memory
        self._host = open_scratch(length_bytes)

    def __repr__(self) -> str:
        return f"<HostStage of {self._memory!r}>"

    @property
    def buffer(self) -> MappedBuffer:
        """All slots."""
        return self._host.buffers()[0]

    def fill(self, position: int, offset: int, length_bytes: int) -> int:
        """Copy memory into the slots."""
        return self._memory.read_at(offset, self._slice(position, length_bytes))

    def drain(self, position: int, offset: int, length_bytes: int) -> None:
        """Copy the slots into memory."""
        self._memory.write_at(offset, self._slice(position, length_bytes))

    def close(self) -> None:
        """Unmap, or let the last view do it: a thread may still be in a call."""
        self._host.close()

    def _slice(self, position: int, length_bytes: int) -> memoryview:
        view = self.buffer.view
        assert view is not None
        return view[position : position + length_bytes]


class StagingRing:
    """`slots` chunks of `chunk_bytes` of one stage; slot n begins at n * chunk_bytes of `buffer`.

    Threads: daemons, because a read from a dead NFS server never returns and must not keep the process alive. Jobs on
    different slots may finish out of order; a slot has one job at a time (LocalProtocolError otherwise).
    """

    def __init__(
        self, memory: MemorySource, *, chunk_bytes: int, slots: int, workers: int = 2, stage: Stage | None = None
    ) -> None:
        """Start the threads over `stage`, by default newly allocated host memory (HostError `not_enough_memory`).

        `memory` stays the caller's; the stage is closed with the ring.
        """
        if chunk_bytes < 1 or slots < 1:
            raise RequestError(
                "staging needs at least one slot of one byte",
                why="staged memory passes through slots",
                fix="staging_bytes and staging_chunk_bytes above 0",
                code="bad_staging",
            )
        self.chunk_bytes = chunk_bytes
        self.slots = slots
        self._stage: Stage = HostStage(memory, chunk_bytes * slots) if stage is None else stage
        self._free: deque[int] = deque(range(slots))
        self._busy: set[int] = set()
        self._queue: SimpleQueue[StagingJob | None] = SimpleQueue()
        self._finished: deque[StagingJob] = deque()
        self._stopping = threading.Event()
        # Its own lock: a thread that outlives close() must not write to a descriptor that now is somebody else's.
        self._wake_lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [
            threading.Thread(target=self._work, name=f"p2prw-staging-{index}", daemon=True)
            for index in range(min(workers, slots))
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"<StagingRing {self.slots} x {self.chunk_bytes} bytes busy={len(self._busy)}>"

    # --- memory ---------------------------------------------------------------------------------------------

    @property
    def buffer(self) -> MappedBuffer:
        """All slots, one after the other: what is to be registered."""
        return self._stage.buffer

    # --- slots ----------------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        """Slots that `acquire` would give."""
        return len(self._free)

    def acquire(self) -> int | None:
        """Take a free slot; None while all are taken. For callers that do not keep books of their own."""
        return self._free.popleft() if self._free else None

    def release(self, slot: int) -> None:
        """Give a slot back. LocalProtocolError while a job works on it or when it is free already."""
        if slot in self._busy or slot in self._free or not 0 <= slot < self.slots:
            raise LocalProtocolError(f"staging slot {slot} cannot be given back")
        self._free.append(slot)

    # --- jobs -----------------------------------------------------------------------------------------------

    def start_fill(self, slot: int, offset: int, length_bytes: int) -> StagingJob:
        """Begin to copy memory [offset, offset + length) into the slot; `poll` reports it."""
        return self._start(StagingJob("fill", slot, offset, length_bytes))

    def start_drain(self, slot: int, offset: int, length_bytes: int) -> StagingJob:
        """Begin to copy the slot's first `length_bytes` to memory at `offset`; `poll` reports it."""
        return self._start(StagingJob("drain", slot, offset, length_bytes))

    def poll(self) -> list[StagingJob]:
        """Return finished jobs, never blocking; a job's `error` is the memory's own HostError."""
        # The counter is cleared before the queue is emptied: a job that ends in between wakes the loop once more.
        if self._wake >= 0:
            try:
                os.eventfd_read(self._wake)
            except BlockingIOError:
                pass
        jobs = []
        while self._finished:
            job = self._finished.popleft()
            self._busy.discard(job.slot)
            jobs.append(job)
        return jobs

    def wake_fileno(self) -> int:
        """Return a descriptor that is readable while finished jobs wait to be polled."""
        return self._wake

    def close(self, deadline_s: float = 5.0) -> bool:
        """Drop queued jobs, wait up to `deadline_s` for running ones, free the chunks; False where a thread hangs on.

        Then its chunk stays mapped until it comes back, and so may a call into `memory`. A second call does nothing.
        """
        if self._stopping.is_set():
            return not any(thread.is_alive() for thread in self._threads)
        self._stopping.set()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + deadline_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1
        self._stage.close()
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self, job: StagingJob) -> StagingJob:
        if self._stopping.is_set():
            raise LocalProtocolError("the staging ring is closed")
        if not 0 <= job.slot < self.slots or not 0 <= job.length_bytes <= self.chunk_bytes:
            raise LocalProtocolError(f"{job.length_bytes} bytes do not fit into staging slot {job.slot}")
        if job.slot in self._busy:
            raise LocalProtocolError(f"staging slot {job.slot} is still being copied")
        self._busy.add(job.slot)
        self._queue.put(job)
        return job

    # --- the worker threads ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._stopping.is_set():
                continue
            try:
                self._copy(job)
            except P2prwError as error:
                job.error = error
            except Exception as error:
                failure = HostError(
                    f"cannot {job.kind} a staging slot: {error}",
                    why=f"{self._stage!r} raised {type(error).__name__}",
                    fix="dmesg | tail, and report it as a defect if nothing is said there",
                    code="staging_failed",
                    errno=error.errno if isinstance(error, OSError) else None,
                )
                failure.__cause__ = error
                job.error = failure
            # The queue first, the wake-up second: whoever is woken finds the job.
            self._finished.append(job)
            with self._wake_lock:
                if self._wake >= 0:
                    os.eventfd_write(self._wake, 1)

    def _copy(self, job: StagingJob) -> None:
        position = job.slot * self.chunk_bytes
        for start in range(0, job.length_bytes, PIECE_BYTES):
            if self._stopping.is_set():
                raise HostError(
                    "staging was closed", why="the transfer ended", fix="start a new transfer", code="staging_closed"
                )
            length = min(PIECE_BYTES, job.length_bytes - start)
            if job.kind == "drain":
                self._stage.drain(position + start, job.offset + start, length)
                continue
            count = self._stage.fill(position + start, job.offset + start, length)
            if count != length:
                raise HostError(
                    f"the memory ends at {job.offset + start + count}, {length - count} bytes too early",
                    why="it is shorter than it was when it was opened",
                    fix="run again when nothing changes it",
                    code="source_changed",
                )
