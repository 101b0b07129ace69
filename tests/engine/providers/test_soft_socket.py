"""The UDP socket: port policy, options, and who is named when the port is taken."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.providers import soft_socket
from p2prw.engine.providers.soft_address import LocalAddress
from p2prw.engine.providers.soft_socket import (
    IP_MTU_DISCOVER,
    PMTUDISC_DO,
    ROCE_UDP_PORT,
    UDP_NO_CHECK6_RX,
    BoundSocket,
    open_socket,
    pack_address,
    path_mtu_to,
    unpack_address,
    who_owns_udp_port,
)
from p2prw.errors import HostError

# Addresses nobody else on the machine is likely to use: several tests take port 4791.
HERE = LocalAddress("127.200.17.1", "lo", 65536, True)
ONE, TWO = "0100007F", "0200007F"
HERE6 = LocalAddress("::1", "lo", 65536, True)


@pytest.fixture
def sockets() -> Iterator[list[BoundSocket]]:
    opened: list[BoundSocket] = []
    yield opened
    for one in opened:
        one.sock.close()


def opened(sockets: list[BoundSocket], local: LocalAddress = HERE, **changes: object) -> BoundSocket:
    arguments: dict[str, object] = {
        "udp_port": None,
        "role": "server",
        "gso": True,
        "pinned": True,
        "random_bits": lambda bits: 0xC81102,
        **changes,
    }
    sockets.append(open_socket(local, **arguments))  # type: ignore[arg-type]
    return sockets[-1]


def test_server_takes_4791(sockets: list[BoundSocket]) -> None:
    bound = opened(sockets)
    assert bound.sock.getsockname() == (HERE.address, ROCE_UDP_PORT)
    assert bound.udp_port == ROCE_UDP_PORT
    assert bound.warnings == []


def test_second_server_gets_an_ephemeral_port_and_a_warning_that_names_the_first(sockets: list[BoundSocket]) -> None:
    opened(sockets)
    second = opened(sockets)
    assert second.udp_port != ROCE_UDP_PORT
    (warning,) = second.warnings
    assert f"process {os.getpid()}" in warning
    assert f"using port {second.udp_port}" in warning
    assert "verbs peers cannot reach it" in warning


def test_asked_for_port_is_taken_or_refused(sockets: list[BoundSocket]) -> None:
    first = opened(sockets, udp_port=0)
    with pytest.raises(HostError) as caught:
        opened(sockets, udp_port=first.udp_port)
    assert (caught.value.code, caught.value.errno) == ("udp_port_in_use", "EADDRINUSE")
    assert f"process {os.getpid()}" in str(caught.value)


def test_loopback_client_takes_4791_on_another_address(sockets: list[BoundSocket]) -> None:
    client = opened(sockets, LocalAddress("127.0.0.1", "lo", 65536, True), role="client", pinned=False)
    assert client.sock.getsockname() == ("127.200.17.2", ROCE_UDP_PORT)
    assert client.local.address == "127.200.17.2"


def test_loopback_client_passes_over_addresses_that_are_taken_or_reserved(sockets: list[BoundSocket]) -> None:
    opened(sockets)
    draws = iter([0, 1, 0xFFFFFF, 0xC81101, 0xC81103])
    local = LocalAddress("127.0.0.1", "lo", 65536, True)
    client = opened(sockets, local, role="client", pinned=False, random_bits=lambda bits: next(draws))
    assert client.local.address == "127.200.17.3"


def test_loopback_client_without_any_free_address_takes_an_ephemeral_port(
    sockets: list[BoundSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where rxe owns the port. Finding out who does walks all of /proc: not for tries that may fail."""
    opened(sockets)

    def look(*_: object) -> str:
        raise AssertionError("the owner of the port was looked for")

    monkeypatch.setattr(soft_socket, "who_owns_udp_port", look)
    client = opened(sockets, role="client", pinned=False, random_bits=lambda bits: 0xC81101)
    assert client.udp_port not in (0, ROCE_UDP_PORT)


@pytest.mark.parametrize("local", [HERE, HERE6], ids=["pinned-ipv4", "ipv6"])
def test_other_clients_take_an_ephemeral_port(sockets: list[BoundSocket], local: LocalAddress) -> None:
    assert opened(sockets, local, role="client").udp_port not in (0, ROCE_UDP_PORT)


def test_options_of_ipv4(sockets: list[BoundSocket]) -> None:
    sock = opened(sockets).sock
    assert sock.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == PMTUDISC_DO
    assert not sock.getblocking()
    with pytest.raises(OSError, match="not connected"):
        sock.getpeername()


def test_options_of_ipv6(sockets: list[BoundSocket]) -> None:
    sock = opened(sockets, HERE6, udp_port=0).sock
    assert sock.getsockopt(socket.SOL_UDP, UDP_NO_CHECK6_RX) == 1
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_without_gso_there_is_no_gro_either(sockets: list[BoundSocket]) -> None:
    bound = opened(sockets, gso=False)
    assert (bound.has_gso, bound.has_gro, bound.warnings) == (False, False, [])


