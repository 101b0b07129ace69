"""`doctor --collect DIR`, `--report`: what checks and verdicts read on this host, in one small file that names nobody.

The format is a golden machine's (tests/golden/README.md), so that a bug report is a fixture as it is. Addresses are
replaced by ones reserved for documentation, serial numbers are blanked, and of free texts (kernel command line, kernel
configuration, limits) only known words are kept.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Any

from p2prw import __version__
from p2prw.engine.doctor.kernel import MODULES, OPTIONS
from p2prw.engine.doctor.view import CAP_SYS_ADMIN, HostView
from p2prw.engine.topology.collect import collect
from p2prw.engine.topology.snapshot import FILE_NAME, dump_machine
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, errno_name

Tree = dict[str, dict[str, Any]]

# Words of the command line that bear on what checks say. Everything else may name a host, a disk or a key.
_BOOT_WORDS = re.compile(
    r"(?:(?:intel|amd)_iommu|iommu(?:\.\w+)?|iomem|pci|pcie_acs_override|lockdown|hugepages|hugepagesz|"
    r"default_hugepagesz|vfio[\w.-]*|ib_core\.\w+|clocksource|tsc|nokaslr)(?:=[\w.,:;=@-]*)?"
)
_MORE_OPTIONS = ("IO_STRICT_DEVMEM", "STRICT_DEVMEM", "SECURITY_LOCKDOWN_LSM", "INFINIBAND")
_PORT_TEXTS = ("state", "phys_state", "link_layer", "rate")
_CLOCK = "devices/system/clocksource/clocksource0"


def collection_text(host: HostView, origin: str) -> str:
    """Return the collection as the text of a machine.json; `origin` says in it who wrote it."""
    machine = dump_machine(
        collect_host(host),
        f"written by {origin}; addresses replaced, serial numbers and names of the host left out",
        p2prw=__version__,
        privileged=host.has_capability(CAP_SYS_ADMIN),
    )
    return without_addresses_in_names(machine)


def write_collection(host: HostView, directory: str | os.PathLike[str]) -> Path:
    """Write DIRECTORY/machine.json and return its path. HostError where it exists already or cannot be written."""
    path = Path(directory) / FILE_NAME
    text = collection_text(host, "p2prw doctor --collect")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise HostError(
            f"{path} exists already",
            why="nothing is overwritten",
            fix=f"rm {path}, or another directory",
            code="exists",
            errno="EEXIST",
        ) from error
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {os.strerror(error.errno or 0)}",
            why="the collection is one file in that directory",
            fix="--collect /tmp/host",
            code="cannot_write",
            errno=errno_name(error.errno or 0),
        ) from error
    return path


def collect_host(host: HostView) -> Tree:
    """Return the tree: what topology collects, and what the checks read besides."""
    tree = collect(host.sysfs)
    _rdma(host, tree)
    _device_files(host, tree)
    _process(host, tree)
    _kernel(host, tree)
    return tree


def without_addresses_in_names(text: str) -> str:
    """Replace names that udev made of a MAC address or GUID (enx0123456789ab, rocex..., ibx...); equal ones alike."""
    known: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        digits = match[2]
        return match[1] + known.setdefault(digits, f"{len(known) + 1:0{len(digits)}x}")

    return re.sub(r"\b([a-z]{2,4}x)([0-9a-f]{12}(?:[0-9a-f]{4})?)\b", replace, text)


# --- RDMA devices and their netdevs ---------------------------------------------------------------------------


def _rdma(host: HostView, tree: Tree) -> None:
    for name in host.sysfs.list("class/infiniband"):
        real = host.sysfs.real_path(f"class/infiniband/{name}") or f"class/infiniband/{name}"
        for port in host.sysfs.list(f"{real}/ports"):
            base = f"{real}/ports/{port}"
            for text in _PORT_TEXTS:
                _copy(host.sysfs, tree, f"sys/{base}", f"{base}/{text}")
            _gids(host, tree, base)
        _copy(host.sysfs, tree, f"sys/{real}", f"{real}/parent")
        _netdevs(host, tree, real)
    for node in host.sysfs.list("class/infiniband_verbs"):
        if node.startswith("uverbs"):
            folder = f"class/infiniband_verbs/{node}"
            _copy(host.sysfs, tree, f"sys/{folder}", f"{folder}/ibdev")


def _gids(host: HostView, tree: Tree, base: str) -> None:
    """Keep index, family, type and netdev of each GID; the address becomes a documentation one of its family."""
    for index in host.sysfs.list(f"{base}/gids"):
        gid = (host.sysfs.read_text(f"{base}/gids/{index}") or "").replace(":", "")
        if not re.fullmatch(r"[0-9a-f]{32}", gid) or int(gid, 16) == 0:
            continue
        plain = anonymous_gid(gid, int(index) if index.isdigit() else 0)
        tree.setdefault(f"sys/{base}/gids", {})[index] = ":".join(plain[at : at + 4] for at in range(0, 32, 4))
        for attribute in ("types", "ndevs"):
            _copy(host.sysfs, tree, f"sys/{base}/gid_attrs/{attribute}", f"{base}/gid_attrs/{attribute}/{index}")


def _netdevs(host: HostView, tree: Tree, real: str) -> None:
    """Keep what RoCE needs of the netdevs of a device: those of its GIDs, rxe's parent, its PCI function's."""
    names = {*host.sysfs.list(f"{real}/device/net"), host.sysfs.read_text(f"{real}/parent")}
    for port in host.sysfs.list(f"{real}/ports"):
        base = f"{real}/ports/{port}/gid_attrs/ndevs"
        names |= {host.sysfs.read_text(f"{base}/{index}") for index in host.sysfs.list(base)}
    for netdev in filter(None, names):
        place = host.sysfs.real_path(f"class/net/{netdev}")
        # A netdev of a PCI function is a link already, made where the function is.
        folder = f"sys/{place}" if place and f"sys/{place}" in tree else f"sys/class/net/{netdev}"
        for text in ("mtu", "operstate"):
            _copy(host.sysfs, tree, folder, f"class/net/{netdev}/{text}")


def anonymous_gid(gid: str, index: int) -> str:
    """Return a GID of the same family that is nobody's (RFC 5737, RFC 3849); link-local stays link-local."""
    address = ipaddress.IPv6Address(int(gid, 16))
    if address.ipv4_mapped is not None:
        net = "169.254.0" if address.ipv4_mapped.is_link_local else "192.0.2"
        return f"{int(ipaddress.IPv6Address(f'::ffff:{net}.{index % 254 + 1}')):032x}"
    prefix = "fe80::" if address.is_link_local else "2001:db8::"
    return f"{int(ipaddress.IPv6Address(f'{prefix}{index + 1:x}')):032x}"


