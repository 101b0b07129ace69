"""One thread for calls that block and release the GIL (fsync, rename, copying a file), so that the loop never waits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor


class Worker:
    """Runs jobs in order on one thread; the loop is woken through a descriptor and runs the callbacks itself."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="p2prw-worker")
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pending: list[tuple[Future[object], Callable[[BaseException | None], None]]] = []
        self._unrung = 0
        """Jobs whose ring was not read yet: without one there is nothing to look for."""
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor that turns readable when a job has finished."""
        return self._wake

    def submit(self, job: Callable[[], object], done: Callable[[BaseException | None], None]) -> None:
        """Run `job` on the thread; `done(error)` runs in `poll` afterwards."""
        self._unrung += 1
        future: Future[object] = self._executor.submit(job)
        self._pending.append((future, done))
        future.add_done_callback(self._ring)

    def _ring(self, _: Future[object]) -> None:
        if not self._closed:
            os.eventfd_write(self._wake, 1)

    def poll(self) -> bool:
        """Run the callbacks of finished jobs; True when there were any."""
        if not self._unrung:
            return False
        with contextlib.suppress(BlockingIOError):
            self._unrung -= os.eventfd_read(self._wake)
        finished = [entry for entry in self._pending if entry[0].done()]
        if not finished:
            return False
        self._pending = [entry for entry in self._pending if entry not in finished]
        for future, done in finished:
            done(future.exception())
        return True

    def close(self) -> None:
        """Wait for the running job, drop the rest; every callback runs, with CancelledError for what was dropped."""
        if self._closed:
            return
        self._executor.shutdown(wait=True, cancel_futures=True)
        pending, self._pending = self._pending, []
        for future, done in pending:
            done(CancelledError() if future.cancelled() else future.exception())
        self._closed = True
        os.close(self._wake)
