"""Each kind in each role: what is checked before a peer is asked, and what is opened afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.memory.spec import make_spec, parse_memory_spec
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, LocalProtocolError, RequestError

Load = Callable[[str], SysfsRoot]


def test_host() -> None:
    fixed = prepare_memory(parse_memory_spec("host,size=64K"), "source")
    assert (fixed.length_bytes, fixed.staged, fixed.elastic) == (65536, False, False)
    assert fixed.open().length_bytes == 65536
    assert fixed.open(1).length_bytes == 65536
    with pytest.raises(RequestError) as caught:
        fixed.open(65537)
    assert (caught.value.code, caught.value.fix) == ("size_does_not_fit", "--size 64KiB")
    elastic = prepare_memory(parse_memory_spec("host"), "sink")
    assert elastic.length_bytes is None and elastic.elastic
    assert elastic.open(10).length_bytes == 10
    with pytest.raises(RequestError):
        elastic.open()
    with pytest.raises(RequestError) as caught:
        prepare_memory(parse_memory_spec("host"), "both")
    assert caught.value.code == "missing_size"


def test_a_file_source(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    prepared = prepare_memory(make_spec("file", str(path), {}), "source")
    assert (prepared.length_bytes, prepared.staged) == (10, True)
    # What was promised is kept: a file that grew is read as it was, one that shrank is refused.
    path.write_bytes(b"0123456789AB")
    assert prepared.open().length_bytes == 10
    path.write_bytes(b"0123")
    with pytest.raises(HostError) as caught:
        prepared.open()
    assert caught.value.code == "source_changed"


def test_a_file_sink(tmp_path: Path) -> None:
    path = tmp_path / "f"
    prepared = prepare_memory(make_spec("file", str(path), {}), "sink")
    assert (prepared.length_bytes, prepared.staged, prepared.elastic) == (None, True, True)
    assert not any(tmp_path.iterdir())
    sink = prepared.open(3)
    sink.write_at(0, memoryview(b"abc"))
    sink.commit()
    sink.close()
    assert path.read_bytes() == b"abc"
    with pytest.raises(HostError) as caught:
        prepare_memory(make_spec("file", str(path), {}), "sink")
    assert caught.value.code == "exists"
    fixed = prepare_memory(make_spec("file", str(path), {"size": "8"}), "sink", overwrite=True)
    assert fixed.length_bytes == 8
    sink = fixed.open()
    sink.write_at(0, memoryview(b"X"))
    sink.commit()
    sink.close()
    assert path.read_bytes() == b"Xbc" + bytes(5)
    with pytest.raises(HostError) as caught:
        prepare_memory(make_spec("file", str(path), {"size": "1000T"}), "sink", overwrite=True)
    assert caught.value.code == "no_space"


def test_a_served_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    prepared = prepare_memory(make_spec("file", str(path), {}), "both")
    assert prepared.length_bytes == 10
    assert prepared.elastic
    assert prepared.file_region is not None
    assert prepared.file_region.open_reader().length_bytes == 10
    with pytest.raises(LocalProtocolError):
        prepared.open()


def test_device_memory(golden_sysfs: Load) -> None:
    nvme, fpga = golden_sysfs("nvme-cmb"), golden_sysfs("fpga")
    cmb = prepare_memory(parse_memory_spec("p2pmem:0000:01:00.0,size=8K"), "source", sysfs=nvme)
    assert (cmb.length_bytes, cmb.staged, cmb.elastic) == (8192, False, False)
    assert cmb.open().warnings
    assert not prepare_memory(parse_memory_spec("p2pmem:0000:01:00.0"), "sink", sysfs=nvme).open().warnings
    spec = parse_memory_spec("bar:0000:05:00.0/2,size=4K")
    assert prepare_memory(spec, "source", sysfs=fpga).open().length_bytes == 4096
    for role in ("sink", "both"):
        with pytest.raises(HostError) as caught:
            prepare_memory(spec, role, sysfs=fpga)
        assert caught.value.code == "bound_device"
    forced = prepare_memory(spec, "both", sysfs=fpga, force_bound_device=True).open()
    forced.write_at(0, memoryview(b"x"))


@pytest.mark.parametrize("text", ["udmabuf", "dmaheap:system", "dm", "cuda:0"])
def test_allocated_kinds_take_the_size_of_the_transfer(text: str, monkeypatch) -> None:
    opened: list[tuple[str, int]] = []

    def play(kind: str) -> Callable[..., object]:
        return lambda spec, length, *_: opened.append((kind, length))

    for kind in ("udmabuf", "dmaheap", "cuda"):
        monkeypatch.setattr(f"p2prw.engine.memory.prepare.check_{kind}", lambda *_: None)
        monkeypatch.setattr(f"p2prw.engine.memory.prepare.open_{kind}", play(kind))
    kind = text.partition(":")[0]
    elastic = prepare_memory(parse_memory_spec(text), "sink")
    assert (elastic.length_bytes, elastic.elastic, elastic.staged) == (None, True, False)
    memory = elastic.open(70)
    assert memory.length_bytes == 70 if kind == "dm" else opened == [(kind, 70)]
    with pytest.raises(RequestError) as caught:
        elastic.open()
    assert caught.value.code == "missing_size" and f"{text},size=" in str(caught.value.fix)
    with pytest.raises(RequestError):
        prepare_memory(parse_memory_spec(text), "both")
    fixed = prepare_memory(parse_memory_spec(f"{text},size=4K"), "both")
    assert fixed.length_bytes == 4096
    fixed.open()
    assert kind == "dm" or opened[-1] == (kind, 4096)
    with pytest.raises(RequestError) as caught:
        fixed.open(4097)
    assert caught.value.code == "size_does_not_fit"


def test_a_bar_behind_vfio_pci(golden_sysfs: Load, monkeypatch) -> None:
    sysfs = golden_sysfs("fpga")
    spec = parse_memory_spec("vfio:0000:03:00.0/2,size=64K")
    with pytest.raises(HostError) as caught:
        prepare_memory(spec, "source", sysfs=sysfs)
    assert caught.value.code == "not_bound_to_vfio"
    monkeypatch.setattr("p2prw.engine.memory.vfio.VFIO.check", lambda *_: None)
    writable: list[bool] = []
    monkeypatch.setattr(
        "p2prw.engine.memory.prepare.open_vfio", lambda *_, **options: writable.append(options["writable"])
    )
    for role in ("source", "sink", "both"):
        prepared = prepare_memory(spec, role, sysfs=sysfs)
        assert prepared.length_bytes == 65536
        prepared.open()
    assert writable == [False, True, True]
