"""Pairs of GIDs: family, type, reach, state; and what is said when none fits."""

from __future__ import annotations

import pytest

from p2prw.engine.gids import address_to_gid, from_wire, gid_to_address, pick_gid_pair, to_wire
from p2prw.engine.model import GidEntry
from p2prw.errors import HostError, RequestError


def entry(index: int, address: str, kind: str = "rocev2", *, up: bool = True) -> GidEntry:
    return GidEntry(index, address_to_gid(address), kind, "eth0", up)


@pytest.mark.parametrize("address", ["10.9.0.1", "127.0.0.1", "fd00::1", "fe80::1", "::1"])
def test_an_address_survives_the_way_to_a_gid_and_back(address):
    assert str(gid_to_address(address_to_gid(address))) == address


def test_an_ipv4_gid_is_v4_mapped_as_on_the_wire():
    assert address_to_gid("10.9.0.1") == "00000000000000000000ffff0a090001"


def test_a_scope_is_no_part_of_the_gid():
    assert address_to_gid("fe80::1%eth0") == address_to_gid("fe80::1")


def test_rocev2_routable_and_up_win_over_the_first_row():
    local = [
        entry(0, "fe80::1", "rocev1"),
        entry(1, "fe80::1"),
        entry(2, "10.0.0.1", up=False),
        entry(3, "10.0.1.1", "rocev1"),
        entry(4, "10.0.1.1"),
    ]
    remote = [entry(0, "fe80::2", "rocev1"), entry(1, "fe80::2"), entry(5, "10.0.1.2", "rocev1"), entry(6, "10.0.1.2")]
    pair = pick_gid_pair(local, remote)
    assert (pair.local.index, pair.remote.index) == (4, 6)
    assert "gid 4 (rocev2 10.0.1.1, eth0) <-> gid 6 (rocev2 10.0.1.2)" in pair.reason


def test_loopback_pairs_with_loopback():
    pair = pick_gid_pair([entry(0, "10.0.0.1"), entry(1, "127.0.0.1")], [entry(0, "127.0.0.1")])
    assert pair.local.index == 1


def test_a_pinned_index_is_kept_even_where_another_fits_better():
    pair = pick_gid_pair([entry(1, "fe80::1"), entry(2, "10.0.0.1")], [entry(1, "fe80::2"), entry(2, "10.0.0.2")], 1)
    assert (pair.local.index, pair.remote.index) == (1, 1)


def test_a_pinned_index_that_is_not_there_names_those_that_are():
    with pytest.raises(RequestError, match="--gid-index 7") as caught:
        pick_gid_pair([entry(1, "10.0.0.1"), entry(3, "fd00::1")], [entry(0, "10.0.0.2")], 7)
    assert caught.value.why == "it has: 1, 3"


def test_families_that_differ_are_an_error_that_shows_both_tables():
    with pytest.raises(HostError, match="no GID") as caught:
        pick_gid_pair([entry(0, "10.0.0.1")], [entry(0, "fd00::2")])
    assert "10.0.0.1" in str(caught.value.why) and "fd00::2" in str(caught.value.why)


def test_the_wire_skips_zero_gids_and_keeps_the_rest():
    rows = (entry(0, "::"), entry(1, "10.0.0.1", up=False))
    assert from_wire(to_wire(rows)) == rows[1:]
