"""The IOMMU, ACS and pairs: read, judged, or unknown, and never a guess."""

from __future__ import annotations

import pytest

from p2prw.engine.doctor.checks import Check, examine
from p2prw.engine.doctor.findings import Ask
from p2prw.engine.doctor.pci import check_acs, check_all_pairs, check_iommu, check_pair
from p2prw.engine.doctor.view import HostView
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.topology.snapshot import encode_bytes
from p2prw.errors import HostError, RequestError

VFIO = Ask(memory=parse_memory_spec("vfio:0000:01:00.0/2"))


def test_no_iommu(host, one):
    assert one(check_iommu, host()).status == "ok"
    assert one(check_iommu, host(), VFIO).status == "fail"


def test_groups_are_counted_by_type(host, one):
    finding = one(
        check_iommu,
        host(
            {
                "sys/class/iommu/dmar0/x": "",
                "sys/kernel/iommu_groups/0/type": "DMA-FQ",
                "sys/kernel/iommu_groups/1/type": "DMA-FQ",
                "sys/kernel/iommu_groups/2/type": "identity",
                "proc/cmdline": "quiet intel_iommu=on iommu=pt",
            }
        ),
        VFIO,
    )
    assert finding.status == "ok"
    assert "dmar0" in finding.title and "2 translates (DMA-FQ)" in finding.title
    assert finding.details["boot_parameters"] == ["intel_iommu=on", "iommu=pt"]


def test_acs_is_read_unknown_or_absent(one, builder):
    made = builder()
    made.root_bus("pci0000:00", (0x8086, 0x29C0))
    port = made.port("0000:00:01.0", "pci0000:00", acs=0)
    made.nvme("0000:01:00.0", port, "nvme0", p2pmem=1 << 20)
    assert one(check_acs, HostView(made.sysfs())).status == "ok"
    made.tree[f"sys/{made.places['0000:00:01.0']}"]["config"] = encode_bytes(bytes(64), 4096)
    finding = one(check_acs, HostView(made.sysfs()))
    assert (finding.id, finding.status, finding.fix) == ("acs", "unknown", "sudo p2prw doctor")


def test_acs_redirect_matters_where_somebody_offers_memory(one, builder):
    def host_with(**memory):
        made = builder()
        made.root_bus("pci0000:00", (0x8086, 0x29C0))
        made.nvme("0000:01:00.0", made.port("0000:00:01.0", "pci0000:00", acs=0x1D), "nvme0", **memory)
        return HostView(made.sysfs())

    finding = one(check_acs, host_with(p2pmem=1 << 20))
    assert (finding.id, finding.status, finding.details["redirecting"]) == ("acs_redirect", "warn", ["0000:00:01.0"])
    assert one(check_acs, host_with()).status == "ok"


@pytest.fixture
def one_switch(builder):
    """A NIC and a provider under one switch, ACS as asked."""

    def make(acs=0, cpu_driver=False):
        made = builder()
        made.root_bus("pci0000:00", (0x8086, 0x29C0))
        left, right = made.switch("0000:01:00.0", made.port("0000:00:01.0", "pci0000:00"), 2, acs=acs)
        made.nic("0000:03:00.0", left, "mlx5_0")
        made.nvme("0000:04:00.0", right, "nvme0", p2pmem=1 << 20)
        return made

    return make


PAIR = Ask(pair=("mlx5_0", "p2pmem:0000:04:00.0"))


def test_a_pair_that_works(one, one_switch):
    view = HostView(one_switch().sysfs())
    finding = one(check_pair, view, PAIR)
    assert (finding.status, finding.details["verdict"]) == ("ok", "bus_address")
    assert one(check_all_pairs, view).status == "ok"
    assert not list(check_all_pairs(view, PAIR)) and not list(check_pair(view, Ask()))


def test_a_pair_that_the_kernel_refuses(one, one_switch):
    view = HostView(one_switch(acs=0x1D).sysfs())
    finding = one(check_pair, view, PAIR)
    assert (finding.status, finding.details["verdict"]) == ("fail", "not_supported")
    assert "pci=disable_acs_redir=" in str(finding.fix) and "ACS redirect" in str(finding.why)
    everywhere = one(check_all_pairs, view)
    assert everywhere.status == "warn" and "0 of 1" in everywhere.title


def test_a_pair_that_cannot_be_judged_is_unknown(one, one_switch):
    made = one_switch()
    made.tree[f"sys/{made.places['0000:02:00.0']}"]["config"] = encode_bytes(bytes(64), 4096)
    view = HostView(made.sysfs())
    assert one(check_pair, view, PAIR).status == "unknown"
    everywhere = one(check_all_pairs, view)
    assert everywhere.status == "unknown" and "not known for 1 of 1" in everywhere.title


def test_a_pair_that_is_not_there_fails(one, one_switch):
    view = HostView(one_switch().sysfs())
    assert one(check_pair, view, Ask(pair=("mlx5_9", "p2pmem:0000:04:00.0"))).status == "fail"
    with pytest.raises(RequestError):
        list(check_pair(view, Ask(pair=("mlx5_0", "host,size=1MiB"))))


def test_what_may_not_be_read_is_not_called_missing(one_switch, monkeypatch):
    def refuse(*_):
        raise HostError("no right", code="not_permitted")

    monkeypatch.setattr("p2prw.engine.topology.pairs.find_client", refuse)
    (finding,) = examine(HostView(one_switch().sysfs()), PAIR, [Check("pair", "PCI", check_pair)])
    assert finding.status == "unknown"


def test_the_cpu_moves_and_nothing_is_peer_to_peer(one, one_switch):
    made = one_switch()
    finding = one(check_pair, HostView(made.sysfs()), Ask(pair=("soft0", "p2pmem:0000:04:00.0")))
    assert finding.status == "fail" and "the CPU moves" in finding.title
