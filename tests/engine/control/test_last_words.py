from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.framing import frame
from p2prw.engine.control.last_words import how_it_ended
from p2prw.engine.control.messages import Refuse, Window, encode


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with Channel(ours) as channel, contextlib.closing(theirs):
        yield channel, theirs


def test_how_it_ended_is_a_refusal_an_end_or_neither(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(frame(encode(Window(5))))
    assert how_it_ended(channel, 0.05, lambda: False) is None, "it is there, and what it says is no matter"
    theirs.sendall(frame(encode(Refuse(code="busy", what="busy"))))
    ending = how_it_ended(channel, 5, lambda: False)
    assert ending is not None and ending.code == "busy"
    theirs.close()
    ending = how_it_ended(channel, 5, lambda: False)
    assert ending is not None and ending.code == "peer_lost"


def test_garbage_is_no_ending(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert how_it_ended(channel, 5, lambda: False) is None
