"""Sleeping until there is something to do: a device's descriptors, its timer, a control channel, a moment in time."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from p2prw.engine import affinity
from p2prw.engine.providers.base import Device

_LONGEST_WAIT_S = 0.25
_SPIN_S = 100e-6
"""As long as a sleep and a wake-up cost in a guest whose idle processor is given back to the host."""

_Ready = TypeVar("_Ready")


class Spinner:
    """Looks again and again for a moment before it sleeps, as long as sleeps end because something came.

    Two ends on one host that sleep for each other take turns, and the scheduler likes to put them on one processor.
    """

    def __init__(self, processors: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`processors`: that this process may use; on one alone, who looks keeps the other from working."""
        self.may_spin = (affinity.processors() if processors is None else processors) > 1
        self._clock = clock
        self._comes = False

    def wait(self, look: Callable[[float], _Ready], wait_s: float) -> _Ready:
        """Return what `look(timeout_s)` finds, at once or within `wait_s`."""
        if self._comes and self.may_spin and wait_s > _SPIN_S:
            end_s = self._clock() + _SPIN_S
            while self._clock() < end_s:
                found = look(0)
                if found:
                    return found
        found = look(wait_s)
        self._comes = bool(found)
        return found


class Waiter:
    """Waits for one device and whatever else turns readable. Never longer than a quarter of a second."""

    def __init__(self, device: Device, filenos: Iterable[int], *, busily: bool = False) -> None:
        """`busily`: never sleep for work on a device that wakes nobody, where there is a processor to spare.

        As perftest polls: a nap is up to 3 ms late, and under rxe it sends the kernel's work from CPU to CPU.
        """
        self._device = device
        self._filenos = tuple(filenos)
        self._poller: select.poll | None = None
        self._spinner = Spinner()
        self._busily = busily and not device.filenos() and self._spinner.may_spin
        self._writable_wanted = False

    def wait(self, at_most_s: float) -> None:
        """Sleep until a descriptor turns ready, the device's timer, or `at_most_s`."""
        device = self._device
        timer_s = device.next_timer_s()
        if self._busily and timer_s is not None:
            return
        if self._poller is None:
            # Not before: a loop that is never idle opens nothing.
            self._poller = select.poll()
            for fileno in (*device.filenos(), *self._filenos):
                self._poller.register(fileno, select.POLLIN)
        writable = device.wants_write()
        if writable != self._writable_wanted:
            self._writable_wanted = writable
            for fileno in device.filenos():
                self._poller.modify(fileno, select.POLLIN | (select.POLLOUT if writable else 0))
        wait_s = min(at_most_s, _LONGEST_WAIT_S, timer_s if timer_s is not None else _LONGEST_WAIT_S)
        if wait_s > 0:
            self._spinner.wait(self._look, wait_s)

    def _look(self, wait_s: float) -> list[tuple[int, int]]:
        assert self._poller is not None
        return self._poller.poll(wait_s * 1000)


WATCH_LOOKS = 64
"""At memory that a device changes by itself, before its queues are looked at: that costs more than all the looks."""


def looks_at(device: Device) -> int:
    """Return how often to look at memory between two looks at the queues of `device`."""
    # fast path: one that moves bytes by itself need not be pumped for them to arrive.
    return 1 if device.filenos() else WATCH_LOOKS


def watch(view: memoryview, index: int, value: int, looks: int) -> bool:
    """Look at a byte up to `looks` times; True as soon as it is `value`."""
    return any(view[index] == value for _ in range(looks))
