"""From which GID a client is answered, and who is not. The refusals end to end are in test_opening.py."""

from __future__ import annotations

from typing import Any

import pytest

from p2prw.engine import gids
from p2prw.engine.model import DeviceInfo, DeviceLimits, GidEntry
from p2prw.engine.server.admission import Networks
from p2prw.engine.server.source import choose_source
from p2prw.errors import PeerRefusedError, RemoteProtocolError

HERE, THERE, ELSEWHERE = (gids.address_to_gid(f"192.0.2.{number}") for number in (1, 2, 3))
IB = "fe80" + "0" * 12 + "0002c90300000001"


def device(link_layer: str = "Ethernet", *rows: GidEntry) -> DeviceInfo:
    table = rows or (GidEntry(0, gids.address_to_gid("192.0.2.9"), "rocev1"), GidEntry(3, HERE, "rocev2"))
    return DeviceInfo("d", "soft", "soft", "cpu", link_layer, "ACTIVE", 1024, table, DeviceLimits())


def choose(
    gid: str = THERE,
    *,
    has_token: bool = False,
    control: str = "192.0.2.2",
    of: DeviceInfo | None = None,
    networks: tuple[str, ...] = (),
) -> int:
    table = gids.to_wire([GidEntry(0, THERE, "rocev2"), GidEntry(1, ELSEWHERE, "rocev2")])
    more: dict[str, Any] = {"has_token": has_token, "networks": Networks(networks), "wanted_index": None}
    return choose_source(of or device(), table, gid, control_host=control, **more)


def test_data_stays_within_the_allowed_networks():
    """Also with a token, with which it may go to another address than the control connection's."""
    assert choose(ELSEWHERE, has_token=True, networks=("192.0.2.0/24",)) == 3
    with pytest.raises(PeerRefusedError) as caught:
        choose(ELSEWHERE, has_token=True, networks=("192.0.2.2/32",))
    assert caught.value.code == "address_not_allowed"


def test_the_row_that_fits_the_clients_is_taken():
    assert choose() == 3


def test_a_gid_that_was_not_announced_is_a_broken_rule():
    with pytest.raises(RemoteProtocolError) as caught:
        choose(HERE, has_token=True)
    assert caught.value.code == "bad_gid"


def test_data_goes_elsewhere_only_for_who_has_the_token():
    with pytest.raises(PeerRefusedError) as caught:
        choose(ELSEWHERE)
    assert caught.value.code == "foreign_gid"
    assert choose(ELSEWHERE, has_token=True) == 3
    # An IPv4 client of an IPv6 socket is the same client.
    assert choose(control="::ffff:192.0.2.2") == 3


def test_an_infiniband_gid_is_no_address():
    ib = device("InfiniBand", GidEntry(0, IB, "ib"))
    table = gids.to_wire([GidEntry(0, IB[:-1] + "2", "ib")])
    found = choose_source(
        ib, table, IB[:-1] + "2", control_host="192.0.2.2", has_token=False, networks=Networks(()), wanted_index=None
    )
    assert found == 0
