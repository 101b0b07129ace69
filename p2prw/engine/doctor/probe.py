"""The real door of the checks: opens the software device, verbs devices and memory as a transfer would."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from p2prw.engine.devices import ROCE_UDP_PORT
from p2prw.engine.doctor.view import BindingState, HostView, SoftwareState
from p2prw.engine.model import DeviceInfo, MemorySpec
from p2prw.engine.topology.snapshot import open_tree
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

if TYPE_CHECKING:
    from p2prw.engine.providers.soft_address import LocalAddress


class HostProbe:
    """See `view.Probe`. Heavy modules are imported when they are used."""

    def __init__(self, sysfs: SysfsRoot) -> None:
        self._sysfs = sysfs
        self._verbs: dict[str, tuple[DeviceInfo, ...]] = {}

    @cached_property
    def _addresses(self) -> tuple[LocalAddress, ...]:
        from p2prw.engine.providers.soft_address import local_addresses

        return tuple(row for row in local_addresses() if row.up)

    def netdevs(self) -> tuple[str, ...]:
        """Return the netdevs with an address, of this process's network namespace."""
        return tuple(dict.fromkeys(row.netdev for row in self._addresses))

    def software(self, name: str) -> SoftwareState:
        """Open it as a client does, and close it."""
        from p2prw.engine.providers.soft import open_soft_device

        with open_soft_device(name, local_address="127.0.0.1", udp_port=None, role="client") as device:
            return SoftwareState(
                address=device.info.address or "127.0.0.1",
                udp_port=device.info.udp_port or 0,
                receive_buffer_bytes=device.receive_buffer_bytes,
                has_segmentation=device.gso,
                warnings=tuple(device.warnings),
            )

    def udp_port_holder(self) -> tuple[str, str] | None:
        """Try to bind the port on each address."""
        from p2prw.engine.providers.soft_socket import udp_port_trouble

        for local in self._addresses:
            held = udp_port_trouble(local, ROCE_UDP_PORT)
            if held is not None:
                return local.address, held
        return None

    def binding(self, wanted: str) -> BindingState:
        """Import it."""
        from p2prw.engine.providers.verbs_binding import load_binding

        try:
            return BindingState(load_binding(wanted).name)
        except HostError as error:
            return BindingState(None, error.code, error.why, error.fix)

    def verbs_devices(self, binding: str) -> tuple[DeviceInfo, ...]:
        """Open every device once."""
        from p2prw.engine.providers.verbs_open import list_verbs_devices

        if binding not in self._verbs:
            self._verbs[binding] = list_verbs_devices(binding, self._sysfs)
        return self._verbs[binding]

    def open_device(self, name: str, ib_port: int, binding: str) -> None:
        """Open it, close it."""
        from p2prw.engine.providers.verbs_open import open_verbs_device

        open_verbs_device(name, port=ib_port, binding=binding, sysfs=self._sysfs).close()

    def check_memory(self, spec: MemorySpec) -> None:
        """Check it as a source: that needs the fewest rights."""
        from p2prw.engine.memory.prepare import prepare_memory

        prepare_memory(spec, "source", sysfs=self._sysfs)


def copied_host(where: str) -> HostView:
    """Return a collected host (`doctor --collect`, or a copy of its /sys): it is read, and nothing is tried."""
    return HostView(open_tree(where))


def this_host(environ: Mapping[str, str]) -> HostView:
    """Return the host this program runs on."""
    sysfs = SysfsRoot()
    return HostView(sysfs, environ, HostProbe(sysfs))
