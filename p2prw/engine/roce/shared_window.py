"""The windows that all queue pairs with one peer fill together, and whose turn it is to fill them.

A peer grants every queue pair a part of one buffer, that of its socket, and what is READ from it comes into one of
ours; so what counts is the sum. Would each queue pair keep to its own part, many of them would have the whole buffer
under way, which no cache holds, in messages that want an ACK each. So they take turns: one sends about as much as if it
were alone, then the next one does.

Only when and how much is decided here; what goes out is the requester's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from p2prw.engine.roce.burst import Burst
from p2prw.engine.roce.requester import DEFAULT_WINDOW_BYTES, Requester

_TURNS = 2
"""Of a window: what one queue pair sends before the next one does, and the most that it has under way."""
_PARTS = 8
"""Who waits for room is asked again when this part of the window is free: not for every packet."""
_READ_PARTS = 2
"""The same for READs: one that is asked for in small pieces costs both ends more than one that is asked for whole."""


class Room:
    """One of the windows: WRITEs and SENDs towards the peer, or READ responses from it."""

    __slots__ = ("_granted_bytes", "_most_bytes", "_parts", "in_flight_bytes", "window_bytes")

    def __init__(self, most_bytes: int, parts: int) -> None:
        """`most_bytes` bounds it whatever is granted; one of `parts` must be free for who waits to be asked again."""
        self._most_bytes = most_bytes
        self._parts = parts
        self._granted_bytes = 0
        self.window_bytes = 1
        self.in_flight_bytes = 0
        """Of all shares, as of when each was last asked; one alone is not counted."""

    def grant(self, more_bytes: int) -> None:
        """Add to what was granted to all together."""
        self._granted_bytes += more_bytes
        self.window_bytes = max(1, min(self._most_bytes, self._granted_bytes))

    def left_bytes(self, packet_bytes: int) -> int:
        """Return what may be sent now; 0: too little. Nothing under way is room for whatever comes."""
        left = self.window_bytes - self.in_flight_bytes
        if self.in_flight_bytes and (left < packet_bytes or left < self.window_bytes // self._parts):
            return 0
        return max(1, left)


class SharedWindow:
    """Of one device towards one peer. Driven by its shares."""

    def __init__(self, most_bytes: int, most_read_bytes: int, sending: list[Share]) -> None:
        """`sending`: where shares go whose requester was told how much it may send; `recall` them some time."""
        self.writes = Room(most_bytes, _PARTS)
        self.reads = Room(most_read_bytes, _READ_PARTS)
        self.sending = sending
        self.shares: dict[Share, None] = {}
        self.line: deque[Share] = deque()
        """Who has something to send and waits for its turn."""
        self.holder: Share | None = None
        """Whose turn it is: it is awake, or it waits for room."""

    def join(self, share: Share, packet_bytes: int) -> None:
        """Take a queue pair in whose packets have at most `packet_bytes` of data."""
        self.shares[share] = None
        share.shared, share.packet_bytes = self, packet_bytes
        self.grant(share.granted_bytes, share.granted_read_bytes)
        if len(self.shares) == 2:
            self._change()
        elif len(self.shares) > 2:
            share.recall()

    def leave(self, share: Share) -> None:
        """Take a queue pair out that sends no more."""
        del self.shares[share]
        self.writes.in_flight_bytes -= share.counted_bytes
        self.reads.in_flight_bytes -= share.counted_read_bytes
        if share.is_in_line:
            self.line.remove(share)
        if self.holder is share:
            self.pass_on()
        share.shared = None
        share.stand_alone(share.granted_bytes, share.granted_read_bytes)
        self.grant(-share.granted_bytes, -share.granted_read_bytes)

    def grant(self, more_bytes: int, more_read_bytes: int) -> None:
        """Add to what was granted to all together; no loop over them, sixty of them change at once."""
        self.writes.grant(more_bytes)
        self.reads.grant(more_read_bytes)
        if len(self.shares) == 1:
            self._change()
        self.go_on()

    def _change(self) -> None:
        """Go from one to several, or back."""
        if len(self.shares) > 1:
            for share in self.shares:
                share.recall()
            return
        # fast path: one alone is not asked for its turn
        self.line.clear()
        self.holder = None
        self.writes.in_flight_bytes = self.reads.in_flight_bytes = 0
        for share in self.shares:
            share.stand_alone(self.writes.window_bytes, self.reads.window_bytes)

    def stand_in_line(self, share: Share) -> None:
        """Have the next turn that is free."""
        if not share.is_in_line:
            share.is_in_line = True
            self.line.append(share)

    def go_on(self) -> None:
        """Room was made: whose turn it is may have waited for it."""
        if self.holder is not None:
            self.holder.wake()

    def pass_on(self) -> None:
        """End a turn and begin the next one."""
        self.holder = self.line.popleft() if self.line else None
        if self.holder is not None:
            self.holder.begin(max(self.writes.window_bytes, self.reads.window_bytes) // _TURNS)


class Share:
    """One queue pair's part in them. `wake` has the device ask the queue pair for bursts."""

    __slots__ = (
        *("_requester", "_seen_psn", "ask", "counted_bytes", "counted_read_bytes", "granted_bytes"),
        *("granted_read_bytes", "is_in_line", "is_sending", "left_bytes", "packet_bytes", "shared", "wake"),
    )

    def __init__(self, requester: Requester, wake: Callable[[], None]) -> None:
        self._requester = requester
        self.wake = wake
        self.ask: Callable[[float], Burst | None] = requester.next_burst
        """What gives the next burst of requests; call `rest` when there was none."""
        self.shared: SharedWindow | None = None
        """None while not connected."""
        self.granted_bytes = self.granted_read_bytes = DEFAULT_WINDOW_BYTES
        self.packet_bytes = 1
        # while it is not alone
        self.counted_bytes = self.counted_read_bytes = 0
        self.is_in_line = False
        self.is_sending = False
        """Its requester was told how much it may send, and is asked itself."""
        self.left_bytes = 0
        """Of its turn."""
        self._seen_psn = requester.send_psn

    @property
    def is_free(self) -> bool:
        """The requester may go on without `ask`: it is sending, or alone."""
        return self.is_sending or self.shared is None or len(self.shared.shares) == 1

    def grant(self, window_bytes: int | None = None, read_window_bytes: int | None = None) -> None:
        """Take what the peer grants to this queue pair, and what READ responses to it may have under way."""
        before, before_read = self.granted_bytes, self.granted_read_bytes
        if window_bytes is not None:
            self.granted_bytes = max(1, window_bytes)
        if read_window_bytes is not None:
            self.granted_read_bytes = max(1, read_window_bytes)
        if self.shared is not None:
            self.shared.grant(self.granted_bytes - before, self.granted_read_bytes - before_read)
        else:
            self.stand_alone(self.granted_bytes, self.granted_read_bytes)

    def leave(self) -> None:
        """Send no more. Safe to call twice."""
        if self.shared is not None:
            self.shared.leave(self)

    def stand_alone(self, window_bytes: int, read_window_bytes: int) -> None:
        """Have both windows whole."""
        self._requester.window_bytes = window_bytes
        self._requester.read_window_bytes = read_window_bytes
        self.ask = self._requester.next_burst
        self.counted_bytes = self.counted_read_bytes = 0
        self.is_in_line = self.is_sending = False

    def begin(self, turn_bytes: int) -> None:
        """Our turn has come."""
        self.is_in_line = False
        self.left_bytes = max(self.packet_bytes, turn_bytes)
        self._seen_psn = self._requester.send_psn
        self.wake()

    def recall(self) -> None:
        """Look again how much may be sent before the next burst."""
        self.is_sending = False
        self.ask = self._ask_in_turn

    def rest(self) -> None:
        """There was no burst: go on if what was allowed has been sent, else let the next one go on."""
        if self.is_sending:
            self.recall()
            if self._requester.send_psn != self._seen_psn:
                self.wake()
            elif self.shared is not None:
                # Its own part is full, or it waits for something else.
                self.shared.pass_on()

    def _ask_in_turn(self, now: float) -> Burst | None:
        """As `Requester.next_burst`, but in turn, and within what all together may have under way."""
        return self._requester.next_burst(now) if self.may_go_on() else None

    def may_go_on(self) -> bool:
        """Where it is not free: see whether it is our turn and there is room; if so tell the requester how much."""
        shared, requester = self.shared, self._requester
        if shared is None:
            return False
        self._settle(shared)
        if not requester.unsent:
            if shared.holder is self:
                shared.pass_on()
            return False
        if shared.holder is not self or self.left_bytes < self.packet_bytes:
            shared.stand_in_line(self)
            if shared.holder is None or shared.holder is self:
                shared.pass_on()
            if shared.holder is not self:
                return False
        room, read_room = (each.left_bytes(self.packet_bytes) for each in (shared.writes, shared.reads))
        if not (read_room if requester.unsent[0].is_read else room):
            return False
        # Who waits for packets that were lost keeps no room from the others.
        parts = _TURNS if requester.retries_left == requester.retry_cnt else _TURNS * _PARTS
        most, most_read = shared.writes.window_bytes // parts, shared.reads.window_bytes // parts
        left, least = self.left_bytes, self.packet_bytes
        requester.window_bytes = min(max(most, least), self.counted_bytes + min(room, left))
        requester.read_window_bytes = min(max(most_read, least), self.counted_read_bytes + min(read_room, left))
        # fast path: from here on the requester itself is asked
        self.is_sending = True
        self.ask = requester.next_burst
        shared.sending.append(self)
        return True

    def _settle(self, shared: SharedWindow) -> None:
        """Count what is under way, and what our turn has cost."""
        requester = self._requester
        under_way = requester.sent_bytes - requester.acked_bytes
        reads_under_way = requester.read_psns_in_flight * self.packet_bytes if requester.reads else 0
        if under_way != self.counted_bytes or reads_under_way != self.counted_read_bytes:
            shared.writes.in_flight_bytes += under_way - self.counted_bytes
            shared.reads.in_flight_bytes += reads_under_way - self.counted_read_bytes
            self.counted_bytes, self.counted_read_bytes = under_way, reads_under_way
            if shared.holder is not self:
                shared.go_on()
        if requester.send_psn > self._seen_psn:
            self.left_bytes -= (requester.send_psn - self._seen_psn) * self.packet_bytes
        self._seen_psn = requester.send_psn
