"""Watches whether segmented (UDP_SEGMENT) sends reach the peer at all. Pure: looks at counters, decides, nothing else.

A NIC that segments by itself and does not count the IPv4 identification up makes every segment but the first fail the
peer's ICRC check. The peer drops them silently, so all that shows here are timeouts, or one sequence NAK for each
single packet of progress.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

BARREN_TIMEOUTS = 3
"""Retransmission timeouts in a row during which nothing at all came back; 5 % random loss makes two of them now and
then."""
NAKS_TO_JUDGE = 32
PACKETS_PER_NAK = 1.5
"""A burst of which only segment 0 counts brings 1; losing 20 % of all packets at random still brings 4."""
PACKETS_TO_TRUST = 64
"""Completed packets after which segmentation is known to work, when they took few repairs."""
PACKETS_PER_REPAIR = 4


class Counters(Protocol):
    """What is looked at; `p2prw.engine.providers.base.QueuePairCounters` has it."""

    packets_sent: int
    packets_received: int
    retransmitted_packets: int
    sequence_naks: int
    timeouts: int


@dataclass(slots=True)
class GsoWatch:
    """One queue pair's history; `look` is called now and then, and after each timer, with its cumulative counters."""

    is_trusted: bool = False
    """Segmented sends were seen to arrive: from here on losses are just losses."""
    timeouts: int = 0
    barren_timeouts: int = 0
    received: int = 0
    segmented_sends: int = 0
    naks: int = 0
    fresh_packets: int = 0

    def look(self, counters: Counters, completed_packets: int, segmented_sends: int) -> str | None:
        """Return why segmented sends should stop, or None while they seem to work.

        `completed_packets` are those of WRITEs that completed; a crawl of one packet for each NAK earns no trust.
        `segmented_sends` are the device's so far: a timeout before which none left says nothing about them.
        """
        if self.is_trusted:
            return None
        repairs = counters.sequence_naks + counters.timeouts
        if completed_packets >= PACKETS_TO_TRUST and completed_packets > PACKETS_PER_REPAIR * repairs:
            self.is_trusted = True
            return None
        if counters.timeouts > self.timeouts:
            if counters.packets_received != self.received:
                self.barren_timeouts = 0
            elif segmented_sends != self.segmented_sends:
                self.barren_timeouts += 1
            self.timeouts = counters.timeouts
            self.received = counters.packets_received
            self.segmented_sends = segmented_sends
            if self.barren_timeouts >= BARREN_TIMEOUTS:
                return f"{self.barren_timeouts} retransmission timeouts in a row brought no answer"
        naks = counters.sequence_naks - self.naks
        if naks == 0 or naks >= NAKS_TO_JUDGE:
            fresh = counters.packets_sent - counters.retransmitted_packets
            advanced = fresh - self.fresh_packets
            self.naks, self.fresh_packets = counters.sequence_naks, fresh
            if advanced < PACKETS_PER_NAK * naks:
                return f"{naks} sequence NAKs for {advanced} new packets"
        return None
