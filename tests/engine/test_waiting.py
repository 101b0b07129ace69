"""Sleeping until there is something to do."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

import pytest

from p2prw.engine.providers.scripted import ScriptedDevice
from p2prw.engine.waiting import WATCH_LOOKS, Spinner, Waiter, looks_at, watch


class FakeDevice:
    """A device that is one socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.writable = False
        self.timer_s: float | None = None

    def filenos(self) -> tuple[int, ...]:
        return (self.sock.fileno(),)

    def wants_write(self) -> bool:
        return self.writable

    def next_timer_s(self) -> float | None:
        return self.timer_s


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def slept_s(waiter: Waiter, at_most_s: float) -> float:
    began = time.monotonic()
    waiter.wait(at_most_s)
    return time.monotonic() - began


def test_it_sleeps_no_longer_than_asked_and_never_past_the_devices_timer(pair):
    device = FakeDevice(pair[0])
    waiter = Waiter(device, ())  # type: ignore[arg-type]
    assert slept_s(waiter, 0.05) >= 0.045
    device.timer_s = 0.0
    assert slept_s(waiter, 30.0) < 1.0
    device.timer_s = 0.02
    assert 0.015 <= slept_s(waiter, 30.0) < 10


def test_bytes_wake_it(pair):
    ours, theirs = pair
    theirs.send(b"x")
    device = FakeDevice(ours)
    assert slept_s(Waiter(device, ()), 30.0) < 10  # type: ignore[arg-type]
    quiet, other = socket.socketpair()
    with quiet, other:
        assert slept_s(Waiter(FakeDevice(quiet), (ours.fileno(),)), 30.0) < 10  # type: ignore[arg-type]


def test_room_to_send_wakes_it_only_while_the_device_waits_for_that(pair, monkeypatch):
    asked: list[int] = []
    real = select.poll

    class Poll:
        def __init__(self) -> None:
            self.inner = real()

        def register(self, fileno: int, mask: int) -> None:
            self.inner.register(fileno, mask)

        def modify(self, fileno: int, mask: int) -> None:
            asked.append(mask)
            self.inner.modify(fileno, mask)

        def poll(self, timeout_ms: float) -> object:
            return self.inner.poll(timeout_ms)

    monkeypatch.setattr("select.poll", Poll)
    device = FakeDevice(pair[0])
    waiter = Waiter(device, ())  # type: ignore[arg-type]
    waiter.wait(0.001)
    device.writable = True
    assert slept_s(waiter, 30.0) < 10
    waiter.wait(0.001)
    device.writable = False
    waiter.wait(0.001)
    assert asked == [select.POLLIN | select.POLLOUT, select.POLLIN], "changed when it changes, not each time"


class PolledDevice(FakeDevice):
    """A NIC: it wakes nobody."""

    def filenos(self) -> tuple[int, ...]:
        return ()


@pytest.mark.parametrize(
    ("busily", "processors", "is_polled", "timer_s", "sleeps"),
    [
        (True, 2, True, 0.05, False),
        (False, 2, True, 0.05, True),
        (True, 1, True, 0.05, True),
        (True, 2, False, 0.05, True),
        (True, 2, True, None, True),
    ],
    ids=["work-on-a-nic", "not-asked", "one-processor", "a-socket-wakes", "no-work"],
)
def test_a_device_that_wakes_nobody_is_polled_without_sleep_only_where_that_was_asked(
    pair, monkeypatch, busily, processors, is_polled, timer_s, sleeps
):
    monkeypatch.setattr("p2prw.engine.affinity.processors", lambda: processors)
    device = (PolledDevice if is_polled else FakeDevice)(pair[0])
    device.timer_s = timer_s
    asked_ms: list[float] = []
    monkeypatch.setattr("select.poll", lambda: Recorder(asked_ms))
    Waiter(device, (), busily=busily).wait(0.04)  # type: ignore[arg-type]
    assert asked_ms == ([40.0] if sleeps else [])


class Recorder:
    """A poll object that only notes how long it was to wait."""

    def __init__(self, asked_ms: list[float]) -> None:
        self.asked_ms = asked_ms

    def register(self, fileno: int, mask: int) -> None:
        pass

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        self.asked_ms.append(timeout_ms)
        return []


class Looks:
    """What is looked at, and for how long; every look takes 10 us. Something is there at the looks in `finds`."""

    def __init__(self, finds: set[int]) -> None:
        self.finds = finds
        self.now_s = 0.0
        self.timeouts_s: list[float] = []

    def look(self, timeout_s: float) -> list[int]:
        self.timeouts_s.append(timeout_s)
        self.now_s += 10e-6
        return [1] if len(self.timeouts_s) in self.finds else []

    def clock(self) -> float:
        return self.now_s


def test_a_quiet_descriptor_is_slept_on_at_once():
    looks = Looks(set())
    spinner = Spinner(2, looks.clock)
    assert [spinner.wait(looks.look, 0.25) for _ in range(3)] == [[], [], []]
    assert looks.timeouts_s == [0.25] * 3


def test_after_something_came_it_looks_again_for_a_moment_before_it_sleeps():
    looks = Looks({1, 4})
    spinner = Spinner(2, looks.clock)
    assert spinner.wait(looks.look, 0.25) == [1]
    assert spinner.wait(looks.look, 0.25) == [1]
    assert looks.timeouts_s == [0.25, 0, 0, 0]
    assert spinner.wait(looks.look, 0.25) == []
    assert looks.timeouts_s[4:-1] == [0] * (len(looks.timeouts_s) - 5) and looks.timeouts_s[-1] == 0.25
    assert 9 <= len(looks.timeouts_s) - 5 <= 11, "100 us of 10 us looks"
    before = len(looks.timeouts_s)
    spinner.wait(looks.look, 0.25)
    assert looks.timeouts_s[before:] == [0.25], "nothing came, so it does not look again"


@pytest.mark.parametrize(("processors", "wait_s"), [(1, 0.25), (2, 50e-6)])
def test_one_processor_and_short_waits_are_not_for_looking(processors, wait_s):
    looks = Looks({1})
    spinner = Spinner(processors, looks.clock)
    spinner.wait(looks.look, 0.25)
    spinner.wait(looks.look, wait_s)
    assert looks.timeouts_s == [0.25, wait_s]


def test_a_byte_is_watched_as_often_as_asked():
    view = memoryview(bytearray(b"\0\7"))
    assert watch(view, 1, 7, 1) and not watch(view, 0, 7, 3) and not watch(view, 1, 7, 0)


def test_who_has_to_be_pumped_is_pumped_after_each_look(pair):
    assert looks_at(FakeDevice(pair[0])) == 1  # type: ignore[arg-type]
    assert looks_at(ScriptedDevice()) == WATCH_LOOKS > 1
