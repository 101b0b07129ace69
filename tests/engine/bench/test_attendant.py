"""What goes on beside a run: windows, refusals, idleness, samples."""

from __future__ import annotations

import time

import pytest

from p2prw.engine.bench import attendant
from p2prw.engine.control.channel import MESSAGES_PER_LOOK
from p2prw.engine.control.messages import Filled, GoOn, Refuse, Window
from p2prw.engine.model import Operation
from p2prw.errors import DeadlineExceeded, PeerRefusedError, RemoteProtocolError


def told(rig, message) -> None:
    rig.peers[0].send(message)
    time.sleep(0.01)  # a local socket pair: there at once, but not in no time


@pytest.mark.parametrize(("operation", "windows"), [(Operation.WRITE, [4242]), (Operation.READ, [])])
def test_a_window_bounds_what_we_send_only(make_bench, operation, windows):
    rig = make_bench(operation=operation)
    told(rig, Window(4242))
    rig.attendant.begin(0.0)
    rig.attendant.attend(0.1, 0)
    assert rig.device.counts.windows == windows


def test_a_refusal_in_the_middle_is_the_peers_word(make_bench):
    rig = make_bench()
    told(rig, Refuse("idle", "nothing was heard", "why", "try"))
    rig.attendant.begin(0.0)
    with pytest.raises(PeerRefusedError) as refused:
        rig.attendant.attend(0.1, 0)
    assert refused.value.code == "idle"


def test_a_flood_of_windows_does_not_hide_that_nothing_completes(make_bench, monkeypatch):
    rig = make_bench(idle_s=1.0)
    monkeypatch.setattr(rig.attendant.peers[0][0], "receive", lambda: Window(4242))
    rig.attendant.begin(0.0)
    rig.attendant.attend(0.5, 1)
    with pytest.raises(DeadlineExceeded, match="nothing completed"):
        rig.attendant.attend(1.6, 1)
    assert len(rig.device.counts.windows) == 2 * MESSAGES_PER_LOOK


def test_only_who_has_said_something_is_heard(make_bench, monkeypatch):
    """Sixty sockets are asked with one call; what one look leaves unheard is heard at the next."""
    monkeypatch.setattr(attendant, "MESSAGES_PER_LOOK", 4)
    rig = make_bench(queue_pairs=3)
    rig.attendant.begin(0.0)
    heard: list[int] = []
    for index, (channel, _) in enumerate(rig.attendant.peers):
        receive = channel.receive

        def hear(index: int = index, receive=receive):
            heard.append(index)
            return receive()

        monkeypatch.setattr(channel, "receive", hear)
    rig.attendant.attend(0.1, 0)
    assert sorted(heard) == [0, 1, 2], "at first, nobody knows what was read before"
    heard.clear()
    rig.attendant.attend(0.2, 0)
    assert heard == []
    for window_bytes in range(1, 6):
        rig.peers[1].send(Window(window_bytes))
    told(rig, Window(4242))
    rig.attendant.attend(0.3, 0)
    assert sorted(heard) == [0, 0, 1, 1, 1, 1] and sorted(rig.device.counts.windows) == [1, 2, 3, 4, 4242]
    rig.attendant.attend(0.4, 0)
    assert rig.device.counts.windows[-1] == 5


def test_anything_else_breaks_the_protocol(make_bench):
    rig = make_bench()
    told(rig, Filled("0" * 16, 0, 0))
    rig.attendant.begin(0.0)
    with pytest.raises(RemoteProtocolError, match="filled in the middle of a run"):
        rig.attendant.attend(0.1, 0)


def test_only_what_grows_is_activity(make_bench):
    rig = make_bench(idle_s=1.0)
    rig.attendant.begin(0.0)
    rig.attendant.attend(0.5, 1)
    rig.attendant.attend(1.4, 2)
    rig.attendant.attend(2.3, 2)
    with pytest.raises(DeadlineExceeded, match="nothing completed for 1 s"):
        rig.attendant.attend(2.5, 2)


def test_samples_are_due_eight_times_a_second(make_bench):
    rig = make_bench()
    rig.attendant.begin(0.0)
    due = [rig.attendant.attend(step * 0.01, step) for step in range(100)]
    assert sum(due) == pytest.approx(8, abs=1)
    assert rig.attendant.next_s == pytest.approx(0.995)


def test_the_server_of_both_directions_is_told_once_a_second_to_go_on(make_bench):
    rig = make_bench(queue_pairs=2)
    rig.attendant.leases = ("a" * 16, "b" * 16)
    rig.attendant.begin(0.0)
    for step in range(1, 36):
        rig.attendant.attend(step * 0.1, step)
    rig.attendant.leases = ()
    rig.attendant.attend(9.0, 99)
    for peer, lease in zip(rig.peers, "ab", strict=True):
        heard = []
        while (message := peer.receive()) is not None:
            heard.append(message)
        assert heard == [GoOn(lease * 16)] * 3
