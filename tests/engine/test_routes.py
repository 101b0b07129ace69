"""The truth about the path: what may be called peer-to-peer, and what `--route` and `--require-direct` refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw.engine.control.messages import Grant, QueuePairInfo, decode, encode
from p2prw.engine.model import DeviceInfo, DeviceLimits, Offer, Route, ViaReport
from p2prw.engine.routes import choose_route, from_wire, refuse_by_class, require_direct, rungs, staged_via, to_wire
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


def test_host_memory_on_a_nic_is_not_peer_to_peer_and_p2pmem_is():
    assert not choose_route(NIC, "host", staged=False).peer_to_peer
    assert choose_route(NIC, "p2pmem", staged=False).peer_to_peer
    # A BAR is bounced: the NIC moves the copy, the CPU moved the bytes.
    bounced = choose_route(NIC, "bar", staged=False)
    assert (bounced.chosen, bounced.mover, bounced.peer_to_peer, bounced.staged) == ("bounce", "cpu", False, True)


@pytest.mark.parametrize(
    ("kind", "staged", "expected"),
    [
        ("host", False, "pin"),
        ("file", True, "pin"),
        ("p2pmem", False, "pin odp bounce"),
        ("bar", False, "bounce"),
        ("vfio", False, "dmabuf bounce"),
        ("udmabuf", False, "dmabuf bounce"),
        ("dmaheap", False, "dmabuf bounce"),
        ("dm", False, "dm"),
        ("cuda", False, "dmabuf pin"),
    ],
)
def test_rungs_stand_in_the_order_of_the_contract(kind, staged, expected):
    assert " ".join(rungs(kind, staged=staged)) == expected


def test_dead_routes_are_taken_by_name_only():
    assert rungs("bar", staged=False, wanted=Route.ODP) == (Route.ODP,)
    assert rungs("p2pmem", staged=False, wanted=Route.BOUNCE) == (Route.BOUNCE,)
    assert rungs("file", staged=True, wanted=Route.ODP) == () == rungs("host", staged=False, wanted=Route.DMABUF)


@pytest.mark.parametrize("driver", ["rxe", "siw", "hfi1", "qib"])
def test_page_less_memory_is_refused_by_class_on_drivers_that_copy(driver):
    device = replace(NIC, name="rxe0", driver=driver, mover="cpu")
    bar = frozenset({Offer.CPU_MAPPING})
    why = refuse_by_class(device, "bar", bar, Route.ODP)
    assert why is not None and driver in why and "struct page" in why
    assert refuse_by_class(device, "bar", bar, Route.BOUNCE) is None
    assert refuse_by_class(device, "p2pmem", bar | {Offer.PAGES}, Route.ODP) is None
    assert refuse_by_class(NIC, "bar", bar, Route.ODP) is None
    assert refuse_by_class(NIC, "cuda", frozenset({Offer.DMABUF}), Route.BOUNCE) is not None


def test_what_each_driver_lacks_for_dmabufs_and_device_memory():
    rxe = replace(NIC, name="rxe0", driver="rxe", mover="cpu")
    pages = frozenset({Offer.DMABUF, Offer.CPU_MAPPING, Offer.PAGES})
    assert "imports no dma-buf" in str(refuse_by_class(rxe, "udmabuf", pages, Route.DMABUF))
    assert refuse_by_class(rxe, "udmabuf", pages, Route.PIN) is None, "its memfd has pages"
    assert "struct page" in str(refuse_by_class(rxe, "dmaheap", pages - {Offer.PAGES}, Route.PIN))
    assert refuse_by_class(NIC, "udmabuf", pages, Route.DMABUF) is None
    assert "max_dm_size is 0" in str(refuse_by_class(NIC, "dm", frozenset(), Route.DM))
    roomy = replace(NIC, limits=replace(NIC.limits, max_dm_bytes=1 << 17))
    assert refuse_by_class(roomy, "dm", frozenset(), Route.DM) is None
    report = choose_route(roomy, "dm", staged=False)
    assert (report.chosen, report.mover, report.peer_to_peer) == ("dm", "nic", True)


@pytest.mark.parametrize(("kind", "instead"), [("dm", "NIC"), ("cuda", "dma-bufs")])
def test_memory_without_a_cpu_mapping_has_no_way_out_through_bounce(kind, instead):
    rxe = replace(NIC, name="rxe0", driver="rxe", mover="cpu")
    for device in (rxe, SOFT):
        with pytest.raises(HostError) as caught:
            choose_route(device, kind, staged=False)
        assert (caught.value.code, caught.value.exit_code) == ("route_unavailable", 3)
        assert device.name in caught.value.what and "bounce" not in str(caught.value.fix)
        assert "host,size=64MiB" in str(caught.value.fix)
    assert "no CPU mapping" in str(caught.value.why)
    with pytest.raises(HostError) as caught:
        choose_route(rxe, kind, staged=False)
    assert instead in str(caught.value.fix) and "--force-route" in str(caught.value.fix)


@pytest.mark.parametrize("kind", ["vfio", "udmabuf", "dmaheap"])
def test_what_the_cpu_can_map_goes_by_cpu_on_the_software_device(kind):
    assert choose_route(SOFT, kind, staged=False).chosen == "cpu"


def test_what_is_hopeless_is_said_before_anything_is_tried():
    device = replace(NIC, name="rxe0", driver="rxe", mover="cpu")
    with pytest.raises(HostError) as caught:
        choose_route(device, "bar", staged=False, wanted=Route.PIN)
    assert (caught.value.exit_code, caught.value.code) == (3, "route_unavailable")
    assert "rxe" in str(caught.value.why) and "--force-route" in str(caught.value.fix)
    assert choose_route(device, "bar", staged=False, wanted=Route.PIN, force=True).chosen == "pin"
    with pytest.raises(HostError, match="does not lead") as caught:
        choose_route(device, "host", staged=False, wanted=Route.CPU)
    assert "pin, odp, bounce" in str(caught.value.why)
    # Page-less, on a driver that needs pages: the refusal is an attempt, and the ladder goes on.
    report = choose_route(device, "vfio", staged=False)
    assert [(one.route, one.ok) for one in report.attempts] == [("dmabuf", False), ("bounce", True)]


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


VIA = ViaReport("p2pmem", "0000:01:00.0", "drive", True, "0000:02:00.0", 5)


def test_a_ring_in_device_memory_is_bound_by_require_direct_too():
    on_nic = staged_via(choose_route(NIC, "p2pmem", staged=False), VIA)
    assert (on_nic.memory, on_nic.staged, on_nic.peer_to_peer, on_nic.via) == ("file", True, True, VIA)
    require_direct(on_nic, "local")
    on_cpu = staged_via(choose_route(SOFT, "p2pmem", staged=False), VIA)
    with pytest.raises(HostError, match="'p2pmem' is not reached peer to peer"):
        require_direct(on_cpu, "local")


def test_a_ring_survives_the_control_channel_and_a_liar_does_not():
    for device in (SOFT, NIC):
        report = staged_via(choose_route(device, "p2pmem", staged=False), VIA)
        pair = QueuePairInfo(1, 2, "0" * 31 + "1", 1024, 1, 1)
        back = decode(encode(Grant("0" * 16, 1, (), 1, to_wire(report), pair)))
        assert isinstance(back, Grant) and from_wire(back.route) == report
    # A file without a ring is never peer to peer, whatever carries it.
    plain = replace(to_wire(choose_route(NIC, "file", staged=True)), peer_to_peer=True)
    assert from_wire(plain).peer_to_peer is False


def test_a_peer_cannot_call_a_cpu_copy_peer_to_peer():
    liar = replace(to_wire(choose_route(SOFT, "bar", staged=False)), peer_to_peer=True)
    assert from_wire(liar).peer_to_peer is False


def test_a_route_survives_the_control_channel():
    report = choose_route(SOFT, "file", staged=True)
    pair = QueuePairInfo(1, 2, "0" * 31 + "1", 1024, 1, 1)
    grant = Grant("0" * 16, 1, (), 1, to_wire(report), pair)
    back = decode(encode(grant))
    assert isinstance(back, Grant) and from_wire(back.route) == report
