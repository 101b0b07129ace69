"""Our verdict and the kernel's, where the kernel itself has set ACS at the root ports because an IOMMU is on."""

from __future__ import annotations

import pytest

from lab.topology import load_topology

PROVIDERS = load_topology("iommu_acs").serials(with_cmb=True)


@pytest.fixture(scope="module", autouse=True)
def fresh_answers(oracle) -> None:
    """The kernel keeps its answers and logs a refusal once; other tests of this boot may have asked first."""
    for provider in oracle.providers():
        oracle.bind_again(provider)


@pytest.mark.parametrize("serial", PROVIDERS)
def test_every_client_of(serial, oracle, judge) -> None:
    wrong, kinds = judge(serial)
    assert not wrong, "\n".join(wrong)
    assert set(kinds) == {"bus_address", "not_supported"}


def test_twins_below_a_port_with_acs_are_refused_for_that(oracle, topology) -> None:
    provider, client = oracle.controllers["twin-a"], oracle.controllers["twin-b"]
    verdict = topology().pair(client.address, f"p2pmem:{provider.address}").verdict
    assert verdict.kind == "not_supported"
    assert [reason.code for reason in verdict.reasons] == ["acs_redirect", "host_bridge_not_listed"]


def test_the_verdict_warns_of_lost_bytes(oracle, topology) -> None:
    provider, client = oracle.controllers["a"], oracle.controllers["b"]
    verdict = topology().pair(client.address, f"p2pmem:{provider.address}").verdict
    assert (verdict.kind, verdict.reasons[-1].code) == ("bus_address", "guest_iommu")
