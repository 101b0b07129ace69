"""The host as checks see it: one machine's files, the environment, and one door for what has to be tried.

Everything is injectable, so that a snapshot of a machine (tests/golden/README.md) is a host too: there nothing can be
tried, and what only trying tells is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from p2prw.engine.doctor.kernel_config import KernelConfig, read_kernel_config
from p2prw.engine.model import DeviceInfo, MemorySpec
from p2prw.engine.topology.memory_devices import MemoryDevice, list_memory_devices
from p2prw.engine.topology.pairs import Topology
from p2prw.engine.topology.sysfs import SysfsRoot

# include/uapi/linux/capability.h
CAP_IPC_LOCK, CAP_SYS_ADMIN = 14, 21


@dataclass(frozen=True, slots=True)
class SoftwareState:
    """What came out when the software device was opened."""

    address: str
    udp_port: int
    receive_buffer_bytes: int
    has_segmentation: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BindingState:
    """The verbs binding that would be used, or why there is none."""

    name: str | None
    code: str | None = None
    """`no_binding` (nothing installed) or `binding_unusable`."""
    why: str | None = None
    fix: str | None = None


class Probe(Protocol):
    """What has to be tried: sockets, verbs bindings, memory. HostError where it does not work."""

    def netdevs(self) -> tuple[str, ...]:
        """Names of the netdevs of this process's network namespace that have an address."""

    def software(self, name: str) -> SoftwareState:
        """Open a software device and close it."""

    def udp_port_holder(self) -> tuple[str, str] | None:
        """(address, who) of the first address of this host whose UDP port 4791 is taken; None: free everywhere."""

    def binding(self, wanted: str) -> BindingState:
        """Import a verbs binding."""

    def verbs_devices(self, binding: str) -> tuple[DeviceInfo, ...]:
        """Every port, opened where it can be."""

    def open_device(self, name: str, ib_port: int, binding: str) -> None:
        """Open a device as a transfer would, and close it."""

    def check_memory(self, spec: MemorySpec) -> None:
        """Check memory as a transfer would before it contacts anybody."""


@dataclass(frozen=True)
class HostView:
    """One host. Files are read when a check asks for them, and the costly ones once."""

    sysfs: SysfsRoot
    environ: Mapping[str, str] = field(default_factory=dict)
    probe: Probe | None = None

    @cached_property
    def proc(self) -> SysfsRoot:
        """/proc of the same machine."""
        return self.sysfs.beside("proc")

    @cached_property
    def dev(self) -> SysfsRoot:
        """/dev of the same machine."""
        return self.sysfs.beside("dev")

    @cached_property
    def root(self) -> SysfsRoot:
        """The machine's root folder: /boot, /lib/modules, /.dockerenv."""
        return self.sysfs.beside(".")

    @cached_property
    def memory(self) -> tuple[MemoryDevice, ...]:
        """Every memory device, read once for all checks. HostError where it may not be read."""
        return list_memory_devices(self.sysfs, self.dev)

    @cached_property
    def topology(self) -> Topology:
        """Chains and verdicts; what was read is kept."""
        return Topology(self.sysfs)

    @cached_property
    def release(self) -> str:
        """`uname -r`; empty where nothing says so."""
        return self.proc.read_text("sys/kernel/osrelease") or ""

    @cached_property
    def config(self) -> KernelConfig | None:
        """The kernel's configuration; None where it cannot be found."""
        return read_kernel_config(self.proc, self.root, self.release)

    @cached_property
    def boot_parameters(self) -> tuple[str, ...]:
        """The kernel command line, word by word."""
        return tuple((self.proc.read_text("cmdline") or "").split())

    @cached_property
    def capabilities(self) -> int | None:
        """Effective capabilities as a bit set; None where nothing says so."""
        for line in (self.proc.read_text("self/status") or "").splitlines():
            name, _, digits = line.partition(":")
            if name == "CapEff":
                return int(digits.strip(), 16)
        return None

    def has_capability(self, number: int) -> bool:
        """Tell whether the process has a capability (in its user namespace)."""
        return bool((self.capabilities or 0) >> number & 1)

    @cached_property
    def locked_memory_bytes(self) -> int | None:
        """RLIMIT_MEMLOCK (soft); -1 is unlimited, None unknown."""
        for line in (self.proc.read_text("self/limits") or "").splitlines():
            if line.startswith("Max locked memory"):
                soft = line.split()[3]
                return -1 if soft == "unlimited" else int(soft)
        return None

    @cached_property
    def is_container(self) -> bool:
        """Docker, podman, systemd-nspawn or Kubernetes left a mark, or this user namespace is not the first one."""
        marks = self.root.exists(".dockerenv") or self.root.exists("run/.containerenv")
        names = "container" in self.environ or "KUBERNETES_SERVICE_HOST" in self.environ
        mapped = (self.proc.read_text("self/uid_map") or "").split()
        # The first user namespace maps all of 32 bits onto itself (kernel/user_namespace.c, init_user_ns).
        return marks or names or (len(mapped) == 3 and mapped != ["0", "0", "4294967295"])

    def module_state(self, name: str) -> str:
        """Return `loaded` (or built in), `available`, `absent`, or `unknown` where no list of modules is at hand."""
        if self.sysfs.exists(f"module/{name}"):
            return "loaded"
        if name in (self._modules_built_in or ()):
            return "loaded"
        if self._modules_available is None:
            return "unknown"
        return "available" if name in self._modules_available else "absent"

    @cached_property
    def _modules_built_in(self) -> frozenset[str] | None:
        return self._module_names("modules.builtin")

    @cached_property
    def _modules_available(self) -> frozenset[str] | None:
        return self._module_names("modules.dep")

    def _module_names(self, file: str) -> frozenset[str] | None:
        raw = self.root.read_bytes(f"lib/modules/{self.release}/{file}", 1 << 24) if self.release else None
        if raw is None:
            return None
        paths = (line.partition(":")[0] for line in raw.decode("utf-8", "replace").splitlines())
        # As the kernel spells them: vfio-pci.ko is module vfio_pci.
        return frozenset(path.rpartition("/")[2].partition(".ko")[0].replace("-", "_") for path in paths)
