"""Several clients of one server: side by side, in each other's way, once, and with a token."""

from __future__ import annotations

import time

import pytest

MIB = 1024 * 1024
SLOW = ("--mtu", 256, "--no-gso", "--tx-depth", 4)
"""A transfer that is still on its way when we look."""


def test_four_at_once_on_regions_and_ranges(scratch, p2prw, tmp_path, data):
    places = ["a", "b", f"c+{MIB}", f"c+{3 * MIB}"]
    sent = [data(MIB, 10 + index) for index in range(4)]
    for index, piece in enumerate(sent):
        (tmp_path / f"in{index}.bin").write_bytes(piece)
    writers = [
        p2prw.start("write", f"{scratch.address}/{p}", "--from", f"file:in{i}.bin") for i, p in enumerate(places)
    ]
    for writer in writers:
        writer.finish().ok()
    readers = [
        p2prw.start("read", f"{scratch.address}/{place}", "--to", f"file:out{index}.bin", "--size", MIB)
        for index, place in enumerate(places)
    ]
    for reader in readers:
        reader.finish().ok()
    assert [(tmp_path / f"out{index}.bin").read_bytes() for index in range(4)] == sent


def test_readers_share_a_range(scratch, p2prw):
    readers = [p2prw.start("read", f"{scratch.address}/d", "--to", "host") for _ in range(4)]
    digests = {reader.finish().ok().document["verify"]["local_digest"] for reader in readers}
    assert len(digests) == 1


@pytest.mark.parametrize("memory", ["host,size=256MiB", "file:held.bin"])
def test_busy_is_refused_and_the_holder_goes_on(server, p2prw, memory, still_serves):
    one = server(f"--region=held={memory}", "--region=other=host,size=64KiB")
    holder = p2prw.start("write", f"{one.address}/held", "--from", "host,size=256MiB", *SLOW)
    one.wait_for_line("writes")
    error = p2prw("write", f"{one.address}/held", "--from", "host,size=64KiB").failed(7, "busy")
    assert error["side"] == "remote" and "--shared" in error["try"]
    if memory.startswith("host"):
        p2prw("read", f"{one.address}/held+16", "--to", "host,size=4096").failed(7, "busy")
        rows = p2prw("regions", one.address).ok().document["results"]
        assert {row["name"]: row["busy"] for row in rows} == {"held": True, "other": False}
    # Another region is nobody's business.
    p2prw("write", f"{one.address}/other", "--from", "host,size=64KiB").ok()
    holder.interrupt().interrupted()
    still_serves(one)
    p2prw("write", f"{one.address}/held", "--from", "host,size=64KiB").ok()


def test_shared_on_both_sides_is_unverified(server, p2prw):
    one = server("--region=held=host,size=256MiB")
    target = f"{one.address}/held"
    holder = p2prw.start("write", target, "--from", "host,size=256MiB", "--shared", *SLOW)
    one.wait_for_line("writes")
    run = p2prw("write", target, "--from", "host,size=64KiB", "--shared")
    assert run.code == 0 and run.document["verify"]["status"] == "unverified"
    assert "shared" in run.document["verify"]["why"]
    text = p2prw("write", target, "--from", "host,size=64KiB", "--shared", json=False)
    assert text.code == 0 and "unverified" in text.stdout and "shared" in text.stdout
    # Who did not agree to share is not made to.
    p2prw("write", target, "--from", "host,size=64KiB").failed(7, "busy")
    holder.interrupt().interrupted()


def test_once_ends_with_the_clients_code(server, p2prw):
    one = server("--region=a=host,size=64KiB", "--once")
    p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB").ok()
    assert one.join() == 0, one.log()


def test_once_ends_with_a_refused_clients_code(server, p2prw):
    one = server("--region=a=host,size=64KiB,access=r", "--once", "--json")
    one.may_fail = True
    p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB").failed(7, "read_only")
    assert one.join() == 7, one.log()
    assert '"exit_code": 7' in one.stdout


def test_once_outlives_a_stranger(server, p2prw, tmp_path):
    import socket

    one = server("--region=a=host,size=64KiB", "--once")
    with socket.create_connection((one.host, one.port), 10) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert stranger.recv(4096).startswith(b"p2prw")
    p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB").ok()
    assert one.join() == 0, one.log()


def test_ready_file_is_one_line(server):
    one = server("--region=a=host,size=64KiB")
    assert one.address.startswith("127.0.0.1:") and "\n" not in one.address and one.port > 0


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("correct horse battery staple\n")
    path.chmod(0o600)
    return path


def test_tokens(server, p2prw, tmp_path, token, still_serves):
    one = server("--region=a=host,size=64KiB", f"--token-file={token}")
    p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB", "--token-file", token).ok()
    rows = p2prw("regions", one.address, "--token-file", token).ok().document["results"]
    assert [row["name"] for row in rows] == ["a"]
    wrong = tmp_path / "wrong"
    wrong.write_text("incorrect horse\n")
    wrong.chmod(0o600)
    p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB", "--token-file", wrong).failed(7, "auth_failed")
    error = p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB").failed(7, "auth_required")
    assert "--token-file" in error["try"]
    p2prw("regions", one.address).failed(7, "auth_required")
    secret = token.read_text().strip()
    assert secret not in one.log()
    shown = p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB", "--token-file", token, "--debug")
    assert secret not in shown.stdout and secret not in shown.stderr


def test_a_client_with_a_token_insists_on_it(scratch, p2prw, token):
    p2prw("write", f"{scratch.address}/a", "--from", "host,size=64KiB", "--token-file", token).failed(
        7, "auth_not_used"
    )


def test_token_files_that_are_none(scratch, p2prw, tmp_path, token):
    target = ("write", f"{scratch.address}/a", "--from", "host,size=64KiB", "--token-file")
    token.chmod(0o640)
    error = p2prw(*target, token).failed(3, "token_file_mode")
    assert f"chmod 600 {token}" in error["try"]
    serve = ("serve", "--region=a=host,size=64KiB", "--listen=127.0.0.1:0", "--token-file")
    p2prw(*serve, token).failed(3, "token_file_mode")
    p2prw(*target, tmp_path / "missing").failed(3, "token_file")
    empty = tmp_path / "empty"
    empty.touch(0o600)
    p2prw(*target, empty).failed(3, "token_file_empty")


def test_listening_beyond_loopback_needs_a_token(p2prw):
    started = time.monotonic()
    error = p2prw("serve", "--region=a=host,size=64KiB", "--listen=0.0.0.0:0").failed(2, "needs_token")
    assert "--insecure" in error["try"] and time.monotonic() - started < 10


def test_one_client_too_many(server, p2prw):
    one = server("--region=a=host,size=256MiB", "--region=b=host,size=64KiB", "--max-clients", 1)
    first = p2prw.start("write", f"{one.address}/a", "--from", "host,size=256MiB", *SLOW)
    one.wait_for_line("writes")
    error = p2prw("write", f"{one.address}/b", "--from", "host,size=64KiB").failed(7, "too_many_clients")
    assert "--max-clients" in error["try"]
    first.interrupt().interrupted()
    p2prw("write", f"{one.address}/b", "--from", "host,size=64KiB").ok()
