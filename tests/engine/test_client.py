"""Opening a lease from the client's side: what is opened, what is said on the way, what is closed again."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from p2prw import api
from p2prw.engine.client import LeaseClient
from p2prw.engine.completion import completion_error
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Refuse, Released
from p2prw.engine.deadline import Deadline
from p2prw.engine.model import Completion, Opcode, Operation, WcStatus
from p2prw.engine.phases import PhaseClock
from p2prw.engine.server.active import ActiveLease
from p2prw.engine.stop import StopRequest
from p2prw.errors import PeerGone, PeerRefusedError, RemoteProtocolError


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with api.serving({"mem": "host,size=1MiB"}) as address:
        yield str(address)


@pytest.fixture
def make_client(served):
    """Clients of 4096 bytes of the served region; closed afterwards."""
    clients: list[LeaseClient] = []

    def make(offset: int = 0, *, device=None, size_bytes: int | None = 4096) -> LeaseClient:
        request = api.make_request(Operation.WRITE, f"{served}/mem+{offset}", "host,size=4096", size_bytes=size_bytes)
        deadline = Deadline(time.monotonic, StopRequest())
        clients.append(LeaseClient(request, deadline, PhaseClock(time.monotonic), device=device))
        return clients[-1]

    yield make
    for client in reversed(clients):
        client.abandon()
        client.close()


def test_everything_is_attached_and_every_phase_booked(make_client):
    client = make_client()
    attached = client.attach()
    assert attached.local is not None and attached.grant.length == attached.memory.length_bytes == 4096
    assert client.length_bytes == 4096 and client.lease == attached.grant.lease
    assert client.local_route is not None and client.remote_route is not None
    assert set(client.phases.seconds) >= {"open", "map", "exchange", "connect"}
    assert client.environment["negotiated"]["local_qpn"] == attached.link.queue_pair.local.qpn
    client.release(keep=True)
    assert client.lease is None


def test_a_release_of_another_lease_is_none(make_client, monkeypatch):
    client = make_client()
    client.attach()
    monkeypatch.setattr("p2prw.engine.server.client.Released", lambda _: Released("f" * 16))
    with pytest.raises(RemoteProtocolError) as caught:
        client.release(keep=True)
    assert caught.value.code == "bad_lease"


def test_a_grant_of_another_length_is_refused(make_client, monkeypatch):
    honest = ActiveLease.make_grant
    monkeypatch.setattr(ActiveLease, "make_grant", lambda *a, **o: replace(honest(*a, **o), length=8192))
    with pytest.raises(RemoteProtocolError) as caught:
        make_client().attach()
    assert caught.value.code == "bad_grant"


def test_size_zero_registers_nothing(make_client):
    assert make_client(size_bytes=0).attach().local is None


def test_a_second_queue_pair_on_the_same_device_leaves_it_open(make_client):
    first = make_client()
    first.attach()
    second = make_client(8192, device=first.device)
    attached = second.attach()
    assert attached.link.device is first.device
    assert attached.link.queue_pair.local.qpn != first.queue_pair.local.qpn
    second.release(keep=False)
    second.close()
    assert first.device is not None and first.device.filenos(), "an open device has its socket"
    first.release(keep=False)


def test_an_abandoned_lease_can_be_had_again(make_client):
    first = make_client()
    first.attach()
    with pytest.raises(PeerRefusedError, match="is busy"):
        make_client().attach()
    first.abandon()
    first.abandon()
    make_client().attach()


def test_a_lost_peer_is_told_with_what_was_moved(make_client):
    client = make_client()
    client.attach()
    error = client.explain(PeerGone("the peer went away"), 100)
    assert error.why == "100 of 4096 bytes were moved" and error.fix
    assert client.explain(error, 200).why == "100 of 4096 bytes were moved", "said once"


@pytest.mark.parametrize("words", ["refusal", "end", "silence"])
def test_an_error_completion_is_explained_by_how_the_peer_ended(make_client, words):
    """The memory of a killed server may go before its connection does: that is no refused key."""
    ours, theirs = socket.socketpair()
    with Channel(ours) as channel, Channel(theirs) as peer:
        client = make_client()
        client.link = SimpleNamespace(channel=channel, device=SimpleNamespace(pump=lambda: False))
        client.length_bytes = 4096
        if words == "refusal":
            peer.send(Refuse(code="lease_ended", what="the lease ended", why="its time was over"))
        if words != "silence":
            peer.close()
        completion = Completion(7, WcStatus.REM_ACCESS_ERR, Opcode.RDMA_WRITE, 0, 2)
        error = completion_error(completion, 1024, 4096)
        explained = client.explain(error, 1024)
        assert explained.wc_status == "REM_ACCESS_ERR"
        if words == "silence":
            assert explained is error
        else:
            assert explained.code == ("lease_ended" if words == "refusal" else "peer_lost")
            assert "work request 7 completed with REM_ACCESS_ERR" in str(explained)
        client.link = None
