"""Checks of the kernel: options, modules, lockdown, clock; no file means unknown."""

from __future__ import annotations

import pytest

from p2prw.engine.doctor.findings import Ask
from p2prw.engine.doctor.kernel import (
    OPTIONS,
    check_clock,
    check_lockdown,
    check_modules,
    check_options,
    check_strict_devmem,
)
from p2prw.engine.memory.spec import parse_memory_spec

BAR = Ask(memory=parse_memory_spec("bar:0000:01:00.0/2"))
VFIO = Ask(memory=parse_memory_spec("vfio:0000:01:00.0/2"))
ALL_ON = "\n".join(f"CONFIG_{option}=m" for option in OPTIONS)
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"


def built_with(text, **more):
    return {"proc/sys/kernel/osrelease": "7.3", "boot/config-7.3": text, **more}


def test_options(host, one):
    assert one(check_options, host()).status == "unknown"
    finding = one(check_options, host(built_with(ALL_ON)))
    assert (finding.status, finding.details["CONFIG_PCI_P2PDMA"]) == ("ok", True)


def test_an_option_that_is_off_is_a_warning_until_it_is_needed(host, one):
    view = host(built_with(ALL_ON.replace("CONFIG_VFIO_PCI_DMABUF=m", "# CONFIG_VFIO_PCI_DMABUF is not set")))
    finding = one(check_options, view)
    assert finding.status == "warn" and "CONFIG_VFIO_PCI_DMABUF" in finding.title
    assert one(check_options, view, VFIO).status == "fail"
    assert one(check_options, view, BAR).status == "warn"


def test_a_pool_in_sysfs_is_stronger_than_a_stale_file(host, one):
    stale = built_with(ALL_ON.replace("CONFIG_PCI_P2PDMA=m", ""))
    assert one(check_options, host(stale)).status == "warn"
    view = host({"sys/bus/pci/devices/0000:01:00.0/p2pmem/size": "1024"})
    assert one(check_options, view).status == "ok"


@pytest.mark.parametrize(
    ("contents", "ask", "status", "word"),
    [
        ({}, Ask(), "ok", "none of"),
        ({"sys/class/infiniband/rxe0/node_type": "1: CA"}, Ask(), "unknown", "modprobe ib_uverbs"),
        ({"lib/modules/7.3/modules.dep": "a/ib_uverbs.ko:"}, Ask(device="mlx5_0"), "fail", "modprobe ib_uverbs"),
        ({"lib/modules/7.3/modules.dep": "a/x.ko:"}, Ask(device="mlx5_0"), "fail", "modules-extra"),
        ({"lib/modules/7.3/modules.dep": "a/vfio-pci.ko:"}, VFIO, "fail", "modprobe vfio_pci"),
        ({"sys/module/ib_uverbs/refcnt": "0"}, Ask(device="mlx5_0"), "ok", "ib_uverbs"),
    ],
)
def test_modules(host, one, contents, ask, status, word):
    finding = one(check_modules, host({"proc/sys/kernel/osrelease": "7.3", **contents}), ask)
    assert finding.status == status
    assert word in f"{finding.title} {finding.fix}"


@pytest.mark.parametrize(
    ("text", "ask", "status"),
    [
        ("[none] integrity confidentiality", BAR, "ok"),
        ("none [integrity] confidentiality", Ask(), "warn"),
        ("none [integrity] confidentiality", BAR, "fail"),
        ("none integrity [confidentiality]", BAR, "fail"),
        (None, BAR, "unknown"),
    ],
)
def test_lockdown(host, one, text, ask, status):
    view = host({} if text is None else {"sys/kernel/security/lockdown": text})
    assert one(check_lockdown, view, ask).status == status


def test_a_kernel_without_lockdown_is_not_unknown(host, one):
    assert one(check_lockdown, host(built_with("# CONFIG_SECURITY_LOCKDOWN_LSM is not set"))).status == "ok"


def test_strict_devmem(host, one):
    assert not list(check_strict_devmem(host(), Ask())), "said once, by the check of options"
    assert one(check_strict_devmem, host(), BAR).status == "unknown"
    finding = one(check_strict_devmem, host(built_with("CONFIG_IO_STRICT_DEVMEM=y")))
    assert finding.status == "ok" and "cannot be mapped" in finding.title
    assert "relaxed" in one(check_strict_devmem, host({"proc/cmdline": "quiet iomem=relaxed"})).title


@pytest.mark.parametrize(
    ("name", "status"), [("tsc", "ok"), ("kvm-clock", "ok"), ("hpet", "warn"), ("acpi_pm", "warn"), ("sundial", "ok")]
)
def test_clock(host, one, name, status):
    finding = one(check_clock, host({CLOCK: name}))
    assert finding.status == status and name in finding.title


def test_no_clock_is_unknown(host, one):
    assert one(check_clock, host()).status == "unknown"
