"""What a scripted device is told to do, what it counts, and the clock it lives by: data only."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2prw.engine.model import WcStatus


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one work request, counted from 0 over all posts of a device."""

    wr: int
    status: WcStatus = WcStatus.SUCCESS
    """An error moves no data, completes with this status and flushes everything behind it."""
    delay_s: float = 0.0
    """The completion comes this much later; later ones keep their order behind it."""
    lose_completion: bool = False
    """The data moves but no completion comes; later ones do (as if the request had been unsignalled)."""
    stall: bool = False
    """Nothing from this request on ever completes."""
    lose_data: bool = False
    """Completes with SUCCESS though no byte moved: verification must find it."""
    spoil_at: int | None = None
    """The byte at this offset of the request arrives inverted."""


@dataclass(frozen=True, slots=True)
class Script:
    """How a device behaves; the default is perfect and instant."""

    faults: tuple[Fault, ...] = ()
    latency_s: float = 0.0
    """From post to completion of each request; requests overlap."""
    bytes_per_s: float | None = None
    """The wire's rate; requests follow each other on it."""
    completions_per_pump: int | None = None
    """At most this many requests complete in one `pump`."""
    receive_window_bytes: int = 1 << 30
    register_errno: int | None = None
    """`register` fails with this errno."""
    connect_errno: int | None = None
    """`connect` fails with this errno."""


@dataclass(slots=True)
class Counts:
    """What was done to a device; peaks and totals, for assertions."""

    posts: int = 0
    signaled_posts: int = 0
    posted_bytes: int = 0
    polls: int = 0
    empty_polls: int = 0
    completions: int = 0
    pumps: int = 0
    outstanding: int = 0
    peak_outstanding: int = 0
    """Most WQEs posted and not yet retired by a polled completion."""
    registrations_made: int = 0
    registrations_open: int = 0
    queue_pairs_made: int = 0
    queue_pairs_open: int = 0
    windows: list[int] = field(default_factory=list)
    """Every `set_window`, in bytes."""


class ManualClock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds
