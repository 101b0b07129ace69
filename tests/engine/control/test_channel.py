from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from p2prw.engine.control import channel as channel_module
from p2prw.engine.control.channel import MAX_QUEUED_BYTES, STRANGER_LINE, Channel
from p2prw.engine.control.framing import frame
from p2prw.engine.control.handshake import ClientHandshake, ServerHandshake
from p2prw.engine.control.messages import (
    PROTOCOL_VERSION,
    Digests,
    Grant,
    Hello,
    ListRegions,
    Message,
    Refuse,
    Regions,
    Window,
    encode,
)
from p2prw.engine.model import PeerAddress, Timeouts
from p2prw.engine.stop import StopRequest
from p2prw.errors import (
    DeadlineExceeded,
    InterruptedTransfer,
    P2prwError,
    PeerGone,
    PeerRefusedError,
    RemoteProtocolError,
)


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel and the raw socket at its other end."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with contextlib.closing(theirs):
        theirs.setblocking(False)
        yield channel, theirs
        channel.close()


@pytest.fixture
def tcp_pair() -> Iterator[tuple[Channel, Channel]]:
    """Two channels joined by TCP on loopback: (client, server)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Channel.connect(PeerAddress(*listener.getsockname()), Timeouts(connect_retry_s=1))
        accepted, _ = listener.accept()
    with client, Channel(accepted) as server:
        yield client, server


def wait_for(channel: Channel, timeout_s: float = 5.0) -> Message:
    """Poll until a message is there."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        message = channel.receive()
        if message is not None:
            return message
        select.select([channel], [], [], 0.05)
    raise AssertionError("no message")


