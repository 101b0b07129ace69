"""Our verdict and the kernel's own answer, for every pair of NVMe controllers in every shape, on an Intel processor.

Whether the read succeeds, whether its bytes arrive, map type, distance, and the reasons in the log: lab/oracle.py. QEMU
has no root port of the kernel's whitelist, so here nothing passes the root complex.
"""

from __future__ import annotations

import subprocess

import pytest

from lab.oracle import disagreements
from lab.topology import load_topology

PROVIDERS = load_topology("shapes").serials(with_cmb=True)
CLIENTS = load_topology("shapes").serials()


@pytest.mark.parametrize("serial", PROVIDERS)
def test_every_client_of(serial, oracle, judge) -> None:
    oracle.redirect_once("acs-a")
    wrong, kinds = judge(serial)
    assert not wrong, "\n".join(wrong)
    assert sum(kinds.values()) == len(CLIENTS)
    assert kinds["bus_address"] >= (1 if serial in ("root-a", "port-a", "acs-a") else 2)
    assert set(kinds) == {"bus_address", "not_supported"}


def test_acs_by_hand_is_the_cause_and_clearing_it_the_mend(oracle, topology) -> None:
    """The kernel keeps its answer until the provider's driver is bound again: only then does the mend show."""
    port = oracle.redirect_once("acs-a")
    provider, client = oracle.controllers["acs-a"], oracle.controllers["acs-b"]
    verdict = topology().pair(client.address, f"p2pmem:{provider.address}").verdict
    assert (verdict.kind, verdict.redirects) == ("not_supported", (port,))
    command = verdict.fixes[1].removeprefix("until the next boot: ").partition(";")[0]
    assert command == f"setpci -s {port} ECAP_ACS+0x6.w=0011"
    subprocess.run(command.split(), check=True, timeout=60)
    mended = topology().pair(client.address, f"p2pmem:{provider.address}").verdict
    assert mended.kind == "bus_address"
    oracle.bind_again(provider)
    assert disagreements(mended, oracle.ask(provider, client), oracle.bus_type, loses_bus=False) == []


def test_without_privilege_the_answer_is_unknown(oracle, unprivileged) -> None:
    answer = unprivileged("switch-b", "switch-a")
    assert (answer["verdict"], answer["distance"]) == ("unknown", 4)
    assert "only the first 64 bytes of its configuration space" in answer["why"]
    assert answer["fixes"] == ["run as root to read ACS: sudo p2prw topology"]
