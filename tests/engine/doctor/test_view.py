"""What checks may ask of a host: capabilities, limits, modules, container marks; absent files are None, not a guess."""

from __future__ import annotations

import pytest

from p2prw.engine.doctor.view import CAP_IPC_LOCK, CAP_SYS_ADMIN

LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n"


def test_an_empty_host_knows_nothing(host):
    view = host()
    assert view.release == "" and view.config is None and view.boot_parameters == ()
    assert view.capabilities is None and not view.has_capability(CAP_SYS_ADMIN)
    assert view.locked_memory_bytes is None
    assert view.module_state("ib_uverbs") == "unknown"
    assert not view.is_container


@pytest.mark.parametrize(("soft", "expected"), [("65536", 65536), ("unlimited", -1)])
def test_locked_memory(host, soft, expected):
    row = f"Max locked memory         {soft}                8388608              bytes"
    assert host({"proc/self/limits": LIMITS + row}).locked_memory_bytes == expected


def test_capabilities(host):
    view = host({"proc/self/status": "Name:\tx\nCapEff:\t0000000000004000\n"})
    assert view.has_capability(CAP_IPC_LOCK) and not view.has_capability(CAP_SYS_ADMIN)


def test_modules(host):
    view = host(
        {
            "proc/sys/kernel/osrelease": "7.3",
            "sys/module/ib_uverbs/refcnt": "0",
            "lib/modules/7.3/modules.builtin": "kernel/drivers/nvme/host/nvme.ko",
            "lib/modules/7.3/modules.dep": "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/x.ko.xz\nkernel/a.ko:",
        }
    )
    assert [view.module_state(name) for name in ("ib_uverbs", "nvme", "vfio_pci", "rdma_rxe")] == [
        "loaded",
        "loaded",
        "available",
        "absent",
    ]


@pytest.mark.parametrize(
    ("contents", "environ", "expected"),
    [
        ({".dockerenv": ""}, {}, True),
        ({"run/.containerenv": ""}, {}, True),
        ({}, {"container": "lxc"}, True),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
        ({"proc/self/uid_map": "         0     100000      65536"}, {}, True),
        ({"proc/self/uid_map": "         0          0 4294967295"}, {}, False),
    ],
)
def test_containers(host, contents, environ, expected):
    assert host(contents, **environ).is_container is expected
