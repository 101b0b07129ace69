"""One place where a device name becomes an opened device: `auto`, `soft0`, `soft:IFACE`, `soft:ADDRESS`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from p2prw.engine.providers.base import Device
from p2prw.errors import HostError


def open_device(
    name: str,
    *,
    local_address: str,
    role: Literal["client", "server"],
    gso: bool = True,
    inject: str | None = None,
    pcap: str | None = None,
) -> tuple[Device, str]:
    """Open the device `name` and say in one sentence why it is this one.

    `auto` takes the software device bound to the control connection's local address. HostError when there is none.
    """
    # Imported here: `p2prw --help` must not load numpy and the RoCE core.
    from p2prw.engine.providers.soft import open_soft_device

    if name not in ("auto", "soft0") and not name.startswith("soft:"):
        raise HostError(
            f"no device named {name!r}",
            why="this release has the software device only; libibverbs devices come with the verbs provider",
            fix="--device auto, --device soft0, --device soft:eth0 or --device soft:192.0.2.1 (see `p2prw devices`)",
            code="no_device",
        )
    device = open_soft_device(
        name, local_address=local_address, udp_port=None, role=role, gso=gso, inject=inject, pcap=pcap
    )
    if name == "auto":
        # `auto` is the question; results name the answer, as it could be typed.
        address = device.info.address or local_address
        chosen = "soft0" if address.startswith("127.") else f"soft:{address}"
        device.info = replace(device.info, name=chosen)
    reason = (
        f"software device on {local_address}, the control connection's local address"
        if name == "auto"
        else f"--device {name}"
    )
    return device, reason
