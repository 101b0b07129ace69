"""Listening TCP sockets for the control channel; every way to fail is explained."""

from __future__ import annotations

import errno
import ipaddress
import socket

from p2prw.engine.model import PeerAddress, ServeRequest
from p2prw.errors import HostError, RequestError

_BACKLOG = 128


def check_exposure(request: ServeRequest, address: PeerAddress) -> None:
    """Refuse an address that other hosts reach without token, client CA or --insecure. RequestError."""
    host = address.host
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        loopback = False
    client_ca = request.tls is not None and request.tls.client_ca_file is not None
    if loopback or request.token is not None or client_ca or request.insecure:
        return
    raise RequestError(
        f"--listen {address} offers memory to the network without a token",
        why="whoever reaches the port could read and write the regions",
        fix="--token-file FILE, or --insecure where the network is yours alone",
        code="needs_token",
    )


def open_listeners(listen: PeerAddress) -> list[socket.socket]:
    """Return non-blocking listeners for every address `listen` resolves to, all on one port.

    HostError with code resolve_failed, port_in_use, bad_listen_address or port_denied.
    """
    try:
        infos = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise HostError(
            f"cannot resolve {listen.host!r}: {getattr(error, 'strerror', None) or error}",
            why="the resolver of this host knows no address for it",
            fix="--listen ADDRESS:PORT with an address of this host (ip addr)",
            code="resolve_failed",
        ) from error
    listeners: list[socket.socket] = []
    port = listen.port
    try:
        for family, _, _, _, address in infos:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setblocking(False)
            # With port 0 the first socket picks; the others must follow, or a name would have several ports.
            listener.bind((address[0], port, *address[2:]))
            listener.listen(_BACKLOG)
            port = listener.getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise _explain(listen, error) from error
    return listeners


def take_listeners(fds: tuple[int, ...]) -> list[socket.socket]:
    """Return the listening TCP sockets that a service manager handed to us. HostError `bad_inherited_socket`.

    Descriptors are not closed where one of them is wrong: they are the manager's.
    """
    taken: list[socket.socket] = []
    try:
        taken.extend(map(_take, fds))
    except BaseException:
        for sock in taken:
            sock.detach()
        raise
    return taken


def _take(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise _no_listener(fd, f"it is no socket: {error.strerror}", error.errno) from error
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        why = f"it is {sock.family.name} {sock.type.name}, the control channel is TCP"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        why = "it is no listening socket; Accept=yes is not for p2prw, one process serves all clients"
    else:
        sock.setblocking(False)
        sock.set_inheritable(False)
        return sock
    sock.detach()
    raise _no_listener(fd, why, None)


def _no_listener(fd: int, why: str, number: int | None) -> HostError:
    return HostError(
        f"cannot serve on descriptor {fd} of the service manager",
        why=why,
        fix="in the .socket unit: ListenStream=HOST:PORT, Accept=no",
        code="bad_inherited_socket",
        errno=number,
    )


def _explain(listen: PeerAddress, error: OSError) -> HostError:
    if error.errno == errno.EADDRINUSE:
        return HostError(
            f"{listen} is in use",
            why="another process listens there, perhaps another p2prw or perftest (18515 is its port too)",
            fix=f"ss -ltnp 'sport = :{listen.port}', or --listen {PeerAddress(listen.host, 0)} to pick a free port",
            code="port_in_use",
            errno=error.errno,
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return HostError(
            f"{listen.host} is no address of this host",
            why="a server listens on addresses of its own network namespace only",
            fix="ip addr; --listen with one of them",
            code="bad_listen_address",
            errno=error.errno,
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return HostError(
            f"no right to listen on {listen}",
            why="ports below 1024 need CAP_NET_BIND_SERVICE",
            fix="a port above 1023",
            code="port_denied",
            errno=error.errno,
        )
    return HostError(
        f"cannot listen on {listen}: {error.strerror}",
        why=f"bind() or listen() failed with {errno.errorcode.get(error.errno or 0, 'an unknown errno')}",
        fix="ss -ltn, ip addr; another --listen",
        code="listen_failed",
        errno=error.errno,
    )
