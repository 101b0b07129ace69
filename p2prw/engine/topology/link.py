"""PCI Express links: speed, width, and the most bytes they can carry. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Line coding takes its share; packet headers take more (drivers/pci/pci.h, PCIE_SPEED2MBS_ENC).
_CODING = {2.5: 8 / 10, 5.0: 8 / 10, 8.0: 128 / 130, 16.0: 128 / 130, 32.0: 128 / 130, 64.0: 1.0, 128.0: 1.0}
_SPEED = re.compile(r"(\d+(?:\.\d+)?) GT/s")


@dataclass(frozen=True, slots=True)
class Link:
    """A function's link towards the root (of a port: the link below it)."""

    speed_gt_per_s: float
    width_lanes: int

    @property
    def ceiling_gbit_per_s(self) -> float:
        """What it carries in one direction after line coding, before packet headers."""
        return self.speed_gt_per_s * self.width_lanes * _CODING[self.speed_gt_per_s]

    @property
    def description(self) -> str:
        """`16 GT/s x8, 126.0 Gb/s`."""
        return f"{self.speed_gt_per_s:g} GT/s x{self.width_lanes}, {self.ceiling_gbit_per_s:.1f} Gb/s"


def parse_link(speed: str | None, width: str | None) -> Link | None:
    """Return the link of `current_link_speed` and `current_link_width`; None where there is none or it is down."""
    match = _SPEED.match(speed or "")
    if not match or not (width or "").isdigit():
        return None
    rate, lanes = float(match[1]), int(width or "0")
    # A link that is down, and a VF, say width 0 or 63.
    if rate not in _CODING or not 1 <= lanes <= 32:
        return None
    return Link(rate, lanes)


def narrowest(links: Iterable[Link | None]) -> Link | None:
    """Return the link that bounds a path; None where no link of it is known."""
    return min((link for link in links if link), key=lambda link: link.ceiling_gbit_per_s, default=None)
