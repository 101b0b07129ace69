"""The same on an AMD processor (family 0x17): what must pass the root complex goes through the host bridge.

Both ways succeed, so success cannot tell them apart: the map type is read from the kernel by a kretprobe.
"""

from __future__ import annotations

import pytest

from lab.topology import load_topology

PROVIDERS = load_topology("shapes_amd").serials(with_cmb=True)
CLIENTS = load_topology("shapes_amd").serials()


def test_the_probe_is_there(oracle) -> None:
    assert oracle.has_probe, "without it a bus address and the way through the host bridge look the same"


@pytest.mark.parametrize("serial", PROVIDERS)
def test_every_client_of(serial, oracle, judge) -> None:
    oracle.redirect_once("acs-a")
    wrong, kinds = judge(serial)
    assert not wrong, "\n".join(wrong)
    assert sum(kinds.values()) == len(CLIENTS)
    assert set(kinds) == {"bus_address", "through_host_bridge"}
    if serial == "acs-a":
        assert kinds["bus_address"] == 1, "ACS sends its twin through the host bridge"
