"""The verdict and its mend, rule by rule; the kernel's own answers to the same trees are in tests/lab/guest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.topology.config_space import Acs, ConfigSpace, PortType, Unreadable
from p2prw.engine.topology.link import Link
from p2prw.engine.topology.rules import HostFacts, Processor
from p2prw.engine.topology.tree import Chain, HostBridge, PciFunction
from p2prw.engine.topology.verdict import MapType, judge, no_dma_path

INTEL = HostFacts(Processor("GenuineIntel", 6), (6, 17))
ZEN = HostFacts(Processor("AuthenticAMD", 0x19), (6, 17))
NOBODY = HostFacts(None, (6, 17))
LISTED, UNLISTED, SAME_ONLY, NEW = 0x09A2, 0x29C0, 0x3C00, 0x0B25


def function(address: str, acs: int | Unreadable | None = None, **more) -> PciFunction:
    unknown = acs if isinstance(acs, Unreadable) else None
    register = Acs(0x5F, acs) if isinstance(acs, int) else None
    config = ConfigSpace(4096, more.get("kind", PortType.ENDPOINT), None, register, unknown)
    return PciFunction(
        address, more.get("vendor", 0x8086), more.get("device", 0x1234), 0x020000, config, more.get("link")
    )


def bridge(device: int = UNLISTED, name: str = "pci0000:00", **more) -> HostBridge:
    return HostBridge(name, function(more.pop("address", f"{name[3:]}:00.0"), device=device, **more))


def chain(*functions: PciFunction, root: HostBridge | None = None) -> Chain:
    return Chain(functions, root or bridge())


UP, LEFT, RIGHT, PORT = "0000:01:00.0", "0000:02:00.0", "0000:02:01.0", "0000:00:01.0"


def under_one_switch(
    left=None, right=None, up=None, port=None, a=None, b=None, root: HostBridge | None = None
) -> tuple[Chain, Chain]:
    top = [function(UP, up, link=Link(8.0, 16)), function(PORT, port)]
    provider = chain(function("0000:03:00.0", a, link=Link(16.0, 4)), function(LEFT, left), *top, root=root)
    client = chain(function("0000:04:00.0", b, link=Link(16.0, 16)), function(RIGHT, right), *top, root=root)
    return provider, client


def two_ports(root: HostBridge | None = None, other: HostBridge | None = None) -> tuple[Chain, Chain]:
    provider = chain(function("0000:01:00.0"), function("0000:00:01.0"), root=root)
    client = chain(function("0000:02:00.0"), function("0000:00:02.0"), root=other or root)
    return provider, client


def codes(verdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


def test_one_switch_is_a_bus_address_whatever_the_host() -> None:
    for host in (INTEL, ZEN, NOBODY):
        verdict = judge(*under_one_switch(port=0x1D), host)
        assert (verdict.kind, verdict.distance, verdict.common) == (MapType.BUS_ADDRESS, 4, UP)
        assert verdict.path == ("0000:04:00.0", RIGHT, UP, LEFT, "0000:03:00.0")
        assert codes(verdict) == ["common_bridge"] and verdict.fixes == () and verdict.works
        assert verdict.holds_for == "Linux 6.2 and later"
        assert verdict.link == Link(16.0, 4), "the link above the common bridge is not on the way"


def test_the_same_function_has_distance_0() -> None:
    own = chain(function("0000:01:00.0"), function(PORT, 0x1D))
    verdict = judge(own, own, INTEL)
    assert (verdict.kind, verdict.distance, verdict.path) == (MapType.BUS_ADDRESS, 0, ("0000:01:00.0",))
    assert codes(verdict) == ["same_function"]


def test_two_functions_under_one_port_have_distance_2() -> None:
    port = function(PORT)
    verdict = judge(chain(function("0000:01:00.0"), port), chain(function("0000:01:00.1"), port), INTEL)
    assert (verdict.kind, verdict.distance, verdict.common) == (MapType.BUS_ADDRESS, 2, PORT)


@pytest.mark.parametrize("where", ["left", "right", "up", "a", "b"])
@pytest.mark.parametrize("bits", [0x04, 0x08, 0x20, 0x1D])
def test_a_redirect_anywhere_up_to_the_common_bridge(where, bits) -> None:
    """Endpoints and the common bridge count; the kernel's words and the parameter that mends it are given."""
    address = {"left": LEFT, "right": RIGHT, "up": UP, "a": "0000:03:00.0", "b": "0000:04:00.0"}[where]
    verdict = judge(*under_one_switch(**{where: bits}), INTEL)
    assert (verdict.kind, verdict.distance, verdict.redirects) == (MapType.NOT_SUPPORTED, 4, (address,))
    assert codes(verdict) == ["acs_redirect", "host_bridge_not_listed"]
    assert "ACS redirect is set between the client and provider (0000:03:00.0)" in verdict.why
    assert f"pci=disable_acs_redir={address}" in verdict.fixes[0]
    assert f"setpci -s {address} ECAP_ACS+0x6.w={bits & ~0x2C:04x}" in verdict.fixes[1]
    assert judge(*under_one_switch(**{where: bits}), ZEN).kind is MapType.THROUGH_HOST_BRIDGE
    assert judge(*under_one_switch(**{where: bits}, root=bridge(LISTED)), INTEL).kind is MapType.THROUGH_HOST_BRIDGE


