"""What sysfs says about verbs devices: driver, who moves the bytes, GID tables, port state, packet counters.

Needs no binding and no privilege. Sources: drivers/infiniband/core/sysfs.c; kernel drivers are told apart by their
`device` link (software devices have none: drivers/infiniband/core/device.c, ib_register_device(..., NULL)).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from p2prw.engine.model import GidEntry
from p2prw.engine.topology.pci import read_numa_node
from p2prw.engine.topology.sysfs import SysfsRoot

CLASS = "class/infiniband"
CPU_DRIVERS = frozenset({"rxe", "siw", "hfi1", "qib", "ib_qib"})
"""These carry payload with the CPU and need struct pages behind it (ib_uses_virt_dma; rdmavt copies too)."""
DMABUF_DRIVERS = frozenset({"mlx5_core", "efa", "irdma", "ice", "i40e", "bnxt_en", "bnxt_re", "mana", "ionic"})
"""These import dma-bufs (kernel: reg_user_mr_dmabuf; rdma-core: reg_dmabuf_mr), under the names that sysfs may show."""

_GID_TYPES = {"RoCE v2": "rocev2", "IB/RoCE v1": "rocev1", "RoCE v1": "rocev1", "IB": "ib"}
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_RNIC = 4  # enum rdma_node_type: iWARP


@dataclass(frozen=True, slots=True)
class PortSysfs:
    """One port as sysfs shows it."""

    number: int
    state: str
    """`ACTIVE`, `DOWN`, ..."""
    link_layer: str
    """`Ethernet` or `InfiniBand`."""
    gids: tuple[GidEntry, ...]
    rate_gbit_per_s: float | None = None
    """`100 Gb/sec (4X EDR)` in `rate`: signalling rate times width, without encoding."""
    physical_state: str | None = None
    """`LinkUp`, `Polling`, `Disabled`, ..."""

    @property
    def netdev(self) -> str | None:
        """The first GID's netdev."""
        return next((entry.netdev for entry in self.gids if entry.netdev), None)


@dataclass(frozen=True, slots=True)
class HcaSysfs:
    """One device as sysfs shows it."""

    name: str
    driver: str
    mover: str
    iwarp: bool
    ports: tuple[int, ...]
    pci_address: str | None = None
    numa_node: int | None = None

    @property
    def unfit(self) -> str | None:
        """Why transfers over it are not in this release; None where they are."""
        if self.iwarp:
            return "needs rdma_cm, not in this release (iWARP connects through it only)"
        if self.driver == "efa":
            return "needs SRD, not in this release (EFA has no reliable connected queue pairs with WRITE)"
        return None


def hca_names(sysfs: SysfsRoot) -> tuple[str, ...]:
    """Return the names of all verbs devices; empty where the RDMA core is not loaded."""
    return sysfs.list(CLASS)


def read_hca(sysfs: SysfsRoot, name: str) -> HcaSysfs | None:
    """Return what sysfs says about a device; None where there is none of this name."""
    base = f"{CLASS}/{name}"
    if "/" in name or name in ("", ".", "..") or not sysfs.exists(base):
        return None
    node_type = (sysfs.read_text(f"{base}/node_type") or "").partition(":")[0].strip()
    iwarp = node_type == str(_RNIC)
    driver, pci_address = _driver(sysfs, base, iwarp)
    ports = tuple(sorted(int(text) for text in sysfs.list(f"{base}/ports") if text.isdigit()))
    return HcaSysfs(
        name=name,
        driver=driver,
        mover="cpu" if driver in CPU_DRIVERS else "nic",
        iwarp=iwarp,
        ports=ports,
        pci_address=pci_address,
        numa_node=read_numa_node(sysfs, pci_address) if pci_address else None,
    )


