"""Files that are wrong: each error has file:line:column and the nearest valid key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.config import resolve
from p2prw.config_yaml import CONFIG_FILE, load_config
from p2prw.errors import HostError, RequestError

# YAML, where in it (line:column), a part of the message or fix, code
WRONG = {
    "unknown section": ("devise: {}\n", "1:1", "did you mean 'device'?", "unknown_key"),
    "unknown key": ("device:\n  tx_depht: 3\n", "2:3", "did you mean 'tx_depth'?", "unknown_key"),
    "key of another map": ("transfer: {listen: h}\n", "1:12", "unknown key 'listen'", "unknown_key"),
    "verify": ("transfer: {verify: no}\n", "1:12", "did you mean 'no_verify'?", "unknown_key"),
    "duplicate": ("device: {mtu: 1024,\n  mtu: 256}\n", "2:3", "'mtu' is given twice", "duplicate_key"),
    "duplicate spelling": ("device: {tx_depth: 1, tx-depth: 2}\n", "1:23", "given twice", "duplicate_key"),
    "duplicate section": ("serve: {}\nserve: {}\n", "2:1", "given twice", "duplicate_key"),
    "list for map": ("device: [a]\n", "1:9", "expected a map of key: value, got a list", "bad_yaml"),
    "value for map": ("serve: yes\n", "1:8", "got a single value", "bad_yaml"),
    "map for value": ("device:\n  mtu: {a: 1}\n", "2:8", "expected one value, got a map", "bad_yaml"),
    "no value": ("device:\n  mtu:\n", "2:7", "has no value", "bad_yaml"),
    "bad mtu": ("device: {mtu: 1500}\n", "1:15", "expected one of 256", "bad_value"),
    "bad size": ("transfer:\n  size: 3Q\n", "2:9", "transfer.size: cannot read '3Q' as a size", "bad_size"),
    "bad flag": ("serve: {once: maybe}\n", "1:15", "serve.once: expected true or false", "bad_value"),
    "bad time": ("serve: {idle_timeout: x}\n", "1:23", "serve.idle_timeout", "bad_duration"),
    "not yaml": ("device: {mtu: [}\n", "1:16", "not YAML", "bad_yaml"),
    "tab": ("device:\n\tmtu: 1024\n", "2:1", "not YAML", "bad_yaml"),
    "two documents": ("device: {}\n---\ndevice: {}\n", "2:1", "not YAML", "bad_yaml"),
    "a list": ("- a\n", "1:1", "the file: expected a map", "bad_yaml"),
    "odd key": ("? [a]\n: 1\n", "1:3", "a key must be a word", "bad_yaml"),
    "kind missing": ("buffers:\n  a: {size: 1M}\n", "2:6", "needs a kind", "missing_kind"),
    "kind unknown": ("buffers:\n  a: {kind: hots}\n", "2:13", "did you mean host?", "unknown_kind"),
    "buffer key": ("buffers: {a: {kind: host, sise: 1M}}\n", "1:33", "did you mean size=?", "unknown_key"),
    "buffer size": ("buffers:\n  a: {kind: host,\n    size: lots}\n", "3:11", "read 'lots' as a size", "bad_size"),
    "buffer spec": ("buffers: {a: 'hots'}\n", "1:14", "no memory kind", "unknown_kind"),
    "buffer list": ("buffers: {a: [1]}\n", "1:14", "expected a memory spec or a map, got a list", "bad_yaml"),
    "buffer name": ("buffers: {'a b': host}\n", "1:11", "is not a region name", "bad_region_name"),
    "region key": ("serve: {regions: {a: {bufer: b}}}\n", "1:23", "did you mean 'buffer'?", "unknown_key"),
    "region empty": ("serve: {regions: {a: {access: r}}}\n", "1:22", "expected one of buffer or memory", "bad_yaml"),
    "region access": ("serve: {regions: {a: {buffer: b, access: x}}}\n", "1:42", "access 'x'", "bad_access"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_file(tmp_path, name):
    text, place, words, code = WRONG[name]
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        load_config(str(path))
    error = caught.value
    assert error.what.startswith(f"{path}:{place}: "), error.what
    assert words in str(error)
    assert error.code == code


def test_values_stay_as_written(tmp_path):
    path = tmp_path / "f.yaml"
    # YAML 1.1 would make a base-60 number of the address and an octal one of the size.
    path.write_text("buffers:\n  a: {kind: p2pmem, pci: 0000:01:00.0, size: 0100}\n")
    spec = load_config(str(path)).buffers["a"]
    assert (spec.arg, spec.options["size"]) == ("0000:01:00.0", "0100")


def test_what_has_commas_may_be_a_list(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("device: {cpu: [0, 2-3]}\nbench: {sizes: [4K, 1M]}\nserve: {allow: [10.0.0.0/8]}\n")
    settings = resolve("bench", {"config": str(path)}, {})
    assert (settings["cpu"], settings["sizes"]) == ((0, 2, 3), (4096, 1 << 20))
    assert settings.origin("sizes").endswith("f.yaml:2:16")
    assert resolve("serve", {"config": str(path)}, {})["allow"] == ("10.0.0.0/8",)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("bench: {sizes: []}", "1:16: bench.sizes: expected one value, got a list"),
        ("bench: {sizes: [4K, [1]]}", "1:21: bench.sizes: expected one value, got a list"),
        ("bench: {sizes: [4K, 9Q]}", "1:16: bench.sizes: "),
        ("bench: {qp: [1, 2]}", "1:13: bench.qp: expected one value, got a list"),
    ],
)
def test_a_list_that_is_none_is_placed(tmp_path, text, where):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        resolve("bench", {"config": str(path)}, {})
    assert where in caught.value.what


def test_hyphens_are_taken_in_keys(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("device: {tx-depth: 3}\n")
    assert resolve("write", {"config": str(path)}, {})["tx_depth"] == 3


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
def test_an_empty_file_says_nothing(tmp_path, text):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    assert resolve("write", {"config": str(path)}, {}).origin("mtu") == "default"


def test_scenarios_are_for_run(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("device: {}\nsteps:\n  - write: a\n")
    with pytest.raises(RequestError, match=r"f\.yaml:2:1: this is a scenario, which `p2prw run` reads"):
        resolve("write", {"config": str(path)}, {})


def test_no_tag_makes_an_object(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("device: {name: !!python/object/apply:os.system ['touch x']}\n")
    with pytest.raises(RequestError, match="expected one value, got a list"):
        load_config(str(path))


def test_missing_file_and_long_file(tmp_path):
    with pytest.raises(HostError) as caught:
        load_config(str(tmp_path / "none.yaml"))
    assert caught.value.errno == "ENOENT"
    path = tmp_path / "long.yaml"
    path.write_text("#" * (CONFIG_FILE.most_bytes + 1))
    with pytest.raises(RequestError, match="longer than"):
        load_config(str(path))


@given(st.one_of(st.binary(max_size=60), st.text(alphabet="adevictrnsfbu:{}[],&*!|>'\" \n-0", max_size=60)))
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        load_config(str(path))
    except RequestError as error:
        assert str(path) in error.what
