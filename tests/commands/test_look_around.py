"""`regions`, `devices`, `version`: tables for people, one document for programs."""

from __future__ import annotations

import pytest

from p2prw import __version__
from p2prw.engine.control.messages import PROTOCOL_VERSION, RegionInfo
from p2prw.engine.model import PeerAddress
from p2prw.errors import HostError


def test_regions_table_and_document(run, engine):
    engine.regions = (
        RegionInfo("scratch", "host", 1 << 20, "rw"),
        RegionInfo("in\x1b[2Jbox", "file", None, "w", staged=True, busy=True),
    )
    result = run("regions", "10.0.0.1")
    assert result.stdout.splitlines()[1].split() == ["scratch", "host", "1", "MiB", "rw", "free"]
    assert "any" in result.stdout and "busy" in result.stdout and "\x1b" not in result.stdout
    assert engine.calls[-1]["peer"] == PeerAddress("10.0.0.1")
    document, _ = run.json("regions", "10.0.0.1", "--json")
    assert [row["size_bytes"] for row in document["results"]] == [1 << 20, None]


@pytest.mark.parametrize("peer", ["h:7/inbox", "h:7/inbox+4K"])
def test_one_region_as_write_and_read_name_it(run, engine, peer):
    engine.regions = (RegionInfo("scratch", "host", 1 << 20, "rw"), RegionInfo("inbox", "file", None, "w"))
    document, result = run.json("regions", peer, "--json")
    assert result.exit_code == 0 and [row["name"] for row in document["results"]] == ["inbox"]
    assert engine.calls[-1]["peer"] == PeerAddress("h", 7)


def test_a_region_that_is_not_offered_is_no_empty_list(run, engine):
    engine.regions = (RegionInfo("scratch", "host", 1 << 20, "rw"),)
    document, result = run.json("regions", "h/scrach", "--json")
    assert (result.exit_code, document["error"]["code"]) == (7, "unknown_region")
    assert "h:18515/scratch" in str(document["error"])


def test_regions_of_an_empty_server(run, engine):
    assert run("regions", "h").stdout == "h:18515 offers no region\n"


def test_regions_takes_peer_of_the_file_and_deadlines(run, engine, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("transfer: {peer: 'h:7/x', connect_retry: 3s}\n")
    assert run("regions", "-c", str(path), "--idle-timeout", "5s").exit_code == 0
    call = engine.calls[-1]
    assert call["peer"] == PeerAddress("h", 7)
    assert (call["timeouts"].connect_retry_s, call["timeouts"].idle_s) == (3.0, 5.0)


def test_regions_failure(run, engine):
    engine.raises = HostError("cannot connect to h:18515", code="connect", errno="ECONNREFUSED")
    document, result = run.json("regions", "h", "--json")
    assert (result.exit_code, document["error"]["errno"]) == (3, "ECONNREFUSED")


def test_regions_without_peer(run, engine):
    document, result = run.json("regions", "--json")
    assert (result.exit_code, document["error"]["code"]) == (2, "missing_peer")


def test_devices_lists_the_software_device(run):
    pytest.importorskip("p2prw.engine.providers.soft", reason="the software device is not built yet")
    document, result = run.json("devices", "--json")
    assert result.exit_code == 0
    assert "soft0" in [row["name"] for row in document["results"] if row["row"] == "device"]
    assert "soft0" in run("devices").stdout


def test_version(run):
    document, _ = run.json("version", "--json")
    assert {"name": "p2prw", "version": __version__} in document["results"]
    assert run("version").stdout.startswith(f"p2prw {__version__}\ncontrol protocol {PROTOCOL_VERSION}\n")
    assert run("--version").stdout == f"p2prw {__version__}\n"


def test_version_and_devices_say_who_makes_packets(run, monkeypatch, compiled_codec):
    for codec in (None, compiled_codec):
        monkeypatch.setattr("p2prw.engine.roce.leaf.COMPILED", codec)
        name = codec.name if codec else "python"
        assert run("version").stdout.splitlines()[-1] == f"packets of the software device {name}"
        document, _ = run.json("devices", "--json")
        assert {row["codec"] for row in document["results"] if row.get("provider") == "soft"} == {name}
        assert f"packets: {name}" in run("devices").stdout
