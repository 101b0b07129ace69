"""A server's figures in Prometheus' text format, by the official client library; the only door to it.

The library's own HTTP server would be a thread that looks into a running loop: its registry and its format are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from p2prw import __version__
from p2prw.engine.server.counters import ServerCounters, ServerState
from p2prw.errors import HostError


class Exposition:
    """Renders what `state` and `counters` say when asked. HostError `missing_library` where the extra is missing."""

    def __init__(self, state: Callable[[], ServerState], counters: ServerCounters) -> None:
        try:
            import prometheus_client
            from prometheus_client import core, exposition
        except ImportError as error:
            raise HostError(
                "metrics need the package prometheus_client",
                why=f"it is an extra of p2prw, and not installed here: {error}",
                fix="pip install 'p2prw[metrics]'",
                code="missing_library",
            ) from error
        self.content_type: str = exposition.CONTENT_TYPE_LATEST
        self._state = state
        self._counters = counters
        self._core: Any = core
        self._generate: Any = exposition.generate_latest
        self._registry: Any = prometheus_client.CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        # Resident memory, descriptors, CPU time and start time of this process.
        prometheus_client.ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return the exposition as it is now."""
        text: bytes = self._generate(self._registry)
        return text

    def collect(self) -> Iterator[Any]:
        """Yield the metric families; for the library."""
        state, counters = self._state(), self._counters
        build = self._gauge("p2prw_build_info", "The release that runs.", ["version"])
        build.add_metric([__version__], 1)
        yield build
        for name, value, text in (
            ("p2prw_clients", state.clients, "Control connections that stand."),
            ("p2prw_leases", state.leases, "Leases that stand: transfers under way."),
        ):
            gauge = self._gauge(name, text, [])
            gauge.add_metric([], value)
            yield gauge
        queue_pairs = self._gauge("p2prw_queue_pairs", "Queue pairs that stand.", ["device"])
        registrations = self._gauge("p2prw_registrations", "Memory registrations that stand.", ["device"])
        again = self._counter("p2prw_retransmitted_packets", "Packets sent again (software device).", ["device"])
        dropped = self._counter(
            "p2prw_dropped_packets", "Packets that reached no queue pair (software device).", ["device", "reason"]
        )
        for device, usage in state.devices.items():
            queue_pairs.add_metric([device], usage.queue_pairs)
            registrations.add_metric([device], usage.registrations)
            again.add_metric([device], usage.retransmitted_packets)
            for reason, count in usage.dropped_packets.items():
                dropped.add_metric([device, reason], count)
        yield from (queue_pairs, registrations, again, dropped)
        connections = self._counter("p2prw_connections", "Connections that are over.", ["outcome"])
        for outcome, count in sorted(counters.connections.items()):
            connections.add_metric([outcome], count)
        transfers = self._counter("p2prw_transfers", "Transfers that are over.", ["region", "operation", "outcome"])
        for labels, count in sorted(counters.transfers.items()):
            transfers.add_metric(list(labels), count)
        moved = self._counter("p2prw_kept_bytes", "Bytes of transfers released whole.", ["region", "operation"])
        for pair, count in sorted(counters.kept_bytes.items()):
            moved.add_metric(list(pair), count)
        errors = self._counter("p2prw_errors", "What clients were told, by code.", ["code"])
        for code, count in sorted(counters.errors.items()):
            errors.add_metric([code], count)
        yield from (connections, transfers, moved, errors)

    def _gauge(self, name: str, text: str, labels: list[str]) -> Any:
        return self._core.GaugeMetricFamily(name, text, labels=labels)

    def _counter(self, name: str, text: str, labels: list[str]) -> Any:
        # The library puts `_total` behind the name.
        return self._core.CounterMetricFamily(name, text, labels=labels)
