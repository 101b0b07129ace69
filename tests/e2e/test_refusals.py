"""What a server says no to, and that it goes on; what a client is told when there is no server that could."""

from __future__ import annotations

import socket

import pytest

MIB = 1024 * 1024


REFUSED = [
    ("write", "aa", (), "unknown_region", "/a"),
    ("read", "nothing-like-it", (), "unknown_region", "p2prw regions"),
    ("write", "a", ("--size", 4 * MIB + 1), "region_too_small", "--size 4MiB"),
    ("write", "a+100", ("--size", 4 * MIB - 99), "region_too_small", f"--size {4 * MIB - 100}"),
    ("read", "a+4194305", (), "offset_past_end", "less than 4MiB"),
    ("read", "file+1M", ("--size", 1), "region_too_small", "an offset that leaves some of it"),
    ("read", "file+1048577", (), "offset_past_end", "less than 1MiB"),
    ("write", "ro", ("--size", 1), "read_only", "access=rw"),
    ("read", "wo", ("--size", 1), "write_only", "access=rw"),
    ("write", "file", ("--size", 1), "read_only", "access=rw"),
]


def test_server_says_no(scratch, p2prw, tmp_path):
    for first in range(0, len(REFUSED), 4):
        some = REFUSED[first : first + 4]
        memory = {"write": ("--from", "host,size=8MiB"), "read": ("--to", "file:sink.bin")}
        runs = p2prw.together(
            *((verb, f"{scratch.address}/{target}", *memory[verb], *options) for verb, target, options, _, _ in some)
        )
        for run, (_, _, _, code, hint) in zip(runs, some, strict=True):
            error = run.failed(7, code)
            assert error["side"] == "remote" and hint in error["try"], error
            assert run.document["results"] == [] and run.document["partial"] is False
    assert list(tmp_path.iterdir()) == []


def test_after_all_these_refusals_the_server_serves(scratch, p2prw, still_serves):
    p2prw("write", f"{scratch.address}/aa", "--from", "host,size=1").failed(7, "unknown_region")
    still_serves(scratch)
    p2prw("write", f"{scratch.address}/a", "--from", "host,size=64KiB").ok()


def test_direct_is_required_of_both_ends(scratch, p2prw, tmp_path):
    """Host memory is no device memory, so it may be moved by a CPU; a BAR may not."""
    error = p2prw("write", f"{scratch.address}/a", "--from", "bar:0000:ff:1f.7/0", "--require-direct")
    assert error.code == 3


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_server(p2prw, tmp_path, free_port):
    address = f"127.0.0.1:{free_port}"
    for words in (("write", f"{address}/a", "--from", "host,size=1"), ("regions", address)):
        run = p2prw(*words, "--connect-retry", "0.5s")
        error = run.failed(3, "connect_refused")
        assert "p2prw serve" in error["try"] and run.wall_s < 20
    run = p2prw("read", f"127.0.0.1:{free_port}/a", "--to", "file:sink.bin", "--connect-retry", "0.5s")
    run.failed(3, "connect_refused")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_comes_late_is_waited_for(server, p2prw, free_port):
    running = p2prw.start("write", f"127.0.0.1:{free_port}/a", "--from", "host,size=64KiB", "--connect-retry", "20s")
    server("--region=a=host,size=64KiB", listen=f"127.0.0.1:{free_port}")
    running.finish(60).ok()


def test_a_name_that_no_resolver_knows(p2prw):
    run = p2prw("regions", "no-such-host.invalid", "--connect-retry", "0.5s")
    run.failed(3, "resolve_failed")
    assert run.wall_s < 30


def test_port_in_use(scratch, p2prw, tmp_path):
    listen = f"127.0.0.1:{scratch.port}"
    run = p2prw("serve", "--region=a=host,size=64KiB", "--listen", listen, "--ready-file", "ready")
    error = run.failed(3, "port_in_use")
    assert f"sport = :{scratch.port}" in error["try"] and not (tmp_path / "ready").exists()


def test_listen_addresses_that_are_none(p2prw, tmp_path):
    serve = ("serve", "--region=a=host,size=64KiB", "--insecure", "--listen")
    p2prw(*serve, "192.0.2.77:0").failed(3, "bad_listen_address")
    p2prw(*serve, "no-such-host.invalid:0").failed(3, "resolve_failed")
    missing = tmp_path / "missing" / "ready"
    p2prw(*serve, "127.0.0.1:0", "--ready-file", missing).failed(3, "ready_file")


NOT_OFFERED = [
    ("a=file:missing.bin,access=r", 3, ("not_found",)),
    ("a=file:missing/sink.bin,access=w", 3, ("not_found",)),
    ("a=file:.,access=r", 3, ("is_directory",)),
    ("a=bar:0000:ff:1f.7/0", 3, ("no_device",)),
    ("a=host", 2, ("missing_size",)),
    ("a=host,size=64Kibibytes", 2, ("bad_size",)),
    ("a=hist,size=64KiB", 2, ("unknown_memory_kind", "bad_memory", "unknown_kind")),
    ("a b=host,size=64KiB", 2, ("bad_region", "bad_region_name")),
    ("a=host,size=64KiB,access=x", 2, ("bad_access",)),
]


def test_regions_that_cannot_be_offered(p2prw, tmp_path):
    for first in range(0, len(NOT_OFFERED), 4):
        some = NOT_OFFERED[first : first + 4]
        runs = p2prw.together(
            *(("serve", "--region", region, "--listen=127.0.0.1:0", "--ready-file=ready") for region, _, _ in some)
        )
        for run, (_, exit_code, codes) in zip(runs, some, strict=True):
            run.failed(exit_code, *codes)
    assert list(tmp_path.iterdir()) == []
