"""The whole of it as a function call, on this host's loopback; and what is said before the first cell."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import pytest

from p2prw import api
from p2prw.engine.inventory import Inventory
from p2prw.engine.model import PeerAddress, ServedRegion, Timeouts
from p2prw.engine.smoke import session
from p2prw.engine.smoke.model import CellDone, Preset, SmokePlan
from p2prw.engine.smoke.regions import standing_regions
from p2prw.engine.smoke.session import FOLDER_PREFIX, regions_to_serve, smoke
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError


def finish(events):
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


@pytest.fixture
def few(ask):
    def make(**changes):
        return ask(devices=("soft0",), memories=("host", "file"), preset=Preset.QUICK, **changes)

    return make


def own_folders():
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith(FOLDER_PREFIX)]


def test_a_loopback_passes_and_leaves_nothing_behind(few):
    before = own_folders()
    plans: list[SmokePlan] = []
    result = finish(smoke(few(), on_plan=plans.append))
    assert (result.exit_code, result.error, result.stopped) == (0, None, False)
    assert [one.status for one in result.cells] == ["pass"] * 12
    assert len(plans[0].cells) == 12
    assert own_folders() == before
    assert all(one.transfer.local_route.chosen == "cpu" for one in result.cells)


def test_it_can_fail(few):
    result = finish(smoke(few(inject="corrupt=100")))
    assert result.exit_code == 4
    assert {one.cell.size_class: one.status for one in result.cells} == {
        "small": "pass",
        "odd": "fail",
        "large": "fail",
    }
    assert result.error.code == "verify_mismatch"
    assert result.error.what == "8 of 12 cells failed"
    assert result.error.fix in {f"{one.cell.serve_command} & {one.cell.command}" for one in result.cells}


def test_a_dropped_generator_leaves_nothing_behind(few):
    before = own_folders()
    events = smoke(few())
    for event in events:
        if isinstance(event, CellDone):
            break
    events.close()
    assert own_folders() == before


def test_a_stop_keeps_every_cell(few):
    stop = StopRequest()
    events = smoke(few(), stop=stop)
    done = 0
    while True:
        try:
            done += isinstance(next(events), CellDone)
        except StopIteration as end:
            result = end.value
            break
        if done == 2:
            stop.set(2)
    assert (result.exit_code, result.stopped, result.error.code) == (130, True, "interrupted")
    assert (len(result.cells), result.count("pass")) == (12, 2)
    assert result.count("not_run") == 10


def test_a_peer_and_its_regions(few, memories):
    regions = {region.name: region.memory.text for region in standing_regions(memories[:1])}
    with api.serving(regions) as address:
        result = finish(smoke(replace(few(peer=address), devices=())))
    assert (result.exit_code, result.count("pass")) == (0, 12)
    assert {one.cell.remote for one in result.cells} == {"host"}


def test_a_peer_without_smoke_regions_says_what_to_start(few):
    with api.serving({"scratch": "host,size=64KiB"}) as address, pytest.raises(HostError) as caught:
        finish(smoke(few(peer=address)))
    assert caught.value.code == "no_smoke_region"
    assert "serve --smoke" in str(caught.value.fix)


def test_a_peer_that_is_not_there(few):
    timeouts = Timeouts(connect_retry_s=0.1)
    with pytest.raises(HostError) as caught:
        finish(smoke(few(peer=PeerAddress("127.0.0.1", 9), timeouts=timeouts)))
    assert caught.value.exit_code == 3


def test_a_host_where_nothing_takes_part(few, monkeypatch):
    monkeypatch.setattr(session, "take_inventory", lambda *_: Inventory((), (), ()))
    with pytest.raises(HostError) as caught:
        finish(smoke(replace(few(), devices=())))
    assert caught.value.code == "nothing_to_do"


def test_named_memory_that_cannot_be_had_is_an_error_and_found_memory_a_skip(ask, host, found, info, monkeypatch):
    rows = [found("p2pmem", "p2pmem:0000:01:00.0", available_bytes=1 << 20)]
    inventory = host([info("soft0", address="127.0.0.1")], rows)
    monkeypatch.setattr(session, "take_inventory", lambda *_: inventory)
    plans: list[SmokePlan] = []
    events = smoke(ask(), on_plan=plans.append)
    next(events)
    events.close()
    assert [(skip.memory, "no PCI device" in skip.reason) for skip in plans[0].skips] == [("p2pmem:0000:01:00.0", True)]
    with pytest.raises(HostError, match="no PCI device"):
        next(smoke(ask(memories=("p2pmem",))))


def test_faults_leave_verbs_devices_out(ask, host, info, monkeypatch):
    inventory = host([info("rxe0"), info("soft0", address="127.0.0.1")])
    monkeypatch.setattr(session, "take_inventory", lambda *_: inventory)
    plans: list[SmokePlan] = []
    events = smoke(ask(inject="drop=1%"), on_plan=plans.append)
    next(events)
    events.close()
    assert {cell.device for cell in plans[0].cells} == {"soft0"}
    assert plans[0].skips[0].device == "rxe0"


def test_a_server_offers_host_memory_at_least():
    regions, _ = regions_to_serve()
    assert isinstance(regions[0], ServedRegion)
    assert regions[0].name == "smoke-host"
