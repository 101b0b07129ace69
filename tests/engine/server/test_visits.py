"""Only clients to which something happened are asked for steps, and only writers are watched for room."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from p2prw.engine.control.messages import Grant, ListRegions, Regions
from p2prw.engine.server.client import _MESSAGES_PER_TURN
from p2prw.engine.server.visits import Visits


class Talk:
    wants_write = False


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.channel, self.fileno = Talk(), sock.fileno()
        self.gone = False
        self.left = 0
        self.steps = 0

    @property
    def is_restless(self) -> bool:
        return self.left > 0 or self.channel.wants_write

    def step(self, now: float) -> bool:
        self.steps += 1
        had, self.left = self.left, max(0, self.left - 1)
        return had > 0


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as made:
        yield made


@pytest.fixture
def clients(selector: selectors.BaseSelector) -> Iterator[list[Any]]:
    pairs = [socket.socketpair() for _ in range(3)]
    made = [Client(near) for near, _ in pairs]
    for client in made:
        selector.register(client.fileno, selectors.EVENT_READ, client)
    yield made
    for ends in pairs:
        for end in ends:
            end.close()


def test_a_client_is_asked_until_it_has_no_more_to_do(selector: selectors.BaseSelector, clients: list[Any]) -> None:
    visits, (busy, quiet, _) = Visits(selector), clients
    busy.left = 3
    visits.add(busy)
    visits.add(quiet)
    assert [visits.round(0.0) for _ in range(5)] == [True, True, True, False, False]
    assert [client.steps for client in clients] == [3, 1, 0]


def test_who_leaves_is_not_asked(selector: selectors.BaseSelector, clients: list[Any]) -> None:
    visits, (leaving, staying, _) = Visits(selector), clients
    for client in (leaving, staying):
        client.left = 5
        visits.add(client)

    def leave(now: float) -> bool:
        visits.forget(leaving)
        return True

    leaving.step = leave
    assert visits.round(0.0) and visits.round(0.0)
    assert staying.steps == 2


def test_a_writer_is_watched_until_it_has_written(selector: selectors.BaseSelector, clients: list[Any]) -> None:
    visits, (writer, _, gone) = Visits(selector), clients
    both = selectors.EVENT_READ | selectors.EVENT_WRITE
    for client in (writer, gone):
        client.channel.wants_write = True
        visits.add(client)
    gone.gone = True
    visits.watch_writers()
    assert [selector.get_key(client.fileno).events for client in clients] == [both, 1, 1]
    assert [key.data for key, _ in selector.select(0)] == [writer], "there is room"
    writer.channel.wants_write = False
    visits.round(0.0)
    visits.watch_writers()
    assert selector.get_key(writer.fileno).events == selectors.EVENT_READ


def test_clients_that_only_move_bytes_take_no_steps(serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    quiet, speaking = connect(served), connect(served)
    for index, client in enumerate((quiet, speaking)):
        client.ask(client.open(offset=4096 * index, length=4096), Grant)
    (of_quiet, _) = served.server._clients.values()
    stepping: list[Any] = []
    take = type(of_quiet).step

    def step(client: Any, now: float) -> bool:
        stepping.append(client)
        return bool(take(client, now))

    monkeypatch.setattr(type(of_quiet), "step", step)
    for _ in range(3 * _MESSAGES_PER_TURN):
        speaking.ask(ListRegions(0), Regions)
    assert stepping.count(of_quiet) <= 1, "what is left of its own grant"
    assert len(stepping) >= 2, "after each turn, but perhaps the last"