# --- device files, process, kernel ----------------------------------------------------------------------------


def _device_files(host: HostView, tree: Tree) -> None:
    """That they are there, and whether they may be opened; never what is in them."""
    files = ["udmabuf"]
    for folder in ("infiniband", "dma_heap", "vfio"):
        files += [f"{folder}/{name}" for name in host.dev.list(folder)]
    for file in files:
        if host.dev.exists(file):
            folder, _, name = f"dev/{file}".rpartition("/")
            tree.setdefault(folder, {})[name] = {"size": 0} if host.dev.may_open(file) else {"errno": "EACCES"}
    if host.is_container:
        tree.setdefault("run", {})[".containerenv"] = {"size": 0}


def _process(host: HostView, tree: Tree) -> None:
    entries = tree.setdefault("proc/self", {})
    for file, start in (("limits", "Max locked memory"), ("status", "CapEff:")):
        lines = (host.proc.read_text(f"self/{file}") or "").splitlines()
        kept = [line for line in lines if line.startswith(start)]
        if kept:
            entries[file] = kept[0]
    words = [word for word in host.boot_parameters if _BOOT_WORDS.fullmatch(word)]
    tree.setdefault("proc", {})["cmdline"] = " ".join(words)


def _kernel(host: HostView, tree: Tree) -> None:
    _copy(host.sysfs, tree, "sys/kernel/security", "kernel/security/lockdown")
    _copy(host.sysfs, tree, f"sys/{_CLOCK}", f"{_CLOCK}/current_clocksource")
    _copy(host.sysfs, tree, "sys/module/ib_core/parameters", "module/ib_core/parameters/netns_mode")
    states = {name: host.module_state(name) for name in MODULES}
    for name, state in states.items():
        if state == "loaded":
            tree.setdefault(f"sys/module/{name}", {})
    if host.release and "unknown" not in states.values():
        there = "\n".join(f"kernel/{name}.ko:" for name, state in states.items() if state == "available")
        tree.setdefault(f"lib/modules/{host.release}", {})["modules.dep"] = there
    if host.config is not None and host.release:
        options = {name: host.config.options.get(name, "n") for name in (*OPTIONS, *_MORE_OPTIONS)}
        lines = (
            f"# CONFIG_{name} is not set" if value == "n" else f"CONFIG_{name}={value}"
            for name, value in options.items()
        )
        tree.setdefault("boot", {})[f"config-{host.release}"] = "\n".join(lines)


def _copy(sysfs: SysfsRoot, tree: Tree, folder: str, path: str) -> None:
    """Copy a short attribute; one that may not be read says so in the copy too."""
    name = path.rpartition("/")[2]
    try:
        text = sysfs.read_text(path)
    except HostError as error:
        tree.setdefault(folder, {})[name] = {"errno": error.errno}
        return
    if text is not None:
        tree.setdefault(folder, {})[name] = text
