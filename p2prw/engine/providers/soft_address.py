"""Which local addresses the software device can live on, and what a device name means. Opens no UDP port.

Netdevs and addresses come from ioctls on the caller's own network namespace (netdevice(7)) and /proc/net/if_inet6:
/sys/class/net shows the namespace that sysfs was mounted in, which after `unshare -n` is another one.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from p2prw.errors import HostError, RequestError

# include/uapi/linux/sockios.h
_SIOCGIFCONF = 0x8912
_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
# include/uapi/linux/if.h
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
_IFREQ_BYTES = 40
# include/net/ipv6.h: an address that still waits for duplicate address detection cannot be bound.
_IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x40, 0x08

LOOPBACK = "127.0.0.1"
PATH_MTUS = (4096, 2048, 1024, 512, 256)  # bytes; enum ib_mtu (rdma/ib_verbs.h)
HEADER_ALLOWANCE_BYTES = 80
"""What rxe subtracts from the netdev MTU before it picks a path MTU (drivers/infiniband/sw/rxe, RXE_MAX_HDR_LENGTH)."""


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """One address of one netdev."""

    address: str
    """As `ipaddress` writes it, without a scope."""
    netdev: str
    netdev_mtu_bytes: int
    up: bool
    """The netdev is up and has a carrier."""
    scope_id: int = 0
    """Interface index for IPv6 link-local addresses, else 0."""

    @property
    def is_loopback(self) -> bool:
        """True in 127.0.0.0/8 and for ::1."""
        return ipaddress.ip_address(self.address).is_loopback

    @property
    def is_link_local(self) -> bool:
        """True in 169.254.0.0/16 and fe80::/10."""
        return ipaddress.ip_address(self.address).is_link_local

    @property
    def is_ipv4(self) -> bool:
        """False for IPv6."""
        return ":" not in self.address

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET if self.is_ipv4 else socket.AF_INET6


def gid_of(address: str) -> str:
    """Return the GID of an address as 32 hex digits; IPv4 as ::ffff:a.b.c.d (rdma/ib_addr.h, rdma_ip2gid)."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return (b"\0" * 10 + b"\xff\xff" + parsed.packed).hex()
    return parsed.packed.hex()


def port_mtu_bytes(netdev_mtu_bytes: int) -> int:
    """Return the largest path MTU that fits a netdev: 1500 gives 1024, 4176 and more gives 4096.

    HostError below 336 bytes, where not even 256 fits.
    """
    for mtu_bytes in PATH_MTUS:
        if mtu_bytes <= netdev_mtu_bytes - HEADER_ALLOWANCE_BYTES:
            return mtu_bytes
    raise HostError(
        f"a netdev MTU of {netdev_mtu_bytes} bytes is too small for RoCE",
        why=f"the smallest path MTU is 256 bytes and its headers need {HEADER_ALLOWANCE_BYTES} more",
        fix="ip link set dev NETDEV mtu 1500",
        code="mtu_too_small",
    )


def local_addresses() -> tuple[LocalAddress, ...]:
    """Return every IPv4 and IPv6 address of this network namespace, netdev by netdev, IPv4 first, routable first."""
    found: list[LocalAddress] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        state: dict[str, tuple[bool, int]] = {}

        def netdev_state(name: str) -> tuple[bool, int]:
            if name not in state:
                flags = struct.unpack_from("H", _ifreq(probe, _SIOCGIFFLAGS, name), 16)[0]
                mtu_bytes = struct.unpack_from("i", _ifreq(probe, _SIOCGIFMTU, name), 16)[0]
                state[name] = (flags & (_IFF_UP | _IFF_RUNNING) == _IFF_UP | _IFF_RUNNING, mtu_bytes)
            return state[name]

        for label, address in _ipv4_addresses(probe):
            # An alias such as eth0:1 is a label of eth0.
            name = label.partition(":")[0]
            up, mtu_bytes = netdev_state(name)
            found.append(LocalAddress(address, name, mtu_bytes, up))
        for name, address, index in _ipv6_addresses():
            up, mtu_bytes = netdev_state(name)
            scope_id = index if ipaddress.ip_address(address).is_link_local else 0
            found.append(LocalAddress(address, name, mtu_bytes, up, scope_id))
    order = {name: index for index, name in socket.if_nameindex()}
    found.sort(key=lambda row: (order.get(row.netdev, 1 << 30), row.is_link_local, ":" in row.address))
    return tuple(found)


def _ifreq(probe: socket.socket, request: int, name: str) -> bytes:
    return fcntl.ioctl(probe, request, struct.pack("16s24x", name.encode()))


