"""The guest's kernel: Debian's current one from backports, unpacked into the cache; or one that the user passes.

Debian's own 6.1 and 6.12 have PCI_P2PDMA off. The version comes from the index; nothing here knows a number.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.apt import PrivateApt, own_entry
from lab.commands import run
from lab.errors import FetchError, MissingError
from lab.say import say

SUITE = "trixie-backports"
META_PACKAGE = "linux-image-amd64"
_PARTS = ("linux-image", "linux-binary", "linux-modules", "linux-base")
"""Up to 6.x one package holds image and modules; from 7.x they are split. What the index has of these is fetched."""
WANTED_OPTIONS = ("CONFIG_PCI_P2PDMA", "CONFIG_RDMA_RXE")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image with its modules beside it or in the host's own /lib/modules."""

    version: str
    image: Path


def release_of(meta_record: str) -> str | None:
    """Return the release, such as `7.3.4+deb13-amd64`, that the record of the meta package depends on."""
    for line in meta_record.splitlines():
        if line.startswith("Depends:"):
            for word in re.split(r"[,|]\s*", line.removeprefix("Depends:").strip()):
                match = re.match(r"linux-image-(\d\S*)", word)
                if match:
                    return match[1]
    return None


def missing_options(config: str) -> list[str]:
    """Return which of the options the lab lives on are off in a kernel's config."""
    return [name for name in WANTED_OPTIONS if not re.search(rf"^{name}=[ym]$", config, re.MULTILINE)]


def cached_kernel(cache: Path) -> Kernel | None:
    """Return the newest kernel that was unpacked to the end."""
    done = [mark.parent for mark in (cache / "kernel").glob("*/.complete")]
    if not done:
        return None
    newest = max(done, key=lambda folder: (folder / ".complete").stat().st_mtime_ns)
    return Kernel(newest.name, newest / "usr/lib/modules" / newest.name / "vmlinuz")


def os_release(path: Path = Path("/etc/os-release")) -> Mapping[str, str]:
    """Return the fields of os-release(5)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}


def fetch_kernel(cache: Path) -> Kernel:
    """Download and unpack the current kernel of the suite; the one there already is kept if it is that one.

    FetchError when the index or the packages cannot be had; MissingError on a machine that is no x86-64 Debian.
    """
    release = os_release()
    if platform.machine() != "x86_64" or release.get("ID") != "debian":
        raise MissingError(
            f"the lab fetches its kernel on x86-64 Debian only; this is {release.get('ID', 'another system')} "
            f"on {platform.machine()}\n  pass a kernel of your own: lab/run --kernel PATH (lab/README.md)"
        )
    apt = PrivateApt(cache / "apt", *own_entry(SUITE, release.get("VERSION_CODENAME", "")))
    apt.update()
    version = release_of(apt.show(META_PACKAGE))
    if version is None:
        raise FetchError(f"{SUITE} has no {META_PACKAGE} that names a kernel")
    folder = cache / "kernel" / version
    if not (folder / ".complete").exists():
        say(f"fetching kernel {version} (about 120 MB)")
        packages = [name for part in _PARTS if apt.show(name := f"{part}-{version}")]
        _unpack(apt.download(packages, cache / "download"), folder, version)
        shutil.rmtree(cache / "download")
    (folder / ".complete").touch()
    return Kernel(version, folder / "usr/lib/modules" / version / "vmlinuz")


def _unpack(packages: list[Path], folder: Path, version: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in packages:
        run(["dpkg", "-x", str(package), str(folder)], failure=MissingError, what=f"unpacking {package.name}")
    modules = folder / "usr/lib/modules" / version
    if not (modules / "kernel").exists() and (folder / "lib/modules" / version).exists():
        (folder / "usr/lib").mkdir(parents=True, exist_ok=True)
        (folder / "lib/modules").rename(folder / "usr/lib/modules")
        shutil.rmtree(folder / "lib")
    if not (modules / "vmlinuz").exists() and (folder / f"boot/vmlinuz-{version}").exists():
        (folder / f"boot/vmlinuz-{version}").rename(modules / "vmlinuz")
    if not (modules / "vmlinuz").exists():
        raise FetchError(f"the packages of {version} hold no kernel image where it was expected")
    # depmod -b and virtme-ng look for lib/modules below a root.
    if not (folder / "lib").exists():
        (folder / "lib").symlink_to("usr/lib")
    run(["/usr/sbin/depmod", "-b", str(folder), version], failure=MissingError, what="depmod")
    config = modules / "config"
    off = missing_options(config.read_text(encoding="utf-8")) if config.exists() else []
    if off:
        raise FetchError(f"kernel {version} of {SUITE} has {', '.join(off)} off; pass another with --kernel PATH")
