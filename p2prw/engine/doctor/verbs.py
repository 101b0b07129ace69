"""Checks of verbs devices: binding, device, port, GIDs, MTU, and whether its driver imports dma-bufs."""

from __future__ import annotations

from collections.abc import Iterator

from p2prw.engine.doctor.findings import DMABUF_KINDS, Ask, Finding, Status
from p2prw.engine.doctor.view import HostView
from p2prw.engine.gids import gid_to_address
from p2prw.engine.model import DeviceInfo
from p2prw.engine.providers.soft_address import port_mtu_bytes
from p2prw.engine.providers.verbs_sysfs import (
    DMABUF_DRIVERS,
    HcaSysfs,
    PortSysfs,
    hca_names,
    read_hca,
    read_port,
)
from p2prw.errors import HostError

_MAKE_RXE = "sudo modprobe -a ib_uverbs rdma_rxe; sudo rdma link add rxe0 type rxe netdev eth0"


def check_binding(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Nothing installed, installed and unusable, or usable: three findings, for they have three cures."""
    if host.probe is None:
        return
    state = host.probe.binding(ask.binding)
    if state.name is not None:
        yield Finding("verbs_binding", Status.OK, f"verbs binding {state.name} imports")
        return
    missing = state.code == "no_binding"
    # Without a device nobody misses a binding that is not there; a broken one is worth a word.
    needed = bool(hca_names(host.sysfs)) or ask.verbs_device is not None or not missing
    yield Finding(
        "verbs_binding_missing" if missing else "verbs_binding_unusable",
        ask.lacking(verbs=True) if needed else Status.OK,
        "no verbs binding is installed" + ("" if needed else ", and no device needs one")
        if missing
        else "a verbs binding is installed and cannot be used",
        state.why,
        state.fix or "apt install python3-pyverbs",
    )


def check_devices(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Is there a verbs device, the one that was named, and does it open?"""
    names = hca_names(host.sysfs)
    named = ask.verbs_device
    if named is not None and named not in names:
        yield Finding(
            "verbs_device",
            Status.FAIL,
            f"there is no verbs device {named}",
            f"/sys/class/infiniband has: {', '.join(names) or 'none'}",
            f"p2prw devices; {_MAKE_RXE}",
            subject=named,
        )
    elif not names:
        yield Finding(
            "verbs_device",
            Status.WARN,
            "no RDMA device: the software device stands in",
            "/sys/class/infiniband is empty or not there; that is no fault where there is no RDMA NIC",
            f"{_MAKE_RXE}   (software RoCE; or --device soft0)",
        )
    infos = {info.name: info for info in (host.probe.verbs_devices(ask.binding) if host.probe and names else ())}
    for name in names:
        hca = read_hca(host.sysfs, name)
        if hca is not None:
            yield _device(hca, infos.get(name), ask)
    if host.probe is not None and named is not None and named in names:
        try:
            host.probe.open_device(named, ask.ib_port, ask.binding)
        except HostError as error:
            yield Finding(
                "device_opens", Status.FAIL, error.what, error.why, error.fix or "p2prw devices", subject=named,
                details={"code": error.code, "errno": error.errno},
            )  # fmt: skip
        else:
            yield Finding("device_opens", Status.OK, f"{named} opens", subject=named)


def _device(hca: HcaSysfs, info: DeviceInfo | None, ask: Ask) -> Finding:
    where = f", {hca.pci_address}" if hca.pci_address else ""
    details = {"driver": hca.driver, "pci_address": hca.pci_address, "numa_node": hca.numa_node, "mover": hca.mover}
    if hca.unfit:
        return Finding(
            "verbs_device",
            ask.lacking(device=hca.name),
            f"{hca.name} ({hca.driver}{where}): {hca.unfit}",
            "p2prw connects reliable queue pairs by itself",
            "--device soft:NETDEV on the same network",
            subject=hca.name,
            details=details,
        )
    who = "the CPU moves every byte" if hca.mover == "cpu" else "the NIC moves the bytes"
    opened = "" if info is None or info.opened else f"; {info.note}"
    return Finding(
        "verbs_device", Status.OK, f"{hca.name} ({hca.driver}{where}): {who}{opened}", subject=hca.name, details=details
    )


def check_ports(host: HostView, ask: Ask) -> Iterator[Finding]:
    """State of each port, with what its physical state says about the cure."""
    for name, port in _ports(host, ask):
        subject = f"{name}/{port.number}"
        details = {"state": port.state, "physical_state": port.physical_state, "link_layer": port.link_layer}
        if port.state == "ACTIVE":
            yield Finding(
                "port_state", Status.OK, f"{subject} is ACTIVE ({port.link_layer})", subject=subject, details=details
            )
            continue
        why, fix = _why_down(port, _netdev(host, name, port) or "NETDEV")
        yield Finding(
            "port_state",
            ask.lacking(device=name),
            f"{subject} is {port.state}",
            why,
            fix,
            subject=subject,
            details=details,
        )


def _why_down(port: PortSysfs, netdev: str) -> tuple[str, str]:
    physical = f" (physical state {port.physical_state})" if port.physical_state else ""
    if port.link_layer == "InfiniBand" and port.state in ("INIT", "ARMED"):
        return f"no subnet manager has brought the port up{physical}", "sudo systemctl start opensm; ibstat"
    if port.physical_state == "Polling":
        return f"no link{physical}: no cable, or the other end is off", f"ethtool {netdev}; ip -brief link"
    return f"its netdev is down, or it has no link{physical}", f"sudo ip link set dev {netdev} up; rdma link show"


def check_gids(host: HostView, ask: Ask) -> Iterator[Finding]:
    """RoCEv2 needs an IP address on the netdev; a link-local GID alone hangs users of rxe (SoftRoCE/rxe-dev #47)."""
    for name, port in _ports(host, ask):
        if port.link_layer != "Ethernet":
            continue
        subject = f"{name}/{port.number}"
        addresses = [gid_to_address(entry.gid) for entry in port.gids if entry.type == "rocev2"]
        routable = [str(address) for address in addresses if not address.is_link_local]
        details = {"rocev2": [str(address) for address in addresses], "gids": len(port.gids)}
        netdev = _netdev(host, name, port) or "NETDEV"
        give = f"sudo ip address add 192.0.2.1/24 dev {netdev}"
        if routable:
            shown = ", ".join(routable[:3]) + (", ..." if len(routable) > 3 else "")
            yield Finding("gids", Status.OK, f"{subject} has RoCEv2 GIDs: {shown}", subject=subject, details=details)
        elif addresses:
            yield Finding(
                "gids_link_local",
                Status.WARN,
                f"{subject} has a link-local RoCEv2 GID only",
                "its netdev has no routable address: only peers on the same link can be reached, over IPv6",
                give,
                subject=subject,
                details=details,
            )
        else:
            yield Finding(
                "gids_missing",
                ask.lacking(device=name),
                f"{subject} has no RoCEv2 GID",
                "its netdev is down, has no address, or belongs to another network namespace"
                + ("; RoCEv1 GIDs do not pass through UDP" if port.gids else ""),
                f"{give}; sudo ip link set dev {netdev} up",
                subject=subject,
                details=details,
            )


def check_mtu(host: HostView, ask: Ask) -> Iterator[Finding]:
    """The path MTU follows the netdev's (drivers take the largest of 256..4096 that fits), until somebody forgot it."""
    opened = {}
    if host.probe is not None and hca_names(host.sysfs):
        opened = {(info.name, info.port): info for info in host.probe.verbs_devices(ask.binding) if info.opened}
    for name, port in _ports(host, ask):
        netdev = _netdev(host, name, port)
        netdev_mtu = host.sysfs.read_int(f"class/net/{netdev}/mtu") if netdev else None
        if port.link_layer != "Ethernet" or netdev_mtu is None:
            continue
        subject = f"{name}/{port.number}"
        info = opened.get((name, port.number))
        details = {"netdev_mtu_bytes": netdev_mtu, "active_mtu_bytes": info.active_mtu_bytes if info else None}
        try:
            fits = port_mtu_bytes(netdev_mtu)
        except HostError as error:
            yield Finding(
                "mtu", ask.lacking(device=name), f"{subject}: {error.what}", error.why,
                f"sudo ip link set dev {netdev} mtu 1500", subject=subject, details=details,
            )  # fmt: skip
            continue
        if info is not None and info.active_mtu_bytes < fits:
            yield Finding(
                "mtu",
                Status.WARN,
                f"{subject} uses path MTU {info.active_mtu_bytes}, its netdev's {netdev_mtu} has room for {fits}",
                "the port keeps what it was brought up with",
                f"sudo ip link set dev {netdev} down; sudo ip link set dev {netdev} up",
                subject=subject,
                details=details,
            )
            continue
        shown = info.active_mtu_bytes if info else fits
        more = "" if fits == 4096 else f"; netdev MTU 4200 would give 4096: ip link set dev {netdev} mtu 4200"
        yield Finding(
            "mtu",
            Status.OK,
            f"{subject}: path MTU {shown} on netdev MTU {netdev_mtu}{more}",
            subject=subject,
            details=details,
        )


def check_dmabuf_import(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Whether each driver can import dma-bufs; VFIO's need an importer that can be told to let go."""
    asked = ask.kind in DMABUF_KINDS
    for name in hca_names(host.sysfs):
        hca = read_hca(host.sysfs, name)
        if hca is None or ask.verbs_device not in (None, name):
            continue
        can = hca.driver in DMABUF_DRIVERS
        details = {"driver": hca.driver, "imports": can}
        revocable = hca.driver == "mlx5_core"
        if can and (ask.kind != "vfio" or revocable):
            title = f"{name} ({hca.driver}) imports dma-bufs" + ("" if revocable else ", vfio's from Linux 7.1 at best")
            yield Finding("dmabuf_import", Status.OK, title, subject=name, details=details)
        elif asked:
            yield Finding(
                "dmabuf_import",
                Status.FAIL if ask.kind == "cuda" and not can else Status.WARN,
                f"{name} ({hca.driver}) cannot import a dma-buf of {ask.kind} memory"
                if not can
                else f"{name} ({hca.driver}) may not import dma-bufs of vfio-pci",
                "mlx5, efa, irdma, bnxt_re, mana and ionic import dma-bufs"
                if not can
                else "vfio-pci wants an importer that lets go when the function is reset: mlx5, irdma from Linux 7.1",
                "leave --route away: the bytes are copied through host memory (bounce)"
                if ask.kind != "cuda"
                else "modprobe nvidia-peermem   (route pin), or an mlx5 NIC",
                subject=name,
                details=details,
            )
        else:
            yield Finding(
                "dmabuf_import",
                Status.OK,
                f"{name} ({hca.driver}) imports no dma-bufs: such memory is copied through host memory (bounce)",
                subject=name,
                details=details,
            )


def _netdev(host: HostView, name: str, port: PortSysfs) -> str | None:
    """The netdev of a port: as its GIDs say, else rxe's `parent`, else the only one of its PCI function."""
    base = f"class/infiniband/{name}"
    found = port.netdev or host.sysfs.read_text(f"{base}/parent")
    beside = host.sysfs.list(f"{base}/device/net")
    return found or (beside[0] if len(beside) == 1 else None)


def _ports(host: HostView, ask: Ask) -> Iterator[tuple[str, PortSysfs]]:
    """Return the ports that matter: of the named device, else of all that p2prw can drive."""
    for name in hca_names(host.sysfs):
        hca = read_hca(host.sysfs, name)
        if hca is None or hca.unfit or ask.verbs_device not in (None, name):
            continue
        for number in hca.ports:
            port = read_port(host.sysfs, name, number)
            if port is not None and (ask.verbs_device is None or number == ask.ib_port):
                yield name, port
