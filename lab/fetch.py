"""What a boot needs, made ready: host packages, virtme-ng, the guest's Python, a kernel. Fast when all is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.errors import MissingError
from lab.host import check_host_packages, ensure_host_packages
from lab.kernel import Kernel, cached_kernel, fetch_kernel
from lab.places import REPOSITORY, cache_folder, locked
from lab.python_env import ensure_guest_environment, ensure_tools, is_complete


@dataclass(frozen=True, slots=True)
class Parts:
    """What `boot` takes."""

    kernel: Kernel
    tools: Path
    """Folder with vng and virtme-run."""
    guest_python: Path


def find() -> Parts:
    """Return the parts when all is there, fetching nothing. MissingError says what is not, and what to type."""
    check_host_packages()
    cache = cache_folder()
    tools, guest = cache / "tools", cache / "guest"
    kernel = cached_kernel(cache)
    folders = {"virtme-ng": tools, "the guest's Python": guest}
    missing = [name for name, folder in folders.items() if not is_complete(folder)]
    missing += [] if kernel else ["a kernel"]
    if missing or kernel is None:
        raise MissingError(f"the lab misses {', '.join(missing)} in its cache; lab/fetch brings what is missing")
    return Parts(kernel, tools / "bin", guest / "bin/python")


def fetch(*, kernel_path: Path | None = None, update: bool = False) -> Parts:
    """Return the parts, fetching what is missing. `update` looks for a newer kernel even where one is in the cache.

    Errors: FetchError (75) for the network, MissingError (70) for this machine.
    """
    if kernel_path is not None and not kernel_path.is_file():
        raise MissingError(f"there is no kernel image {kernel_path}")
    cache = cache_folder()
    with locked(cache / "fetch.lock", while_waiting="waiting for another fetch to end"):
        ensure_host_packages()
        tools = ensure_tools(cache)
        guest_python = ensure_guest_environment(cache, REPOSITORY)
        if kernel_path is not None:
            kernel = Kernel("", kernel_path.resolve())
        else:
            kernel = (None if update else cached_kernel(cache)) or fetch_kernel(cache)
    return Parts(kernel, tools, guest_python)
