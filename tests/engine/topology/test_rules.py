"""The tables, held against what the kernel's are."""

from __future__ import annotations

import pytest

from p2prw.engine.topology.rules import WHITELIST, Processor, host_bridge_rule, parse_kernel, parse_processor


@pytest.mark.parametrize(
    ("vendor", "device", "same", "since"),
    [
        (0x8086, 0x3C00, True, None),
        (0x8086, 0x2F01, True, None),
        (0x8086, 0x2030, False, None),
        (0x8086, 0x2020, False, None),
        (0x8086, 0x09A2, False, None),
        (0x8086, 0x0B25, False, (7, 2)),
        (0x8086, 0x4948, False, (7, 2)),
        (0x1AE0, 0x1234, False, (7, 1)),
    ],
)
def test_entries(vendor, device, same, since) -> None:
    rule = host_bridge_rule(vendor, device)
    assert rule is not None
    assert (rule.same_host_bridge, rule.since) == (same, since)


@pytest.mark.parametrize(("vendor", "device"), [(0x8086, 0x29C0), (0x1022, 0x1450), (0x1022, 0x1630), (0x8086, 0x0D57)])
def test_no_entry(vendor, device) -> None:
    """q35, AMD (the processor decides), Firecracker."""
    assert host_bridge_rule(vendor, device) is None


def test_no_entry_twice() -> None:
    keys = [(rule.vendor_id, rule.device_id) for rule in WHITELIST]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("vendor", "family", "zen"),
    [("AuthenticAMD", 0x17, True), ("AuthenticAMD", 0x1A, True), ("AuthenticAMD", 0x15, False),
     ("HygonGenuine", 0x18, False), ("GenuineIntel", 6, False), ("AuthenticAMD", None, False)],
)  # fmt: skip
def test_zen(vendor, family, zen) -> None:
    assert Processor(vendor, family).is_zen is zen


def test_processors_of_cpuinfo() -> None:
    amd = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 1\n\nprocessor\t: 1\n"
    assert parse_processor(amd) == Processor("AuthenticAMD", 23)
    assert parse_processor("processor\t: 0\nCPU implementer\t: 0x41\n") == Processor("not x86", None)
    assert parse_processor("vendor_id : AuthenticAMD\ncpu family : many\n") == Processor("AuthenticAMD", None)
    assert parse_processor("") is parse_processor(None) is parse_processor("garbage") is None
    assert Processor("AuthenticAMD", 23).description == "AuthenticAMD family 0x17"


@pytest.mark.parametrize(
    ("text", "version"),
    [("6.18.44-generic", (6, 18)), ("7.3.4+deb13-amd64", (7, 3)), ("5.4", (5, 4)), ("x", None), (None, None),
     ("99999.1", None), ("6.", None)],
)  # fmt: skip
def test_kernels(text, version) -> None:
    assert parse_kernel(text) == version
