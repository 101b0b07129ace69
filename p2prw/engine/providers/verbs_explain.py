"""What the kernel's answers to a registration mean, for this memory on this driver, and what to type. Pure.

Sources: mm/gup.c (check_vma_flags, is_valid_gup_args), drivers/infiniband/core/umem.c, rdma-core's libibverbs
dummy_ops.c, and what the lab's rxe answered (Linux 7.3).
"""

from __future__ import annotations

from p2prw.engine.model import Route
from p2prw.engine.providers.verbs_sysfs import DMABUF_DRIVERS

NEEDS_PAGES = frozenset({"rxe", "siw", "hfi1", "qib"})
"""Drivers that copy with the CPU through struct pages, and import no dma-buf."""
_MEMLOCK = "ulimit -l unlimited; LimitMEMLOCK=infinity in a systemd unit; docker run --ulimit memlock=-1"
_P2P_SERIES = "no mainline kernel pins it (the series 'Enable P2P RDMA in userspace' of 2024 is not merged)"


def explain(route: str, kind: str, driver: str, errno: str | None) -> tuple[str, str]:
    """Return (why, what to type) for a registration of `kind` memory by `route` that failed with `errno`."""
    match route, kind, errno:
        case (_, _, "ENOMEM") if route in (Route.PIN, Route.ODP):
            return "the limit of locked memory (RLIMIT_MEMLOCK) is too small, or memory ran out", _MEMLOCK
        case (_, _, "EPERM") if route in (Route.PIN, Route.ODP):
            return "locked memory is limited to 0 and the process has no CAP_IPC_LOCK", _MEMLOCK
        case (Route.PIN, "p2pmem", "EFAULT" | "EREMOTEIO"):
            return (
                f"ibv_reg_mr pins pages for long, and the kernel refuses that for a p2pmem mapping: {_P2P_SERIES}",
                "--route odp (rxe since Linux 6.15), or leave --route away",
            )
        case (Route.PIN | Route.ODP, "bar", "EFAULT"):
            return (
                "a BAR mapping (VM_IO, VM_PFNMAP) has no struct pages to pin; every driver is refused",
                "leave --route away (bounce), or bind it to vfio-pci and export a dma-buf: vfio:BDF/N",
            )
        case (Route.PIN | Route.ODP, "vfio" | "dmaheap", "EFAULT"):
            return (
                "its mapping (VM_PFNMAP) has no struct pages to pin; every driver is refused",
                "leave --route away (dmabuf, bounce)",
            )
        case (Route.PIN, "cuda", "EFAULT"):
            return "nvidia-peermem is not loaded, or this kernel has no peer memory API", "modprobe nvidia-peermem"
        case (Route.PIN, _, "EFAULT"):
            return "the kernel cannot pin this mapping (written-back file, wrong protection)", "host,size=..."
        case (Route.ODP, _, "EOPNOTSUPP" | "EINVAL" | "ENOSYS"):
            return (
                f"{driver} has no on-demand paging here (rxe since Linux 6.15, mlx5 with CONFIG_INFINIBAND_ON_DEMAND_"
                "PAGING)",
                "leave --route away",
            )
        case (Route.DMABUF, "vfio", "EOPNOTSUPP") if driver in DMABUF_DRIVERS:
            return (
                f"{driver} cannot import this dma-buf: vfio-pci may revoke it, so the importer must be dynamic "
                "(mlx5 is, irdma since Linux 7.1; efa, bnxt_re, mana and ionic pin)",
                "leave --route away (bounce)",
            )
        case (Route.DMABUF, _, "EOPNOTSUPP" | "EPROTONOSUPPORT" | "ENOTTY" | "ENOSYS"):
            return (
                f"{driver} cannot import a dma-buf (mlx5, efa, irdma, bnxt_re, mana and ionic can)",
                "leave --route away (bounce)",
            )
        case (Route.DM, _, "ENOMEM" | "ENOSPC"):
            return "the NIC has not that much memory of its own left", "a smaller dm,size="
        case (Route.DM, _, "EOPNOTSUPP" | "ENOSYS" | "EPROTONOSUPPORT"):
            return (
                f"{driver}, or this binding, has no device memory (mlx5 and mana have; pyverbs can)",
                "host,size=64MiB",
            )
        case (Route.DM, _, "EINVAL"):
            return f"{driver} wants another size or alignment", "dm,size=4KiB"
        case (Route.DMABUF, _, "EBADF"):
            return "the dma-buf was closed", "start a new transfer"
        case (Route.DMABUF, _, "EINVAL" | "EREMOTEIO"):
            return (
                "the exporter or the way between both PCI devices does not allow it (alignment, range, ACS redirect)",
                "p2prw topology NIC MEMORY; dmesg | tail",
            )
        case (Route.DMABUF, _, "ENODEV"):
            return "the buffer is revoked: memory decoding is off or the device is in reset", "dmesg | tail"
        case _:
            return f"{driver} refused {kind} memory", "dmesg | tail"


def explain_proof(route: str, kind: str, driver: str, wc_status: str | None) -> str:
    """Return why a route that registered is not taken."""
    what = f"the registration succeeded and proved nothing: a loopback WRITE out of it ended with {wc_status or 'none'}"
    if route == Route.ODP and kind in ("bar", "vfio"):
        return f"{what}; the page fault finds no struct page behind a BAR"
    return f"{what} on {driver}"


def needs_pages(kind: str, driver: str) -> str:
    """Return the sentence with which page-less memory is refused by class."""
    return (
        f"{driver} moves bytes with the CPU through struct pages, and {kind} memory has none; "
        "--force-route shows the kernel's own answer"
    )


def no_import(driver: str) -> str:
    """Return the sentence with which a dma-buf is refused by class."""
    return (
        f"{driver} moves bytes with the CPU through struct pages and imports no dma-buf; "
        "--force-route shows the kernel's own answer"
    )


def no_device_memory(name: str, driver: str, binding: str | None) -> str:
    """Return why there is no `dm` here: the device has none, or the binding cannot allocate it."""
    if binding == "ibverbs":
        return "the ibverbs wheel cannot allocate device memory; --verbs-binding pyverbs can"
    return f"{name} ({driver}) has no memory of its own (max_dm_size is 0); mlx5 and mana devices have some"


def explain_modify(step: str, errno: str | None, path_mtu_bytes: int, sgid_index: int) -> tuple[str, str]:
    """Return (why, what to type) for a queue pair that did not reach `step` (INIT, RTR, RTS)."""
    match step, errno:
        case ("INIT", _):
            return "port, P_Key index or access flags do not fit the port", "--ib-port, --pkey-index; p2prw devices"
        case ("RTR", "EINVAL"):
            return (
                f"most likely the GID (index {sgid_index}), else path MTU {path_mtu_bytes} or the READ depth",
                "--gid-index (see p2prw devices), --mtu, --max-rd-atomic",
            )
        case ("RTR", "ENETUNREACH" | "EHOSTUNREACH" | "ETIMEDOUT" | "ENODEV"):
            return "the kernel has no route or no neighbour entry for the peer's GID", "ping the peer; --gid-index"
        case ("RTS", _):
            return "timeout, retry count or READ depth is beyond the device", "--timeout, --retry-cnt, --max-rd-atomic"
        case _:
            return "the device refused the attributes", "dmesg | tail; p2prw devices"
