"""One client of a server: rights, leases, addresses, and frames out of place."""

from __future__ import annotations

import pytest

from p2prw import api
from p2prw.engine import gids
from p2prw.engine.control.messages import (
    Auth,
    Grant,
    ListRegions,
    Open,
    QueuePairInfo,
    Regions,
    Release,
    Released,
)
from p2prw.errors import PeerRefusedError


def refused(client, message, *kinds) -> PeerRefusedError:
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(message, *(kinds or (Grant,)))
    return caught.value


def test_a_writer_keeps_others_out_of_its_range_only(serve, connect):
    served = serve()
    first, second = connect(served), connect(served)
    first.ask(first.open(offset=0, length=4096), Grant)
    assert refused(second, second.open(offset=4095, length=2)).code == "busy"
    assert refused(second, second.open(op="read", offset=0, length=1)).code == "busy"
    # The refusal ended the request, not the connection.
    assert isinstance(second.ask(second.open(offset=4096, length=4096), Grant), Grant)


def test_readers_share(serve, connect):
    served = serve()
    for _ in range(2):
        client = connect(served)
        assert isinstance(client.ask(client.open(op="read"), Grant), Grant)


def test_a_file_has_one_writer_whatever_the_range(serve, connect, tmp_path):
    served = serve({"f": f"file:{tmp_path}/f,size=8192"})
    first, second = connect(served), connect(served)
    first.ask(first.open("f", offset=0, length=10), Grant)
    assert refused(second, second.open("f", offset=8000, length=10)).code == "busy"
    first.channel.close()
    served.wait_for("failed")
    assert isinstance(second.ask(second.open("f", offset=8000, length=10), Grant), Grant)


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


def test_a_queue_pair_gid_must_be_one_the_client_announced(serve, connect):
    served = serve()
    client = connect(served)
    pair = QueuePairInfo(77, 1, gids.address_to_gid("127.0.0.9"), 4096, 16, 16)
    assert refused(client, Open(region="mem", offset=0, length=None, op="write", queue_pair=pair)).code == "bad_gid"


def test_without_a_token_data_goes_only_to_where_the_client_is(serve, connect):
    """Else whoever reaches the port could aim our packets at a third host."""
    served = serve()
    client = connect(served, gid=gids.address_to_gid("192.0.2.7"))
    assert refused(client, client.open()).code == "foreign_gid"


def test_a_message_of_the_wrong_direction_ends_the_client_not_the_server(serve, connect):
    served = serve()
    client = connect(served)
    assert refused(client, Auth("0" * 64)).code == "unexpected_message"
    other = connect(served)
    assert isinstance(other.ask(ListRegions(), Regions), Regions)


def test_a_page_past_the_end_is_empty(serve, connect):
    client = connect(serve())
    assert client.ask(ListRegions(65535), Regions) == Regions((), more=False)


def test_an_error_of_the_memory_is_told_to_the_client(serve, connect, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    served = serve({"f": f"file:{folder}/f"})
    folder.rmdir()
    client = connect(served)
    error = refused(client, client.open("f", length=100))
    assert error.exit_code == 7 and error.why and error.side == "remote"


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
