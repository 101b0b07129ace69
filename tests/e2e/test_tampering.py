"""Somebody in between, who sees every byte of the control channel and may change it; and somebody who records it.

The two ends are real (a server on a thread, a client in this one, soft devices on loopback); only the way between their
control sockets leads through the test.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Auth, Hello, Refuse, decode
from p2prw.engine.model import PeerAddress, Timeouts, TransferResult

TOKEN = b"a token that nobody may ever see on the wire"
QUICK = Timeouts(connect_retry_s=1, handshake_s=5, idle_s=5)
MIB = 1024 * 1024

Change = Callable[[str, dict[str, Any]], None]


class Between:
    """Forwards frames of one connection at a time; `change` may edit each JSON document on its way.

    `frames` keeps (sender, bytes) as they were sent. A frame that `change` left alone goes on as it came.
    """

    def __init__(self, server: PeerAddress, change: Change | None) -> None:
        self.frames: list[tuple[str, bytes]] = []
        self.changed = 0
        self.edit: Callable[[str, bytes], bytes] = self.edit_document
        self._server, self._change = server, change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = PeerAddress(*self._listener.getsockname())
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((self._server.host, self._server.port))
            self._sockets += [near, far]
            for sender, source, sink in (("client", near, far), ("server", far, near)):
                thread = threading.Thread(target=self._forward, args=(sender, source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _forward(self, sender: str, source: socket.socket, sink: socket.socket) -> None:
        stream = source.makefile("rb")
        try:
            while len(header := stream.read(4)) == 4:
                body = stream.read(struct.unpack(">I", header)[0])
                self.frames.append((sender, body))
                body = self.edit(sender, body)
                sink.sendall(struct.pack(">I", len(body)) + body)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def edit_document(self, sender: str, body: bytes) -> bytes:
        if self._change is None:
            return body
        end = body.rindex(b"}") + 1
        while True:
            try:
                document = json.loads(body[:end])
                break
            except ValueError:
                end = body.rindex(b"}", 0, end - 1) + 1  # the seal happened to hold a brace
        before = json.dumps(document)
        self._change(sender, document)
        if json.dumps(document) == before:
            return body
        self.changed += 1
        return json.dumps(document, separators=(",", ":")).encode() + body[end:]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            one.close()
        for thread in self._threads:
            thread.join(30)


@contextmanager
def between(server: PeerAddress, change: Change | None = None) -> Iterator[Between]:
    middle = Between(server, change)
    try:
        yield middle
    finally:
        middle.close()


def content(address: PeerAddress, copy: Path) -> bytes:
    """What an honest client reads in `mem`."""
    result = api.read(f"{address}/mem", f"file:{copy}", token=TOKEN, timeouts=QUICK)
    assert result.exit_code == 0 and result.verify.status == "verified", result.error
    return copy.read_bytes()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[PeerAddress, Path]]:
    folder = tmp_path_factory.mktemp("served")
    regions = {"mem": "host,size=1MiB,pattern=words:5", "other": "host,size=1MiB", "sink": f"file:{folder}/sink.bin"}
    with api.serving(regions, token=TOKEN, timeouts=QUICK) as address:
        content(address, folder / "before.bin")
        yield address, folder


def setter(sender: str, kind: str, *path: str | int, to: object = None) -> Change:
    """Change one field of every `kind` that `sender` says; a number by one, unless told `to` what."""

    def change(who: str, document: dict[str, Any]) -> None:
        if who == sender and document.get("type") == kind:
            place: Any = document
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = place[path[-1]] + 1 if to is None else to

    return change


BEFORE_ANYTHING_MOVES = [
    ("client", "hello", "version", 1),
    ("server", "hello", "version", 1),
    ("client", "hello", "nonce", "0" * 64),
    ("server", "hello", "nonce", "0" * 64),
    ("client", "hello", "auth", "none"),
    ("server", "hello", "auth", "none"),
    ("client", "hello", "capabilities", []),
    ("server", "hello", "capabilities", []),
    ("client", "hello", "udp_port", None),
    ("server", "hello", "udp_port", None),
    ("client", "hello", "gid_table", 0, "gid", "0" * 20 + "ffff7f000009"),
    ("server", "hello", "gid_table", 0, "gid", "0" * 20 + "ffff7f000009"),
    ("client", "auth", "mac", "0" * 64),
    ("server", "auth", "mac", "0" * 64),
    ("client", "open", "region", "other"),
    ("client", "open", "offset", None),
    ("client", "open", "length", 4096),
    ("client", "open", "op", "read"),
    ("client", "open", "shared", True),
    ("client", "open", "window_bytes", None),
    ("client", "open", "queue_pair", "qpn", None),
    ("client", "open", "queue_pair", "psn", 5),
    ("client", "open", "queue_pair", "udp_port", None),
    ("client", "open", "queue_pair", "gid", "0" * 20 + "ffff7f000009"),
    ("server", "grant", "lease", "0" * 16),
    ("server", "grant", "length", None),
    ("server", "grant", "segments", 0, "address", None),
    ("server", "grant", "segments", 0, "length", None),
    ("server", "grant", "segments", 0, "rkey", 5),
    ("server", "grant", "window_bytes", None),
    ("server", "grant", "queue_pair", "qpn", None),
    ("server", "grant", "queue_pair", "psn", 5),
    ("server", "grant", "queue_pair", "udp_port", None),
    ("server", "grant", "flushable", False),
]


def refused(result: TransferResult, *codes: str) -> None:
    assert result.exit_code == 7 and result.error is not None, result.error
    assert result.error.code in codes and result.error.why and result.error.fix, result.error


@pytest.mark.parametrize("where", BEFORE_ANYTHING_MOVES, ids=lambda where: "-".join(str(step) for step in where[:-1]))
def test_a_changed_field_is_refused_and_nothing_moves(served, where):
    sender, kind, *path, to = where
    address, _ = served
    with between(address, setter(sender, kind, *path, to=to)) as middle:
        result = api.write(f"{middle.address}/mem+4096", "host,size=64KiB", token=TOKEN, timeouts=QUICK)
        assert middle.changed == 1, "the field was not where the test looked for it"
    expected = {
        "version": ("version_mismatch",),
        "auth": ("auth_required", "auth_not_used"),
        "mac": ("auth_failed",),
    }.get(str(path[-1]), ("auth_failed",) if kind == "hello" else ("bad_seal",))
    refused(result, *expected)
    assert result.results == () or result.results[0].bytes == 0


def test_after_all_that_the_memory_is_what_it_was(served):
    """Whatever of the cases above ran before this one."""
    address, folder = served
    assert content(address, folder / "after.bin") == (folder / "before.bin").read_bytes()


@pytest.mark.parametrize(
    "where",
    [
        ("client", "commit", "offset", 0),
        ("client", "commit", "length", 1),
        ("client", "commit", "slot", None),
        ("server", "committed", "offset", None),
        ("client", "digest", "length", 4096),
        ("server", "digests", "digests", ["00" * 16]),
        ("client", "release", "lease", "0" * 16),
        ("server", "released", "lease", "0" * 16),
    ],
    ids=lambda where: "-".join(where[:3]),
)
def test_a_change_on_the_way_of_a_file_leaves_no_file_that_was_not_asked_for(served, tmp_path, where):
    sender, kind, field, to = where
    address, folder = served
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 8192)
    with between(address, setter(sender, kind, field, to=to)) as middle:
        options = {"staging_chunk_bytes": MIB, "staging_bytes": MIB}
        result = api.write(f"{middle.address}/sink", f"file:{source}", token=TOKEN, timeouts=QUICK, **options)
        assert middle.changed >= 1
    refused(result, "bad_seal")
    sink = folder / "sink.bin"
    if kind == "released":
        # The server had finished: the client does not believe it, and what is there is what was sent.
        assert sink.read_bytes() == source.read_bytes()
        sink.unlink()
    assert not sink.exists()


@pytest.mark.parametrize("instead", [b'{"type":"list","page":0}', None], ids=["replaced", "repeated"])
def test_replaced_and_repeated_frames_are_refused(served, instead):
    """The open is replaced by a frame without a seal; or it goes on, and again in the place of the next frame."""
    address, _ = served
    opens: list[bytes] = []

    def edit(sender: str, body: bytes) -> bytes:
        if sender == "server":
            return body
        if opens:
            return opens[0]
        if b'"type":"open"' not in body:
            return body
        opens.append(body)
        return instead or body

    with between(address) as middle:
        middle.edit = edit
        result = api.write(f"{middle.address}/mem", "host,size=64KiB", token=TOKEN, timeouts=QUICK)
    refused(result, "bad_seal")


def record(address: PeerAddress) -> list[tuple[str, bytes]]:
    with between(address) as middle:
        result = api.write(f"{middle.address}/mem", "host,size=1MiB,pattern=words:5", token=TOKEN, timeouts=QUICK)
        assert result.exit_code == 0, result.error
        return middle.frames


def test_a_recorded_session_cannot_be_replayed(served):
    """Neither to the server, whose nonce is a new one, nor to a client."""
    address, _ = served
    frames = record(address)
    with Channel(socket.create_connection((address.host, address.port), 5)) as channel:
        channel._sock.setblocking(True)
        for sender, body in frames:
            if sender == "client":
                try:
                    channel._sock.sendall(struct.pack(">I", len(body)) + body)
                except OSError:
                    break  # it hung up: what follows is not even read
        channel._sock.setblocking(False)
        channel.expect(Hello, deadline_s=30, name="hello")
        answer = channel.expect(Refuse, Auth, deadline_s=30, name="an answer")
    assert isinstance(answer, Refuse) and answer.code == "auth_failed"
    replaying = [body for sender, body in frames if sender == "server"]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def play() -> None:
            connection, _ = listener.accept()
            with connection:
                for body in replaying:
                    connection.sendall(struct.pack(">I", len(body)) + body)
                connection.settimeout(30)
                try:
                    while connection.recv(65536):
                        pass
                except OSError:
                    pass

        thread = threading.Thread(target=play)
        thread.start()
        host, port = listener.getsockname()
        result = api.write(f"{host}:{port}/mem", "host,size=1MiB", token=TOKEN, timeouts=QUICK)
        thread.join(30)
    refused(result, "auth_failed")
    assert result.results == ()


def test_no_byte_of_the_token_or_its_keys_is_on_the_wire(served):
    address, _ = served
    frames = record(address)
    wire = b"".join(body for _, body in frames)
    assert len(frames) >= 10 and b'"grant"' in wire
    for length in (len(TOKEN), 8):
        for start in range(len(TOKEN) - length + 1):
            piece = TOKEN[start : start + length]
            assert piece not in wire and piece.hex().encode() not in wire
    nonces = re.findall(rb'"nonce":"([0-9a-f]{64})"', wire)
    assert len(set(nonces)) == 2
    assert isinstance(decode(frames[0][1]), Hello)


@pytest.mark.parametrize("token", [b"another one", None])
def test_a_wrong_token_is_refused_and_nothing_moves(served, token):
    address, _ = served
    started = time.monotonic()
    result = api.write(f"{address}/mem", "host,size=64KiB", token=token, timeouts=QUICK)
    refused(result, "auth_failed" if token else "auth_required")
    assert result.results == () and time.monotonic() - started < 20
