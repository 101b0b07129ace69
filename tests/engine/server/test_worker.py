"""The worker: jobs off the loop, callbacks on it, and a descriptor that wakes it."""

from __future__ import annotations

import select
import threading
from concurrent.futures import CancelledError

from p2prw.engine.server.worker import Worker


def test_a_callback_runs_in_poll_with_the_error_of_the_job():
    worker = Worker()
    seen: list[tuple[str, BaseException | None, int]] = []
    started = threading.Event()
    release = threading.Event()

    def slow() -> None:
        started.set()
        release.wait(5)

    def bad() -> None:
        raise OSError(28, "no space")

    worker.submit(slow, lambda error: seen.append(("slow", error, threading.get_ident())))
    worker.submit(bad, lambda error: seen.append(("bad", error, threading.get_ident())))
    assert started.wait(5) and not worker.poll() and not seen
    release.set()
    while len(seen) < 2:
        assert select.select([worker.fileno()], [], [], 5)[0], "the descriptor must wake the loop"
        worker.poll()
    assert [name for name, _, _ in seen] == ["slow", "bad"]
    assert seen[0][1] is None and isinstance(seen[1][1], OSError)
    assert {ident for _, _, ident in seen} == {threading.get_ident()}
    worker.close()
    worker.close()


def test_close_drops_what_has_not_begun():
    worker = Worker()
    release = threading.Event()
    ran: list[str] = []
    told: list[BaseException | None] = []
    worker.submit(lambda: release.wait(5), told.append)
    worker.submit(lambda: ran.append("second"), told.append)
    timer = threading.Timer(0.05, release.set)
    timer.start()
    worker.close()
    timer.join()
    assert ran == []
    assert told[0] is None and isinstance(told[1], CancelledError), "whoever waits must hear that it will not come"
