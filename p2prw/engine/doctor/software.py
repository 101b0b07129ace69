"""Checks of the software device: it is what p2prw falls back to, so it must work."""

from __future__ import annotations

from collections.abc import Iterator

from p2prw.engine.doctor.findings import Ask, Finding, Status, is_soft
from p2prw.engine.doctor.view import HostView
from p2prw.engine.providers.verbs_sysfs import hca_names, read_hca
from p2prw.errors import HostError
from p2prw.units import MIB, format_size

WANTED_RECEIVE_BYTES = 16 * MIB
WANTED_SEND_BYTES = 4 * MIB
ENOUGH_RECEIVE_BYTES = 2 * MIB
"""Below it the device itself warns: a peer's window is half of what the socket buffer holds."""


def check_software_device(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Open it as a transfer would, soft0 where none is named; then what the kernel granted it."""
    if host.probe is None:
        return
    name = ask.device if is_soft(ask.device) else "soft0"
    try:
        state = host.probe.software(name)
    except HostError as error:
        yield Finding(
            "software_device",
            Status.FAIL if ask.needs_soft else Status.WARN,
            f"software device: {error.what}",
            error.why,
            error.fix or "ip link set dev lo up",
            details={"errno": error.errno, "code": error.code},
        )
        return
    yield Finding(
        "software_device",
        Status.OK,
        f"software device: ok ({name} opens on {state.address}, UDP port {state.udp_port})",
        details={"address": state.address, "udp_port": state.udp_port, "warnings": list(state.warnings)},
    )
    granted = state.receive_buffer_bytes
    sysctl = {f"{name}_bytes": host.proc.read_int(f"sys/net/core/{name}") for name in ("rmem_max", "wmem_max")}
    details = {"receive_buffer_bytes": granted, "wanted_bytes": WANTED_RECEIVE_BYTES, **sysctl}
    if granted < ENOUGH_RECEIVE_BYTES:
        yield Finding(
            "socket_buffers",
            Status.WARN,
            f"the software device gets a receive buffer of {format_size(granted)}, "
            f"and asks for {format_size(WANTED_RECEIVE_BYTES)}",
            "net.core.rmem_max bounds it for users without CAP_NET_ADMIN; peers then send in small windows",
            f"sudo sysctl net.core.rmem_max={WANTED_RECEIVE_BYTES} net.core.wmem_max={WANTED_SEND_BYTES}",
            details=details,
        )
    else:
        yield Finding("socket_buffers", Status.OK, f"receive buffer of {format_size(granted)}", details=details)
    if not state.has_segmentation:
        yield Finding(
            "segmentation",
            Status.WARN,
            "no UDP segmentation: one system call for each packet",
            "; ".join(state.warnings) or "UDP_SEGMENT and UDP_GRO came with Linux 5.0",
            "uname -r   (a newer kernel makes the software device several times faster)",
        )


def check_roce_port(host: HostView, ask: Ask) -> Iterator[Finding]:
    """UDP 4791 is RoCEv2's: a server takes it, and a NIC or rxe as peer sends to no other."""
    if host.probe is None:
        return
    held = host.probe.udp_port_holder()
    if held is None:
        yield Finding("udp_4791", Status.OK, "UDP port 4791 is free on every address")
        return
    address, who = held
    # rxe's socket has no process; Linux 7.3 gives it an inode like any other, so that no file tells it apart.
    rxe = [] if who.startswith("process ") else [name for name in hca_names(host.sysfs) if _is_rxe(host, name)]
    by_rxe = bool(rxe) or "rxe" in who
    if rxe and "rxe" not in who:
        who = f"the kernel, for {', '.join(rxe)}"
    yield Finding(
        "udp_4791",
        Status.WARN if is_soft(ask.device) or not by_rxe else Status.OK,
        f"UDP port 4791 is taken on {address}: {who}",
        "the software device takes another port here, which p2prw peers learn; NICs and rxe as peers cannot reach it",
        "use the rxe device itself (p2prw devices), or: sudo ip netns exec NAME p2prw ..."
        if by_rxe
        else "sudo ss -lunp sport = :4791   (and stop it)",
        details={"address": address},
    )


def _is_rxe(host: HostView, name: str) -> bool:
    hca = read_hca(host.sysfs, name)
    return hca is not None and hca.driver == "rxe"
