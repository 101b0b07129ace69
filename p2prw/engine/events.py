"""What a running transfer says about itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One sample, taken by time (5-10 Hz), never per completion."""

    phase: str
    """One of `p2prw.engine.model.PHASES`, or `reconnect` while it waits to try again."""
    bytes_done: int
    """Bytes whose completion was seen."""
    bytes_total: int
    elapsed_s: float
    """Since the first post; 0.0 before it."""
    bw_bytes_per_s: float
    """Over the last second or so; 0.0 when nothing moved."""
    wqes_in_flight: int
    wqes_total: int
    route: str
    """The local route: `cpu`, `pin`, ..."""
    retries: int = 0
    """Retransmissions (packets or bursts) the device knows of so far."""
    reconnects: int = 0
    """How often the transfer has connected again (`--retries`)."""


@dataclass(frozen=True, slots=True)
class ServeEvent:
    """One thing that happened at a server; the command line prints `text`, programs read `fields`."""

    kind: str
    """`listening`, `joined`, `granted`, `released`, `refused`, `failed`, `warning`, `stopping`, `stopped`, and `ended`:
    one for each connection, with who it was, what it had and how it ended."""
    text: str
    fields: dict[str, object]