def _driver(sysfs: SysfsRoot, base: str, iwarp: bool) -> tuple[str, str | None]:
    """Return (driver, PCI address); kernel.org's rxe and siw have no device behind them."""
    if not sysfs.exists(f"{base}/device"):
        return ("siw" if iwarp else "rxe"), None
    driver = sysfs.link_name(f"{base}/device/driver") or "unknown"
    real = sysfs.real_path(f"{base}/device") or ""
    # An auxiliary device (irdma, mlx5 SF) hangs below its PCI function.
    functions = [part for part in real.split("/") if _BDF.fullmatch(part)]
    driver = {"ib_qib": "qib"}.get(driver, driver.partition(".")[0])
    return driver, functions[-1] if functions else None


def read_port(sysfs: SysfsRoot, name: str, port: int) -> PortSysfs | None:
    """Return a port with its GID table, zero GIDs skipped; None where it is not there (any more)."""
    base = f"{CLASS}/{name}/ports/{port}"
    state = read_state(sysfs, name, port)
    if state is None:
        return None
    link_layer = sysfs.read_text(f"{base}/link_layer") or "Ethernet"
    rate = (sysfs.read_text(f"{base}/rate") or "").partition(" ")[0]
    return PortSysfs(
        port,
        state,
        link_layer,
        _read_gids(sysfs, base, state, link_layer),
        float(rate) if re.fullmatch(r"\d+(\.\d+)?", rate) else None,
        (sysfs.read_text(f"{base}/phys_state") or "").partition(":")[2].strip() or None,
    )


def read_state(sysfs: SysfsRoot, name: str, port: int) -> str | None:
    """Return `ACTIVE` for "4: ACTIVE"; None where the port is gone."""
    text = sysfs.read_text(f"{CLASS}/{name}/ports/{port}/state")
    return None if text is None else text.partition(":")[2].strip() or text


def _read_gids(sysfs: SysfsRoot, base: str, state: str, link_layer: str) -> tuple[GidEntry, ...]:
    rows = []
    for text in sorted((one for one in sysfs.list(f"{base}/gids") if one.isdigit()), key=int):
        gid = (sysfs.read_text(f"{base}/gids/{text}") or "").replace(":", "")
        if len(gid) != 32 or int(gid, 16) == 0:
            continue
        kind = _GID_TYPES.get(sysfs.read_text(f"{base}/gid_attrs/types/{text}") or "IB", "ib")
        if link_layer == "InfiniBand":
            kind = "ib"
        netdev = sysfs.read_text(f"{base}/gid_attrs/ndevs/{text}")
        rows.append(GidEntry(int(text), gid, kind, netdev, _is_up(sysfs, netdev, state)))
    return tuple(rows)


def _is_up(sysfs: SysfsRoot, netdev: str | None, state: str) -> bool:
    if netdev is None:
        return state == "ACTIVE"
    # A dummy netdev has no carrier to speak of and says "unknown". One of another network namespace says nothing:
    # the kernel would refuse its GID.
    return sysfs.read_text(f"class/net/{netdev}/operstate") in ("up", "unknown")


# --- counters ----------------------------------------------------------------------------------------------

# p2prw's name -> files, the first that is there wins. Of the whole port: others may share it.
_COUNTERS: Mapping[str, tuple[str, ...]] = {
    "packets_sent": ("hw_counters/sent_pkts", "counters/unicast_xmit_packets", "counters/port_xmit_packets"),
    "packets_received": ("hw_counters/rcvd_pkts", "counters/unicast_rcv_packets", "counters/port_rcv_packets"),
    "sequence_naks": ("hw_counters/rcvd_seq_err", "hw_counters/packet_seq_err"),
    "rnr_naks": ("hw_counters/rcvd_rnr_err", "hw_counters/rnr_nak_retry_err"),
    "timeouts": ("hw_counters/local_ack_timeout_err",),
    "duplicates": ("hw_counters/duplicate_request",),
    "retransmitted_packets": ("hw_counters/completer_retry_err",),
}


def read_counters(sysfs: SysfsRoot, name: str, port: int) -> dict[str, int]:
    """Return the port's counters by p2prw's names; what the driver does not count is left out."""
    base = f"{CLASS}/{name}/ports/{port}"
    found: dict[str, int] = {}
    for counter, files in _COUNTERS.items():
        for file in files:
            value = sysfs.read_int(f"{base}/{file}")
            if value is not None:
                found[counter] = value
                break
    return found
