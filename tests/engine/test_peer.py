"""The client's side of a channel: lists that end, window frames on the way, attributes that survive the wire."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from p2prw import api
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import RegionInfo, Regions, Released, Window
from p2prw.engine.deadline import Deadline
from p2prw.engine.model import PeerAddress, QueuePairAttributes, QueuePairOptions, Timeouts
from p2prw.engine.peer import PeerLink, attributes_from_wire, attributes_to_wire, list_regions
from p2prw.engine.providers.scripted import ManualClock, ScriptedDevice
from p2prw.engine.stop import StopRequest
from p2prw.errors import (
    DeadlineExceeded,
    HostError,
    InterruptedTransfer,
    PeerRefusedError,
    RemoteProtocolError,
    TimeLimitError,
)


def make_link(limit_s: float | None = None, *, windows_bind: bool = True):
    ours, theirs = socket.socketpair()
    device, clock = ScriptedDevice(), ManualClock()
    link = PeerLink(Channel(ours), device, Deadline(clock, StopRequest(), limit_s), windows_bind=windows_bind)
    link.queue_pair = device.create_queue_pair(QueuePairOptions())
    return link, Channel(theirs), device, clock


def test_window_frames_before_the_answer_are_taken_in():
    link, peer, device, _ = make_link()
    for message in (Window(5), Window(6), Released("0" * 16)):
        peer.send(message)
    assert link.expect(Released, "the release", 5.0) == Released("0" * 16)
    assert device.counts.windows == [5, 6]
    link.channel.close()
    peer.close()


def test_window_frames_do_not_bind_a_reader():
    link, peer, device, _ = make_link(windows_bind=False)
    peer.send(Window(5))
    peer.send(Released("0" * 16))
    link.expect(Released, "the release", 5.0)
    assert device.counts.windows == []
    link.channel.close()
    peer.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_windows_for_ever_are_no_answer(monkeypatch, stopped):
    link, peer, _, clock = make_link()
    said = []

    def flood(*_, **__):
        clock.advance(0.01)
        said.append(1)
        if stopped and len(said) == 10:
            link.deadline.stop.set(2)
        return Window(5)

    monkeypatch.setattr(link.channel, "receive", flood)
    with pytest.raises(InterruptedTransfer if stopped else DeadlineExceeded):
        link.expect(Released, "the release", 5.0)
    assert len(said) == 10 if stopped else 499 <= len(said) <= 501
    link.channel.close()
    peer.close()


def test_a_wait_has_a_name_and_a_deadline_and_the_time_limit_has_its_own():
    link, peer, _, clock = make_link()
    with pytest.raises(DeadlineExceeded, match="the release"):
        link.expect(Released, "the release", 0.02)
    link.deadline = Deadline(clock, StopRequest(), limit_s=1.0)
    clock.advance(2.0)
    with pytest.raises(TimeLimitError):
        link.expect(Released, "the release", 5.0)
    link.channel.close()
    peer.close()


def test_attributes_survive_the_wire():
    attributes = QueuePairAttributes(0x11, 0xFFFFFF, "0" * 32, 1024, 4, 8, udp_port=5000, lid=3)
    assert attributes_from_wire(attributes_to_wire(attributes)) == attributes


def test_more_regions_than_a_page_are_all_listed():
    with api.serving({f"r{index:03}": "host,size=4KiB" for index in range(150)}) as address:
        names = [region.name for region in list_regions(address)]
    assert names == [f"r{index:03}" for index in range(150)]


def test_a_wrong_token_and_nobody_there_are_different_errors():
    with api.serving({"a": "host,size=4KiB"}, token=b"right") as address:
        with pytest.raises(PeerRefusedError) as refused:
            list_regions(address, b"wrong")
        assert [region.name for region in list_regions(address, b"right")] == ["a"]
    assert refused.value.code == "auth_failed"
    with pytest.raises(HostError) as nobody:
        list_regions(PeerAddress("127.0.0.1", 1), timeouts=Timeouts(connect_retry_s=0.1))
    assert nobody.value.code == "connect_refused"


def test_a_list_that_never_ends_ends(monkeypatch):
    """A hostile server that says "more" for ever with empty pages keeps nobody."""
    monkeypatch.setattr("p2prw.engine.peer.shake_hands", lambda *_, **__: None)
    ours, theirs = socket.socketpair()
    peer = Channel(theirs)
    monkeypatch.setattr("p2prw.engine.peer.Channel.connect", lambda *_, **__: Channel(ours))
    peer.send(Regions((), more=True))
    assert list_regions(PeerAddress("x")) == ()
    peer.close()


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_list_of_pages_without_end_ends(monkeypatch, seconds):
    """By count where they come at once, by time where each takes its while."""
    monkeypatch.setattr("p2prw.engine.peer.shake_hands", lambda *_, **__: None)
    ours, theirs = socket.socketpair()
    clock, asked = ManualClock(), []

    def answer(*_, **__):
        clock.advance(seconds)
        asked.append(1)
        return Regions((RegionInfo("a", "host", 1, "r"),), more=True)

    channel = Channel(ours)
    monkeypatch.setattr(channel, "expect", answer)
    monkeypatch.setattr(channel, "send", lambda _: None)
    monkeypatch.setattr("p2prw.engine.peer.Channel.connect", lambda *_, **__: channel)
    monkeypatch.setattr("p2prw.engine.peer.time", SimpleNamespace(monotonic=clock))
    with pytest.raises(DeadlineExceeded if seconds else RemoteProtocolError, match="the list of regions"):
        list_regions(PeerAddress("x"), timeouts=Timeouts(handshake_s=10))
    assert len(asked) == (10 if seconds else 1024)
    theirs.close()
