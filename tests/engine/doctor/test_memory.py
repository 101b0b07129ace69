"""Locked memory, providers, BARs, exporters, and the memory that was named."""

from __future__ import annotations

import os

import pytest

from p2prw.engine.doctor.checks import examine
from p2prw.engine.doctor.findings import Ask
from p2prw.engine.doctor.memory import (
    STAGING_BYTES,
    check_asked_memory,
    check_bars,
    check_exporters,
    check_locked_memory,
    check_p2pmem,
)
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import TransferRequest
from p2prw.errors import HostError

RXE = {"sys/class/infiniband/rxe0/node_type": "1: CA"}
NVME = "sys/bus/pci/devices/0000:01:00.0"
POOL = {
    f"{NVME}/vendor": "0x144d", f"{NVME}/class": "0x010802", f"{NVME}/driver": "->../../../bus/pci/drivers/nvme",
    f"{NVME}/resource": "0x0000000080000000 0x00000000800fffff 0x000000000014220c", f"{NVME}/resource0": "",
    f"{NVME}/p2pmem/size": "134217728", f"{NVME}/p2pmem/published": "1",
}  # fmt: skip


def limits(soft, capabilities="0000000000000000", **more):
    row = f"Max locked memory         {soft}              {soft}              bytes"
    return {"proc/self/limits": row, "proc/self/status": f"CapEff:\t{capabilities}", **more}


def asked(memory):
    return Ask(memory=parse_memory_spec(memory))


def test_the_figure_is_the_transfers_own():
    assert TransferRequest.__dataclass_fields__["staging_bytes"].default == STAGING_BYTES


@pytest.mark.parametrize(
    ("contents", "ask", "status"),
    [
        ({}, Ask(), "unknown"),
        (limits("unlimited", **RXE), Ask(), "ok"),
        (limits("65536", "0000000000004000", **RXE), Ask(), "ok"),
        (limits("65536", **RXE), Ask(), "warn"),
        (limits("65536", **RXE), Ask(device="rxe0"), "fail"),
        (limits("65536"), Ask(), "ok"),
        (limits("8589934592", **RXE), Ask(), "ok"),
    ],
)
def test_locked_memory(host, one, contents, ask, status):
    finding = one(check_locked_memory, host(contents), ask)
    assert finding.status == status
    assert status not in ("warn", "fail") or "prlimit --pid $$" in str(finding.fix)


def test_p2pmem(host, one):
    assert one(check_p2pmem, host()).status == "ok"
    assert one(check_p2pmem, host(), asked("p2pmem:0000:01:00.0")).status == "fail"
    view = host({**POOL, f"{NVME}/p2pmem/available": "66977792", f"{NVME}/p2pmem/allocate": ""})
    finding = one(check_p2pmem, view, asked("p2pmem:0000:01:00.0"))
    assert (finding.status, finding.details["available_bytes"]) == ("ok", 66977792)


def test_p2pmem_that_is_used_up_or_too_old(host, one):
    finding = one(check_p2pmem, host({**POOL, f"{NVME}/p2pmem/available": "0", f"{NVME}/p2pmem/allocate": ""}))
    assert finding.status == "warn" and "fuser" in str(finding.fix)
    (host().sysfs.path / "bus/pci/devices/0000:01:00.0/p2pmem/allocate").unlink()
    finding = one(check_p2pmem, host(), asked("p2pmem:0000:01:00.0"))
    assert finding.status == "fail" and "6.2" in finding.title


def test_p2pmem_without_right(host, one, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    view = host({**POOL, f"{NVME}/p2pmem/available": "4096", f"{NVME}/p2pmem/allocate": ""})
    finding = one(check_p2pmem, view)
    assert (
        finding.status == "warn" and "may not open p2pmem/allocate" in finding.title and "setfacl" in str(finding.fix)
    )
    assert "1 cannot be mapped" in one(check_bars, view).title


def test_who_holds_bars(host, one):
    assert one(check_bars, host()).status == "ok"
    view = host(POOL)
    finding = one(check_bars, view)
    assert finding.details["held"] == ["0000:01:00.0 (nvme)"]
    held = list(check_bars(view, asked("bar:0000:01:00.0/0")))
    assert [(one.id, one.status) for one in held] == [("bars", "ok"), ("bar_holder", "warn")]
    assert "driver/unbind" in str(held[1].fix)


def test_exporters(host, one, monkeypatch):
    assert one(check_exporters, host()).status == "ok"
    missing = list(check_exporters(host(), asked("udmabuf,size=1MiB")))[1]
    assert missing.status == "fail" and "modprobe udmabuf" in str(missing.fix)
    view = host({"dev/udmabuf": "", "dev/dma_heap/system": ""})
    assert "dmaheap:system" in one(check_exporters, view, asked("dmaheap:system,size=1MiB")).title
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused = list(check_exporters(host(), asked("udmabuf,size=1MiB")))[1]
    assert refused.status == "fail" and "setfacl" in str(refused.fix)


def test_named_memory_is_checked_as_a_transfer_checks_it(host, one, probe):
    ask = asked("bar:0000:01:00.0/2")
    assert not list(check_asked_memory(host(), Ask()))
    assert one(check_asked_memory, host(), ask).status == "ok"
    probe.memory_error = HostError("there is no PCI device 0000:01:00.0", fix="p2prw devices", code="no_device")
    finding = one(check_asked_memory, host(), ask)
    assert (finding.status, finding.details["code"]) == ("fail", "no_device")


def test_what_may_not_be_read_is_unknown_and_not_absent(host, monkeypatch):
    def refuse(*_):
        raise HostError("no right", fix="sudo p2prw doctor", code="not_permitted")

    monkeypatch.setattr("p2prw.engine.doctor.view.list_memory_devices", refuse)
    found = {one.id: one.status for one in examine(host()) if one.theme == "Memory"}
    assert found["p2pmem"] == found["bars"] == found["dmabuf_exporters"] == "unknown"
