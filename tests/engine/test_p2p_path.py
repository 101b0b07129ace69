"""What an attempt says of the path: only after a failure, only for a NIC and device memory, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2prw.engine.p2p_path import PathReason
from p2prw.engine.topology.pairs import Topology


class Nic:
    """mlx5_0 of an invented machine."""

    def __init__(self, sysfs: Any, mover: str = "nic") -> None:
        self.info: Any = SimpleNamespace(name="mlx5_0", mover=mover)
        self._sysfs = sysfs
        self.asked = 0

    def path_to(self, pci_address: str) -> Any:
        self.asked += 1
        return Topology(self._sysfs).pair("mlx5_0", pci_address).verdict


def memory(address: str | None = "0000:04:00.0", *, device_memory: bool = True) -> Any:
    return SimpleNamespace(pci_address=address, is_device_memory=device_memory)


@pytest.fixture
def machine(builder):
    def make(acs: int):
        made = builder()
        made.root_bus("pci0000:00", (0x8086, 0x3E30))
        left, right = made.switch("0000:01:00.0", made.port("0000:00:01.0", "pci0000:00"), 2, acs=acs)
        made.nic("0000:03:00.0", left, "mlx5_0")
        made.gpu("0000:04:00.0", right)
        return made.sysfs()

    return make


def test_a_refusal_names_cause_and_mend(machine) -> None:
    nic = Nic(machine(0x1D))
    path = PathReason(nic, memory())
    why, fix = path.explain("EINVAL", "the exporter does not allow it", "dmesg | tail")
    assert why is not None and why.startswith(
        "the exporter does not allow it; P2PDMA mlx5_0 -> 0000:04:00.0 is not_sup"
    )
    assert "ACS redirect is set between the client and provider" in why
    assert fix is not None and "pci=disable_acs_redir=0000:02:01.0;0000:02:00.0" in fix
    assert fix.endswith("(p2prw topology mlx5_0 0000:04:00.0 says all)")
    assert (path.words() or "?") in why
    assert nic.asked == 1


def test_a_path_that_is_fine_is_not_blamed(machine) -> None:
    path = PathReason(Nic(machine(0)), memory())
    assert path.words() == (
        "the P2PDMA path mlx5_0 -> 0000:04:00.0 is allowed (bus_address, distance 4): it is not that"
    )
    assert path.explain("EINVAL", "why", "fix")[1] == "fix"


@pytest.mark.parametrize("errno", ["ENOMEM", "EPERM", "EOPNOTSUPP", None])
def test_other_failures_have_other_reasons(machine, errno) -> None:
    nic = Nic(machine(0x1D))
    assert PathReason(nic, memory()).explain(errno, "why", "fix") == ("why", "fix")
    assert nic.asked == 0


def test_nothing_is_read_for_cpu_movers_and_host_memory(machine) -> None:
    for nic, what in (
        (Nic(machine(0x1D), mover="cpu"), memory()),
        (Nic(machine(0x1D)), memory(None)),
        (Nic(machine(0x1D)), memory(device_memory=False)),
    ):
        path = PathReason(nic, what)
        assert path.words() is None
        assert path.explain("EINVAL", None, None) == (None, None)
        assert nic.asked == 0
