"""`--metrics`: answers a scraper's GET /metrics inside the server's loop. No thread, no keep-alive, nothing but that.

Strangers reach this port too: a request is at most 8 KiB, a scraper has five seconds, and there are at most 16 of them.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable

from p2prw.engine.model import PeerAddress
from p2prw.engine.server.listener import open_listeners

_REQUEST_BYTES = 8192
_SCRAPE_S = 5.0
_MOST_SCRAPERS = 16


class MetricsEndpoint:
    """Listening sockets and the scrapers that came. Its sockets are in `selector`, with what hears them as data."""

    def __init__(
        self, selector: selectors.BaseSelector, address: PeerAddress, text: Callable[[], bytes], content_type: str
    ) -> None:
        self._selector = selector
        self._text = text
        self._content_type = content_type
        self._scrapers: set[_Scraper] = set()
        self._doors = [_Door(self, listener) for listener in open_listeners(address)]
        self.address = PeerAddress(address.host, self._doors[0].listener.getsockname()[1])
        for door in self._doors:
            selector.register(door.listener, selectors.EVENT_READ, door)

    def admit(self, sock: socket.socket, now: float) -> None:
        """Take a scraper in, or close it where there are too many."""
        if len(self._scrapers) >= _MOST_SCRAPERS:
            sock.close()
            return
        sock.setblocking(False)
        scraper = _Scraper(self, sock, now + _SCRAPE_S)
        self._scrapers.add(scraper)
        self._selector.register(sock, selectors.EVENT_READ, scraper)

    def dismiss(self, scraper: _Scraper) -> None:
        """Let a scraper go."""
        if scraper in self._scrapers:
            self._scrapers.remove(scraper)
            self._selector.unregister(scraper.sock)
            scraper.sock.close()

    def wait_for_room(self, scraper: _Scraper) -> None:
        """Hear the scraper again when its socket takes more."""
        self._selector.modify(scraper.sock, selectors.EVENT_WRITE, scraper)

    def answer(self, head: bytes) -> bytes:
        """Return the whole response to a request whose head is `head`."""
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET or HEAD\n")
        if path != b"/metrics":
            return _response("404 Not Found", "text/plain", b"it is at /metrics\n")
        response = _response("200 OK", self._content_type, self._text())
        return response if method == b"GET" else response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def check_deadlines(self, now: float) -> None:
        """Let go of scrapers that dawdle."""
        for scraper in [one for one in self._scrapers if now > one.deadline_s]:
            self.dismiss(scraper)

    def close(self) -> None:
        """Close all sockets."""
        for scraper in list(self._scrapers):
            self.dismiss(scraper)
        for door in self._doors:
            self._selector.unregister(door.listener)
            door.listener.close()
        self._doors.clear()


class _Door:
    """One listening socket."""

    def __init__(self, endpoint: MetricsEndpoint, listener: socket.socket) -> None:
        self.endpoint = endpoint
        self.listener = listener

    def hear(self, now: float) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return  # it went away before we looked
        self.endpoint.admit(sock, now)


class _Scraper:
    """One connection: a request comes, one response goes."""

    def __init__(self, endpoint: MetricsEndpoint, sock: socket.socket, deadline_s: float) -> None:
        self.endpoint = endpoint
        self.sock = sock
        self.deadline_s = deadline_s
        self._request = bytearray()
        self._response = bytearray()

    def hear(self, now: float) -> None:
        try:
            done = self._send() if self._response else self._receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            done = True
        if done:
            self.endpoint.dismiss(self)

    def _receive(self) -> bool:
        data = self.sock.recv(_REQUEST_BYTES)
        self._request += data
        head, end, _ = bytes(self._request).partition(b"\r\n\r\n")
        if not end:
            return not data or len(self._request) >= _REQUEST_BYTES
        self._response += self.endpoint.answer(head)
        self.endpoint.wait_for_room(self)
        return False

    def _send(self) -> bool:
        del self._response[: self.sock.send(self._response)]
        if self._response:
            return False
        self.sock.shutdown(socket.SHUT_WR)
        return True


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
