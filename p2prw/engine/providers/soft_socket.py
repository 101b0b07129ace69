"""The UDP socket of the software device: how it is made so that Linux sends headers the ICRC can foresee.

IPv4: never connected, IP_MTU_DISCOVER=DO, so that DF is 1 and the identification 0 (segment i of a UDP_SEGMENT send
carries i); net/ipv4/ip_output.c, __ip_select_ident and inet_gso_segment. A connected socket has random identifications
and every packet of it would be dropped by the peer.
IPv6: nothing unknowable in the header; UDP_NO_CHECK6_RX because rxe and NICs send checksum 0.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from p2prw.engine.providers.soft_address import LocalAddress
from p2prw.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

ROCE_UDP_PORT = 4791
"""IANA's port of RoCEv2; verbs peers send to no other."""

SOL_UDP = socket.SOL_UDP
GRO_ANCILLARY_BYTES = socket.CMSG_SPACE(4)
"""Room for what UDP_GRO says with each receive: one int."""

# include/uapi/linux/udp.h; Python's socket module has no names for them.
UDP_SEGMENT = 103
UDP_GRO = 104
UDP_NO_CHECK6_RX = 102
# include/uapi/linux/in.h, in6.h
IP_MTU = 14
IPV6_MTU = 24
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_DO = 2
# include/uapi/asm-generic/socket.h
SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32

RECEIVE_BUFFER_WANTED_BYTES = 16 * 1024 * 1024
SEND_BUFFER_WANTED_BYTES = 4 * 1024 * 1024
_LOOPBACK_TRIES = 64


@dataclass(slots=True)
class BoundSocket:
    """A socket ready for RoCEv2, and what the kernel granted it."""

    sock: socket.socket
    local: LocalAddress
    udp_port: int
    receive_buffer_bytes: int
    """Payload room: half of what SO_RCVBUF reads back, because the kernel doubles it for its own overhead."""
    has_gso: bool
    has_gro: bool
    warnings: list[str]


def open_socket(
    local: LocalAddress,
    *,
    udp_port: int | None,
    role: Literal["client", "server"],
    gso: bool,
    pinned: bool,
    random_bits: Callable[[int], int],
) -> BoundSocket:
    """Return a non-blocking socket bound by the port policy of docs/contract.md ("How it runs").

    A server takes ADDRESS:4791, else an ephemeral port with a warning. A client on the loopback takes a free
    127.x.y.z:4791 unless the user `pinned` the address; other clients take an ephemeral port. An explicit `udp_port` is
    taken or refused. HostError with the kernel's errno.
    """
    warnings: list[str] = []
    if udp_port is not None:
        bound = _bind(local, udp_port)
    elif role == "server":
        bound = _bind_server(local, warnings)
    elif local.is_loopback and local.family == socket.AF_INET and not pinned:
        bound, local = _bind_loopback_client(local, random_bits)
    else:
        bound = _bind(local, 0)
    try:
        return _set_up(bound, local, gso, warnings)
    except BaseException:
        bound.close()
        raise


def _bind(local: LocalAddress, udp_port: int) -> socket.socket:
    try:
        return _bind_unexplained(local, udp_port)
    except OSError as exc:
        raise _bind_error(local, udp_port, exc) from exc


def _bind_unexplained(local: LocalAddress, udp_port: int) -> socket.socket:
    """Bind or raise the kernel's OSError: explaining one walks /proc, too dear for tries that are expected to fail."""
    sock = socket.socket(local.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if local.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # With a scope the kernel binds a link-local socket to its netdev, so that sends need no scope.
            sock.bind((local.address, udp_port, 0, local.scope_id))
        else:
            sock.bind((local.address, udp_port))
    except OSError:
        sock.close()
        raise
    return sock


def _bind_error(local: LocalAddress, udp_port: int, exc: OSError) -> HostError:
    what = f"cannot bind UDP {local.address} port {udp_port}: {exc.strerror}"
    if exc.errno == errno.EADDRINUSE:
        return HostError(
            what,
            why=who_owns_udp_port(local.address, udp_port),
            fix="stop it, give this side another address (127.0.0.2, or a second one of the netdev), "
            "or run in another network namespace",
            code="udp_port_in_use",
            errno=exc.errno,
        )
    fixes = {
        errno.EADDRNOTAVAIL: "ip -brief address",
        errno.EACCES: "take a port above net.ipv4.ip_unprivileged_port_start",
    }
    return HostError(
        what,
        why="RoCEv2 is carried by UDP, and this address or port cannot be had",
        fix=fixes.get(exc.errno or 0, "ss -lun; --device soft:ADDRESS with another address"),
        code="bind_failed",
        errno=exc.errno,
    )


def _bind_server(local: LocalAddress, warnings: list[str]) -> socket.socket:
    try:
        return _bind(local, ROCE_UDP_PORT)
    except HostError as exc:
        if exc.errno != "EADDRINUSE":
            raise
        sock = _bind(local, 0)
        warnings.append(
            f"UDP {local.address}:{ROCE_UDP_PORT} is taken ({exc.why}); using port {sock.getsockname()[1]}: "
            "p2prw peers learn it in the handshake, verbs peers cannot reach it"
        )
        return sock


def _bind_loopback_client(local: LocalAddress, random_bits: Callable[[int], int]) -> tuple[socket.socket, LocalAddress]:
    """Leave 127.0.0.1:4791 to a server and take the same port on another loopback address."""
    for _ in range(_LOOPBACK_TRIES):
        host = random_bits(24)
        if host in (0, 1, 0xFFFFFF):
            continue
        address = f"127.{host >> 16}.{host >> 8 & 0xFF}.{host & 0xFF}"
        candidate = LocalAddress(address, local.netdev, local.netdev_mtu_bytes, local.up)
        try:
            return _bind_unexplained(candidate, ROCE_UDP_PORT), candidate
        except OSError as exc:
            if exc.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise _bind_error(candidate, ROCE_UDP_PORT, exc) from exc
    # rxe owns the port for every address of the namespace.
    return _bind(local, 0), local


def _set_up(sock: socket.socket, local: LocalAddress, gso: bool, warnings: list[str]) -> BoundSocket:
    set_predictable_headers(sock)
    if local.family == socket.AF_INET6:
        sock.setsockopt(socket.SOL_UDP, UDP_NO_CHECK6_RX, 1)
    granted = _ask_buffer(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER_WANTED_BYTES)
    _ask_buffer(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER_WANTED_BYTES)
    if granted < 2 * 1024 * 1024:
        warnings.append(
            f"the receive buffer is {granted // 1024} KiB of the {RECEIVE_BUFFER_WANTED_BYTES // 1024} KiB asked for; "
            f"faster with: sysctl net.core.rmem_max={RECEIVE_BUFFER_WANTED_BYTES}"
        )
    # Since Linux 4.18 (UDP_SEGMENT) and 5.0 (UDP_GRO); without them every packet is its own system call.
    has_gso = gso and _accepts(sock, UDP_SEGMENT, 0)
    has_gro = gso and _accepts(sock, UDP_GRO, 1)
    if gso and not (has_gso and has_gro):
        warnings.append("this kernel has no UDP segmentation offload (Linux 5.0): one system call for each packet")
    return BoundSocket(sock, local, sock.getsockname()[1], granted, has_gso, has_gro, warnings)


def set_predictable_headers(sock: socket.socket) -> None:
    """Make the kernel set DF and leave the IPv4 identification at 0; on IPv6 forbid fragments."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)


def _accepts(sock: socket.socket, option: int, value: int) -> bool:
    try:
        sock.setsockopt(socket.SOL_UDP, option, value)
    except OSError:
        return False
    return True


def _ask_buffer(sock: socket.socket, force_option: int, option: int, wanted_bytes: int) -> int:
    """Ask for a buffer, above the sysctl limit where CAP_NET_ADMIN allows; return the undoubled bytes granted."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force_option, wanted_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, wanted_bytes)
    return sock.getsockopt(socket.SOL_SOCKET, option) // 2


def set_traffic_class(sock: socket.socket, traffic_class: int) -> None:
    """Set the DSCP and ECN bits (0 to 255) of everything sent from here on; the ICRC does not cover them."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class)


def path_mtu_to(local: LocalAddress, destination: tuple[str, int]) -> int | None:
    """Return the IP MTU the kernel knows for the way to a peer; None when there is no route (sending will tell)."""
    with socket.socket(local.family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        if local.family == socket.AF_INET6:
            probe.bind((local.address, 0, 0, local.scope_id))
            probe.connect((*destination, 0, local.scope_id))
            return probe.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
        probe.bind((local.address, 0))
        probe.connect(destination)
        return probe.getsockopt(socket.IPPROTO_IP, IP_MTU)
    return None


def udp_port_trouble(local: LocalAddress, udp_port: int) -> str | None:
    """Return who holds a UDP port of an address, or why it cannot be had; None where it is free. Nothing stays open."""
    try:
        _bind(local, udp_port).close()
    except HostError as error:
        return error.why if error.code == "udp_port_in_use" else error.what
    return None


# --- who has the port ---------------------------------------------------------------------------------------


def who_owns_udp_port(address: str, udp_port: int, proc: Path = Path("/proc")) -> str:
    """Say in one sentence who holds a UDP port for an address: the kernel (rxe), a process, or unknown."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    # /proc/net/udp prints 32-bit words of the address in this machine's byte order.
    words = struct.unpack(f"{len(packed) // 4}I", packed)
    mine = "".join(f"{word:08X}" for word in words)
    inodes: set[int] = set()
    for table in ("udp", "udp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "self/net" / table).read_text().splitlines()[1:]:
                columns = line.split()
                holder, _, port = columns[1].rpartition(":")
                if int(port, 16) == udp_port and (holder == mine or not int(holder, 16)):
                    inodes.add(int(columns[9]))
    if 0 in inodes:
        # Sockets the kernel makes for itself have no inode; rxe's tunnel socket takes the port for every address.
        return f"the kernel holds UDP port {udp_port} in this network namespace: an rxe device (rdma link show)"
    for owner in proc.glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            match = re.fullmatch(r"socket:\[(\d+)\]", str(owner.readlink()))
            if match and int(match.group(1)) in inodes:
                pid = owner.parent.parent
                name = (pid / "comm").read_text().strip()
                return f"process {pid.name} ({name}) holds UDP port {udp_port}"
    return f"another process holds UDP port {udp_port}"


_FAMILY = struct.Struct("=H")
_IPV4 = struct.Struct("!H4s8x")
_IPV6 = struct.Struct("!HI16s")
_SCOPE = struct.Struct("=I")
_KNOWN_ADDRESSES = 64
"""That are remembered: what arrives may be from any stranger."""


@functools.lru_cache(maxsize=_KNOWN_ADDRESSES)
def pack_address(address: tuple[str, int], scope_id: int = 0) -> bytes:
    """Return (numeric host, port) as sockaddr_in or sockaddr_in6 (include/uapi/linux/in.h, in6.h).

    `scope_id`: of the socket, 0 where its own address is not link-local.
    """
    host = address[0].partition("%")[0]
    if ":" in host:
        packed = _FAMILY.pack(socket.AF_INET6) + _IPV6.pack(address[1], 0, socket.inet_pton(socket.AF_INET6, host))
        # Who talks to a link-local socket is on its link.
        return packed + _SCOPE.pack(scope_id)
    return _FAMILY.pack(socket.AF_INET) + _IPV4.pack(address[1], socket.inet_aton(host))


@functools.lru_cache(maxsize=_KNOWN_ADDRESSES)
def unpack_address(packed: bytes) -> tuple[str, int]:
    """Return host and port of a sockaddr_in or sockaddr_in6 as `socket.recvmsg` words them."""
    if _FAMILY.unpack_from(packed)[0] == socket.AF_INET6:
        port, _, host = _IPV6.unpack_from(packed, 2)
        return socket.inet_ntop(socket.AF_INET6, host), port
    port, host = _IPV4.unpack_from(packed, 2)
    return socket.inet_ntoa(host), port
