"""The truth about the path: what may be called peer-to-peer, and what `--route` and `--require-direct` refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw.engine.control.messages import Grant, QueuePairInfo, decode, encode
from p2prw.engine.model import DeviceInfo, DeviceLimits, Route
from p2prw.engine.routes import choose_route, from_wire, require_direct, to_wire
from p2prw.errors import HostError

SOFT = DeviceInfo(
    name="soft0",
    provider="soft",
    driver="soft",
    mover="cpu",
    link_layer="Ethernet",
    state="ACTIVE",
    active_mtu_bytes=4096,
    gids=(),
    limits=DeviceLimits(),
)
NIC = replace(SOFT, name="mlx5_0", provider="verbs", driver="mlx5_core", mover="nic")


@pytest.mark.parametrize("kind", ["host", "file", "p2pmem", "bar"])
def test_the_software_device_is_never_called_peer_to_peer(kind):
    report = choose_route(SOFT, kind, staged=kind == "file")
    assert (report.chosen, report.mover, report.peer_to_peer) == ("cpu", "cpu", False)


def test_host_memory_on_a_nic_is_not_peer_to_peer_and_a_bar_is():
    assert not choose_route(NIC, "host", staged=False).peer_to_peer
    assert choose_route(NIC, "bar", staged=False).peer_to_peer


def test_another_route_on_the_software_device_is_refused_with_the_reason():
    with pytest.raises(HostError, match="dmabuf") as caught:
        choose_route(SOFT, "bar", staged=False, wanted=Route.DMABUF)
    assert caught.value.exit_code == 3 and caught.value.code == "route_unavailable"
    assert choose_route(SOFT, "bar", staged=False, wanted=Route.CPU).chosen == "cpu"


def test_require_direct_binds_device_memory_only():
    require_direct(choose_route(SOFT, "host", staged=False), "local")
    require_direct(choose_route(NIC, "p2pmem", staged=False), "local")
    with pytest.raises(HostError, match="not reached peer to peer") as caught:
        require_direct(choose_route(SOFT, "p2pmem", staged=True), "remote")
    assert caught.value.side == "remote" and "staging" in str(caught.value.why)


def test_a_peer_cannot_call_a_cpu_copy_peer_to_peer():
    liar = replace(to_wire(choose_route(SOFT, "bar", staged=False)), peer_to_peer=True)
    assert from_wire(liar).peer_to_peer is False


def test_a_route_survives_the_control_channel():
    report = choose_route(SOFT, "file", staged=True)
    pair = QueuePairInfo(1, 2, "0" * 32, 1024, 1, 1)
    grant = Grant("0" * 16, 1, (), 1, to_wire(report), pair)
    back = decode(encode(grant))
    assert isinstance(back, Grant) and from_wire(back.route) == report
