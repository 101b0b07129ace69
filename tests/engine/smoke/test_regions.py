"""Fixed names, lengths and fillings of the serving end."""

from __future__ import annotations

import re

from p2prw.engine.control.messages import RegionInfo
from p2prw.engine.smoke.model import SERVED_BYTES, SmokeMemory
from p2prw.engine.smoke.regions import (
    file_spec,
    region_bytes,
    region_name,
    regions_of_peer,
    served_region,
    spec_of,
    standing_regions,
)


def test_names_are_region_names():
    for memory in ("host", "p2pmem:0000:01:00.0", "bar:0000:01:00.0/2", "dmaheap:" + "x" * 99):
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", region_name(memory))
    assert region_name("p2pmem:0000:01:00.0") == "smoke-p2pmem-0000-01-00.0"


def test_only_memory_of_our_own_is_filled():
    assert spec_of("p2pmem", "p2pmem:0000:01:00.0", 4096, 3).text == "p2pmem:0000:01:00.0,size=4096,pattern=random:3"
    assert spec_of("bar", "bar:0000:01:00.0/2", 4096, 3).text == "bar:0000:01:00.0/2,size=4096"


def test_paths_keep_their_commas():
    assert file_spec("/tmp/a,b\\c", 5).arg == "/tmp/a,b\\c"
    assert file_spec("/tmp/a,b", 5).text == "file:/tmp/a\\,b,size=5"
    assert served_region(SmokeMemory("file", "file"), 5, 1, "/x").memory.options == {"size": "5"}


def test_a_standing_server_offers_no_file(memories):
    regions = {region.name: region for region in standing_regions((*memories, SmokeMemory("dm", "dm")))}
    assert set(regions) == {"smoke-host", "smoke-p2pmem-0000-01-00.0"}
    assert regions["smoke-host"].memory.options["size"] == str(SERVED_BYTES)
    assert regions["smoke-p2pmem-0000-01-00.0"].memory.options["size"] == str(1 << 20)
    assert all(region.access == "rw" for region in regions.values())


def test_a_region_is_no_longer_than_its_memory():
    assert region_bytes(SmokeMemory("host", "host"), 100) == 100
    assert region_bytes(SmokeMemory("p2pmem", "p", 50), 100) == 50


def test_only_what_is_there_for_smoke_is_taken_of_a_peer():
    rows = [
        RegionInfo("smoke-host", "host", 100, "rw", False, False),
        RegionInfo("smoke-half", "host", 100, "r", False, False),
        RegionInfo("smoke-any", "file", None, "rw", True, False),
        RegionInfo("database", "host", 100, "rw", False, False),
    ]
    assert [(one.name, one.memory, one.length_bytes) for one in regions_of_peer(rows)] == [("smoke-host", "host", 100)]