def test_old_kernel_is_told(sockets: list[BoundSocket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_socket, "UDP_SEGMENT", 9999)
    bound = opened(sockets)
    assert bound.has_gso is False
    assert "no UDP segmentation offload" in bound.warnings[0]


def test_granted_buffer_is_the_undoubled_value(sockets: list[BoundSocket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_socket, "RECEIVE_BUFFER_WANTED_BYTES", 100_000)
    bound = opened(sockets)
    assert bound.receive_buffer_bytes == 100_000
    assert bound.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000
    assert "sysctl net.core.rmem_max" in bound.warnings[0]


def test_without_the_right_the_limit_holds(sockets: list[BoundSocket], monkeypatch: pytest.MonkeyPatch) -> None:
    class Unprivileged(socket.socket):
        def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
            if option in (soft_socket.SO_RCVBUFFORCE, soft_socket.SO_SNDBUFFORCE):
                raise PermissionError(1, "Operation not permitted")
            super().setsockopt(level, option, value)

    monkeypatch.setattr("p2prw.engine.providers.soft_socket.socket.socket", Unprivileged)
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert opened(sockets).receive_buffer_bytes == min(limit, soft_socket.RECEIVE_BUFFER_WANTED_BYTES)


def test_foreign_address_names_errno(sockets: list[BoundSocket]) -> None:
    with pytest.raises(HostError) as caught:
        opened(sockets, LocalAddress("203.0.113.9", "eth0", 1500, True))
    assert (caught.value.code, caught.value.errno) == ("bind_failed", "EADDRNOTAVAIL")


def test_path_mtu() -> None:
    assert path_mtu_to(HERE, ("127.0.0.1", 4791)) == 65535
    assert path_mtu_to(HERE6, ("::1", 4791)) == 65536
    assert path_mtu_to(LocalAddress("203.0.113.9", "eth0", 1500, True), ("127.0.0.1", 4791)) is None


def proc_with(tmp_path: Path, rows: list[tuple[str, int, int]]) -> Path:
    """A /proc with UDP sockets given as (address, port, inode), one of them held by process 4242 called `holder`."""
    net = tmp_path / "self" / "net"
    net.mkdir(parents=True)
    lines = ["  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref"]
    for address, port, inode in rows:
        lines.append(f"  1: {address}:{port:04X} 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 {inode} 2")
    (net / "udp").write_text("\n".join(lines) + "\n")
    descriptors = tmp_path / "4242" / "fd"
    descriptors.mkdir(parents=True)
    (descriptors / "0").symlink_to("/dev/null")
    (descriptors / "7").symlink_to("socket:[777]")
    (tmp_path / "4242" / "comm").write_text("holder\n")
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("00000000", 4791, 0)], "an rxe device (rdma link show)"),
        ([(ONE, 53, 0), (TWO, 4791, 0), (ONE, 4791, 777)], "process 4242 (holder) holds UDP port 4791"),
        ([(ONE, 4791, 555)], "another process holds UDP port 4791"),
    ],
)
def test_owner_of_the_port(tmp_path: Path, rows: list[tuple[str, int, int]], says: str) -> None:
    assert says in who_owns_udp_port("127.0.0.1", 4791, proc_with(tmp_path, rows))


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_addresses_are_packed_as_the_kernel_has_them(family: int, host: str) -> None:
    """The C library's own sendto takes them, and recvfrom gives the same."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(family, socket.SOCK_DGRAM) as here, socket.socket(family, socket.SOCK_DGRAM) as there:
        here.bind((host, 0))
        there.bind((host, 0))
        there.settimeout(5)
        to = pack_address(there.getsockname()[:2])
        assert libc.sendto(here.fileno(), b"hello", 5, 0, to, len(to)) == 5
        space, length = ctypes.create_string_buffer(128), ctypes.c_uint(128)
        assert libc.recvfrom(there.fileno(), ctypes.create_string_buffer(16), 16, 0, space, ctypes.byref(length)) == 5
        packed = space.raw[: length.value]
        assert packed == pack_address(here.getsockname()[:2])
        assert unpack_address(packed) == here.getsockname()[:2]


def test_addresses_of_a_link_have_the_sockets_scope_and_do_not_pile_up() -> None:
    near = pack_address(("fe80::1", 4791), scope_id=3)
    assert near != pack_address(("fe80::1", 4791))
    # As recvmsg has it: without a zone.
    assert unpack_address(near) == ("fe80::1", 4791)
    for port in range(1000):
        assert unpack_address(pack_address(("127.0.0.1", port))) == ("127.0.0.1", port)
    assert pack_address.cache_info().currsize <= 64 and unpack_address.cache_info().currsize <= 64
