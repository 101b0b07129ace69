"""A server's figures, as a scraper and as the node exporter see them."""

from __future__ import annotations

import os
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from p2prw import api
from p2prw.engine.control.messages import Grant
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import PeerAddress, ServedRegion, ServeRequest
from p2prw.engine.server import metrics
from p2prw.engine.server.server import Server
from p2prw.errors import HostError


def figures(text: str) -> dict[tuple, float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(served) -> dict[tuple, float]:
    (url,) = [place for place in served.wait_for("metrics").fields["places"] if place.startswith("http")]
    with urllib.request.urlopen(url, timeout=30) as answer:
        return figures(answer.read().decode())


def total(found: dict[tuple, float], name: str) -> float:
    return sum(value for key, value in found.items() if key[0] == name)


def test_what_happens_is_counted_and_what_is_held_goes_back(serve, connect):
    served = serve(metrics=PeerAddress("127.0.0.1", 0))
    before = scrape(served)
    assert total(before, "p2prw_queue_pairs") == total(before, "p2prw_registrations") == 0
    assert api.write(f"{served.server.address}/mem", "host,size=4KiB").exit_code == 0
    assert api.read(f"{served.server.address}/mem", "host,size=4KiB").exit_code == 0
    assert api.read(f"{served.server.address}/none", "host,size=4KiB").exit_code == 7
    client = connect(served)
    client.ask(client.open(), Grant)
    held = scrape(served)
    assert held["p2prw_clients",] == held["p2prw_leases",] == 1
    assert total(held, "p2prw_queue_pairs") == total(held, "p2prw_registrations") == 1
    # It dies: all it held is gone at once.
    client.channel.close()
    served.wait_for("failed")
    found = scrape(served)
    assert found["p2prw_clients",] == found["p2prw_leases",] == 0
    assert total(found, "p2prw_queue_pairs") == total(found, "p2prw_registrations") == 0
    assert found["p2prw_kept_bytes_total", "write", "mem"] == found["p2prw_kept_bytes_total", "read", "mem"] == 4096
    assert found["p2prw_transfers_total", "write", "kept", "mem"] == 1
    assert found["p2prw_transfers_total", "write", "broken_off", "mem"] == 1
    assert found["p2prw_connections_total", "left"] == 3 and found["p2prw_connections_total", "failed"] == 1
    assert found["p2prw_errors_total", "unknown_region"] == 1


def test_the_file_is_there_before_ready_and_is_kept_fresh(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_FILE_INTERVAL_S", 0.1)
    path = tmp_path / "p2prw.prom"
    served = serve(metrics_file=str(path))
    assert figures(path.read_text())["p2prw_clients",] == 0
    assert api.write(f"{served.server.address}/mem", "host,size=4KiB").exit_code == 0
    end = time.monotonic() + 30
    while ("p2prw_kept_bytes_total", "write", "mem") not in figures(path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert path.stat().st_mode & 0o777 == 0o644, "the node exporter is another user"
    # A file that cannot be written any more is said once, and ends nothing.
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()
    served.wait_for("warning")
    time.sleep(0.5)
    assert [event.kind for event in served.events].count("warning") == 1
    assert api.write(f"{served.server.address}/mem", "host,size=4KiB").exit_code == 0


def test_errors_come_before_ready_and_leave_nothing_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    region = ServedRegion(name="mem", memory=parse_memory_spec("host,size=4KiB"))
    for options, code in (
        ({"metrics_file": f"{tmp_path}/none/x"}, "metrics_file"),
        ({"metrics": PeerAddress("192.0.2.1", 0)}, "bad_listen_address"),
    ):
        request = ServeRequest(regions=(region,), listen=PeerAddress("127.0.0.1", 0), **options)
        with pytest.raises(HostError) as caught, Server(request):
            raise AssertionError("not reached")
        assert caught.value.code == code
    assert len(os.listdir("/proc/self/fd")) == before
