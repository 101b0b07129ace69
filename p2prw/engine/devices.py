"""One place where a device name becomes an opened device: `auto`, `soft0`, `soft:IFACE`, `soft:ADDRESS`, `rxe0`, ..."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from p2prw.engine.model import DeviceInfo
from p2prw.engine.providers.base import Device
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, P2prwError, RequestError

_INFINIBAND = "class/infiniband"
ROCE_UDP_PORT = 4791


@dataclass(frozen=True, slots=True)
class _Auto:
    """What `auto` found: a verbs device's name, or why there is none."""

    name: str | None
    reason: str


def open_device(
    name: str,
    *,
    local_address: str,
    role: Literal["client", "server"],
    gso: bool = True,
    leaf: bool = True,
    inject: str | None = None,
    pcap: str | None = None,
    ib_port: int = 1,
    verbs_binding: str = "auto",
    sysfs: SysfsRoot | None = None,
) -> tuple[Device, str]:
    """Open the device `name` and say in one sentence why it is this one.

    `auto` takes the verbs port that has the control connection's local address among its GIDs, where a binding imports,
    else the software device bound to that address. HostError when there is none.
    """
    root = sysfs or SysfsRoot()
    auto = _Auto(None, "")
    if name == "auto":
        auto = _find_verbs(root, local_address, ib_port, verbs_binding, needs_soft=bool(inject or pcap))
    elif name != "soft0" and not name.startswith("soft:"):
        auto = _Auto(name, f"--device {name}")
        if inject or pcap:
            raise RequestError(
                f"{'--inject' if inject else '--pcap'} is for the software device, not for {name}",
                why="packets of a verbs device do not pass through p2prw",
                fix="--device soft:NETDEV; tcpdump -i NETDEV udp port 4791 shows a NIC's packets only with its support",
                code="needs_soft_device",
            )
    if auto.name is not None:
        from p2prw.engine.providers.verbs_open import open_verbs_device

        opened = open_verbs_device(auto.name, port=ib_port, role=role, binding=verbs_binding, sysfs=root)
        return opened, auto.reason
    if ib_port != 1:
        raise RequestError(
            f"the software device has no port {ib_port} (--ib-port, -i)",
            why=f"it has one port{auto.reason}",
            fix="no -i; a verbs device by --device: p2prw devices",
            code="no_port",
        )
    # Imported here: `p2prw --help` must not load numpy and the RoCE core.
    from p2prw.engine.providers.soft import open_soft_device

    options = {"local_address": local_address, "role": role, "gso": gso, "leaf": leaf}
    options |= {"inject": inject, "pcap": pcap}
    device: Device | None = None
    if role == "client" and not local_address.startswith(("127.", "::1")) and name != "soft0":
        # A NIC or rxe at the other end sends to 4791 whatever we say; where it is taken, a software peer is told.
        try:
            device = open_soft_device(name, udp_port=ROCE_UDP_PORT, **options)  # type: ignore[arg-type]
        except HostError as error:
            if error.errno != "EADDRINUSE":
                raise
    if device is None:
        device = open_soft_device(name, udp_port=None, **options)  # type: ignore[arg-type]
    if name == "auto":
        # `auto` is the question; results name the answer, as it could be typed.
        address = device.info.address or local_address
        chosen = "soft0" if address.startswith("127.") else f"soft:{address}"
        device.info = replace(device.info, name=chosen)
    reason = (
        f"software device on {local_address}, the control connection's local address{auto.reason}"
        if name == "auto"
        else f"--device {name}"
    )
    return device, reason


def _find_verbs(sysfs: SysfsRoot, local_address: str, ib_port: int, binding: str, *, needs_soft: bool) -> _Auto:
    """Return the verbs port that carries `local_address`, the address the kernel's route to the peer begins at.

    Nothing is imported where /sys/class/infiniband is empty.
    """
    if needs_soft or not sysfs.list(_INFINIBAND):
        return _Auto(None, "")
    from p2prw.engine.providers.soft_address import gid_of
    from p2prw.engine.providers.verbs_binding import load_binding
    from p2prw.engine.providers.verbs_sysfs import hca_names, read_hca, read_port

    wanted = gid_of(local_address.partition("%")[0])
    seen: list[str] = []
    for name in hca_names(sysfs):
        hca, port = read_hca(sysfs, name), read_port(sysfs, name, ib_port)
        if hca is None or port is None:
            continue
        row = next((entry for entry in port.gids if entry.gid == wanted and entry.type != "ib"), None)
        if row is None:
            seen.append(f"{name} does not carry that address")
        elif hca.unfit or port.state != "ACTIVE":
            seen.append(f"{name} {hca.unfit or f'port {ib_port} is {port.state}'}")
        else:
            try:
                load_binding(binding)
            except P2prwError as error:
                seen.append(f"{name} would do, but {error.what}: {error.fix}")
                continue
            return _Auto(name, f"{name} carries {local_address} ({row.netdev}, gid {row.index}), the way to the peer")
    return _Auto(None, f" ({'; '.join(seen)})" if seen else "")


def list_devices(verbs_binding: str = "auto", sysfs: SysfsRoot | None = None) -> tuple[DeviceInfo, ...]:
    """Return every device that could be opened here: verbs ports first, then the software device's addresses."""
    root = sysfs or SysfsRoot()
    rows: tuple[DeviceInfo, ...] = ()
    if root.list(_INFINIBAND):
        from p2prw.engine.providers.verbs_open import list_verbs_devices

        rows = list_verbs_devices(verbs_binding, root)
    from p2prw.engine.providers.soft import list_soft_devices

    try:
        return rows + list_soft_devices()
    except HostError:
        if rows:
            return rows
        raise
