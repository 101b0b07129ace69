"""From an open to a lease: who else holds it, which address, which memory; a refusal leaves nothing behind."""

from __future__ import annotations

import os

import pytest

from p2prw.engine import gids
from p2prw.engine.control.messages import Grant, Open, QueuePairInfo
from p2prw.engine.providers.soft_device import SoftQueuePair
from p2prw.errors import HostError, PeerRefusedError


def refused(client, message) -> PeerRefusedError:
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(message, Grant)
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


def test_an_error_of_the_memory_is_told_to_the_client(serve, connect, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    served = serve({"f": f"file:{folder}/f"})
    folder.rmdir()
    client = connect(served)
    error = refused(client, client.open("f", length=100))
    assert error.exit_code == 7 and error.why and error.side == "remote"


def test_where_the_last_step_fails_nothing_is_left_behind(serve, connect, tmp_path, monkeypatch):
    served = serve({"f": f"file:{tmp_path}/f,size=64KiB"}, client_bytes=65536)
    client = connect(served)
    (device,) = served.server._devices.values()
    before = len(os.listdir("/proc/self/fd"))

    def fail(*_: object) -> None:
        raise HostError("cannot connect", why="a test", code="bad_queue_pair")

    with monkeypatch.context() as patch:
        patch.setattr(SoftQueuePair, "connect", fail)
        assert refused(client, client.open("f", length=65536)).code == "bad_queue_pair"
    assert device.usage().queue_pairs == 0 and not len(served.server.leases)
    assert os.listdir(tmp_path) == [] and len(os.listdir("/proc/self/fd")) == before
    # Neither the region nor the allowance is used up.
    assert isinstance(client.ask(client.open("f", length=65536), Grant), Grant)
