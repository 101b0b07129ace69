"""Bytes there and back between processes, at the sizes and offsets where off-by-ones live."""

from __future__ import annotations

import json
import os
import socket

import pytest

MIB = 1024 * 1024
SIZES = [0, 1, 3, 4095, 4096, 4097, MIB - 1, MIB + 1]
FOURS = (SIZES[:4], SIZES[4:])


def test_file_to_host_region_and_back(scratch, p2prw, tmp_path, data):
    sent = {size: data(size, size) for size in SIZES}
    for sizes in FOURS:
        for size in sizes:
            (tmp_path / f"in{size}.bin").write_bytes(sent[size])
        places = list(zip(sizes, "abcd", strict=True))
        wrote = p2prw.together(*(("write", f"{scratch.address}/{r}+5", "--from", f"file:in{n}.bin") for n, r in places))
        for run, size in zip(wrote, sizes, strict=True):
            assert run.ok().row["bytes"] == run.row["size_bytes"] == size
            assert run.document["route"]["local"]["staged"] is True
        for run in p2prw.together(
            *(("read", f"{scratch.address}/{r}+5", "--to", f"file:out{n}.bin", "--size", n) for n, r in places),
            # Half of it comes back alone.
            *(
                ("read", f"{scratch.address}/{r}+{5 + n // 2}", "--to", f"file:half{n}.bin", "--size", n - n // 2)
                for n, r in places
            ),
        ):
            run.ok()
        for size in sizes:
            assert (tmp_path / f"out{size}.bin").read_bytes() == sent[size]
            assert (tmp_path / f"half{size}.bin").read_bytes() == sent[size][size // 2 :]


def test_file_to_file_and_back(server, p2prw, tmp_path, data):
    one = server(*(f"--region=store{size}=file:{tmp_path}/store{size}.bin" for size in SIZES))
    sent = {size: data(size, size) for size in SIZES}
    for sizes in FOURS:
        for size in sizes:
            (tmp_path / f"in{size}.bin").write_bytes(sent[size])
        for run in p2prw.together(
            *(("write", f"{one.address}/store{size}", "--from", f"file:in{size}.bin") for size in sizes)
        ):
            run.ok()
        for run in p2prw.together(
            *(("read", f"{one.address}/store{size}", "--to", f"file:back{size}.bin") for size in sizes)
        ):
            run.ok()
        for size in sizes:
            assert (tmp_path / f"store{size}.bin").read_bytes() == sent[size]
            assert (tmp_path / f"back{size}.bin").read_bytes() == sent[size]


def test_host_to_host(scratch, p2prw):
    for sizes in FOURS:
        places = [
            (size, f"{scratch.address}/{region}+{3 if size % 2 else 64}")
            for size, region in zip(sizes, "abcd", strict=True)
        ]
        wrote = p2prw.together(
            *(
                ("write", place, "--from", f"host,size={max(size, 1)},pattern=words:7", "--size", size)
                for size, place in places
            )
        )
        read = p2prw.together(*(("read", place, "--to", "host", "--size", size) for size, place in places))
        for one, other, size in zip(wrote, read, sizes, strict=True):
            assert one.ok().row["bytes"] == other.ok().row["bytes"] == size
            assert one.document["verify"]["remote_digest"] == other.document["verify"]["local_digest"]


def test_unaligned_ranges_of_a_file_region(server, p2prw, tmp_path, data):
    old = data(2 * MIB + 5, 1)
    new = data(MIB + 1, 2)
    (tmp_path / "store.bin").write_bytes(old)
    (tmp_path / "in.bin").write_bytes(b"#" * 9 + new + b"#")
    one = server(f"--region=store=file:{tmp_path}/store.bin")
    p2prw("write", f"{one.address}/store+4097", "--from", f"file:in.bin,offset=9,size={len(new)}").ok()
    expected = old[:4097] + new + old[4097 + len(new) :]
    assert (tmp_path / "store.bin").read_bytes() == expected
    p2prw("read", f"{one.address}/store+4095", "--to", "file:back.bin", "--size", MIB + 7).ok()
    assert (tmp_path / "back.bin").read_bytes() == expected[4095 : 4095 + MIB + 7]


def test_size_defaults_to_the_smaller_side(scratch, p2prw, tmp_path, data):
    (tmp_path / "in.bin").write_bytes(data(100, 1))
    assert p2prw("write", f"{scratch.address}/a", "--from", "file:in.bin").ok().row["bytes"] == 100
    assert p2prw("read", f"{scratch.address}/ro+100", "--to", "host").ok().row["bytes"] == 64 * 1024 - 100
    text = p2prw("write", f"{scratch.address}/a", "--from", "file:in.bin", json=False)
    assert text.code == 0 and "100 B" in text.stdout, text


@pytest.mark.parametrize("options", [("--no-gso",), ("--mtu", 1024), ("--mtu", 256, "--no-gso"), ("--chunk", "64K")])
def test_options_of_the_wire(scratch, p2prw, tmp_path, data, options):
    sent = data(MIB + 3, 9)
    (tmp_path / "in.bin").write_bytes(sent)
    wrote = p2prw("write", f"{scratch.address}/c+1", "--from", "file:in.bin", *options).ok()
    if "--mtu" in options:
        assert wrote.document["environment"]["negotiated"]["path_mtu_bytes"] == options[1]
    p2prw("read", f"{scratch.address}/c+1", "--to", "file:out.bin", "--size", len(sent), *options).ok()
    assert (tmp_path / "out.bin").read_bytes() == sent


@pytest.mark.parametrize("seed", [1, 2])
def test_lost_doubled_and_reordered_packets_are_repaired(scratch, p2prw, tmp_path, data, seed):
    sent = data(4 * MIB, seed)
    (tmp_path / "in.bin").write_bytes(sent)
    faults = f"drop=2%,dup=1%,reorder=2%,seed={seed}"
    wrote = p2prw("write", f"{scratch.address}/d", "--from", "file:in.bin", "--inject", faults).ok()
    assert wrote.row["retransmitted_packets"] > 0
    assert wrote.document["params"]["inject"] == faults
    read = p2prw("read", f"{scratch.address}/d", "--to", "file:out.bin", "--inject", faults).ok()
    assert (tmp_path / "out.bin").read_bytes() == sent
    assert read.row["retransmitted_packets"] > 0


def test_faults_at_the_server(server, p2prw, tmp_path, data):
    sent = data(4 * MIB, 3)
    (tmp_path / "in.bin").write_bytes(sent)
    one = server("--region=a=host,size=4MiB", "--inject=drop=2%,dup=1%,reorder=2%,corrupt=1%,seed=3")
    p2prw("write", f"{one.address}/a", "--from", "file:in.bin").ok()
    p2prw("read", f"{one.address}/a", "--to", "file:out.bin").ok()
    assert (tmp_path / "out.bin").read_bytes() == sent


def test_capture_is_written_and_holds_the_transfer(scratch, p2prw, tmp_path):
    p2prw("write", f"{scratch.address}/a", "--from", "host,size=64KiB", "--pcap", "wire.pcap").ok()
    capture = (tmp_path / "wire.pcap").read_bytes()
    assert capture[:4] in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"M<\xb2\xa1", b"\x0a\x0d\x0d\x0a")
    assert len(capture) > 64 * 1024


@pytest.fixture
def ipv6_loopback() -> str:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this host has no ::1: {error}")
    return "[::1]:0"


def test_ipv6(server, p2prw, tmp_path, data, ipv6_loopback):
    sent = data(MIB + 1, 6)
    (tmp_path / "in.bin").write_bytes(sent)
    one = server("--region=a=host,size=4MiB", listen=ipv6_loopback)
    assert one.address.startswith("[::1]:")
    wrote = p2prw("write", f"{one.address}/a+1", "--from", "file:in.bin").ok()
    assert ":" in wrote.document["environment"]["device"]["address"]
    p2prw("read", f"{one.address}/a+1", "--to", "file:out.bin", "--size", len(sent)).ok()
    assert (tmp_path / "out.bin").read_bytes() == sent


def test_device_names(scratch, p2prw):
    for name in ("soft0", "soft:127.0.0.1", "soft:127.9.8.7", "soft:lo"):
        document = p2prw("write", f"{scratch.address}/a", "--from", "host,size=4097", "--device", name).ok().document
        assert document["environment"]["device"]["name"] == name
        assert name in document["environment"]["device"]["reason"]


def test_two_servers_on_one_address(server, p2prw):
    """The second one finds UDP port 4791 taken, takes another and says so; clients are told the port."""
    servers = [server("--region=a=host,size=64KiB") for _ in range(2)]
    for one in servers:
        p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB").ok()
    assert "4791" in servers[1].log(), servers[1].log()


def test_a_name_to_listen_on(server, p2prw):
    one = server("--region=a=host,size=64KiB", listen="localhost:0")
    assert one.address.startswith("localhost:")
    p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB").ok()
    p2prw("write", f"127.0.0.1:{one.port}/a", "--from", "host,size=64KiB").ok()


def test_one_file_for_both_sides(server, p2prw, tmp_path):
    job = """
device: {name: soft0, tx_depth: 16}
buffers:
  store: {kind: host, size: 1MiB}
  words: {kind: host, size: 1MiB, pattern: "words:5"}
serve: {regions: {store: {buffer: store, access: rw}}}
transfer: {peer: "PEER/store", from: words, to: store}
"""
    (tmp_path / "serve.yaml").write_text(job)
    one = server("-c", "serve.yaml")
    (tmp_path / "job.yaml").write_text(job.replace("PEER", one.address))
    wrote = p2prw("write", "-c", "job.yaml").ok()
    assert wrote.row["bytes"] == MIB and wrote.document["params"]["tx_depth"] == 16
    read = p2prw("read", "-c", "job.yaml", "--size", "4097").ok()
    assert read.row["bytes"] == 4097
    shown = p2prw("write", "-c", "job.yaml", "--show-config", json=False)
    assert shown.code == 0 and "job.yaml" in shown.stdout


def test_dry_run_posts_nothing(scratch, p2prw, tmp_path, data):
    before = p2prw("read", f"{scratch.address}/b", "--to", "host").ok().document["verify"]["remote_digest"]
    (tmp_path / "in.bin").write_bytes(data(2 * MIB, 8))
    run = p2prw("write", f"{scratch.address}/b", "--from", "file:in.bin", "--dry-run", "--pcap", "wire.pcap")
    document = run.document
    assert run.code == 0 and document["status"] == "planned" and document["plan"]["transfer_bytes"] == 2 * MIB
    assert document["verify"]["status"] == "unverified" and document["results"] == []
    assert (tmp_path / "wire.pcap").stat().st_size < 100
    read = p2prw("read", f"{scratch.address}/b", "--to", "file:out.bin", "--dry-run")
    assert read.code == 0 and read.document["status"] == "planned"
    assert not (tmp_path / "out.bin").exists()
    after = p2prw("read", f"{scratch.address}/b", "--to", "host").ok().document["verify"]["remote_digest"]
    assert after == before
    text = p2prw("write", f"{scratch.address}/b", "--from", "file:in.bin", "--dry-run", json=False)
    assert text.code == 0 and "WR" in text.stdout


def test_unverified_is_said(scratch, p2prw):
    run = p2prw("write", f"{scratch.address}/a", "--from", "host,size=64KiB", "--no-verify")
    assert run.code == 0 and run.document["verify"]["status"] == "unverified"
    assert run.document["verify"]["local_digest"] is None
    text = p2prw("write", f"{scratch.address}/a", "--from", "host,size=64KiB", "--no-verify", json=False)
    assert "unverified" in text.stdout


def test_write_only_region_takes_bytes_and_verifies(scratch, p2prw):
    p2prw("write", f"{scratch.address}/wo+3", "--from", "host,size=4097,pattern=words:1").ok()


def test_stdout_is_the_result_and_nothing_else(scratch, p2prw):
    run = p2prw("write", f"{scratch.address}/a", "--from", "host,size=1MiB", json=False)
    assert run.code == 0 and "verified" in run.stdout and "\x1b" not in run.stdout
    quiet = p2prw("write", f"{scratch.address}/a", "--from", "host,size=1MiB", "--quiet")
    assert quiet.ok() and quiet.stderr == ""
    stream = p2prw("write", f"{scratch.address}/a", "--from", "host,size=4MiB", "--json-stream", json=False)
    events = [json.loads(line) for line in stream.stdout.splitlines()]
    assert stream.code == 0 and events[-1]["result"]["status"] == "ok"
    assert [event["event"] for event in events].count("result") == 1


def test_regions_lists_what_is_offered(scratch, p2prw):
    rows = {row["name"]: row for row in p2prw("regions", scratch.address).ok().document["results"]}
    assert set(rows) == {"a", "b", "c", "d", "ro", "wo", "file"}
    assert rows["a"]["size_bytes"] == 4 * MIB and rows["a"]["access"] == "rw" and not rows["a"]["busy"]
    assert rows["ro"]["access"] == "r" and rows["wo"]["access"] == "w" and rows["file"]["staged"]
    text = p2prw("regions", scratch.address, json=False)
    assert text.code == 0 and "ro" in text.stdout


def test_environment_names_the_real_device(scratch, p2prw):
    """`--device auto` is a question; the result has the answer."""
    document = p2prw("write", f"{scratch.address}/a", "--from", "host,size=1").ok().document
    assert document["environment"]["device"]["name"].startswith("soft")
    assert document["route"]["local"]["device"].startswith("soft")
    assert document["route"]["remote"]["device"].startswith("soft")
    assert document["route"]["local"]["mover"] == "cpu" and not document["route"]["local"]["peer_to_peer"]


def test_a_sink_keeps_mode_and_link(scratch, p2prw, tmp_path):
    target = tmp_path / "real.bin"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "link.bin").symlink_to("real.bin")
    p2prw("read", f"{scratch.address}/ro", "--to", "file:link.bin", "--overwrite").ok()
    assert (tmp_path / "link.bin").is_symlink() and target.stat().st_size == 64 * 1024
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path).count("real.bin") == 1
