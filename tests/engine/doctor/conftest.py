"""Made-up hosts: a machine's folders below a temporary directory, and a door that answers as it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.doctor.findings import Ask, Finding
from p2prw.engine.doctor.view import BindingState, HostView, SoftwareState
from p2prw.engine.model import DeviceInfo, MemorySpec
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import P2prwError

GOOD = SoftwareState("127.3.2.1", 4791, 16 << 20, True)
PYVERBS = BindingState("pyverbs")


@dataclass
class FakeProbe:
    """See `view.Probe`; an exception among the answers is raised."""

    software_state: SoftwareState | P2prwError = GOOD
    holder: tuple[str, str] | None = None
    binding_state: BindingState = PYVERBS
    devices: tuple[DeviceInfo, ...] = ()
    open_error: P2prwError | None = None
    memory_error: P2prwError | None = None
    own_netdevs: tuple[str, ...] = ()
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def netdevs(self) -> tuple[str, ...]:
        return self.own_netdevs

    def software(self, name: str) -> SoftwareState:
        self.calls.append(("software", name))
        if isinstance(self.software_state, P2prwError):
            raise self.software_state
        return self.software_state

    def udp_port_holder(self) -> tuple[str, str] | None:
        return self.holder

    def binding(self, wanted: str) -> BindingState:
        return self.binding_state

    def verbs_devices(self, binding: str) -> tuple[DeviceInfo, ...]:
        return self.devices

    def open_device(self, name: str, ib_port: int, binding: str) -> None:
        self.calls.append(("open", name, ib_port))
        if self.open_error:
            raise self.open_error

    def check_memory(self, spec: MemorySpec) -> None:
        self.calls.append(("memory", spec.kind))
        if self.memory_error:
            raise self.memory_error


@pytest.fixture
def probe() -> FakeProbe:
    return FakeProbe()


@pytest.fixture
def files(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], Path]:
    """Write files below the machine's root: `{"proc/cmdline": "quiet"}`; a text that begins with -> is a link."""

    def write(contents: Mapping[str, str | bytes]) -> Path:
        for name, content in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content.startswith("->"):
                path.symlink_to(content[2:])
            else:
                path.write_text(content + "\n")
        return tmp_path

    return write


@pytest.fixture
def host(
    files: Callable[[Mapping[str, str | bytes]], Path], tmp_path: Path, probe: FakeProbe
) -> Callable[..., HostView]:
    """Make a host: `host({"proc/cmdline": "..."}, container="docker")`."""

    def make(contents: Mapping[str, str | bytes] | None = None, **environ: str) -> HostView:
        files(contents or {})
        return HostView(SysfsRoot(tmp_path / "sys"), environ, probe)

    return make


@pytest.fixture
def one() -> Callable[..., Finding]:
    """Run a check that says exactly one thing and return it; what is not ok has why and something to paste."""

    def run(check: Callable[[HostView, Ask], Any], view: HostView, ask: Ask | None = None) -> Finding:
        found = list(check(view, ask or Ask()))
        assert len(found) == 1, found
        (finding,) = found
        assert isinstance(finding, Finding)
        assert finding.status == "ok" or finding.fix
        return finding

    return run
