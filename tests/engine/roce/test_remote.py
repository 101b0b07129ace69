"""Who a peer is: GIDs and addresses, and where its packets may come from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw.engine.model import QueuePairAttributes
from p2prw.engine.roce.remote import ROCE_UDP_PORT, Sources, address_of, check_attributes, gid_of
from p2prw.errors import HostError

PEER = QueuePairAttributes(
    qpn=2, psn=0, gid=gid_of("10.0.0.2"), mtu_bytes=4096, max_rd_atomic=1, max_dest_rd_atomic=1, udp_port=5000
)


@pytest.mark.parametrize("address", ["10.1.2.3", "fe80::1", "::1", "2001:db8::ffff:1"])
def test_gids_and_addresses(address):
    assert len(gid_of(address)) == 32
    assert address_of(gid_of(address))[1] == address


def test_ipv4_gid():
    assert gid_of("10.1.2.3") == "00000000000000000000ffff0a010203"


@pytest.mark.parametrize("gid", ["", "zz" * 16, "00" * 15])
def test_what_is_no_gid(gid):
    with pytest.raises(HostError) as caught:
        address_of(gid)
    assert caught.value.code == "bad_gid"


def test_a_queue_pair_that_can_be() -> None:
    check_attributes(PEER)
    with pytest.raises(HostError):
        check_attributes(replace(PEER, mtu_bytes=1500))


@pytest.mark.parametrize(
    ("udp_port", "source", "is_peer"),
    [
        (5000, ("10.0.0.2", 5000), True),
        (5000, ("::ffff:10.0.0.2", 5000), True),
        (5000, ("10.0.0.2", 5001), False),
        (5000, ("10.0.0.3", 5000), False),
        (5000, ("nonsense", 5000), False),
        (ROCE_UDP_PORT, ("10.0.0.2", 60000), True),
        (ROCE_UDP_PORT, ("10.0.0.3", 60000), False),
    ],
)
def test_where_a_peer_may_send_from(udp_port: int, source: tuple[str, int], is_peer: bool) -> None:
    sources = Sources(replace(PEER, udp_port=udp_port), bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1)), 4791)
    flow = sources.flow_from(source)
    assert (flow is not None) is is_peer
    assert sources.flow_from(source) is flow
