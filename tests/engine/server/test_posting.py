"""What a client may have a server post, and what it may not; one thing at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2prw.engine.control.messages import (
    Digest,
    Digests,
    GoOn,
    Grant,
    Halt,
    Pingpong,
    Ponging,
    Reverse,
    Reversed,
    Reversing,
    Segment,
)
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Operation, QueuePairOptions
from p2prw.engine.providers.scripted import ScriptedDevice, ScriptedFabric
from p2prw.engine.server.posting import Poster
from p2prw.errors import PeerRefusedError

SEGMENT = Segment(0, 1 << 20, 1)


def leased(serve, connect, *, op: str = "write", access: str = "rw", **options: Any):
    served = serve({"mem": "host,size=64KiB"}, access=access, **options)
    client = connect(served)
    grant = client.ask(client.open(op=op), Grant)
    assert isinstance(grant, Grant)
    return served, client, grant.lease


@pytest.mark.parametrize(
    ("op", "access", "code", "make"),
    [
        ("write", "rw", "bad_range", lambda lease: Reverse(lease, 65537, (SEGMENT,), 4)),
        ("write", "rw", "bad_range", lambda lease: Reverse(lease, 64, (), 4)),
        ("write", "w", "bad_right", lambda lease: Reverse(lease, 64, (SEGMENT,), 4)),
        ("write", "rw", "bad_lease", lambda lease: Reverse("f" * 16, 64, (SEGMENT,), 4)),
        ("write", "rw", "unexpected_message", GoOn),
        ("write", "rw", "unexpected_message", Halt),
        ("read", "rw", "bad_range", lambda lease: Pingpong(lease, 64, 0, 1)),
        ("read", "rw", "unexpected_message", lambda lease: Digest(lease, 0, 64, 4096, reverse=True)),
        ("write", "rw", "bad_range", lambda lease: Pingpong(lease, 65537, 0, 1)),
        ("write", "w", "bad_right", lambda lease: Pingpong(lease, 64, 0, 1)),
    ],
)
def test_what_the_lease_does_not_give_ends_the_client(serve, connect, op, access, code, make):
    served, client, lease = leased(serve, connect, op=op, access=access)
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(make(lease), Reversing, Reversed, Ponging, Digests)
    assert caught.value.code == code
    assert served.wait_for("failed").fields["code"] == code


@pytest.mark.parametrize("message", [Pingpong("0" * 16, 64, 0, 1), Reverse("0" * 16, 64, (SEGMENT,), 4)])
def test_a_passive_server_posts_nothing(serve, connect, message):
    _, client, lease = leased(serve, connect, passive=True)
    with pytest.raises(PeerRefusedError, match="--passive") as caught:
        client.ask(replace(message, lease=lease), Reversing, Ponging)
    assert caught.value.code == "passive" and caught.value.fix


def test_staged_memory_takes_no_part(serve, connect, tmp_path):
    (tmp_path / "f.bin").write_bytes(b"x" * 4096)
    served = serve({"f": f"file:{tmp_path}/f.bin"})
    client = connect(served)
    grant = client.ask(client.open("f", op="read"), Grant)
    assert isinstance(grant, Grant)
    with pytest.raises(PeerRefusedError, match="staged") as caught:
        client.ask(Reverse(grant.lease, 64, (SEGMENT,), 4), Reversing)
    assert caught.value.code == "unexpected_message"


class Posted:
    """A poster on a scripted device, and what it says."""

    def __init__(self) -> None:
        fabric = ScriptedFabric()
        server, client = ScriptedDevice("server", fabric=fabric), ScriptedDevice("client", fabric=fabric)
        self.device = server
        self.said: list[Any] = []
        self.here = bytearray(64)
        memory = HostMemory.from_buffer(self.here)
        rights = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ
        ours = server.register(memory.buffers(), rights)
        (theirs,) = client.register(HostMemory.from_buffer(bytearray(64)).buffers(), rights).remote_segments()
        self.theirs = Segment(*theirs)
        self.pair, other = (one.create_queue_pair(QueuePairOptions(depth=4)) for one in (server, client))
        self.pair.connect(other.local)
        other.connect(self.pair.local)
        self.poster = Poster(Operation.WRITE, memory, 0, 64, True, ours.vec, server, self.pair, 4, 1 << 20)

    def send(self, message: Any) -> None:
        """Stands for the control channel."""
        self.said.append(message)

    def hear(self, message: Any) -> None:
        self.poster.hear(message, self)  # type: ignore[arg-type]

    def step(self) -> None:
        self.poster.step(self)  # type: ignore[arg-type]

    def until(self, kind: type[Any]) -> Any:
        for _ in range(100):
            self.step()
            if self.said and isinstance(self.said[-1], kind):
                return self.said[-1]
        raise AssertionError(f"no {kind.__name__}: {self.said}")


def test_one_thing_after_the_other_and_ids_go_on():
    table, lease = Posted(), "0" * 16
    reverse = Reverse(lease, 64, (table.theirs,), 4, 1)
    assert not table.poster.has_steps
    for _ in range(2):
        table.hear(reverse)
        assert table.said[-1] == Reversing(lease) and table.poster.has_steps
        table.step()
        with pytest.raises(Exception, match="in the middle of a reverse"):
            table.hear(reverse)
        table.hear(GoOn(lease))
        table.hear(Halt(lease))
        table.until(Reversed)
        assert not table.poster.has_steps
    table.hear(Pingpong(lease, 8, table.theirs.address, table.theirs.rkey))
    assert table.said[-1] == Ponging(lease)
    table.here[7] = 1
    table.step()
    assert [wr_id for wr_id, *_ in table.pair.posted] == list(range(table.device.counts.posts))
    table.poster.close()
    assert not table.poster.has_steps
