"""One client of a server: rights, keys, pages, and frames out of place."""

from __future__ import annotations

import pytest

from p2prw import api
from p2prw.engine.control.messages import Auth, Grant, ListRegions, Regions, Release, Released
from p2prw.errors import PeerRefusedError


def refused(client, message, *kinds) -> PeerRefusedError:
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(message, *(kinds or (Grant,)))
    return caught.value


def test_each_lease_has_keys_of_its_own_with_the_least_rights(serve, connect):
    served = serve({"a": "host,size=64KiB"}, access="rw")
    one, two = connect(served), connect(served)
    first = one.ask(one.open("a", offset=100, length=50), Grant)
    second = two.ask(two.open("a", offset=200, length=50), Grant)
    assert isinstance(first, Grant) and isinstance(second, Grant)
    assert [segment.length for segment in first.segments] == [50]
    assert first.segments[0].rkey != second.segments[0].rkey
    assert first.flushable and first.route.peer_to_peer is False


def test_write_only_memory_cannot_be_read_back(serve, connect):
    served = serve(access="w")
    client = connect(served)
    grant = client.ask(client.open(), Grant)
    assert isinstance(grant, Grant) and not grant.flushable
    result = api.write(f"{served.server.address}/mem", "host,size=1KiB")
    assert result.exit_code == 7 and result.error is not None and result.error.code == "busy"
    client.ask(Release(grant.lease, keep=False), Released)
    assert api.write(f"{served.server.address}/mem", "host,size=1KiB").verify.status == "verified"
    assert refused(client, client.open(op="read")).code == "write_only"


def test_a_message_of_the_wrong_direction_ends_the_client_not_the_server(serve, connect):
    served = serve()
    client = connect(served)
    assert refused(client, Auth("0" * 64)).code == "unexpected_message"
    other = connect(served)
    assert isinstance(other.ask(ListRegions(), Regions), Regions)


def test_a_page_past_the_end_is_empty(serve, connect):
    client = connect(serve())
    assert client.ask(ListRegions(65535), Regions) == Regions((), more=False)


def test_a_defect_of_ours_ends_one_client_and_is_reported(serve, connect, monkeypatch):
    served = serve()
    client = connect(served)

    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(served.server, "find_region", broken)
    assert refused(client, client.open()).code == "server_defect"
    assert "boom" in served.wait_for("defect").text
    monkeypatch.undo()
    assert api.write(f"{served.server.address}/mem", "host,size=1KiB").exit_code == 0
