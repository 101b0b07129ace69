"""Where a server's figures go: to scrapers (`--metrics`), into a file for the node exporter (`--metrics-file`)."""

from __future__ import annotations

import selectors
from collections.abc import Callable

from p2prw.engine.model import ServeRequest
from p2prw.engine.server.counters import ServerCounters, ServerState
from p2prw.engine.server.exposition import Exposition
from p2prw.engine.server.metrics_http import MetricsEndpoint
from p2prw.engine.server.worker import Worker
from p2prw.engine.whole_file import write_whole
from p2prw.errors import HostError

_FILE_INTERVAL_S = 10.0


class Metrics:
    """Opened before "ready", driven by the server's housekeeping. HostError: no library, no port, no such directory."""

    def __init__(
        self,
        request: ServeRequest,
        selector: selectors.BaseSelector,
        worker: Worker,
        state: Callable[[], ServerState],
        counters: ServerCounters,
        warn: Callable[[str], None],
    ) -> None:
        self._worker = worker
        self._warn = warn
        self._path = request.metrics_file
        self._next_file_s: float | None = None
        self._file_is_broken = False
        self._exposition = Exposition(state, counters)
        if self._path is not None:
            _write(self._path, self._exposition.text())
        self._endpoint: MetricsEndpoint | None = None
        if request.metrics is not None:
            exposition = self._exposition
            self._endpoint = MetricsEndpoint(selector, request.metrics, exposition.text, exposition.content_type)

    @property
    def places(self) -> tuple[str, ...]:
        """Where the figures are, for a person."""
        places = () if self._path is None else (self._path,)
        return places if self._endpoint is None else (f"http://{self._endpoint.address}/metrics", *places)

    def housekeeping(self, now: float) -> None:
        """Let go of scrapers that dawdle; write the file when it is time."""
        if self._endpoint is not None:
            self._endpoint.check_deadlines(now)
        if self._path is not None and now >= (self._next_file_s or 0.0):
            self._next_file_s = now + _FILE_INTERVAL_S
            path, text = self._path, self._exposition.text()
            # On the worker: the file may be on a disk that hangs.
            self._worker.submit(lambda: _write(path, text), self._written)

    def _written(self, error: BaseException | None) -> None:
        if isinstance(error, HostError) and not self._file_is_broken:
            self._warn(error.what)
        self._file_is_broken = error is not None

    def close(self) -> None:
        """Close the sockets; the file stays as it was written last."""
        if self._endpoint is not None:
            self._endpoint.close()


def _write(path: str, text: bytes) -> None:
    # 0644: who collects it is another user.
    write_whole(path, text, "--metrics-file", code="metrics_file", mode=0o644)
