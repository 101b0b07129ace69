"""Opening and listing software devices. They need no privilege and no RDMA hardware, only UDP.

The rooms behind this door: `soft_address` (names and addresses), `soft_socket` (the socket and its options),
`soft_selftest` (are the kernel's headers as the ICRC assumes?), `soft_wire` (bursts in and out), `soft_watch` (does
segmentation work?), `soft_device` (the device itself).
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal

from p2prw.engine.inject import FaultInjector, parse_faults
from p2prw.engine.model import DeviceInfo
from p2prw.engine.pcap import PcapWriter
from p2prw.engine.providers.soft_address import local_addresses, port_mtu_bytes, resolve_device
from p2prw.engine.providers.soft_device import SoftDevice, describe
from p2prw.engine.providers.soft_selftest import run_self_test
from p2prw.engine.providers.soft_socket import open_socket
from p2prw.engine.roce.leaf import choose_codec
from p2prw.errors import HostError, RequestError

__all__ = ["SoftDevice", "list_soft_devices", "open_soft_device"]

Role = Literal["client", "server"]


def open_soft_device(
    name: str,
    *,
    local_address: str | None,
    udp_port: int | None,
    role: Role,
    gso: bool = True,
    leaf: bool = True,
    inject: str | None = None,
    pcap: str | Path | None = None,
) -> SoftDevice:
    """Open `soft0`, `soft:NETDEV`, `soft:ADDRESS` or `auto` (the address `local_address`).

    With `leaf`, packets are made and checked by compiled code where it was built (`roce.leaf`).
    Raises RequestError for a name or fault list that cannot be used, HostError (with errno) where the host has no such
    address, the UDP port is taken, or the kernel sends headers that the ICRC cannot foresee.
    """
    plan = parse_faults(inject) if inject else None
    if plan is not None and plan.corrupt_offset is not None and role == "server":
        raise RequestError(
            f"--inject corrupt={plan.corrupt_offset}: a server does not know which byte of a transfer passes",
            why="a byte offset counts from the start of one transfer, and the client owns that",
            fix=f"--inject corrupt={plan.corrupt_offset} at write or read; a rate, such as corrupt=1%, here",
            code="bad_inject",
        )
    local = resolve_device(name, local_address)
    mtu_bytes = port_mtu_bytes(local.netdev_mtu_bytes)
    self_test = run_self_test(local, gso=gso)
    if not self_test.single_ok:
        raise HostError(
            "this kernel sends IPv4 headers that RoCEv2's ICRC cannot be computed for",
            why=self_test.why,
            fix="use an IPv6 address: --device soft:ADDRESS (IPv6 headers have no identification)",
            code="unforeseeable_header",
        )
    bound = open_socket(
        local,
        udp_port=udp_port,
        role=role,
        gso=gso and self_test.gso_ok,
        pinned=name not in ("soft0", "auto"),
        random_bits=secrets.randbits,
    )
    if gso and not self_test.gso_ok:
        bound.warnings.append(f"segmented sends are off: {self_test.why}")
    try:
        injector = FaultInjector(plan, ipv4=bound.local.is_ipv4) if plan else None
        if injector:
            bound.warnings.append(f"faults are injected on purpose: {inject}")
        capture = PcapWriter(pcap) if pcap else None
        return SoftDevice(name, bound, mtu_bytes, self_test, injector, capture, choose_codec(leaf=leaf))
    except BaseException:
        bound.sock.close()
        raise


def list_soft_devices() -> tuple[DeviceInfo, ...]:
    """Return what could be opened here: one device for each address of each netdev that is up; nothing is bound."""
    codec = choose_codec()
    found: list[DeviceInfo] = []
    named: set[str] = set()
    for local in local_addresses():
        if not local.up:
            continue
        try:
            mtu_bytes = port_mtu_bytes(local.netdev_mtu_bytes)
        except HostError:
            continue
        if local.address == "127.0.0.1":
            name = "soft0"
        elif local.netdev in named or local.is_loopback:
            name = f"soft:{local.address}" + (f"%{local.netdev}" if local.scope_id else "")
        else:
            name = f"soft:{local.netdev}"
        named.add(local.netdev)
        found.append(describe(name, local, mtu_bytes, None, codec))
    return tuple(found)
