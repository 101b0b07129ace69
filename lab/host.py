"""What the host must have installed: QEMU, the RDMA tools, pyverbs. Missing packages are installed where root may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.commands import run
from lab.errors import FetchError, MissingError
from lab.say import say

SYSTEM_PYTHON = "/usr/bin/python3"
"""pyverbs is built for the distribution's own Python and for no other."""
_SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


@dataclass(frozen=True, slots=True)
class Need:
    """One package, and how to see without asking a package manager that what it brings is there."""

    package: str
    program: str | None = None
    files: tuple[str, ...] = ()
    """Glob patterns below /; one match is enough."""
    module: str | None = None
    """A module of the system's Python."""

    def is_met(self) -> bool:
        """Look, quickly."""
        if self.program and not shutil.which(self.program, path=_SEARCH):
            return False
        if self.files and not any(any(Path("/").glob(pattern)) for pattern in self.files):
            return False
        return not self.module or _has_module(self.module)

    def words(self) -> str:
        """Say what is looked for."""
        return self.program or self.module or self.files[0]


def _has_module(name: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    try:
        return subprocess.run([SYSTEM_PYTHON, "-I", "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


NEEDS = (
    Need("qemu-system-x86", program="qemu-system-x86_64"),
    # virtme-ng makes the first root file system of a modular kernel with a static busybox.
    Need("busybox-static", program="busybox"),
    Need("file", program="file"),
    Need("kmod", program="depmod"),
    Need("udev", program="udevadm"),
    Need("iproute2", program="rdma"),
    Need("pciutils", program="setpci"),
    Need("nvme-cli", program="nvme"),
    Need("rdma-core", program="rdma-ndd"),
    Need("ibverbs-providers", files=("usr/lib/*/libibverbs/librxe-*.so", "usr/lib64/libibverbs/librxe-*.so")),
    Need("ibverbs-utils", program="ibv_devinfo"),
    Need("perftest", program="ib_write_bw"),
    Need("python3-pyverbs", module="pyverbs"),
)


def check_host_packages(needs: Sequence[Need] = NEEDS) -> None:
    """Raise MissingError, with what to type, where something is not there."""
    missing = [need for need in needs if not need.is_met()]
    if missing:
        raise _missing(missing)


def ensure_host_packages(needs: Sequence[Need] = NEEDS) -> None:
    """Install what is missing. FetchError when apt cannot get it, MissingError when nobody here may install it."""
    missing = [need for need in needs if not need.is_met()]
    if not missing:
        return
    packages = [need.package for need in missing]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise _missing(missing)
    say(f"installing {' '.join(packages)}")
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *packages]
    try:
        run(install, failure=FetchError, what=" ".join(packages))
    except FetchError:
        # The lists may be old (a fresh container has none at all).
        run(["apt-get", "update", "-q", "-o", "DPkg::Lock::Timeout=120"], failure=FetchError, what="the package index")
        run(install, failure=FetchError, what=" ".join(packages))
    still = [need for need in missing if not need.is_met()]
    if still:
        raise MissingError(
            f"installed {' '.join(packages)}, and {', '.join(need.words() for need in still)} is still not there"
        )


def _missing(needs: Sequence[Need]) -> MissingError:
    lines = [f"the lab misses {', '.join(need.words() for need in needs)}"]
    lines += ["as root:" if shutil.which("apt-get") else "there is no apt-get here; on Debian it would be:"]
    lines += [f"apt-get install --no-install-recommends {' '.join(need.package for need in needs)}"]
    return MissingError("\n  ".join(lines))