@pytest.mark.parametrize("bits", [0x01, 0x02, 0x10, 0x40])
def test_the_other_bits_redirect_nothing(bits) -> None:
    verdict = judge(*under_one_switch(left=bits, right=bits, up=bits), INTEL)
    assert verdict.kind is MapType.BUS_ADDRESS


def test_every_redirect_is_named_in_the_kernels_order() -> None:
    verdict = judge(*under_one_switch(left=0x1D, right=0x1D, up=0x1D, b=0x1D), INTEL)
    assert verdict.redirects == (LEFT, UP, "0000:04:00.0", RIGHT)
    assert f"pci=disable_acs_redir={LEFT};{UP};0000:04:00.0;{RIGHT}" in verdict.fixes[0]


def test_redirected_traffic_takes_the_link_to_the_root() -> None:
    narrow = function(PORT, link=Link(2.5, 1))
    top = [function(UP, link=Link(2.5, 1)), narrow]
    pair = (
        chain(function("0000:03:00.0"), function(LEFT, 0x1D), *top),
        chain(function("0000:04:00.0"), function(RIGHT), *top),
    )
    verdict = judge(*pair, ZEN)
    assert (verdict.kind, verdict.link) == (MapType.THROUGH_HOST_BRIDGE, Link(2.5, 1))


def test_two_root_ports() -> None:
    verdict = judge(*two_ports(), INTEL)
    assert (verdict.kind, verdict.distance, verdict.common) == (MapType.NOT_SUPPORTED, 4, None)
    assert verdict.path == ("0000:02:00.0", "0000:00:02.0", "pci0000:00", "0000:00:01.0", "0000:01:00.0")
    assert codes(verdict) == ["no_common_bridge", "host_bridge_not_listed", "refused"]
    assert "host bridge not in P2PDMA whitelist: 8086:29c0" in verdict.why
    assert "do not share an upstream bridge or whitelisted host bridge" in verdict.why
    assert "under one PCIe switch" in verdict.fixes[0]
    assert judge(*two_ports(bridge(LISTED)), INTEL).kind is MapType.THROUGH_HOST_BRIDGE
    assert judge(*two_ports(), ZEN).kind is MapType.THROUGH_HOST_BRIDGE


def test_acs_does_not_matter_where_the_root_complex_is_passed_anyway() -> None:
    provider = chain(function("0000:01:00.0"), function("0000:00:01.0", 0x1D))
    client = chain(function("0000:02:00.0"), function("0000:00:02.0", Unreadable.NEEDS_ROOT))
    verdict = judge(provider, client, ZEN)
    assert (verdict.kind, verdict.redirects) == (MapType.THROUGH_HOST_BRIDGE, ())


def test_an_old_xeon_forwards_within_one_host_bridge_only() -> None:
    one, other = bridge(SAME_ONLY), bridge(SAME_ONLY, "pci0000:80")
    assert judge(*two_ports(one), INTEL).kind is MapType.THROUGH_HOST_BRIDGE
    verdict = judge(*two_ports(one, other), INTEL)
    assert verdict.kind is MapType.NOT_SUPPORTED
    assert "same_host_bridge_only" in codes(verdict)
    assert verdict.path[2:4] == ("pci0000:80", "pci0000:00")


def test_two_host_bridges_must_both_be_listed() -> None:
    listed, unlisted = bridge(LISTED), bridge(UNLISTED, "pci0000:80")
    assert judge(*two_ports(listed, bridge(LISTED, "pci0000:80")), INTEL).kind is MapType.THROUGH_HOST_BRIDGE
    for pair in (two_ports(listed, unlisted), two_ports(unlisted, listed)):
        assert judge(*pair, INTEL).kind is MapType.NOT_SUPPORTED


def test_an_entry_of_a_later_kernel() -> None:
    pair = two_ports(bridge(NEW))
    old = judge(*pair, INTEL)
    assert old.kind is MapType.NOT_SUPPORTED
    assert old.fixes[0] == "Linux 7.2 or later knows this host bridge"
    assert old.holds_for == "kernels before Linux 7.2; through_host_bridge from then on"
    new = judge(*pair, HostFacts(INTEL.processor, (7, 2)))
    assert (new.kind, new.holds_for) == (MapType.THROUGH_HOST_BRIDGE, "Linux 7.2 and later")
    not_said = judge(*pair, HostFacts(INTEL.processor, None))
    assert (not_said.kind, not_said.holds_for) == (MapType.THROUGH_HOST_BRIDGE, "Linux 7.2 and later")
    hopeless = judge(*two_ports(bridge(NEW), bridge(UNLISTED, "pci0000:80")), INTEL)
    assert "before" not in hopeless.holds_for, "the other bridge stands in the way in every kernel"


