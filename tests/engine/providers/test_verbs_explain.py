"""Every errno of a registration has a reason and something to type, for the memory and driver at hand."""

from __future__ import annotations

import pytest

from p2prw.engine.model import Route
from p2prw.engine.providers.verbs_explain import (
    explain,
    explain_modify,
    explain_proof,
    needs_pages,
    no_device_memory,
    no_import,
)


@pytest.mark.parametrize(
    ("route", "kind", "driver", "errno", "why", "fix"),
    [
        (Route.PIN, "host", "mlx5_core", "ENOMEM", "RLIMIT_MEMLOCK", "ulimit -l"),
        (Route.ODP, "p2pmem", "rxe", "ENOMEM", "RLIMIT_MEMLOCK", "ulimit -l"),
        (Route.PIN, "host", "rxe", "EPERM", "CAP_IPC_LOCK", "memlock"),
        (Route.PIN, "p2pmem", "rxe", "EFAULT", "p2pmem mapping", "--route odp"),
        (Route.PIN, "p2pmem", "mlx5_core", "EREMOTEIO", "no mainline kernel", "--route odp"),
        (Route.PIN, "bar", "mlx5_core", "EFAULT", "VM_PFNMAP", "vfio"),
        (Route.ODP, "bar", "rxe", "EFAULT", "no struct pages", "bounce"),
        (Route.PIN, "dmaheap", "rxe", "EFAULT", "VM_PFNMAP", "bounce"),
        (Route.PIN, "vfio", "mlx5_core", "EFAULT", "no struct pages", "dmabuf"),
        (Route.PIN, "cuda", "mlx5_core", "EFAULT", "nvidia-peermem", "modprobe"),
        (Route.PIN, "host", "rxe", "EFAULT", "cannot pin", "host"),
        (Route.ODP, "host", "irdma", "EOPNOTSUPP", "on-demand", "--route"),
        (Route.DMABUF, "udmabuf", "hns_roce", "EOPNOTSUPP", "cannot import a dma-buf", "bounce"),
        (Route.DMABUF, "vfio", "rxe", "EOPNOTSUPP", "rxe cannot import a dma-buf", "bounce"),
        (Route.DMABUF, "vfio", "efa", "EOPNOTSUPP", "importer must be dynamic", "bounce"),
        (Route.DMABUF, "udmabuf", "mlx5_core", "EBADF", "closed", "new transfer"),
        (Route.DM, "dm", "mlx5_core", "ENOMEM", "memory of its own", "dm,size="),
        (Route.DM, "dm", "rxe", "EOPNOTSUPP", "no device memory", "host,size"),
        (Route.DM, "dm", "mlx5_core", "EINVAL", "alignment", "dm,size="),
        (Route.DMABUF, "cuda", "mlx5_core", "EINVAL", "exporter", "topology"),
        (Route.DMABUF, "vfio", "mlx5_core", "ENODEV", "revoked", "dmesg"),
        (Route.PIN, "host", "rxe", None, "rxe refused host", "dmesg"),
    ],
)
def test_what_it_means_and_what_to_type(route, kind, driver, errno, why, fix):
    said = explain(route, kind, driver, errno)
    assert why in said[0] and fix in said[1]


def test_a_proof_that_failed_says_what_it_saw():
    assert "proved nothing" in explain_proof("odp", "bar", "rxe", "LOC_PROT_ERR")
    assert "LOC_PROT_ERR" in explain_proof("odp", "bar", "rxe", "LOC_PROT_ERR")
    assert "struct page" in explain_proof("odp", "vfio", "rxe", None)
    assert "imports no dma-buf" in no_import("rxe") and "--force-route" in no_import("rxe")
    assert "max_dm_size" in no_device_memory("rxe0", "rxe", "pyverbs")
    assert "--verbs-binding pyverbs" in no_device_memory("mlx5_0", "mlx5_core", "ibverbs")
    assert "rxe" in needs_pages("bar", "rxe") and "--force-route" in needs_pages("bar", "rxe")


@pytest.mark.parametrize(
    ("step", "errno", "word"),
    [
        ("INIT", "EINVAL", "P_Key"),
        ("RTR", "EINVAL", "index 3"),
        ("RTR", "EHOSTUNREACH", "neighbour"),
        ("RTS", "EINVAL", "retry"),
        ("RTR", None, "attributes"),
    ],
)
def test_a_failed_bring_up_names_the_likely_attribute(step, errno, word):
    why, fix = explain_modify(step, errno, 4096, 3)
    assert word in why and fix
