"""Opens verbs devices and lists them: every way in which there can be none has an error that says what to type."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from p2prw.engine.model import DeviceInfo
from p2prw.engine.providers.verbs import VerbsDevice, describe, moves_note, open_error
from p2prw.engine.providers.verbs_binding import BindingError, VerbsBinding, load_binding, no_device_error
from p2prw.engine.providers.verbs_sysfs import HcaSysfs, PortSysfs, hca_names, read_hca, read_port
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError


def open_verbs_device(
    name: str,
    *,
    port: int = 1,
    role: str = "client",
    binding: str | VerbsBinding = "auto",
    sysfs: SysfsRoot | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> VerbsDevice:
    """Open `name`, port `port`.

    HostError: `no_device`, `no_binding`, `binding_unusable`, `no_port`, `port_down`, `not_in_this_release`
    (iWARP, EFA), each with the command that mends it.
    """
    root = sysfs or SysfsRoot()
    hca = read_hca(root, name)
    if hca is None:
        known = ", ".join(hca_names(root)) or "none"
        raise no_device_error(f"no verbs device named {name!r}", f"/sys/class/infiniband has: {known}")
    if hca.unfit:
        raise HostError(
            f"{name} ({hca.driver}): {hca.unfit}",
            why="p2prw connects reliable queue pairs by itself",
            fix="--device soft:NETDEV on the same network",
            code="not_in_this_release",
        )
    facts = read_port(root, name, port)
    if facts is None:
        raise HostError(
            f"{name} has no port {port}",
            why=f"its ports: {', '.join(map(str, hca.ports)) or 'none'}",
            fix=f"--ib-port {hca.ports[0] if hca.ports else 1}",
            code="no_port",
        )
    if facts.state != "ACTIVE":
        netdev = facts.netdev or "NETDEV"
        raise HostError(
            f"{name} port {port} is {facts.state}",
            why="its netdev is down, or it has no link",
            fix=f"ip link set dev {netdev} up; rdma link show",
            code="port_down",
        )
    chosen = load_binding(binding) if isinstance(binding, str) else binding
    try:
        context = chosen.open(name)
    except BindingError as error:
        raise open_error(name, chosen, error) from error
    try:
        return VerbsDevice(hca, facts, chosen, context, role=role, sysfs=root, clock=clock)
    except BaseException:
        context.close()
        raise


def list_verbs_devices(binding: str = "auto", sysfs: SysfsRoot | None = None) -> tuple[DeviceInfo, ...]:
    """Return one row for each port of each verbs device; what cannot be opened carries the reason in its note."""
    root = sysfs or SysfsRoot()
    rows = []
    chosen: VerbsBinding | None = None
    trouble: str | None = None
    names = hca_names(root)
    if names:
        try:
            chosen = load_binding(binding)
        except HostError as error:
            trouble = f"{error.what}: {error.fix}"
    for name in names:
        hca = read_hca(root, name)
        for number in hca.ports if hca else ():
            port = read_port(root, name, number)
            if hca is None or port is None:
                continue
            row = describe(hca, port, None, None, chosen.name if chosen else None)
            note = hca.unfit or trouble
            if chosen is not None and note is None:
                row, note = _look_inside(chosen, hca, port, row)
            rows.append(replace(row, note=note or moves_note(hca)))
    return tuple(rows)


def _look_inside(
    binding: VerbsBinding, hca: HcaSysfs, port: PortSysfs, row: DeviceInfo
) -> tuple[DeviceInfo, str | None]:
    try:
        context = binding.open(hca.name)
        try:
            return describe(hca, port, context.query_device(), context.query_port(port.number), binding.name), None
        finally:
            context.close()
    except BindingError as error:
        return row, f"cannot be opened: {error.reason}"
