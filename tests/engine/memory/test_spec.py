"""The words for memory: what parses, what comes back as text, and what the error says to type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.memory.spec import (
    MEMORY_KINDS,
    SpecError,
    format_memory_spec,
    make_spec,
    memory_spec_from_mapping,
    parse_memory_spec,
    size_option,
    split_spec,
)
from p2prw.engine.model import MemorySpec
from p2prw.errors import RequestError


@pytest.mark.parametrize(
    ("text", "kind", "arg", "options"),
    [
        ("host,size=64MiB", "host", None, {"size": "64MiB"}),
        ("host,size=4M,hugepages=2MiB,numa=01,pattern=words:7", "host", None,
         {"size": "4M", "hugepages": "2M", "numa": "1", "pattern": "words:7"}),
        ("host", "host", None, {}),
        ("file:/tmp/a b.bin", "file", "/tmp/a b.bin", {}),
        ("file:/tmp/a\\,b.bin,offset=4K,size=0x10", "file", "/tmp/a,b.bin", {"offset": "4K", "size": "0x10"}),
        ("file:C:\\dir\\x", "file", "C:\\dir\\x", {}),
        ("file:end\\\\,size=1", "file", "end\\", {"size": "1"}),
        ("file:a=b:c", "file", "a=b:c", {}),
        ("p2pmem:01:00.0", "p2pmem", "0000:01:00.0", {}),
        ("p2pmem:0000:AF:00.1,size=32M", "p2pmem", "0000:af:00.1", {"size": "32M"}),
        ("bar:03:00.0/2,offset=8,size=16", "bar", "0000:03:00.0/2", {"offset": "8", "size": "16"}),
        ("vfio:0000:03:00.0/0", "vfio", "0000:03:00.0/0", {}),
        ("udmabuf,size=1M", "udmabuf", None, {"size": "1M"}),
        ("dmaheap:system,size=1M", "dmaheap", "system", {"size": "1M"}),
        ("dm,size=4K", "dm", None, {"size": "4K"}),
        ("cuda:01", "cuda", "1", {}),
    ],
)  # fmt: skip
def test_what_parses(text: str, kind: str, arg: str | None, options: dict[str, str]) -> None:
    spec = parse_memory_spec(text)
    assert (spec.kind, spec.arg, spec.options, spec.text) == (kind, arg, options, text)
    again = parse_memory_spec(format_memory_spec(spec))
    assert (again.kind, again.arg, again.options) == (kind, arg, options)


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ("", "missing_kind", "host,size="),
        (",size=1", "missing_kind", "host,size="),
        ("hots,size=1M", "unknown_kind", "did you mean host?"),
        ("p2p:01:00.0", "unknown_kind", "p2pmem"),
        ("zzzz", "unknown_kind", "one of host, file"),
        ("/tmp/x", "unknown_kind", "file:/tmp/x"),
        ("./x", "unknown_kind", "file:./x"),
        ("host,sizes=1M", "unknown_key", "did you mean size=?"),
        ("p2pmem:01:00.0,offset=1", "unknown_key", "size"),
        ("file:x,access=r", "unknown_key", "offset"),
        ("host,size=1M,size=2M", "duplicate_key", "keep one size="),
        ("host,size=many", "bad_size", "64K"),
        ("host,size=-1", "bad_size", "64K"),
        ("host,size=", "bad_size", "64K"),
        ("host,size", "bad_option", "size=64MiB"),
        ("file:/tmp/a,b", "bad_option", "\\,"),
        ("host,hugepages=4M", "bad_value", "hugepages=2M"),
        ("host,hugepages=big", "bad_size", "64K"),
        ("host,numa=-1", "bad_value", "numa=0"),
        ("host,numa=\N{SUPERSCRIPT TWO}", "bad_value", "numa=0"),
        ("host,pattern=", "bad_value", "pattern="),
        ("host:4,size=1M", "unexpected_argument", "host,size=64MiB"),
        ("file", "missing_argument", "file:PATH"),
        ("file:", "missing_argument", "file:PATH"),
        ("file:a\0b", "bad_path", ""),
        ("p2pmem", "missing_argument", "p2pmem:0000:01:00.0"),
        ("p2pmem:nvme0", "bad_pci_address", "lspci -D"),
        ("bar:01:00.0", "missing_argument", "bar:01:00.0/0"),
        ("bar:01:00.0/6", "bad_bar", "bar:01:00.0/0"),
        ("bar:oops/0", "bad_pci_address", "lspci -D"),
        ("dmaheap:../x", "bad_value", "dmaheap:system"),
        ("cuda:first", "bad_value", "gpu=0"),
    ],
)
def test_what_does_not_and_what_to_type(text: str, code: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_memory_spec(text)
    assert caught.value.code == code
    assert hint in (caught.value.fix or "")
    assert caught.value.exit_code == 2
    assert caught.value.why and caught.value.fix


def test_the_caller_takes_access_out() -> None:
    kind, arg, options = split_spec("file:/srv/a\\,b,size=1M,access=rw")
    assert options.pop("access") == "rw"
    spec = make_spec(kind, arg, options)
    assert spec == MemorySpec("file", "/srv/a,b", {"size": "1M"}, "file:/srv/a\\,b,size=1M")


def test_size_option() -> None:
    spec = parse_memory_spec("file:x,size=4K")
    assert size_option(spec) == 4096
    assert size_option(spec, "offset") is None


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"kind": "p2pmem", "pci": "0000:01:00.0", "size": "32MiB"}, "p2pmem:0000:01:00.0,size=32MiB"),
        ({"kind": "host", "size": 4096, "numa": 0}, "host,size=4096,numa=0"),
        ({"kind": "file", "path": "/tmp/a,b"}, "file:/tmp/a\\,b"),
        ({"kind": "bar", "pci": "0000:01:00.0", "bar": 2}, "bar:0000:01:00.0/2"),
        ({"kind": "bar", "pci": "0000:01:00.0/2"}, "bar:0000:01:00.0/2"),
        ({"kind": "dmaheap", "heap": "system"}, "dmaheap:system"),
        ({"kind": "cuda", "gpu": 1}, "cuda:1"),
        ({"size": "1M", "kind": "udmabuf"}, "udmabuf,size=1M"),
    ],
)
def test_yaml_maps(mapping: dict[str, object], text: str) -> None:
    assert memory_spec_from_mapping(mapping) == parse_memory_spec(text)


@pytest.mark.parametrize(
    ("mapping", "code", "key"),
    [
        ({}, "missing_kind", None),
        ({"kind": 7}, "missing_kind", "kind"),
        ({"kind": "hots"}, "unknown_kind", "kind"),
        ({"kind": "host", "sze": "1M"}, "unknown_key", "sze"),
        ({"kind": "host", "size": "lots"}, "bad_size", "size"),
        ({"kind": "host", "size": True}, "bad_value", "size"),
        ({"kind": "host", "size": None}, "bad_value", "size"),
        ({"kind": "host", "path": "/x"}, "unknown_key", "path"),
        ({"kind": "file"}, "missing_argument", "path"),
        ({"kind": "p2pmem", "pci": 60.0}, "bad_value", "pci"),
        ({"kind": "p2pmem", "pci": 3600}, "bad_value", "pci"),
        ({"kind": "bar", "pci": "01:00.0"}, "missing_argument", "bar"),
        ({"kind": "bar", "pci": "01:00.0", "bar": 9}, "bad_bar", "bar"),
    ],
)
def test_yaml_errors_name_the_key(mapping: dict[str, object], code: str, key: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        memory_spec_from_mapping(mapping)
    assert (caught.value.code, caught.value.key) == (code, key)


PATHS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1).filter(
    lambda path: path == path.strip()
)


@given(PATHS, st.integers(0, 2**64), st.booleans())
def test_any_path_comes_back(path: str, size: int, with_size: bool) -> None:
    spec = make_spec("file", path, {"size": str(size)} if with_size else {})
    assert parse_memory_spec(spec.text) == spec


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        spec = parse_memory_spec(text)
    except RequestError as error:
        assert error.fix and error.why
        return
    assert spec.kind in MEMORY_KINDS
