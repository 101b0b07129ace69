"""Whoever else is on the port: programs that are no p2prw, other releases, and peers that break the rules."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import PROTOCOL_VERSION, Hello, Open, QueuePairInfo, Refuse

NONCE = "0" * 64
GID = "00000000000000000000ffff7f000001"
QUEUE_PAIR = QueuePairInfo(17, 1, GID, 1024, 16, 16)


@contextmanager
def fake_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that listens and is no server of ours; `answer` gets each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            try:
                answer(connection)
            except OSError:
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        host, port = listener.getsockname()
        yield f"{host}:{port}"
    finally:
        # shutdown() wakes accept(); close() alone would not.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)
        for connection in kept:
            connection.close()


def http(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    connection.close()


def garbage(connection: socket.socket) -> None:
    connection.sendall(os.urandom(4096))


def banner(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def hang_up(connection: socket.socket) -> None:
    connection.close()


def not_json(connection: socket.socket) -> None:
    connection.sendall(struct.pack(">I", 5) + b"hello")


@pytest.mark.parametrize("answer", [http, garbage, banner, not_json])
def test_a_server_that_is_no_p2prw(p2prw, tmp_path, answer):
    with fake_server(answer) as address:
        for words in (("read", f"{address}/a", "--to", "file:sink.bin"), ("regions", address)):
            run = p2prw(*words, "--handshake-timeout", "5s")
            error = run.failed(7, run.document["error"]["code"])
            assert error["side"] == "remote" and run.wall_s < 20
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_hangs_up(p2prw):
    with fake_server(hang_up) as address:
        run = p2prw("write", f"{address}/a", "--from", "host,size=64KiB")
        run.failed(1, "peer_lost")
        assert run.wall_s < 20


def test_a_server_that_says_nothing(p2prw, tmp_path):
    with fake_server(lambda connection: None) as address:
        for words in (("read", f"{address}/a", "--to", "file:sink.bin"), ("regions", address)):
            run = p2prw(*words, "--handshake-timeout", "1s")
            error = run.failed(1, "deadline")
            assert "handshake" in error["what"] and run.wall_s < 20
    assert list(tmp_path.iterdir()) == []


def test_a_server_of_another_release(p2prw):
    def answer(connection: socket.socket) -> None:
        channel = Channel(connection)
        channel.expect(Hello, deadline_s=30, name="hello")
        channel.send(Hello(version=999, nonce=NONCE, auth="none"))

    with fake_server(answer) as address:
        run = p2prw("write", f"{address}/a", "--from", "host,size=64KiB")
        error = run.failed(7, "version_mismatch")
        assert "999" in error["what"] and "install" in error["try"]


def test_a_server_that_refuses_in_colours(p2prw):
    """Words of a peer are shown without what could drive a terminal."""

    def answer(connection: socket.socket) -> None:
        channel = Channel(connection)
        channel.expect(Hello, deadline_s=30, name="hello")
        channel.send(Refuse("odd_reason", "no\x1b[2J\x07 way", "be\rcause", "rm -rf\n/"))

    with fake_server(answer) as address:
        run = p2prw("write", f"{address}/a", "--from", "host,size=64KiB", json=False)
        assert run.code == 7 and "way" in run.stderr
        assert not {"\x1b", "\x07", "\r"} & set(run.stderr + run.stdout)


def line_of(one, data: bytes) -> bytes:
    """What the server says to `data` until it closes."""
    with closing(socket.create_connection((one.host, one.port), 10)) as stranger:
        stranger.sendall(data)
        heard = b""
        try:
            while more := stranger.recv(4096):
                heard += more
        except ConnectionResetError:
            # Our unread bytes were thrown away with the connection; what it said came before.
            pass
        return heard


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 64,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        # perftest's exchange begins with hexadecimal text.
        b"0000:0000:000000:000000:00000000:0000000000000000:00000000000000000000ffff7f000001\0",
        struct.pack(">I", 7) + b"not {}!",
        struct.pack(">I", 0),
        b"\0\0\xff\xff",
    ],
)
def test_a_stranger_gets_one_plain_line(server, still_serves, data):
    one = server("--region=a=host,size=64KiB", "--handshake-timeout", "1s")
    heard = line_of(one, data)
    if data == b"\0\0\xff\xff":
        # A frame announced and never sent: dropped at the deadline.
        one.wait_for_line("the handshake was not done")
    else:
        assert heard.startswith(b"p2prw: ") and heard.endswith(b"\r\n") and heard.count(b"\n") == 1, heard
    still_serves(one)


def test_half_open_connections_hold_nobody_up(server, p2prw, still_serves, until):
    one = server("--region=a=host,size=64KiB", "--handshake-timeout", "1.5s")
    before = one.descriptors()
    idle = [socket.create_connection((one.host, one.port), 10) for _ in range(20)]
    try:
        idle[0].sendall(b"\0\0")
        p2prw("write", f"{one.address}/a", "--from", "host,size=64KiB").ok()
        until(lambda: one.log().count("the handshake was not done") == 20, 30, "the silent ones to be dropped")
    finally:
        for connection in idle:
            connection.close()
    still_serves(one)
    until(lambda: one.descriptors() == before, 30, "their descriptors to be closed")


def test_connections_that_come_and_go(server, still_serves):
    one = server("--region=a=host,size=64KiB")
    for linger in (False, True) * 50:
        connection = socket.create_connection((one.host, one.port), 10)
        if linger:
            # A reset instead of an end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    still_serves(one)


def test_a_client_of_another_release(server, still_serves):
    one = server("--region=a=host,size=64KiB")
    with Channel(socket.create_connection((one.host, one.port), 10)) as channel:
        channel.send(Hello(version=999, nonce=NONCE, auth="none"))
        answer = channel.expect(Refuse, Hello, deadline_s=30, name="an answer")
        assert isinstance(answer, Refuse) and answer.code == "version_mismatch" and "999" in answer.what
    still_serves(one)


@contextmanager
def shaken(one) -> Iterator[Channel]:
    """A client past its handshake."""
    with Channel(socket.create_connection((one.host, one.port), 10)) as channel:
        from p2prw.engine.control.messages import Gid

        channel.send(
            Hello(version=PROTOCOL_VERSION, nonce=NONCE, auth="none", gid_table=(Gid(0, GID, "rocev2"),), udp_port=4791)
        )
        channel.expect(Hello, deadline_s=30, name="hello")
        yield channel


def refusal(channel: Channel) -> str:
    answer = channel.expect(Refuse, deadline_s=30, name="a refusal")
    assert isinstance(answer, Refuse) and answer.what and answer.why and answer.fix, answer
    return answer.code


def test_clients_that_break_the_rules(server, p2prw, tmp_path, parts, still_serves):
    from p2prw.engine.control.messages import Commit, Digest, Fill, Grant, Release

    one = server("--region=a=host,size=64KiB", f"--region=s=file:{tmp_path}/sink.bin,access=w")
    lease = "0" * 16
    for message, code in (
        (Fill(lease, 0, 0, 1), "bad_lease"),
        (Commit(lease, 0, 0, 1), "bad_lease"),
        (Digest(lease, 0, 1, 4096), "bad_lease"),
        (Release(lease, True), "bad_lease"),
        (Hello(version=PROTOCOL_VERSION, nonce=NONCE, auth="none"), "unexpected_message"),
    ):
        with shaken(one) as channel:
            channel.send(message)
            assert refusal(channel) == code
    for abuse, code in (
        (lambda g: Commit(g.lease, 99, 0, 1), "bad_slot"),
        (lambda g: Commit(g.lease, 0, 4090, 100), "bad_range"),
        (lambda g: Fill(g.lease, 0, 0, 1), "bad_right"),
        (lambda g: Digest(g.lease, 4000, 4096, 4096), "bad_range"),
        (lambda g: Open("a", 0, 1, "read", QUEUE_PAIR), "unexpected_message"),
    ):
        with shaken(one) as channel:
            channel.send(Open("s", 0, 4096, "write", QUEUE_PAIR))
            grant = channel.expect(Grant, deadline_s=30, name="the grant")
            channel.send(abuse(grant))
            assert refusal(channel) == code
    still_serves(one)
    assert parts(tmp_path) == [] and not (tmp_path / "sink.bin").exists()
    # A stranger's GID does not make the server send packets to somebody else.
    with shaken(one) as channel:
        elsewhere = QueuePairInfo(17, 1, "00000000000000000000ffffc0000263", 1024, 16, 16)
        channel.send(Open("a", 0, 1, "read", elsewhere))
        assert refusal(channel) == "bad_gid"
    still_serves(one)


def test_a_peer_that_never_reads_is_dropped(server, p2prw, still_serves):
    """It asks for pages and takes none: the server's queue is bounded."""
    from p2prw.engine.control.messages import ListRegions

    one = server(*(f"--region=r{number}=host,size=4KiB" for number in range(60)), "--idle-timeout", "5s")
    before = one.memory("VmRSS")
    with shaken(one) as channel:
        end = time.monotonic() + 30
        while "stopped reading" not in one.log() and time.monotonic() < end:
            channel.send(ListRegions(0))
        one.wait_for_line("stopped reading")
    assert one.memory("VmRSS") - before < 16 * 1024 * 1024
    still_serves(one)
