"""The kernel's own configuration: /proc/config.gz, /boot/config-VERSION, or beside its modules.

CONFIG_PCI_P2PDMA and its like show nowhere in sysfs; without one of these files the answer is unknown.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

_LINE = re.compile(r"CONFIG_(\w+)=([ym])|# CONFIG_(\w+) is not set")
_MOST_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What was built."""

    source: str
    """The file that says so, as it is called on that machine."""
    options: Mapping[str, str]
    """Name without CONFIG_ -> `y`, `m` or `n`."""

    def has(self, option: str) -> bool:
        """Tell whether an option is built in or a module; one that is not mentioned is not there."""
        return self.options.get(option, "n") != "n"


def read_kernel_config(proc: SysfsRoot, root: SysfsRoot, release: str) -> KernelConfig | None:
    """Return the first configuration that is there and can be read; None where there is none."""
    places = [(proc, "config.gz", "/proc/")]
    if release:
        modules = (f"lib/modules/{release}/config", f"usr/lib/modules/{release}/config")
        beside = (f"boot/config-{release}", *modules, f"lib/modules/{release}/build/.config")
        places += [(root, path, "/") for path in beside]
    for tree, path, above in places:
        try:
            raw = tree.read_bytes(path, _MOST_BYTES)
        except HostError:
            # Some distributions let only root read /boot; another place may do.
            continue
        text = None if raw is None else _unpack(raw)
        if text is not None:
            return KernelConfig(f"{above}{path}", parse_kernel_config(text))
    return None


def parse_kernel_config(text: str) -> dict[str, str]:
    """Return the switches of a .config; numbers and texts are left out."""
    options = {}
    for match in map(_LINE.fullmatch, text.splitlines()):
        if match:
            options[match[1] or match[3]] = match[2] or "n"
    return options


def _unpack(raw: bytes) -> str | None:
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error):
            return None
    return raw.decode("utf-8", "replace")