def _ipv4_addresses(probe: socket.socket) -> list[tuple[str, str]]:
    """Return (label, address) of every IPv4 address: SIOCGIFCONF lists secondary addresses too."""
    capacity = 64
    while True:
        space = bytearray(capacity * _IFREQ_BYTES)
        pinned = (_address_of(space), len(space))
        filled = struct.unpack("iL", fcntl.ioctl(probe, _SIOCGIFCONF, struct.pack("iL", pinned[1], pinned[0])))[0]
        if filled < len(space):
            break
        # The kernel stops silently when the space is used up.
        capacity *= 4
    rows = []
    for start in range(0, filled, _IFREQ_BYTES):
        label = bytes(space[start : start + 16]).split(b"\0", 1)[0].decode(errors="replace")
        rows.append((label, socket.inet_ntoa(bytes(space[start + 20 : start + 24]))))
    return rows


def _address_of(space: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(space))


def _ipv6_addresses() -> list[tuple[str, str, int]]:
    """Return (netdev, address, interface index) of every usable IPv6 address."""
    try:
        text = Path("/proc/self/net/if_inet6").read_text()
    except OSError:
        # A kernel without IPv6.
        return []
    rows = []
    for line in text.splitlines():
        digits, index, _prefix, _scope, flags, name = line.split()
        if int(flags, 16) & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED):
            continue
        rows.append((name, str(ipaddress.IPv6Address(bytes.fromhex(digits))), int(index, 16)))
    return rows


# --- device names -------------------------------------------------------------------------------------------


def resolve_device(name: str, local_address: str | None) -> LocalAddress:
    """Return the address that `soft0`, `soft:IFACE`, `soft:ADDRESS` or `auto` stands for.

    `auto` is `local_address` (of the control connection). HostError when the host has no such netdev or address,
    RequestError when the name is no name of a software device.
    """
    if name == "soft0":
        return _find_address(LOOPBACK)
    if name == "auto":
        if local_address is None or _bare(local_address).is_unspecified:
            return _first_routable()
        return _find_address(local_address)
    kind, _, rest = name.partition(":")
    if kind != "soft" or not rest:
        raise RequestError(
            f"{name!r} does not name a software device",
            why="software devices are soft0 (loopback), soft:NETDEV and soft:ADDRESS",
            fix="--device soft0, --device soft:eth0 or --device soft:192.0.2.1",
            code="bad_device",
        )
    try:
        ipaddress.ip_address(rest.strip("[]"))
    except ValueError:
        return _find_netdev(rest)
    return _find_address(rest)


def _bare(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address without brackets and scope; an IPv4 address that a dual-stack socket wrapped is unwrapped."""
    parsed = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def _find_address(text: str) -> LocalAddress:
    wanted = _bare(text)
    scope = text.strip("[]").partition("%")[2]
    rows = local_addresses()
    for row in rows:
        if row.address == str(wanted) and scope in ("", row.netdev, str(row.scope_id)):
            return _must_be_up(row)
    if wanted.version == 4 and wanted.is_loopback:
        # All of 127.0.0.0/8 is local though only 127.0.0.1 is listed.
        for row in rows:
            if row.is_loopback and ":" not in row.address:
                return _must_be_up(LocalAddress(str(wanted), row.netdev, row.netdev_mtu_bytes, row.up))
    listed = ", ".join(row.address for row in rows) or "none"
    raise HostError(
        f"{text} is not an address of this host",
        why=f"this network namespace has: {listed}",
        fix=f"--device soft:{rows[-1].address}" if rows else "ip link set dev lo up",
        code="no_device",
    )


def _find_netdev(name: str) -> LocalAddress:
    names = [known for _, known in socket.if_nameindex()]
    if name not in names:
        raise HostError(
            f"no netdev named {name}",
            why=f"this network namespace has: {', '.join(names) or 'none'}",
            fix="ip -brief address",
            code="no_device",
        )
    rows = [row for row in local_addresses() if row.netdev == name]
    if not rows:
        raise HostError(
            f"netdev {name} has no IP address",
            why="RoCEv2 packets are UDP packets from the netdev's address",
            fix=f"ip address add 192.0.2.1/24 dev {name} && ip link set dev {name} up",
            code="no_device",
        )
    return _must_be_up(rows[0])


def _first_routable() -> LocalAddress:
    rows = [row for row in local_addresses() if row.up]
    rows.sort(key=lambda row: (row.is_loopback, row.is_link_local))
    if not rows:
        raise HostError(
            "no netdev is up", why="not even the loopback has an address", fix="ip link set dev lo up", code="no_device"
        )
    return rows[0]


def _must_be_up(row: LocalAddress) -> LocalAddress:
    if not row.up:
        raise HostError(
            f"netdev {row.netdev} ({row.address}) is down or has no carrier",
            why="nothing can be sent through it",
            fix=f"ip link set dev {row.netdev} up",
            code="netdev_down",
        )
    return row
