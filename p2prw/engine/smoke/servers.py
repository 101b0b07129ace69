"""The serving end of a loopback: a `Server` on a thread of this process, for one device at a time.

A thread, not a process: it costs no start (5 s in a guest under emulation), and what goes through is the same: TCP, the
device's own queue pairs, leases, digests by the side that owns the memory.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2prw.engine.model import PeerAddress, ServeRequest
from p2prw.engine.pattern import STEP_BYTES, Pattern
from p2prw.engine.server.server import Server
from p2prw.engine.smoke.model import LoopbackServer, SmokeRequest
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError

_TOKEN_BYTES = 32
_JOIN_S = 10.0


class Serving:
    """A running server, the token that opens it, and why it has ended where it did so by itself."""

    def __init__(self, address: PeerAddress, token: bytes) -> None:
        self.address = address
        self.token = token
        self.failure: Exception | None = None

    def run(self, server: Server, stop: StopRequest) -> None:
        """Be the thread: what ends the server is kept for the cells, which are about to miss it."""
        try:
            server.run(stop)
        except Exception as error:
            self.failure = error


@contextmanager
def serving(loopback: LoopbackServer, request: SmokeRequest) -> Iterator[Serving]:
    """Serve the regions of one device until left. HostError or RequestError where that cannot be."""
    for path, length_bytes in loopback.files:
        fill_file(path, length_bytes, request.seed)
    # A token of its own: nobody else gets at these regions, whatever address they are on.
    token = secrets.token_bytes(_TOKEN_BYTES)
    serve = ServeRequest(
        regions=loopback.regions,
        listen=PeerAddress(loopback.address, 0),
        device=loopback.device,
        ib_port=loopback.ib_port,
        verbs_binding=request.verbs_binding,
        token=token,
        timeouts=request.timeouts,
        force_bound_device=request.force_bound_device,
    )
    stop = StopRequest()
    with Server(serve) as server:
        running = Serving(server.address, token)
        thread = threading.Thread(target=running.run, args=(server, stop), name="p2prw-smoke-serve", daemon=True)
        thread.start()
        try:
            yield running
        finally:
            stop.end_now()
            thread.join(_JOIN_S)


def fill_file(path: str, length_bytes: int, seed: int) -> None:
    """Make a file of `random:SEED` bytes. HostError `smoke_file` with errno."""
    pattern = Pattern("random", seed)
    try:
        with Path(path).open("wb") as file:
            for start in range(0, length_bytes, STEP_BYTES):
                file.write(pattern.bytes_at(start, min(STEP_BYTES, length_bytes - start)))
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {(error.strerror or str(error)).lower()}",
            why="smoke keeps the files it moves in a folder of its own under TMPDIR",
            fix="TMPDIR=DIRECTORY with some room, or --memory host",
            code="smoke_file",
            errno=error.errno,
        ) from error