def test_messages_arrive_in_any_slices(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    sent: list[Message] = [Window(index + 1) for index in range(20)]
    sent.append(Digests("0" * 16, 0, ("ab" * 16,) * 1024, False))
    stream = b"".join(frame(encode(message)) for message in sent)
    dice, found, at = random.Random(3), list[Message](), 0
    while at < len(stream):
        step = dice.choice([1, 2, 3, 5, 17, 900])
        theirs.sendall(stream[at : at + step])
        at += step
        while (message := channel.receive()) is not None:
            found.append(message)
    assert found == sent
    assert channel.receive() is None
    assert channel.received_body == encode(sent[-1])


def test_both_ways_over_tcp(tcp_pair: tuple[Channel, Channel]) -> None:
    client, server = tcp_pair
    client.send(ListRegions(7))
    assert wait_for(server) == ListRegions(7)
    server.send(Regions((), False))
    assert wait_for(client) == Regions((), False)
    assert client.peer_address == server.local_address
    assert client.local_address == server.peer_address
    assert client.local_address.host == "127.0.0.1"
    assert client._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert client._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert "127.0.0.1" in repr(client) and "open" in repr(client)


def test_a_slow_reader_gets_everything(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    page = Digests("0" * 16, 0, ("ab" * 16,) * 1024, True)
    expected = b""
    while not channel.wants_write:
        channel.send(page)
        expected += frame(encode(page))
    assert not channel.flush()
    got = bytearray()
    while len(got) < len(expected):
        got += theirs.recv(3000)
        channel.flush()
    assert bytes(got) == expected
    assert channel.flush() and not channel.wants_write and channel.queued_bytes == 0


class OddSocket(socket.socket):
    """Takes few bytes at a time, or fails to send."""

    def __init__(self, sock: socket.socket, most: int = 7, fails_with: int = 0) -> None:
        super().__init__(fileno=sock.detach())
        self.most = most
        self.fails_with = fails_with

    def send(self, data: Any, flags: int = 0) -> int:
        if self.fails_with:
            raise OSError(self.fails_with, "what the kernel says")
        return super().send(data[: self.most], flags)


def test_partial_sends_lose_nothing() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Channel(OddSocket(ours)) as channel:
        channel.send(Window(1))
        channel.send(ListRegions(2))
        expected = frame(encode(Window(1))) + frame(encode(ListRegions(2)))
        assert theirs.recv(1000) == expected


@pytest.mark.parametrize("ended", [False, True])
def test_a_failed_send_is_reported_by_receive(ended: bool) -> None:
    """ETIMEDOUT of the user timeout comes out of send once; receive sees nothing, or an end of file."""
    ours, theirs = socket.socketpair()
    with theirs, Channel(OddSocket(ours, fails_with=errno.ETIMEDOUT)) as channel:
        channel.send(Window(1))
        assert not channel.wants_write
        if ended:
            theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(PeerGone) as caught:
            channel.receive()
    assert caught.value.errno == "ETIMEDOUT"


def test_a_peer_that_never_reads_is_dropped(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    page = Digests("0" * 16, 0, ("ab" * 16,) * 1024, True)
    with pytest.raises(PeerGone) as caught:
        for _ in range(10_000):
            channel.send(page)
    assert caught.value.code == "peer_not_reading"
    assert channel.queued_bytes <= MAX_QUEUED_BYTES


def test_end_of_file_after_the_last_message(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(frame(encode(Window(5))))
    theirs.close()
    assert channel.receive() == Window(5)
    with pytest.raises(PeerGone) as caught:
        channel.receive()
    assert caught.value.code == "peer_lost"
    assert caught.value.why is not None and "said nothing" not in caught.value.why


def test_end_of_file_before_any_message_says_so(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.close()
    with pytest.raises(PeerGone) as caught:
        channel.receive()
    assert "said nothing" in (caught.value.why or "")


def test_end_of_file_inside_a_message(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(frame(encode(Window(5)))[:-1])
    theirs.close()
    with pytest.raises(PeerGone) as caught:
        channel.receive()
    assert "in the middle of a message" in caught.value.what


def test_a_reset_is_a_lost_peer(tcp_pair: tuple[Channel, Channel]) -> None:
    client, server = tcp_pair
    # SO_LINGER with 0 seconds: close sends a reset (socket(7)).
    server._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server._sock.close()
    with pytest.raises(PeerGone) as caught:
        client.expect(Hello, deadline_s=5, name="the hello")
    assert caught.value.errno == "ECONNRESET"


def test_a_refusal_is_read_though_sending_fails(tcp_pair: tuple[Channel, Channel]) -> None:
    """The server refuses and closes while the client still speaks: the reason must not be lost."""
    client, server = tcp_pair
    server.send(Refuse(code="too_many_clients", what="full"))
    server.close()
    for _ in range(5):
        client.send(ListRegions())
        time.sleep(0.02)
    with pytest.raises(PeerRefusedError) as caught:
        client.expect(Hello, deadline_s=5, name="the hello")
    assert caught.value.code == "too_many_clients"
    with pytest.raises(PeerGone):
        client.expect(Hello, deadline_s=5, name="the hello")
    assert "broken" in repr(client)
    assert client.flush() and not client.wants_write


def test_the_last_message_survives_unread_input(tcp_pair: tuple[Channel, Channel]) -> None:
    """Closing a socket with unread bytes sends a reset, which would overtake the refusal."""
    client, server = tcp_pair
    client.send(ListRegions())
    select.select([server], [], [], 5)
    server.send(Refuse(code="busy", what="busy"))
    server.close()
    with pytest.raises(PeerRefusedError):
        client.expect(Regions, deadline_s=5, name="the regions")
    with pytest.raises(PeerGone) as caught:
        client.expect(Regions, deadline_s=5, name="the regions")
    assert caught.value.errno is None, "the connection was reset"


def test_garbage_is_blamed_on_the_peer(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(frame(b"not json"))
    with pytest.raises(RemoteProtocolError) as caught:
        channel.receive()
    assert caught.value.code == "bad_message"


def test_a_stranger_gets_one_plain_line(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        channel.receive()
    assert caught.value.code == "not_p2prw"
    channel.refuse_stranger()
    theirs.setblocking(True)
    assert theirs.recv(1000) == STRANGER_LINE
    assert theirs.recv(1000) == b""
    assert channel.fileno() == -1
    assert STRANGER_LINE.count(b"\n") == 1 and b"p2prw" in STRANGER_LINE


def test_a_stranger_that_has_gone_is_no_trouble(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.close()
    channel.refuse_stranger()
    assert "closed" in repr(channel)


def test_closing_twice_and_receiving_after(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    channel.close()
    channel.close()
    with pytest.raises(PeerGone):
        channel.receive()


class Sandboxed(socket.socket):
    """A kernel that knows only some options."""

    def __init__(self, reason: int) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.reason = reason
        self.bind(("127.0.0.1", 0))

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        if option == socket.TCP_USER_TIMEOUT:
            raise OSError(self.reason, "no such option")
        super().setsockopt(level, option, *value)


def test_a_missing_socket_option_is_no_reason_to_stop() -> None:
    with Channel(Sandboxed(errno.ENOPROTOOPT)) as channel:
        assert channel._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    with Sandboxed(errno.ENOBUFS) as sock, pytest.raises(OSError, match="no such option"):
        Channel(sock)


# --- expect ---


def test_a_deadline_is_named_and_kept(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        channel.expect(Grant, deadline_s=0.1, name="the grant")
    assert 0.09 < time.monotonic() - start < 1.0
    assert "waited 0.1 s for the grant" in caught.value.what
    assert caught.value.code == "deadline"


def test_a_long_wait_is_told_of_once(pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    channel, _ = pair
    told: list[str] = []
    for long_s, count in ((0.0, 1), (60.0, 0)):
        monkeypatch.setattr("p2prw.engine.control.channel._LONG_WAIT_S", long_s)
        with pytest.raises(DeadlineExceeded):
            channel.expect(Grant, deadline_s=0.2, name="the grant", stop=StopRequest(told.append))
        assert told == ["waiting for the grant from local:0, 0 s at most"][:count]
        told.clear()


def test_a_deadline_of_zero_takes_what_is_there(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(frame(encode(Window(1))))
    assert channel.expect(Window, deadline_s=0, name="the window") == Window(1)
    with pytest.raises(DeadlineExceeded):
        channel.expect(Window, deadline_s=0, name="the window")


def test_a_refusal_becomes_an_error_with_its_words(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    refusal = Refuse(code="busy", what="in use", why="another client writes", fix="wait")
    theirs.sendall(frame(encode(refusal)) * 2)
    with pytest.raises(PeerRefusedError) as caught:
        channel.expect(Grant, deadline_s=1, name="the grant")
    error = caught.value
    assert (error.code, error.what, error.why, error.fix, error.side) == (
        "busy",
        "in use",
        "another client writes",
        "wait",
        "remote",
    )
    assert channel.expect(Grant, Refuse, deadline_s=1, name="the grant") == refusal


def test_another_message_is_a_protocol_error(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(frame(encode(Window(1))))
    with pytest.raises(RemoteProtocolError) as caught:
        channel.expect(Grant, Hello, deadline_s=1, name="the grant")
    assert caught.value.code == "unexpected_message"
    assert "'window' instead of the grant" in caught.value.what
    assert "'grant' or 'hello'" in (caught.value.why or "")


def test_pump_runs_while_waiting(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    calls = 0

    def pump() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            theirs.sendall(frame(encode(Window(9))))

    assert channel.expect(Window, deadline_s=5, name="the window", pump=pump) == Window(9)
    assert calls >= 20


@pytest.mark.parametrize(("timer_s", "often"), [(None, False), (0.0, True), (0.5, True)])
def test_a_device_without_descriptors_is_pumped_often_only_while_it_has_work(
    pair: tuple[Channel, socket.socket], timer_s: float | None, often: bool
) -> None:
    channel, _ = pair
    calls = []
    with pytest.raises(DeadlineExceeded):
        channel.expect(
            Window, deadline_s=0.12, name="the window", pump=lambda: calls.append(1), next_timer_s=lambda: timer_s
        )
    assert len(calls) >= 2 and (len(calls) > 5) == often


def test_the_descriptors_of_the_pump_wake_it(
    pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, theirs = pair
    monkeypatch.setattr(channel_module, "_SLICE_S", 30.0)  # nothing but the descriptor ends a poll
    one, two = socket.socketpair()
    with one, two:
        served = False

        def pump() -> None:
            nonlocal served
            if not served and select.select([two], [], [], 0)[0]:
                two.recv(1)
                served = True
                theirs.sendall(frame(encode(Window(3))))

        timer = threading.Timer(0.1, one.send, [b"x"])
        timer.start()
        message = channel.expect(Window, deadline_s=3, name="the window", pump=pump, filenos=[two.fileno()])
        timer.join()
    assert message == Window(3)


def test_an_error_of_the_pump_ends_the_wait(pair: tuple[Channel, socket.socket]) -> None:
    def pump() -> None:
        raise InterruptedTransfer()

    with pytest.raises(InterruptedTransfer):
        pair[0].expect(Window, deadline_s=5, name="the window", pump=pump)


def test_a_stop_request_ends_the_wait(pair: tuple[Channel, socket.socket]) -> None:
    stop = StopRequest()
    timer = threading.Timer(0.1, stop.set, [15])
    timer.start()
    with pytest.raises(InterruptedTransfer) as caught:
        pair[0].expect(Window, deadline_s=5, name="the window", stop=stop)
    timer.join()
    assert caught.value.exit_code == 143


def test_expect_writes_what_is_queued(pair: tuple[Channel, socket.socket]) -> None:
    """A request that did not fit the socket at once still gets out while we wait for its answer."""
    channel, theirs = pair
    page = Digests("0" * 16, 0, ("ab" * 16,) * 1024, True)
    while not channel.wants_write:
        channel.send(page)

    def read_on() -> None:
        with contextlib.suppress(BlockingIOError):
            theirs.recv(1 << 20)
        if not channel.wants_write:
            theirs.sendall(frame(encode(Window(2))))

    assert channel.expect(Window, deadline_s=5, name="the window", pump=read_on) == Window(2)


# --- the handshake over it ---


def run_server(channel: Channel, machine: ServerHandshake) -> Callable[[], None]:
    """Answer as a server's loop does, from another thread; returns its join."""

    def loop() -> None:
        try:
            while not machine.done and not machine.failed:
                for answer in machine.receive(wait_for(channel), channel.received_body):
                    channel.send(answer)
        except P2prwError:
            return

    thread = threading.Thread(target=loop)
    thread.start()
    return thread.join


@pytest.mark.parametrize("token", [None, b"secret"])
def test_handshake(tcp_pair: tuple[Channel, Channel], token: bytes | None) -> None:
    client, server = tcp_pair
    machine = ServerHandshake(nonce="5e" * 32, token=token, udp_port=4791)
    join = run_server(server, machine)
    peer = client.run_handshake(ClientHandshake(nonce="c1" * 32, token=token), deadline_s=5)
    join()
    assert machine.done
    assert peer.udp_port == 4791


def test_a_failed_handshake_raises_its_error(tcp_pair: tuple[Channel, Channel]) -> None:
    client, server = tcp_pair
    machine = ServerHandshake(nonce="5e" * 32, token=b"secret")
    join = run_server(server, machine)
    with pytest.raises(PeerRefusedError) as caught:
        client.run_handshake(ClientHandshake(nonce="c1" * 32, token=b"wrong"), deadline_s=5)
    join()
    assert caught.value.code == "auth_failed"


def test_the_refusal_of_a_client_reaches_the_server(tcp_pair: tuple[Channel, Channel]) -> None:
    client, server = tcp_pair
    server.send(Hello(version=PROTOCOL_VERSION, nonce="5e" * 32, auth="none"))
    with pytest.raises(PeerRefusedError):
        client.run_handshake(ClientHandshake(nonce="c1" * 32, token=b"secret"), deadline_s=5)
    client.close()
    assert isinstance(wait_for(server), Hello)
    refusal = wait_for(server)
    assert isinstance(refusal, Refuse) and refusal.code == "auth_not_used"


def test_a_silent_server_meets_the_deadline_of_the_handshake(tcp_pair: tuple[Channel, Channel]) -> None:
    client, _ = tcp_pair
    with pytest.raises(DeadlineExceeded) as caught:
        client.run_handshake(ClientHandshake(nonce="c1" * 32), deadline_s=0.1)
    assert "the handshake" in caught.value.what


def test_a_server_that_is_no_p2prw(tcp_pair: tuple[Channel, Channel]) -> None:
    client, server = tcp_pair
    server._sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        client.run_handshake(ClientHandshake(nonce="c1" * 32), deadline_s=5)
    assert caught.value.code == "not_p2prw" and "an SSH server" in caught.value.what


def test_accepted_and_gone_again(tcp_pair: tuple[Channel, Channel]) -> None:
    """getpeername fails on a connection that was reset before accept."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = socket.create_connection(listener.getsockname())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raw.close()
        accepted, _ = listener.accept()
        with Channel(accepted) as channel, pytest.raises(PeerGone):
            wait_for(channel)


def test_a_peer_that_makes_tls_answer_and_does_not_read_is_dropped(pair: tuple[Channel, socket.socket]) -> None:
    """OpenSSL answers each KeyUpdate by itself, with as many bytes: nobody else would count them."""

    class Chatty:
        begun, server_side, ended, unsent_bytes, untaken_bytes = True, True, False, 0, 0

        def feed(self, data: bytes) -> None:
            self.untaken_bytes += len(data)

        def read(self, most_bytes: int) -> bytes:
            return b""

        def take(self) -> bytes:
            taken, self.untaken_bytes = bytes(self.untaken_bytes), 0
            return taken

        def close(self) -> None:
            pass

    channel, peer = pair
    channel._tls = Chatty()  # type: ignore[assignment]
    with pytest.raises(PeerGone) as caught:
        for _ in range(1000):
            with contextlib.suppress(BlockingIOError):
                peer.send(b"x" * 65536)
            assert channel.receive() is None
            assert channel.queued_bytes <= MAX_QUEUED_BYTES + 65536
    assert caught.value.code == "peer_not_reading"