def test_who_may_stand_for_a_host_bridge() -> None:
    """pci_host_bridge_dev: function 00.0, or a root port; nobody else."""
    inside = bridge(LISTED, address="0000:00:02.0", kind=PortType.ROOT_ENDPOINT)
    port = bridge(LISTED, address="0000:00:02.0", kind=PortType.ROOT_PORT)
    unseen = bridge(LISTED, address="0000:00:02.0", kind=None)
    assert judge(*two_ports(inside), INTEL).kind is MapType.NOT_SUPPORTED
    assert judge(*two_ports(port), INTEL).kind is MapType.THROUGH_HOST_BRIDGE
    verdict = judge(*two_ports(unseen), INTEL)
    assert verdict.kind is MapType.UNKNOWN
    assert verdict.fixes[0] == "run as root to read ACS: sudo p2prw topology"
    assert judge(*two_ports(HostBridge("pci0000:00", None)), INTEL).kind is MapType.NOT_SUPPORTED


@pytest.mark.parametrize("why", list(Unreadable))
def test_what_cannot_be_read_is_unknown_with_its_reason(why) -> None:
    verdict = judge(*under_one_switch(right=why), INTEL)
    assert (verdict.kind, verdict.distance, verdict.works) == (MapType.UNKNOWN, 4, None)
    assert codes(verdict) == ["acs_unknown", "acs_decides"]
    assert why.value in verdict.why and RIGHT in verdict.why
    assert verdict.fixes
    if why is Unreadable.NEEDS_ROOT:
        assert verdict.fixes == ("run as root to read ACS: sudo p2prw topology",)


def test_a_redirect_that_is_seen_decides_over_ports_that_are_not() -> None:
    verdict = judge(*under_one_switch(left=0x1D, right=Unreadable.NEEDS_ROOT), INTEL)
    assert (verdict.kind, verdict.redirects) == (MapType.NOT_SUPPORTED, (LEFT,))
    assert "acs_unknown" in codes(verdict)


def test_what_is_above_the_common_bridge_need_not_be_seen() -> None:
    assert judge(*under_one_switch(port=Unreadable.NEEDS_ROOT), INTEL).kind is MapType.BUS_ADDRESS


def test_without_the_processor_only_the_whitelist_can_say_yes() -> None:
    verdict = judge(*two_ports(), NOBODY)
    assert verdict.kind is MapType.UNKNOWN
    assert codes(verdict)[:2] == ["no_common_bridge", "processor_unknown"]
    assert "proc/cpuinfo" in verdict.fixes[0]
    assert judge(*two_ports(bridge(LISTED)), NOBODY).kind is MapType.THROUGH_HOST_BRIDGE


def test_a_device_that_went_away() -> None:
    provider, client = two_ports()
    lost = Chain((function("0000:02:00.0", vendor=None), *client.functions[1:]), client.host_bridge)
    verdict = judge(provider, lost, INTEL)
    assert (verdict.kind, codes(verdict), verdict.distance) == (MapType.UNKNOWN, ["gone"], None)


def test_who_moves_with_the_cpu() -> None:
    verdict = no_dma_path("rxe0", "rxe")
    assert (verdict.kind, verdict.works) == (MapType.NO_DMA_PATH, False)
    assert "moves bytes with the CPU" in verdict.why


@st.composite
def two_chains(draw):
    """Two devices somewhere in one made-up tree, each port with some ACS control."""
    controls = st.sampled_from([None, 0, 0x1D, 0x11, 0x20])
    shared = [function(f"0000:{9 - depth:02x}:00.0", draw(controls)) for depth in range(draw(st.integers(0, 3)))]
    roots = [bridge(draw(st.sampled_from([LISTED, UNLISTED, SAME_ONLY, NEW])), f"pci0000:{bus}0") for bus in "04"]
    ways = []
    for bus in (0x10, 0x20):
        own = [function(f"0000:{bus + depth:02x}:01.0", draw(controls)) for depth in range(draw(st.integers(1, 3)))]
        root = roots[0] if shared else draw(st.sampled_from(roots))
        ways.append(chain(*own, *shared, root=root))
    return ways


@given(two_chains(), st.sampled_from([INTEL, ZEN, HostFacts(INTEL.processor, (7, 3))]))
def test_kind_and_distance_do_not_depend_on_the_direction(ways, host) -> None:
    """pci_p2pdma_distance walks from the provider, and comes to the same."""
    one, other = ways
    there, back = judge(one, other, host), judge(other, one, host)
    assert (there.kind, there.distance, there.common) == (back.kind, back.distance, back.common)
    assert set(there.redirects) == set(back.redirects)
    assert there.path == back.path[::-1]
    assert there.common is None or len(there.path) - 1 == there.distance
