"""Sleeping until there is something to do: a device's descriptors, its timer, a control channel, a moment in time."""

from __future__ import annotations

import select
from collections.abc import Iterable

from p2prw.engine.providers.base import Device

_LONGEST_WAIT_S = 0.25


class Waiter:
    """Waits for one device and whatever else turns readable. Never longer than a quarter of a second."""

    def __init__(self, device: Device, filenos: Iterable[int]) -> None:
        self._device = device
        self._filenos = tuple(filenos)
        self._poller: select.poll | None = None
        self._writable_wanted = False

    def wait(self, at_most_s: float) -> None:
        """Sleep until a descriptor turns ready, the device's timer, or `at_most_s`."""
        device = self._device
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
        timer_s = device.next_timer_s()
        wait_s = min(at_most_s, _LONGEST_WAIT_S, timer_s if timer_s is not None else _LONGEST_WAIT_S)
        if wait_s > 0:
            self._poller.poll(wait_s * 1000)
