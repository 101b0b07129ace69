"""The exposition, read back by the official library's own parser."""

from __future__ import annotations

import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from p2prw import __version__
from p2prw.engine.providers.base import DeviceUsage
from p2prw.engine.server.counters import ServerCounters, ServerState
from p2prw.engine.server.exposition import Exposition
from p2prw.errors import HostError


def samples(text: bytes) -> dict[tuple, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_figure_is_there_under_its_name():
    counters = ServerCounters()
    counters.connections["left"] += 2
    counters.transfers["mem", "write", "kept"] += 1
    counters.kept_bytes["mem", "write"] += 4096
    counters.errors["busy"] += 3
    usage = DeviceUsage(5, 6, retransmitted_packets=7, dropped_packets={"icrc": 8})
    exposition = Exposition(lambda: ServerState(1, 2, {"soft0 127.0.0.1": usage}), counters)
    found = samples(exposition.text())
    device = ("device", "soft0 127.0.0.1")
    assert found["p2prw_build_info", ("version", __version__)] == 1
    assert found["p2prw_clients",] == 1 and found["p2prw_leases",] == 2
    assert found["p2prw_queue_pairs", device] == 5 and found["p2prw_registrations", device] == 6
    assert found["p2prw_retransmitted_packets_total", device] == 7
    assert found["p2prw_dropped_packets_total", device, ("reason", "icrc")] == 8
    assert found["p2prw_connections_total", ("outcome", "left")] == 2
    assert found["p2prw_transfers_total", ("operation", "write"), ("outcome", "kept"), ("region", "mem")] == 1
    assert found["p2prw_kept_bytes_total", ("operation", "write"), ("region", "mem")] == 4096
    assert found["p2prw_errors_total", ("code", "busy")] == 3
    assert found["process_resident_memory_bytes",] > 1e6 and found["process_open_fds",] > 2
    counters.errors["busy"] += 1
    assert samples(exposition.text())["p2prw_errors_total", ("code", "busy")] == 4


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(HostError) as caught:
        Exposition(lambda: ServerState(0, 0, {}), ServerCounters())
    assert caught.value.code == "missing_library" and caught.value.fix == "pip install 'p2prw[metrics]'"
