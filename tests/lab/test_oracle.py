"""Where a verdict and a kernel's answer differ: every difference has its words, agreement has none."""

from __future__ import annotations

from typing import Any

import pytest

from lab.oracle import KernelAnswer, disagreements
from p2prw.engine.topology.forwarding import Reason
from p2prw.engine.topology.verdict import MapType, Verdict

BUS = 3
ACS_LINES = (
    "4,1,1,-;nvme 0000:10:00.1: ACS redirect is set between the client and provider (0000:10:00.0)",
    "4,2,1,-;nvme 0000:10:00.1: to disable ACS redirect for this path, add the kernel parameter: "
    "pci=disable_acs_redir=0000:00:17.0",
    "4,3,1,-;pci 0000:00:00.0: Host bridge not in P2PDMA whitelist: 8086:29c0",
)
REFUSED = (
    "4,4,1,-;nvme 0000:10:00.1: cannot be used for peer-to-peer DMA as the client and provider (0000:10:00.0) do not "
    "share an upstream bridge or whitelisted host bridge",
)


def verdict(kind: MapType, distance: int | None = 4, redirects: tuple[str, ...] = (), why: str = "why") -> Verdict:
    return Verdict(kind, distance, None, (), redirects, (Reason("code", why),), (), "any kernel")


WORKS = KernelAnswer(None, True, BUS, 4)
THROUGH = KernelAnswer(None, True, BUS + 1, 4)
NO = KernelAnswer("EINVAL", False, BUS - 1, 4, REFUSED)
ACS = KernelAnswer("EINVAL", False, BUS - 1, 4, ACS_LINES + REFUSED)


def test_the_log_is_read() -> None:
    assert (ACS.redirects, ACS.unlisted, ACS.is_refused) == (("0000:00:17.0",), "8086:29c0", True)
    assert (WORKS.redirects, WORKS.unlisted, WORKS.is_refused) == ((), None, False)
    two = KernelAnswer(None, True, BUS, 4, ("x: pci=disable_acs_redir=0000:01:00.0;0000:02:00.0",))
    assert two.redirects == ("0000:01:00.0", "0000:02:00.0")


@pytest.mark.parametrize(
    ("ours", "kernel"),
    [
        (verdict(MapType.BUS_ADDRESS), WORKS),
        (verdict(MapType.THROUGH_HOST_BRIDGE), THROUGH),
        (verdict(MapType.NOT_SUPPORTED), NO),
        (verdict(MapType.NOT_SUPPORTED, redirects=("0000:00:17.0",), why="not in whitelist: 8086:29c0"), ACS),
        (verdict(MapType.BUS_ADDRESS), KernelAnswer(None, True, None, None)),
    ],
)
def test_agreement(ours, kernel) -> None:
    assert disagreements(ours, kernel, BUS, loses_bus=False) == []


@pytest.mark.parametrize(
    ("ours", "kernel", "words"),
    [
        (verdict(MapType.BUS_ADDRESS), NO, "the read ended with EINVAL"),
        (verdict(MapType.NOT_SUPPORTED), WORKS, "the read ended with success"),
        (verdict(MapType.BUS_ADDRESS), THROUGH, "the kernel through_host_bridge"),
        (verdict(MapType.THROUGH_HOST_BRIDGE), WORKS, "the kernel bus_address"),
        (verdict(MapType.BUS_ADDRESS, 6), WORKS, "we say distance 6, the kernel 4"),
        (verdict(MapType.BUS_ADDRESS), KernelAnswer(None, False, BUS, 4), "the bytes did not arrive"),
        (verdict(MapType.NOT_SUPPORTED), ACS, "we say ACS redirects at none, the kernel ('0000:00:17.0',)"),
        (verdict(MapType.NOT_SUPPORTED, redirects=("0000:00:17.0",)), NO, "the kernel none"),
        (verdict(MapType.NOT_SUPPORTED, redirects=("0000:00:17.0",), why="other"), ACS, "misses 8086:29c0"),
        (verdict(MapType.UNKNOWN), WORKS, "we do not know"),
    ],
)
def test_differences(ours, kernel, words) -> None:
    assert any(words in text for text in disagreements(ours, kernel, BUS, loses_bus=False))


def test_an_emulated_iommu_loses_what_goes_by_bus_address() -> None:
    lost: dict[str, Any] = {"loses_bus": True}
    gone = KernelAnswer(None, False, BUS, 4)
    assert disagreements(verdict(MapType.BUS_ADDRESS), gone, BUS, **lost) == []
    assert disagreements(verdict(MapType.BUS_ADDRESS), WORKS, BUS, **lost) != []
    own = KernelAnswer(None, True, BUS, 0)
    assert disagreements(verdict(MapType.BUS_ADDRESS, 0), own, BUS, **lost) == []
    assert disagreements(verdict(MapType.THROUGH_HOST_BRIDGE), THROUGH, BUS, **lost) == []
