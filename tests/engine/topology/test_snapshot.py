"""A snapshot answers as a sysfs tree does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.topology.snapshot import (
    FILE_NAME,
    SCHEMA,
    Machine,
    SnapshotRoot,
    dump_machine,
    encode_bytes,
    open_tree,
)
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

TREE: dict[str, dict[str, Any]] = {
    "sys/devices/pci0000:00/0000:00:01.0": {
        "vendor": "0x8086",
        "config": encode_bytes(b"\x86\x80" + bytes(60) + b"\x01\x02", 4096),
        "driver": {"link": "sys/bus/pci/drivers/nvme"},
        "numa_node": {"errno": "ENODEV"},
        "secret": {"errno": "EACCES"},
        "resource0": {"size": 16384},
    },
    "sys/bus/pci/devices": {"0000:00:01.0": {"link": "sys/devices/pci0000:00/0000:00:01.0"}},
    "sys/loop": {"a": {"link": "sys/loop/b"}, "b": {"link": "sys/loop/a"}},
    "proc": {"cpuinfo": "vendor_id : x"},
}
BASE = "bus/pci/devices/0000:00:01.0"


@pytest.fixture
def root() -> SnapshotRoot:
    return SnapshotRoot(Machine({"schema": SCHEMA, "tree": TREE}))


def test_reading(root) -> None:
    assert root.read_int(f"{BASE}/vendor") == 0x8086
    assert root.read_bytes(f"{BASE}/config", 4) == b"\x86\x80\0\0"
    assert root.read_bytes(f"{BASE}/config") == b"\x86\x80" + bytes(60) + b"\x01\x02"
    assert root.size_bytes(f"{BASE}/config") == 4096
    assert root.size_bytes(f"{BASE}/resource0") == 16384
    assert root.read_text(f"{BASE}/numa_node") is None
    assert root.read_text(f"{BASE}/nothing") is None
    assert root.read_text(BASE) is None, "a folder is no file"
    assert root.list("bus/pci/devices") == ("0000:00:01.0",)
    assert root.list("devices") == ("pci0000:00",)
    assert root.list(f"{BASE}/vendor") == root.list("nowhere") == ()
    assert root.link_name(f"{BASE}/driver") == "nvme"
    assert root.link_name(f"{BASE}/vendor") is root.link_name("x/y") is None
    assert root.real_path(BASE) == "devices/pci0000:00/0000:00:01.0"
    assert root.real_path(f"{BASE}/../..") == "devices"
    assert root.exists(BASE) and not root.exists(f"{BASE}/driver"), "a link that leads nowhere is not there"
    assert root.beside("proc").read_text("cpuinfo") == "vendor_id : x"


def test_loops_and_rights(root) -> None:
    assert not root.exists("loop/a") and root.real_path("loop/a") is None
    with pytest.raises(HostError) as caught:
        root.read_text(f"{BASE}/secret")
    assert caught.value.errno == "EACCES"


def test_written_and_read_again(tmp_path: Path) -> None:
    text = dump_machine(TREE, "a note", p2prw="1", privileged=True)
    assert json.loads(text)["privileged"] is True
    (tmp_path / FILE_NAME).write_text(text)
    for where in (tmp_path, tmp_path / FILE_NAME):
        assert open_tree(where).read_int(f"{BASE}/vendor") == 0x8086
    again = json.loads(text)
    assert dump_machine(again["tree"], "a note", p2prw="1", privileged=True) == text


@given(st.binary(max_size=600))
def test_bytes_come_back(raw) -> None:
    machine = Machine({"schema": SCHEMA, "tree": {"sys": {"config": json.loads(json.dumps(encode_bytes(raw)))}}})
    assert SnapshotRoot(machine).read_bytes("config") == raw


@pytest.mark.parametrize(
    "entry",
    [{"bytes": {"zz": "00"}, "length": 4}, {"bytes": {"0": "0"}, "length": 4}, {"length": -1}, {"length": 1 << 40},
     {"bytes": 7, "length": 1}, {"length": "many"}, {"errno": "ENONSENSE"}, 7, None, []],
)  # fmt: skip
def test_garbled_entries_do_not_answer(entry) -> None:
    root = SnapshotRoot(Machine({"schema": SCHEMA, "tree": {"sys": {"config": entry}}}))
    assert root.read_bytes("config") is None
    root.size_bytes("config")
    root.exists("config/x")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": "p2prw-machine/1"}', '{"schema": "p2prw-machine/1", "tree": {"sys": 1}}', "\x00"],
)
def test_no_snapshot(text, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(HostError) as caught:
        open_tree(file)
    assert caught.value.code == "bad_snapshot"


def test_plain_trees(tmp_path: Path) -> None:
    (tmp_path / "m/sys/bus/pci").mkdir(parents=True)
    assert open_tree(tmp_path / "m").path == tmp_path / "m/sys"
    assert open_tree(tmp_path / "m/sys").path == tmp_path / "m/sys"
    for where in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(HostError) as caught:
            open_tree(where)
        assert caught.value.code == "no_sysfs_tree"
        assert "doctor --collect" in (caught.value.fix or "")


def test_the_same_answers_as_files_on_disk(tmp_path: Path, root) -> None:
    for folder, entries in TREE.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, entry in entries.items():
            file = tmp_path / folder / name
            if isinstance(entry, str):
                file.write_text(entry + "\n")
            elif "link" in entry:
                file.symlink_to(os.path.relpath(tmp_path / entry["link"], file.parent))
            elif "bytes" in entry:
                file.write_bytes(b"\x86\x80" + bytes(60) + b"\x01\x02")
    real = SysfsRoot(tmp_path / "sys")
    paths = ["", BASE, f"{BASE}/vendor", f"{BASE}/driver", f"{BASE}/none", f"{BASE}/vendor/x", "loop/a", "devices"]
    for path in paths:
        assert real.exists(path) == root.exists(path), path
        assert real.real_path(path) == root.real_path(path) or path == "", path
        assert real.link_name(path) == root.link_name(path), path
        if path != BASE and path != "devices/pci0000:00/0000:00:01.0":
            assert real.list(path) == root.list(path), path
    assert real.read_bytes(f"{BASE}/config") == root.read_bytes(f"{BASE}/config")
    assert real.beside("proc").read_text("cpuinfo") == root.beside("proc").read_text("cpuinfo")
