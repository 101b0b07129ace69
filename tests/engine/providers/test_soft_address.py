"""Device names and local addresses. The kernel's own tools are the oracle."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess

import pytest

from p2prw.engine.providers import soft_address
from p2prw.engine.providers.soft_address import (
    LocalAddress,
    gid_of,
    local_addresses,
    port_mtu_bytes,
    resolve_device,
)
from p2prw.errors import HostError, RequestError

ROWS = (
    LocalAddress("127.0.0.1", "lo", 65536, True),
    LocalAddress("::1", "lo", 65536, True),
    LocalAddress("192.0.2.2", "eth0", 1500, True),
    LocalAddress("2001:db8::2", "eth0", 1500, True),
    LocalAddress("fe80::2", "eth0", 1500, True, 2),
    LocalAddress("192.0.2.77", "eth1", 9000, False),
    LocalAddress("fe80::2", "eth2", 1500, True, 4),
)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_address, "local_addresses", lambda: ROWS)
    names = [(1, "lo"), (2, "eth0"), (3, "eth1"), (4, "eth2"), (5, "bare0")]
    monkeypatch.setattr("p2prw.engine.providers.soft_address.socket.if_nameindex", lambda: names)


@pytest.mark.parametrize(
    ("netdev_mtu_bytes", "expected"),
    [(65536, 4096), (9000, 4096), (4176, 4096), (4175, 2048), (1500, 1024), (1400, 1024), (1103, 512), (336, 256)],
)
def test_port_mtu_is_rxes_rule(netdev_mtu_bytes: int, expected: int) -> None:
    assert port_mtu_bytes(netdev_mtu_bytes) == expected


def test_port_mtu_too_small() -> None:
    with pytest.raises(HostError, match="335 bytes is too small"):
        port_mtu_bytes(335)


def test_gids() -> None:
    assert gid_of("127.0.0.1") == "00000000000000000000ffff7f000001"
    assert gid_of("2001:db8::1") == "20010db8000000000000000000000001"


def test_local_addresses_are_those_of_ip_address() -> None:
    ip = shutil.which("ip")
    if ip is None:
        pytest.skip("ip (iproute2) is not installed")
    listed = json.loads(subprocess.run([ip, "-json", "address"], check=True, capture_output=True, timeout=20).stdout)
    expected = {
        (entry["local"], link["ifname"], link["mtu"])
        for link in listed
        for entry in link.get("addr_info", ())
        if entry["family"] in ("inet", "inet6") and not entry.get("tentative")
    }
    found = local_addresses()
    assert {(row.address, row.netdev, row.netdev_mtu_bytes) for row in found} == expected
    assert all(bool(row.scope_id) == (row.is_link_local and ":" in row.address) for row in found)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    ("name", "local_address", "expected"),
    [
        ("soft0", None, "127.0.0.1"),
        ("soft0", "192.0.2.2", "127.0.0.1"),
        ("soft:eth0", None, "192.0.2.2"),
        ("soft:192.0.2.2", None, "192.0.2.2"),
        ("soft:2001:db8::2", None, "2001:db8::2"),
        ("soft:[2001:db8::2]", None, "2001:db8::2"),
        ("soft:127.1.2.3", None, "127.1.2.3"),
        ("auto", "192.0.2.2", "192.0.2.2"),
        ("auto", "::ffff:192.0.2.2", "192.0.2.2"),
        ("auto", "127.0.0.1", "127.0.0.1"),
        ("auto", "::1", "::1"),
        ("auto", "0.0.0.0", "192.0.2.2"),
        ("auto", "::", "192.0.2.2"),
        ("auto", None, "192.0.2.2"),
    ],
)
def test_names(name: str, local_address: str | None, expected: str) -> None:
    assert resolve_device(name, local_address).address == expected


@pytest.mark.usefixtures("rows")
def test_link_local_scope_picks_the_netdev() -> None:
    assert resolve_device("soft:fe80::2%eth2", None).scope_id == 4
    assert resolve_device("auto", "fe80::2%2").netdev == "eth0"


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    ("name", "says", "code"),
    [
        ("soft:eth9", "this network namespace has: lo, eth0, eth1", "no_device"),
        ("soft:bare0", "ip address add", "no_device"),
        ("soft:eth1", "ip link set dev eth1 up", "netdev_down"),
        ("soft:192.0.2.77", "down or has no carrier", "netdev_down"),
        ("soft:203.0.113.9", "not an address of this host", "no_device"),
    ],
)
def test_what_is_not_there_is_explained(name: str, says: str, code: str) -> None:
    with pytest.raises(HostError) as caught:
        resolve_device(name, None)
    assert says in str(caught.value)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["mlx5_0", "soft", "soft:", "hard:eth0"])
def test_other_names_are_usage_errors(name: str) -> None:
    with pytest.raises(RequestError, match="does not name a software device"):
        resolve_device(name, None)


def test_families() -> None:
    assert [row.family for row in ROWS[:2]] == [socket.AF_INET, socket.AF_INET6]
    assert [row.is_loopback for row in ROWS[:3]] == [True, True, False]
