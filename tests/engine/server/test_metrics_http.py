"""The responder: one request, one response, and strangers that dawdle, flood or speak something else."""

from __future__ import annotations

import os
import selectors
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event, Thread

import pytest

from p2prw.engine.model import PeerAddress
from p2prw.engine.server.metrics_http import MetricsEndpoint

BODY = b"figure 1\n" * 200_000
"""More than any socket buffer takes at once."""


class Loop:
    """What the server's loop does with the endpoint."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.endpoint = MetricsEndpoint(self.selector, PeerAddress("127.0.0.1", 0), lambda: BODY, "text/plain; x=1")
        self.address = (self.endpoint.address.host, self.endpoint.address.port)
        self.shift_s = 0.0
        self.ended = Event()
        self.thread = Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.ended.is_set():
            now = time.monotonic() + self.shift_s
            for key, _ in self.selector.select(0.02):
                key.data.hear(now)
            self.endpoint.check_deadlines(now)

    def end(self) -> None:
        self.ended.set()
        self.thread.join(30)
        self.endpoint.close()
        self.selector.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = len(os.listdir("/proc/self/fd"))
    one = Loop()
    yield one
    one.end()
    assert len(os.listdir("/proc/self/fd")) == before


def ask(loop: Loop, data: bytes) -> bytes:
    with socket.create_connection(loop.address, 5) as sock:
        sock.sendall(data)
        heard = b""
        try:
            while more := sock.recv(65536):
                heard += more
        except ConnectionResetError:
            pass  # closed with bytes of ours unread
        return heard


def test_a_scraper_gets_the_figures_whole(loop):
    with urllib.request.urlopen(f"http://{loop.endpoint.address}/metrics?x=1", timeout=30) as answer:
        assert answer.status == 200 and answer.headers["Content-Type"] == "text/plain; x=1"
        assert answer.read() == BODY
    head = ask(loop, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert head.endswith(b"\r\n\r\n") and f"Content-Length: {len(BODY)}".encode() in head


def test_nothing_else_is_to_be_had(loop):
    for path, method, status in (("/", "GET", 404), ("/metrics/x", "GET", 404), ("/metrics", "POST", 405)):
        request = urllib.request.Request(f"http://{loop.endpoint.address}{path}", method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        caught.value.close()
        assert caught.value.code == status
    assert ask(loop, b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 405 ")


def test_a_request_has_a_size(loop):
    assert ask(loop, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 8192) == b""


def test_scrapers_that_dawdle_are_let_go_and_are_few(loop):
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(loop.address, 5)) for _ in range(18)]
        for sock in socks[:16]:
            sock.sendall(b"GET /metr")
        # Two too many are closed at once.
        assert [sock.recv(1) for sock in socks[16:]] == [b"", b""]
        loop.shift_s = 6.0
        assert [sock.recv(1) for sock in socks[:16]] == [b""] * 16
    loop.shift_s = 0.0
    assert ask(loop, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(BODY)
