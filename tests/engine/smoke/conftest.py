"""Made-up hosts and plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2prw.engine.inventory import DeviceRow, Inventory
from p2prw.engine.model import DeviceInfo, DeviceLimits, GidEntry
from p2prw.engine.routes import routes_by_kind
from p2prw.engine.smoke.model import SmokeDevice, SmokeMemory, SmokeRequest
from p2prw.engine.topology.memory_devices import MemoryDevice

V4, LINK_LOCAL = "0" * 20 + "ffff0a090001", "fe80" + "0" * 27 + "1"


def device(name: str, **changes: Any) -> DeviceInfo:
    soft = name.startswith("soft")
    values: dict[str, Any] = {
        "name": name,
        "provider": "soft" if soft else "verbs",
        "driver": "soft" if soft else "rxe",
        "mover": "cpu",
        "link_layer": "Ethernet",
        "state": "ACTIVE",
        "active_mtu_bytes": 4096,
        "gids": () if soft else (GidEntry(0, LINK_LOCAL, "rocev2", "eth1"), GidEntry(1, V4, "rocev2", "eth1")),
        "limits": DeviceLimits(),
    }
    return DeviceInfo(**{**values, **changes})


def memory(kind: str, spec: str | None, **changes: Any) -> MemoryDevice:
    nothing = ("pci_address", "size_bytes", "available_bytes", "driver", "numa_node", "note")
    values: dict[str, Any] = {**dict.fromkeys(nothing), "kind": kind, "spec": spec, "description": kind, "usable": True}
    return MemoryDevice(**{**values, **changes})


@pytest.fixture
def host() -> Callable[..., Inventory]:
    """An inventory of devices and memory."""

    def make(devices: list[DeviceInfo] | None = None, memories: list[MemoryDevice] | None = None) -> Inventory:
        if devices is None:
            devices = [
                device("rxe0"),
                device("soft0", address="127.0.0.1", netdev="lo"),
                device("soft:::1", address="::1", netdev="lo"),
                device("soft:eth0", address="10.0.0.5", netdev="eth0"),
            ]
        rows = tuple(DeviceRow(info, routes_by_kind(info)) for info in devices)
        return Inventory(rows, tuple(memories or ()), ())

    return make


@pytest.fixture
def info() -> Callable[..., DeviceInfo]:
    return device


@pytest.fixture
def found() -> Callable[..., MemoryDevice]:
    return memory


@pytest.fixture
def soft() -> SmokeDevice:
    return SmokeDevice("soft0", "127.0.0.1", "soft")


@pytest.fixture
def memories() -> tuple[SmokeMemory, ...]:
    return (
        SmokeMemory("host", "host"),
        SmokeMemory("file", "file"),
        SmokeMemory("p2pmem", "p2pmem:0000:01:00.0", 1 << 20),
    )


@pytest.fixture
def ask() -> Callable[..., SmokeRequest]:
    def make(**changes: Any) -> SmokeRequest:
        return SmokeRequest(**{"seed": 7, **changes})

    return make
