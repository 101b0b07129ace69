from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from p2prw.engine.control import connect
from p2prw.engine.control.connect import connect_socket, plain_address
from p2prw.engine.model import PeerAddress
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError, InterruptedTransfer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def failure(peer: PeerAddress, retry_s: float = 0.0) -> HostError:
    with pytest.raises(HostError) as caught:
        connect_socket(peer, retry_s)
    assert caught.value.exit_code == 3
    assert caught.value.fix
    return caught.value


def test_connects(listener: socket.socket) -> None:
    with connect_socket(PeerAddress("127.0.0.1", listener.getsockname()[1]), 1.0) as sock:
        assert sock.getpeername() == listener.getsockname()
        assert sock.getblocking() is False


def test_a_name_is_resolved(listener: socket.socket) -> None:
    with connect_socket(PeerAddress("localhost", listener.getsockname()[1]), 1.0) as sock:
        assert sock.getpeername() == listener.getsockname()


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback here: {error}")
    with server, connect_socket(PeerAddress("::1", server.getsockname()[1]), 1.0) as sock:
        assert plain_address(sock.getpeername()).host == "::1"


def test_refused() -> None:
    port = free_port()
    error = failure(PeerAddress("127.0.0.1", port))
    assert error.code == "connect_refused"
    assert error.errno == "ECONNREFUSED"
    assert f"p2prw serve --listen 127.0.0.1:{port}" in (error.fix or "")


def test_a_far_peer_is_told_to_listen_on_its_own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ConnectionRefusedError(111, "Connection refused"))
    assert "--listen 0.0.0.0:18515" in (failure(PeerAddress("192.0.2.1")).fix or "")


def test_a_server_that_starts_late_is_found() -> None:
    port = free_port()
    servers: list[socket.socket] = []
    timer = threading.Timer(0.3, lambda: servers.append(socket.create_server(("127.0.0.1", port))))
    timer.start()
    start = time.monotonic()
    connect_socket(PeerAddress("127.0.0.1", port), 10.0).close()
    assert 0.2 < time.monotonic() - start < 20.0
    timer.join()
    servers[0].close()


def test_refused_is_tried_again_until_time_is_up() -> None:
    start = time.monotonic()
    error = failure(PeerAddress("127.0.0.1", free_port()), 0.4)
    assert error.code == "connect_refused"
    assert 0.2 < time.monotonic() - start < 3.0


def test_a_full_backlog_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "MIN_ATTEMPT_S", 0.2)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
            fillers.append(filler)
        error = failure(PeerAddress(*sock.getsockname()))
        for filler in fillers:
            filler.close()
    assert error.code == "connect_timeout"
    assert error.errno == "ETIMEDOUT"
    assert "firewall" in (error.why or "")


def fail_with(monkeypatch: pytest.MonkeyPatch, *errors: OSError) -> None:
    """Each attempt at an address raises the next error; the last one for ever."""
    left = list(errors)

    def attempt(*_: Any) -> socket.socket:
        raise left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(connect, "_connect_address", attempt)


@pytest.mark.parametrize(
    ("errno_value", "code"),
    [(101, "connect_unreachable"), (113, "connect_unreachable"), (110, "connect_timeout"), (1, "connect_failed")],
)
def test_each_way_to_fail_has_its_code(monkeypatch: pytest.MonkeyPatch, errno_value: int, code: str) -> None:
    fail_with(monkeypatch, OSError(errno_value, "what the kernel says"))
    assert failure(PeerAddress("192.0.2.1")).code == code


def test_a_link_local_address_without_its_interface() -> None:
    """The kernel says no at once, before anything is sent."""
    assert failure(PeerAddress("fe80::1")).code in ("connect_failed", "connect_unreachable")


def resolve_to(monkeypatch: pytest.MonkeyPatch, answer: Any, delay_s: float = 0.0) -> list[int]:
    """Names resolve to `answer` (or raise it); returns the list of calls for names."""
    calls: list[int] = []

    def getaddrinfo(host: str, port: int, *, type: int, flags: int) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        calls.append(1)
        time.sleep(delay_s)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return calls


