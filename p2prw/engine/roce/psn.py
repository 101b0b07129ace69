"""24-bit packet sequence numbers. They wrap, so order is defined only within half the space.

Inside the core a PSN is *absolute*: an int that never wraps (wire value = absolute & PSN_MASK). Only `psn_unwrap`, at
the door, turns a wire value into an absolute one, next to a reference that is known to be near.
"""

from __future__ import annotations

PSN_MASK = 0xFFFFFF
PSN_HALF = 0x800000

MAX_OUTSTANDING_PSNS = 1 << 22
"""Half of the half: a duplicate of the oldest and a packet ahead of the newest stay distinguishable."""


def psn_distance(start: int, end: int) -> int:
    """Return how far `end` lies after `start`; negative means before, so a duplicate."""
    return ((end - start + PSN_HALF) & PSN_MASK) - PSN_HALF


def psn_unwrap(reference: int, psn: int) -> int:
    """Return the absolute PSN nearest to the absolute `reference` whose wire value is `psn`."""
    return reference + ((psn - reference + PSN_HALF) & PSN_MASK) - PSN_HALF


def packets_of(length_bytes: int, mtu_bytes: int) -> int:
    """Return the packets of a message, which are also the PSNs of a READ's response; an empty message has one."""
    return (length_bytes + mtu_bytes - 1) // mtu_bytes or 1
