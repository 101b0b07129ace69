"""The server's half of a ping-pong, by hand: what it answers, what it refuses, when it lets the loop sleep."""

from __future__ import annotations

import pytest

from p2prw.engine.control.measuring import TAGS
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Access, QueuePairOptions
from p2prw.engine.providers.scripted import ScriptedDevice, ScriptedFabric
from p2prw.engine.server.pingpong import Pingpong, watched_view
from p2prw.errors import CompletionError, PeerRefusedError

RIGHTS = Access.LOCAL_WRITE | Access.REMOTE_WRITE


class Table:
    """A server's memory and a client's, and the ping-pong between them."""

    def __init__(self, *, length: int = 8, client_rights: Access = RIGHTS) -> None:
        self.now = 0.0
        fabric = ScriptedFabric()
        server, client = (ScriptedDevice(name, fabric=fabric, clock=self.clock) for name in ("server", "client"))
        self.here, self.there = bytearray(length), bytearray(length)
        memory = HostMemory.from_buffer(self.here)
        ours = server.register(memory.buffers(), RIGHTS)
        (theirs,) = client.register(HostMemory.from_buffer(self.there).buffers(), client_rights).remote_segments()
        pair, other = (device.create_queue_pair(QueuePairOptions(depth=4)) for device in (server, client))
        pair.connect(other.local)
        other.connect(pair.local)
        self.pingpong = Pingpong(
            server, pair, watched_view(memory, 0, length), ours.vec, theirs.address, theirs.rkey, clock=self.clock
        )

    def clock(self) -> float:
        self.now += 1e-4
        return self.now


def test_each_message_is_answered_once_with_its_own_bytes():
    table = Table()
    assert table.pingpong.step() and table.pingpong.answered == 0, "nothing has come yet"
    for number in range(TAGS + 3):
        table.here[:] = bytes([number % 7] * 7) + bytes([number % TAGS + 1])
        table.pingpong.step()
        assert table.pingpong.answered == number + 1
        assert table.there == table.here
    table.pingpong.step()
    assert table.pingpong.answered == TAGS + 3


def test_what_an_earlier_one_left_is_no_message():
    memory = HostMemory.from_buffer(bytearray(b"\1" * 8))
    device = ScriptedDevice("a", fabric=ScriptedFabric())
    view = watched_view(memory, 0, 8)
    Pingpong(device, device.create_queue_pair(QueuePairOptions()), view, (), 0, 0)
    assert view[-1] == 0


def test_a_client_that_is_silent_costs_no_core():
    table = Table()
    assert table.pingpong.step()
    table.now += 1.0
    assert not table.pingpong.step()
    table.here[-1] = 1
    assert table.pingpong.step(), "and it is still answered"


def test_memory_that_is_not_the_clients_to_offer_ends_it():
    table = Table(client_rights=Access.LOCAL_WRITE)
    table.here[-1] = 1
    with pytest.raises(CompletionError):
        for _ in range(3):
            table.pingpong.step()


def test_only_memory_that_a_cpu_reads_cheaply_is_watched():
    memory = HostMemory.from_buffer(bytearray(8))
    memory.spec = parse_memory_spec("bar:0000:01:00.0/0")
    with pytest.raises(PeerRefusedError) as caught:
        watched_view(memory, 0, 8)
    assert caught.value.code == "no_pingpong" and caught.value.fix


@pytest.mark.parametrize("looks", [1, 64])
def test_an_answer_leaves_in_the_round_that_saw_its_message(monkeypatch, looks):
    """However often it looks between two looks at the queues, and without waiting for the next one."""
    monkeypatch.setattr("p2prw.engine.waiting.WATCH_LOOKS", looks)
    table = Table()
    table.here[-1] = 1
    table.pingpong.clock = iter([0.0, 0.0, 1.0]).__next__
    table.pingpong.step()
    assert table.pingpong.answered == 1 and table.there == table.here