def test_an_unknown_name_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = resolve_to(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    error = failure(PeerAddress("nowhere.invalid"), 5.0)
    assert error.code == "resolve_failed"
    assert "nowhere.invalid" in error.what and "not known" in error.what
    assert len(calls) == 1


def test_a_name_server_that_fails_for_now_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = resolve_to(monkeypatch, socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    error = failure(PeerAddress("host.invalid"), 0.4)
    assert error.code == "resolve_failed"
    assert len(calls) > 1


def test_a_name_server_that_hangs_meets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "MIN_ATTEMPT_S", 0.1)
    resolve_to(monkeypatch, [], delay_s=1.0)
    start = time.monotonic()
    error = failure(PeerAddress("host.invalid"))
    assert time.monotonic() - start < 0.9
    assert error.code == "resolve_failed" and "does not answer" in error.what


def test_a_name_that_is_none() -> None:
    assert failure(PeerAddress("a" * 80 + ".invalid")).code == "resolve_failed"


def test_a_dead_first_address_leaves_time_for_the_second(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    real = connect._connect_address
    resolve_to(
        monkeypatch,
        [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.9", 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", listener.getsockname()),
        ],
    )
    shares: list[float] = []

    def attempt(peer: Any, family: int, sockaddr: Any, timeout_s: float, stop: Any) -> socket.socket:
        shares.append(timeout_s)
        return real(peer, family, sockaddr, timeout_s, stop)

    monkeypatch.setattr(connect, "_connect_address", attempt)
    connect_socket(PeerAddress("two.invalid", listener.getsockname()[1]), 8.0).close()
    assert len(shares) == 2
    assert shares[0] <= 4.0 < shares[1]


def test_a_refusal_says_more_than_the_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 1))] * 2)
    fail_with(monkeypatch, ConnectionRefusedError(111, "refused"), OSError(101, "unreachable"))
    error = failure(PeerAddress("two.invalid"))
    assert error.code == "connect_refused"
    assert "(192.0.2.1)" in error.what


def test_a_port_that_met_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simultaneous open on loopback: connect succeeds though nobody listens."""
    port = free_port()

    class Itself(socket.socket):
        def connect_ex(self, address: Any) -> int:
            self.bind(address)
            return super().connect_ex(address)

    monkeypatch.setattr(socket, "socket", Itself)
    assert failure(PeerAddress("127.0.0.1", port)).code == "connect_refused"


def test_whoever_waits_for_a_server_is_told_once_why() -> None:
    told: list[str] = []
    port = free_port()
    with pytest.raises(HostError):
        connect_socket(PeerAddress("127.0.0.1", port), 0.4, stop=StopRequest(told.append))
    assert told == [f"cannot connect to 127.0.0.1:{port}: connection refused; tried again for 0.4 s (--connect-retry)"]


@pytest.mark.parametrize("moment_s", [0.0, 0.2])
def test_a_stop_request_ends_the_attempts(moment_s: float) -> None:
    stop = StopRequest()
    timer = threading.Timer(moment_s, stop.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(InterruptedTransfer) as caught:
        connect_socket(PeerAddress("127.0.0.1", free_port()), 30.0, stop=stop)
    assert time.monotonic() - start < 20.0
    assert caught.value.exit_code == 130
    timer.join()


@pytest.mark.parametrize(
    ("sockaddr", "expected"),
    [
        (("192.0.2.1", 5), PeerAddress("192.0.2.1", 5)),
        (("::ffff:192.0.2.1", 5, 0, 0), PeerAddress("192.0.2.1", 5)),
        (("fe80::1%eth0", 5, 0, 2), PeerAddress("fe80::1%eth0", 5)),
        (("2001:db8::1", 5, 0, 0), PeerAddress("2001:db8::1", 5)),
        (("", 5), PeerAddress("", 5)),
    ],
)
def test_plain_addresses(sockaddr: tuple[Any, ...], expected: PeerAddress) -> None:
    assert plain_address(sockaddr) == expected
