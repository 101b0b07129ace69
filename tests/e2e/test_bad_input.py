"""What is wrong at this end: each with its exit code, what to type, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MIB = 1024 * 1024


def test_sources_that_cannot_be_read(scratch, p2prw, tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    target = ("write", f"{scratch.address}/a", "--from")
    for name, code in (("directory", "is_directory"), ("missing.bin", "not_found"), ("dangling", "not_found")):
        error = p2prw(*target, f"file:{name}").failed(3, code)
        assert name in error["what"]
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"x" * 100)
    secret.chmod(0)
    error = p2prw(*target, "file:secret.bin", file_modes_count=True).failed(3, "not_permitted")
    assert error["errno"] == "EACCES"
    (tmp_path / "short.bin").write_bytes(b"x" * 100)
    p2prw(*target, "file:short.bin", "--size", 101).failed(2, "size_does_not_fit")
    p2prw(*target, "file:short.bin,offset=101").failed(3, "source_too_short")


def test_sinks_that_cannot_be_made(scratch, p2prw, tmp_path, parts):
    (tmp_path / "directory").mkdir()
    (tmp_path / "locked").mkdir(0o500)
    target = ("read", f"{scratch.address}/ro", "--to")
    p2prw(*target, "file:directory").failed(3, "is_directory")
    error = p2prw(*target, "file:missing/sink.bin").failed(3, "not_found")
    assert "mkdir -p" in error["try"]
    p2prw(*target, "file:locked/sink.bin", file_modes_count=True).failed(3, "not_permitted")
    old = tmp_path / "old.bin"
    old.write_bytes(b"old")
    error = p2prw(*target, "file:old.bin").failed(3, "exists")
    assert "--overwrite" in error["try"] and old.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "locked", "old.bin"]
    p2prw(*target, "file:old.bin", "--overwrite").ok()
    assert old.stat().st_size == 64 * 1024


def test_not_enough_memory(scratch, p2prw):
    """Said before anything is touched. The software device registers without pinning: memlock has no say here."""
    for words in (
        ("write", f"{scratch.address}/a", "--from", "host,size=1000GiB"),
        ("serve", "--region=a=host,size=1000GiB", "--listen=127.0.0.1:0"),
    ):
        run = p2prw(*words)
        error = run.failed(3, "not_enough_memory")
        assert "size=" in error["try"] and run.wall_s < 10


def test_memlock_has_no_say_on_the_software_device(scratch, p2prw):
    """RLIMIT_MEMLOCK bounds pinned memory; the software device pins none."""
    p2prw("write", f"{scratch.address}/a", "--from", "host,size=1MiB", no_memlock=True).ok()


def test_a_bar_that_the_device_has_not(scratch, p2prw):
    devices = Path("/sys/bus/pci/devices")
    found = sorted(devices.iterdir()) if devices.is_dir() else []
    if not found:
        pytest.skip("this host has no PCI devices")
    address = found[0].name
    missing = next(number for number in range(6) if not (found[0] / f"resource{number}").exists())
    error = p2prw("write", f"{scratch.address}/a", "--from", f"bar:{address}/{missing}")
    told = error.failed(3, "no_bar")
    assert address in told["what"] and str(missing) in told["what"]


@pytest.mark.parametrize("memory", ["bar:0000:ff:1f.7/0", "p2pmem:0000:ff:1f.7,size=4KiB"])
def test_a_device_that_is_not_there(scratch, p2prw, memory):
    error = p2prw("write", f"{scratch.address}/a", "--from", memory).failed(3, "no_device")
    # What was looked for, and where.
    assert "0000:ff:1f.7" in error["what"] and "/sys/bus/pci/devices" in error["what"] + error["why"] + error["try"]


USAGE = [
    (("write", "ADDRESS/a", "--from", "host,size=1MB2"), "bad_size", "64"),
    (("write", "ADDRESS/a", "--from", "host,size=1M", "--size", "lots"), "bad_size", "64"),
    (("write", "ADDRESS/a", "--form", "host,size=1M"), "unknown_option", "--from"),
    (("write", "ADDRESS/a", "--from", "hos,size=1M"), "*", "host"),
    (("write", "ADDRESS/a", "--from", "host,sise=1M"), "*", "size"),
    (("write", "ADDRESS/a"), "*", "--from"),
    (("write", "--from", "host,size=1M"), "*", "PEER/REGION"),
    (("write", "ADDRESS", "--from", "host,size=1M"), "*", "/"),
    (("write", "127.0.0.1:99999/a", "--from", "host,size=1M"), "*", ""),
    (("write", "ADDRESS/a+x", "--from", "host,size=1M"), "*", ""),
    (("write", "ADDRESS/a", "--from", "host,size=1M", "--mtu", 1500), "*", "1024"),
    (("write", "ADDRESS/a", "--from", "host,size=1M", "--inject", "dorp=1%"), "*", "drop"),
    (("write", "ADDRESS/a", "--from", "host,size=1M", "-n", 5), "belongs_to_bench", ""),
    (("write", "ADDRESS/a", "--from", "host,size=1M", "--time-limit", "soon"), "*", ""),
    (("wirte", "ADDRESS/a"), "unknown_command", "write"),
    (("read", "ADDRESS/a", "--from", "host"), "unknown_option", "--to"),
    (("serve", "--region", "a"), "*", "NAME=MEMORY"),
    (("serve",), "*", "--region"),
    (("bench", "ADDRESS"), "*", "/"),
]


def test_usage(scratch, p2prw, tmp_path):
    for first in range(0, len(USAGE), 4):
        some = USAGE[first : first + 4]
        runs = p2prw.together(
            *(tuple(str(word).replace("ADDRESS", scratch.address) for word in words) for words, _, _ in some)
        )
        for run, (_, code, hint) in zip(runs, some, strict=True):
            error = run.failed(2, run.document["error"]["code"] if code == "*" else code)
            assert hint in error["try"] + error["what"], error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("transfer:\n  peer: ADDRESS/a\n  form: host,size=1M\n", "3:3", "from"),
        ("transfer:\n  peer: ADDRESS/a\n  from: host,size=1M\n  size: lots\n", "4:9", "64"),
        ("transfer: [1, 2\n", "2:1", ""),
        ("transfr:\n  peer: ADDRESS/a\n", "1:1", "transfer"),
        ("buffers:\n  one: {kind: host, sice: 1M}\ntransfer: {peer: ADDRESS/a, from: one}\n", "2:", "size"),
        ("transfer: {peer: ADDRESS/a, from: two}\nbuffers:\n  twq: {kind: host, size: 1M}\n", "", "twq"),
    ],
)
def test_bad_yaml(scratch, p2prw, tmp_path, text, place, hint):
    (tmp_path / "job.yaml").write_text(text.replace("ADDRESS", scratch.address))
    run = p2prw("write", "-c", "job.yaml")
    error = run.failed(2, run.document["error"]["code"])
    told = error["what"] + " " + error["why"] + " " + error["try"]
    if place:
        assert f"job.yaml:{place}" in error["what"], error
    assert hint in told, error


def test_missing_yaml(p2prw):
    p2prw("write", "-c", "missing.yaml").failed(3, "config_file", "not_found", "config")


def test_environment_variables_are_named_when_wrong(scratch, p2prw):
    words = ("write", f"{scratch.address}/a", "--from", "host,size=64KiB")
    run = p2prw(*words, env={"P2PRW_TX_DEPTH": "many"})
    assert "P2PRW_TX_DEPTH" in run.failed(2, run.document["error"]["code"])["what"]
    assert p2prw(*words, env={"P2PRW_TX_DEPTH": "7"}).ok().document["params"]["tx_depth"] == 7


def test_a_capture_that_cannot_be_written(scratch, p2prw, still_serves):
    run = p2prw("write", f"{scratch.address}/a", "--from", "host,size=64KiB", "--pcap", "missing/wire.pcap")
    error = run.failed(3, run.document["error"]["code"])
    assert error["errno"] == "ENOENT"
    still_serves(scratch)


def test_a_device_name_that_is_none(scratch, p2prw):
    words = ("write", f"{scratch.address}/a", "--from", "host,size=64KiB", "--device")
    p2prw(*words, "mlx5_99").failed(3, "no_device")
    p2prw(*words, "soft:nosuchdev").failed(3, "no_device")
    p2prw(*words, "soft:192.0.2.77").failed(3, "no_device")


def test_stdout_that_is_closed(scratch, p2prw, tmp_path):
    """A pipe that nobody reads is no reason for a traceback."""
    running = p2prw.start("write", f"{scratch.address}/a", "--from", "host,size=64KiB")
    assert running.process.stdout is not None
    running.process.stdout.close()
    running.process.stdout = open(os.devnull)  # noqa: SIM115
    run = running.finish()
    assert "Traceback" not in run.stderr and run.code in (0, 1, 3, 141), run
