"""The resolver: default, file, environment, line; and the shipped files."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2prw.config import resolve, unknown_variable_notes
from p2prw.config_requests import is_loopback, serve_request, transfer_request
from p2prw.config_settings import SETTINGS, file_section, settings_of
from p2prw.config_values import flag, nearest
from p2prw.engine.control.token_file import MAX_TOKEN_BYTES, load_token_file
from p2prw.errors import HostError, RequestError
from p2prw.targets import parse_host, parse_target, split_region

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SCENARIOS = [path for path in CONFIGS if "\nsteps:" in path.read_text(encoding="utf-8")]
"""What `p2prw run` reads; tests/test_configs.py runs them."""


def test_each_layer_wins_over_the_one_before(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("device:\n  tx_depth: 2\n")
    line = {"config": str(path)}
    environ = {"P2PRW_TX_DEPTH": "3"}
    found = [
        resolve("write", {}, {}).values["tx_depth"],
        resolve("write", line, {}).values["tx_depth"],
        resolve("write", line, environ).values["tx_depth"],
        resolve("write", {**line, "tx_depth": "4"}, environ).values["tx_depth"],
    ]
    assert [value.value for value in found] == [128, 2, 3, 4]
    assert [value.origin for value in found] == [
        "default",
        f"file {path}:2:13",
        "environment P2PRW_TX_DEPTH",
        "command line",
    ]


def test_config_file_may_come_from_the_environment(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("transfer: {size: 1K}\n")
    assert resolve("read", {}, {"P2PRW_CONFIG": str(path)})["size"] == 1024


def test_an_empty_variable_is_unset():
    assert resolve("write", {}, {"P2PRW_MTU": ""}).origin("mtu") == "default"


@pytest.mark.parametrize(("text", "wanted"), [("1", True), ("No", False), ("on", True), ("false", False)])
def test_flags_of_the_environment(text, wanted):
    assert resolve("write", {}, {"P2PRW_OVERWRITE": text})["overwrite"] is wanted


def test_the_line_takes_a_flag_back(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("transfer: {overwrite: yes, no_verify: true}\n")
    line = {"config": str(path), "overwrite": False, "no_verify": False}
    settings = resolve("write", line, {})
    assert (settings["overwrite"], settings["no_verify"]) == (False, False)


def test_serve_and_transfer_have_their_own_words(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("serve: {idle_timeout: 1s}\ntransfer: {idle_timeout: 2s}\n")
    line = {"config": str(path)}
    assert resolve("serve", line, {})["idle_timeout"] == 1.0
    assert resolve("write", line, {})["idle_timeout"] == 2.0
    assert resolve("regions", line, {})["idle_timeout"] == 2.0


@pytest.mark.parametrize("command", ["serve", "write", "read", "regions", "devices", "version"])
def test_defaults_are_values_their_own_parsers_accept(command):
    settings = resolve(command, {}, {})
    for setting in settings_of(command):
        value = settings[setting.name]
        if value is not None and not setting.multiple:
            assert setting.parse(str(value), setting.name) == value


def test_names_variables_and_options_are_unique():
    names = [setting.name for setting in SETTINGS]
    assert len(names) == len(set(names)), "one name, one variable"
    for command in {command for setting in SETTINGS for command in setting.commands}:
        settings = settings_of(command)
        options = [spelling for setting in settings for spelling in (setting.option, *setting.spellings)]
        assert len(options) == len(set(options)), command
    for section in ("device", "serve", "transfer"):
        words = [setting.word for setting in SETTINGS if section in setting.sections]
        assert len(words) == len(set(words))


def test_file_section_is_the_commands_own():
    by_name = {setting.name: setting for setting in SETTINGS}
    assert file_section("serve", by_name["staging"]) == "serve"
    assert file_section("read", by_name["staging"]) == "transfer"
    assert file_section("read", by_name["json"]) is None


def test_bad_value_names_its_layer():
    with pytest.raises(RequestError, match=r"^P2PRW_SL: "):
        resolve("write", {}, {"P2PRW_SL": "16"})
    with pytest.raises(RequestError, match=r"^--sl: "):
        resolve("write", {"sl": "16"}, {})


def test_notes_only_about_near_misses():
    assert unknown_variable_notes(["P2PRW_TOKEN_FIEL", "P2PRW_LAB_KERNEL"]) == [
        "P2PRW_TOKEN_FIEL names no setting; did you mean P2PRW_TOKEN_FILE?"
    ]


def test_buffers_are_names_for_memory_on_every_layer(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("buffers: {a: 'host,size=1M', b: {kind: host, size: 2M}}\ntransfer: {peer: h/x, from: a}\n")
    line = {"config": str(path)}
    assert transfer_request(resolve("write", line, {}), None).memory.options == {"size": "1M"}
    assert transfer_request(resolve("write", line, {"P2PRW_FROM": "b"}), None).memory.options == {"size": "2M"}
    request = transfer_request(resolve("write", {**line, "from": "host,size=3M"}, {}), "k:9/y")
    assert (request.memory.options, str(request.peer), request.region) == ({"size": "3M"}, "k:9", "y")


def test_regions_of_the_line_replace_those_of_the_file(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(
        "buffers: {big: {kind: host, size: 2M}}\n"
        "serve:\n  regions:\n    a: {buffer: big, access: r}\n    b: 'host,size=1M,access=w'\n    c: big\n"
    )
    line = {"config": str(path)}
    regions = serve_request(resolve("serve", line, {})).regions
    assert [(r.name, r.access, r.memory.options["size"]) for r in regions] == [
        ("a", "r", "2M"),
        ("b", "w", "1M"),
        ("c", "rw", "2M"),
    ]
    regions = serve_request(resolve("serve", {**line, "region": ("d=big,access=w",)}, {})).regions
    assert [(r.name, r.access, r.memory.options["size"]) for r in regions] == [("d", "w", "2M")]


def test_bad_memory_of_the_file_has_its_place(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("transfer:\n  peer: h/x\n  from: hots\n")
    with pytest.raises(RequestError, match=r"f\.yaml:3:9: "):
        transfer_request(resolve("write", {"config": str(path)}, {}), None)


# --- words ---


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("h", "h", None), ("h:1", "h", 1), ("[::1]", "::1", None), ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535)],
)
def test_hosts(text, host, port):
    parsed = parse_host(text)
    assert (parsed.host, parsed.port) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":1", "h:", "h:0", "h:65536", "h:-1", "h:1x", "::1", "[h]:1", "[::1", "a b", "h:\u0661"]
)
def test_bad_hosts(text):
    with pytest.raises(RequestError) as caught:
        parse_host(text)
    assert caught.value.fix


def test_targets():
    target = parse_target("[::1]:5/a+0x10")
    assert (target.peer.host, target.peer.port, target.region, target.offset_bytes) == ("::1", 5, "a", 16)
    for bad in ("h", "h/", "/x", "h/a/b", "h/a+", "h/a+-1", "h/" + "a" * 65):
        with pytest.raises(RequestError):
            parse_target(bad)


def test_region_words():
    assert split_region("a=file:/b=c") == ("a", "file:/b=c")
    for bad in ("", "a", "a=", "=host", "a b=host", "host,size=1M"):
        with pytest.raises(RequestError):
            split_region(bad)


def test_loopback_does_not_look_names_up():
    assert [is_loopback(h) for h in ("localhost", "127.8.8.8", "::1", "0.0.0.0", "::", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_flag_words():
    with pytest.raises(RequestError):
        flag("maybe", "--x")


def test_nearest_says_nothing_rather_than_something_far():
    assert nearest("zzz", ["tx_depth"]) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * (MAX_TOKEN_BYTES + 1)])
def test_bad_tokens(tmp_path, content):
    path = tmp_path / "t"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(HostError):
        load_token_file(str(path))


def test_missing_token_keeps_errno(tmp_path):
    with pytest.raises(HostError) as caught:
        load_token_file(str(tmp_path / "none"))
    assert caught.value.errno == "ENOENT"


# --- shipped files ---


def test_there_are_shipped_files():
    assert {path.stem for path in CONFIGS} >= {
        "loopback",
        "file_to_server",
        "cmb_to_remote",
        "fpga_bar",
        "two_hosts_soft",
    }


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in SCENARIOS], ids=lambda path: path.stem)
def test_shipped_file_runs_from_the_file_alone(path, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    monkeypatch.chdir(tmp_path)
    line = {"config": str(path)}
    served = serve_request(resolve("serve", line, {}))
    write = transfer_request(resolve("write", line, {}), None)
    assert write.region in [region.name for region in served.regions]
    assert (write.peer, write.token) == (served.listen, served.token)
    if "\n  to: " in path.read_text():
        assert transfer_request(resolve("read", line, {}), None).region == write.region


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_file_opens_with_purpose_needs_and_result(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert head[0].startswith("# Purpose: ")
    for word in ("Needs:", "Run:", "Expect:"):
        assert any(line.startswith(f"# {word}") for line in head), word
