"""The way in: every listener, TLS before the first word, and who is turned away at once.

Driven by the server's loop: `accept` when a listener is readable, `resume` with the housekeeping. Who may come is the
server's to say, and what a connection becomes; how a listener is opened is `listener.py`.
"""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Callable
from typing import Protocol

from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import refuse_from
from p2prw.engine.control.tls import TlsDoor
from p2prw.engine.model import PeerAddress, ServeRequest
from p2prw.engine.server.counters import ServerCounters
from p2prw.engine.server.ending import Ending
from p2prw.engine.server.listener import check_exposure, open_listeners, take_listeners
from p2prw.errors import P2prwError, PeerRefusedError

_OUT_OF_SOMETHING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Tell(Protocol):
    """How an event gets to whoever runs the server."""

    def __call__(self, kind: str, text: str, **fields: object) -> None:
        """`fields` are what the JSON line has besides."""


class Acceptor:
    """Opens its listeners in `open` (so errors come before "ready"), takes connections from them until `stop`."""

    def __init__(
        self,
        request: ServeRequest,
        given_fds: tuple[int, ...],
        selector: selectors.BaseSelector,
        check: Callable[[str], None],
        counters: ServerCounters,
        tell: Tell,
    ) -> None:
        """`given_fds`: listening sockets of a service manager. `check`: PeerRefusedError for a host that may not come.

        Listeners are registered with `selector`, their data is "listener".
        """
        self.address = request.listen
        """Where clients come; with the port that was picked once it is open."""
        self._request = request
        self._given_fds = given_fds
        self._selector = selector
        self._check = check
        self._counters = counters
        self._tell = tell
        self._tls_door: TlsDoor | None = None
        self._listeners: list[socket.socket] = []
        self._accepting = False
        self._stopped = False
        self._out_of_something = False

    @property
    def hosts(self) -> tuple[str, ...]:
        """The local address of every listener."""
        return tuple(listener.getsockname()[0] for listener in self._listeners)

    @property
    def fingerprint(self) -> str | None:
        """The certificate's, where there is TLS."""
        return self._tls_door.fingerprint if self._tls_door is not None else None

    def open(self) -> None:
        """Listen. RequestError where strangers could come in, HostError as `listener.py`; then `close` all the same."""
        request, given = self._request, self._given_fds
        self._tls_door = TlsDoor(request.tls) if request.tls is not None else None
        if not given:
            check_exposure(request, request.listen)
        self._listeners = take_listeners(given) if given else open_listeners(request.listen)
        host, port = self._listeners[0].getsockname()[:2]
        self.address = PeerAddress(host if given else request.listen.host, port)
        for listener in self._listeners if given else ():
            check_exposure(request, PeerAddress(*listener.getsockname()[:2]))
        self.resume()

    def close(self) -> None:
        """Close the listeners."""
        for listener in self._listeners:
            listener.close()

    def accept(self, listener: socket.socket) -> Channel | None:
        """Return the channel of the next client; None where there is none, or it was turned away."""
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_SOMETHING:
                # It stays readable: without a pause the loop would spin until somebody leaves.
                self._pause(error)
            return None  # or it went away before we looked
        self._out_of_something = False
        channel = Channel(sock, self._tls_door.filter() if self._tls_door is not None else None)
        try:
            self._check(channel.peer_address.host)
        except PeerRefusedError as error:
            self._turn_away(channel, error)
            return None
        return channel

    def _turn_away(self, channel: Channel, error: PeerRefusedError) -> None:
        name = str(channel.peer_address)
        try:
            channel.send(refuse_from(error))
        except P2prwError:
            pass
        channel.close()
        self._counters.connections["turned_away"] += 1
        self._counters.errors[error.code] += 1
        self._tell("refused", f"{name}: {error.what}", client=name, code=error.code)
        text, fields = Ending(name).describe(error.code, error.exit_code, 0.0)
        self._tell("ended", text, **fields)

    def _pause(self, error: OSError) -> None:
        self._stop_listening()
        if not self._out_of_something:
            self._out_of_something = True
            cure = "where that is open files: ulimit -n, LimitNOFILE=, or a lower --max-clients"
            self._tell("warning", f"cannot take new clients for now: {error.strerror}; {cure}")

    def resume(self) -> None:
        """Listen again after a pause; not after `stop`."""
        if not self._accepting and not self._stopped:
            self._accepting = True
            for listener in self._listeners:
                self._selector.register(listener, selectors.EVENT_READ, "listener")

    def stop(self) -> None:
        """Leave whoever comes now to wait at the listeners; they are open still."""
        self._stopped = True
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._selector.unregister(listener)
