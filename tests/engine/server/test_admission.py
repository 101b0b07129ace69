from __future__ import annotations

import pytest

from p2prw.engine.server.admission import Allowance, Networks
from p2prw.errors import PeerRefusedError


def code_of(check) -> str | None:
    try:
        check()
    except PeerRefusedError as error:
        assert error.why and error.fix
        return error.code
    return None


def test_networks() -> None:
    some = Networks(("10.0.0.0/8", "192.168.1.7/32", "fd00::/8"))
    for host in ("10.255.0.1", "192.168.1.7", "fd00::1", "fdff::1%eth0"):
        assert code_of(lambda host=host: some.check(host)) is None
    for host in ("11.0.0.1", "192.168.1.8", "fe80::1%eth0", "::1", "127.0.0.1"):
        assert code_of(lambda host=host: some.check(host)) == "address_not_allowed"
    Networks(()).check("203.0.113.5")


def test_an_allowance_without_limits_counts_all_the_same() -> None:
    one = Allowance(None, None)
    for region in ("a", "b", "a"):
        one.check(region, 1 << 62)
        one.take(region, 5)
    assert one.granted_bytes == 15 and list(one.regions) == ["a", "b"]


def test_bytes() -> None:
    one = Allowance(100, None)
    one.check("a", 100)
    one.take("a", 60)
    one.check("b", 40)
    with pytest.raises(PeerRefusedError) as caught:
        one.check("b", 41)
    assert caught.value.code == "client_bytes" and caught.value.fix == "--size 40"
    one.take("b", 40)
    one.check("b", 0)
    assert code_of(lambda: one.check("b", 1)) == "client_bytes"


def test_a_rate_has_its_account() -> None:
    assert Allowance(None, None).account is None
    account = Allowance(None, None, 5.0).account
    assert account is not None and account.rate_bytes_per_s == 5.0


def test_regions() -> None:
    one = Allowance(None, 2)
    for region in ("a", "b"):
        one.check(region, 1)
        one.take(region, 1)
    one.check("a", 1)
    assert code_of(lambda: one.check("c", 1)) == "client_regions"
