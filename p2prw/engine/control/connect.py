"""How a control connection comes to stand: resolve the name, try each address, try again until time is up.

Each way to fail has its own code: resolve_failed, connect_refused, connect_unreachable, connect_timeout.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import threading
import time
from typing import Any

from p2prw.engine.model import PeerAddress
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError

# A dead host is noticed after 10 + 3 x 5 seconds, or 30 seconds after data that nobody acknowledges.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 10, 5, 3
USER_TIMEOUT_MS = 30_000

MIN_ATTEMPT_S = 1.0
"""Every address gets at least this long, also with `--connect-retry 0`."""
_RETRY_PAUSES_S = (0.05, 0.1, 0.2, 0.5)
_SLICE_S = 0.05

_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}


def plain_address(sockaddr: tuple[Any, ...]) -> PeerAddress:
    """Return a socket address as host and port; an IPv4-mapped IPv6 address as IPv4."""
    host, port = str(sockaddr[0]), int(sockaddr[1])
    try:
        mapped = getattr(ipaddress.ip_address(host.split("%")[0]), "ipv4_mapped", None)
    except ValueError:
        mapped = None
    return PeerAddress(str(mapped) if mapped else host, port)


def connect_socket(peer: PeerAddress, connect_retry_s: float, *, stop: StopRequest | None = None) -> socket.socket:
    """Return a connected non-blocking socket; tries for `connect_retry_s` seconds, each address at least once."""
    deadline = time.monotonic() + connect_retry_s
    attempt = 0
    while True:
        try:
            return _connect_once(peer, deadline, stop)
        except HostError as error:
            pause_s = _RETRY_PAUSES_S[min(attempt, len(_RETRY_PAUSES_S) - 1)]
            final = error.code == "resolve_failed" and error.errno != "EAI_AGAIN"
            if final or time.monotonic() + pause_s >= deadline:
                raise
            if stop is not None and attempt == 0:
                stop.waits_for(f"{error.what}; tried again for {connect_retry_s:g} s (--connect-retry)")
        attempt += 1
        _sleep(pause_s, stop)


def set_tcp_options(sock: socket.socket) -> None:
    """Have a dead peer noticed, and small frames sent at once."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    ):
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            # Some sandboxes know only the first two; a missing keepalive is no reason to refuse to work.
            if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL, errno.EOPNOTSUPP):
                raise


def _connect_once(peer: PeerAddress, deadline: float, stop: StopRequest | None) -> socket.socket:
    addresses = _resolve(peer, deadline, stop)
    failure: HostError | None = None
    for index, (family, sockaddr) in enumerate(addresses):
        # What is left is shared among the addresses still to try, so that a dead IPv6 route leaves time for IPv4.
        share_s = (deadline - time.monotonic()) / (len(addresses) - index)
        try:
            return _connect_address(peer, family, sockaddr, max(MIN_ATTEMPT_S, share_s), stop)
        except OSError as error:
            # A refusal says most: somebody answered. Keep it over what the other addresses said.
            if failure is None or failure.code != "connect_refused":
                failure = _translate(peer, sockaddr, error)
                failure.__cause__ = error
    assert failure is not None
    raise failure


def _connect_address(
    peer: PeerAddress, family: int, sockaddr: tuple[Any, ...], timeout_s: float, stop: StopRequest | None
) -> socket.socket:
    """Connect to one address; OSError (TimeoutError after `timeout_s`)."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        status = sock.connect_ex(sockaddr)
        if status not in (0, errno.EINPROGRESS):
            raise OSError(status, os.strerror(status))
        _wait_writable(sock, timeout_s, stop)
        status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            raise OSError(status, os.strerror(status))
        if sock.getsockname() == sock.getpeername():
            # TCP's simultaneous open: on loopback, our own ephemeral port met itself. Nobody listens there.
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return sock


def _wait_writable(sock: socket.socket, timeout_s: float, stop: StopRequest | None) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    end = time.monotonic() + timeout_s
    while True:
        _check(stop)
        remaining_s = end - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if poll.poll(max(1.0, min(remaining_s, _SLICE_S) * 1000)):
            return


def _resolve(peer: PeerAddress, deadline: float, stop: StopRequest | None) -> list[tuple[int, tuple[Any, ...]]]:
    """Return (family, address) pairs in the order to try. HostError resolve_failed."""
    answer: list[Any] = []

    def look_up(flags: int) -> None:
        try:
            answer.append(socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM, flags=flags))
        except (OSError, UnicodeError) as error:
            answer.append(error)

    look_up(socket.AI_NUMERICHOST)
    if not isinstance(answer[0], list):
        answer.clear()
        # A resolver may take minutes and cannot be interrupted: it waits in its own thread, we keep the deadline.
        thread = threading.Thread(target=look_up, args=(0,), name="p2prw-resolve", daemon=True)
        thread.start()
        end = max(deadline, time.monotonic() + MIN_ATTEMPT_S)
        while thread.is_alive() and time.monotonic() < end:
            _check(stop)
            thread.join(_SLICE_S)
    found = answer[0] if answer else TimeoutError(errno.ETIMEDOUT, "the name server does not answer")
    if isinstance(found, BaseException):
        raise _unresolved(peer, found) from found
    return [(entry[0], entry[4]) for entry in found]


def _unresolved(peer: PeerAddress, error: BaseException) -> HostError:
    reason = getattr(error, "strerror", None) or str(error)
    again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
    return HostError(
        f"cannot resolve {peer.host!r}: {reason}",
        why="the name server gave no answer" if again else "the resolver of this host knows no address for it",
        fix=f"check the name with `getent hosts {peer.host}`, or use an address",
        code="resolve_failed",
        errno="EAI_AGAIN" if again else None,
    )


def _translate(peer: PeerAddress, sockaddr: tuple[Any, ...], error: OSError) -> HostError:
    where = plain_address(sockaddr)
    shown = str(peer) if where == peer else f"{peer} ({where.host})"
    if error.errno == errno.ECONNREFUSED:
        return HostError(
            f"cannot connect to {shown}: connection refused",
            why="no p2prw server listens there (yet)",
            fix=f"start one there: p2prw serve --listen {_listen_hint(peer)} --region NAME=MEMORY",
            code="connect_refused",
            errno=error.errno,
        )
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return HostError(
            f"cannot connect to {shown}: no answer",
            why="the host is down, or a firewall drops the packets",
            fix=f"ping {peer.host}; open TCP port {peer.port} (and UDP port 4791 for the data)",
            code="connect_timeout",
            errno=errno.ETIMEDOUT,
        )
    code = "connect_unreachable" if error.errno in _UNREACHABLE else "connect_failed"
    return HostError(
        f"cannot connect to {shown}: {error.strerror or error}",
        why="this host has no way there" if code == "connect_unreachable" else None,
        fix=f"ip route get {where.host}",
        code=code,
        errno=error.errno,
    )


def _listen_hint(peer: PeerAddress) -> PeerAddress:
    loopback = peer.host in ("localhost", "::1") or peer.host.startswith("127.")
    return peer if loopback else PeerAddress("0.0.0.0", peer.port)


def _sleep(seconds: float, stop: StopRequest | None) -> None:
    end = time.monotonic() + seconds
    while (remaining_s := end - time.monotonic()) > 0:
        _check(stop)
        time.sleep(min(remaining_s, _SLICE_S))


def _check(stop: StopRequest | None) -> None:
    if stop is not None:
        stop.check()
