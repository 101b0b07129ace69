"""The way in: who is turned away hears why, a pause ends, a stop does not."""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from p2prw.engine.model import PeerAddress, ServeRequest
from p2prw.engine.server import refusals
from p2prw.engine.server.acceptor import Acceptor
from p2prw.engine.server.counters import ServerCounters
from p2prw.errors import RequestError


class Rig:
    """An acceptor, its selector, and what it said; `full`: nobody else may come."""

    def __init__(self, given_fds: tuple[int, ...] = ()) -> None:
        self.full = False
        self.events: list[tuple[str, str]] = []
        self.counters = ServerCounters()
        self.selector = selectors.DefaultSelector()
        request = ServeRequest(regions=(), listen=PeerAddress("127.0.0.1", 0))
        self.acceptor = Acceptor(request, given_fds, self.selector, self.check, self.counters, self.tell)

    def check(self, host: str) -> None:
        assert host == "127.0.0.1"
        if self.full:
            raise refusals.full(1)

    def tell(self, kind: str, text: str, **_: object) -> None:
        self.events.append((kind, text))

    @property
    def listeners(self) -> list[socket.socket]:
        return [key.fileobj for key in self.selector.get_map().values() if key.data == "listener"]  # type: ignore[misc]

    def knock(self) -> socket.socket:
        address = self.acceptor.address
        sock = socket.create_connection((address.host, address.port))
        sock.settimeout(30)
        return sock


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*given_fds: int) -> Rig:
        made.append(Rig(given_fds))
        return made[-1]

    yield make
    for rig in made:
        rig.acceptor.close()
        rig.selector.close()


def test_a_client_comes_in_and_nobody_else_is_there(make_rig):
    rig = make_rig()
    rig.acceptor.open()
    assert rig.acceptor.hosts == ("127.0.0.1",) and rig.acceptor.address.port != 0
    assert rig.acceptor.fingerprint is None
    (listener,) = rig.listeners
    with rig.knock() as client:
        channel = rig.acceptor.accept(listener)
        assert channel is not None and channel.peer_address == PeerAddress(*client.getsockname())
        channel.close()
    assert rig.acceptor.accept(listener) is None, "it went away before we looked"
    assert not rig.events


def test_who_is_turned_away_hears_why_and_is_counted(make_rig):
    rig = make_rig()
    rig.acceptor.open()
    rig.full = True
    with rig.knock() as client:
        assert rig.acceptor.accept(*rig.listeners) is None
        assert b"too_many_clients" in client.recv(4096)
    assert [kind for kind, _ in rig.events] == ["refused", "ended"]
    assert rig.counters.connections["turned_away"] == rig.counters.errors["too_many_clients"] == 1


def test_out_of_descriptors_it_pauses_and_says_so_once(make_rig, monkeypatch):
    rig = make_rig()
    rig.acceptor.open()
    (listener,) = rig.listeners

    def poor(_: socket.socket) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with rig.knock(), monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", poor)
        for _ in range(3):
            assert rig.acceptor.accept(listener) is None
            assert not rig.listeners, "it stays readable: the loop would spin"
            rig.acceptor.resume()
            assert rig.listeners == [listener]
        assert [kind for kind, _ in rig.events] == ["warning"] and "LimitNOFILE" in rig.events[0][1]
        patch.undo()
        channel = rig.acceptor.accept(listener)
        assert channel is not None
        channel.close()
        patch.setattr(socket.socket, "accept", poor)
        rig.acceptor.accept(listener)
    assert len(rig.events) == 2, "somebody had come in between: it is news again"


@pytest.mark.parametrize("paused", [False, True])
def test_after_a_stop_nothing_resumes_and_who_comes_waits(make_rig, monkeypatch, paused):
    with socket.create_server(("127.0.0.1", 0)) as ours:
        rig = make_rig(os.dup(ours.fileno()))
        rig.acceptor.open()
        assert rig.acceptor.address == PeerAddress(*ours.getsockname())
        if paused:
            rig.acceptor._pause(OSError(errno.EMFILE, "out of it"))
        rig.acceptor.stop()
        rig.acceptor.resume()
        assert not rig.listeners
        with rig.knock():
            ours.settimeout(30)
            ours.accept()[0].close()


def test_a_given_socket_that_everybody_reaches_is_closed_again(make_rig):
    with socket.create_server(("0.0.0.0", 0)) as wide:
        copy = os.dup(wide.fileno())
        rig = make_rig(copy)
        with pytest.raises(RequestError) as caught:
            rig.acceptor.open()
        assert caught.value.code == "needs_token" and not rig.listeners
        rig.acceptor.close()
        with pytest.raises(OSError):
            os.fstat(copy)
