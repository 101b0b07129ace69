"""Links: what sysfs says, what they carry."""

from __future__ import annotations

import pytest

from p2prw.engine.topology.link import Link, narrowest, parse_link


@pytest.mark.parametrize(
    ("speed", "width", "gbit"),
    [
        ("2.5 GT/s PCIe", "1", 2.0),
        ("5.0 GT/s PCIe", "8", 32.0),
        ("8.0 GT/s PCIe", "16", 126.0),
        ("16.0 GT/s PCIe", "4", 63.0),
        ("32.0 GT/s PCIe", "16", 504.1),
        ("64.0 GT/s PCIe", "16", 1024.0),
    ],
)
def test_ceilings(speed, width, gbit) -> None:
    link = parse_link(speed, width)
    assert link is not None
    assert link.ceiling_gbit_per_s == pytest.approx(gbit, rel=0.001)


@pytest.mark.parametrize(
    ("speed", "width"),
    [("Unknown", "0"), ("16.0 GT/s PCIe", "0"), ("16.0 GT/s PCIe", "63"), (None, "4"), ("16.0 GT/s PCIe", None),
     ("3.0 GT/s PCIe", "4"), ("fast", "x4"), ("", "")],
)  # fmt: skip
def test_no_link(speed, width) -> None:
    assert parse_link(speed, width) is None


def test_narrowest() -> None:
    wide, narrow = Link(8.0, 16), Link(16.0, 4)
    assert narrowest([wide, None, narrow]) is narrow
    assert narrowest([None]) is None
    assert narrow.description == "16 GT/s x4, 63.0 Gb/s"
