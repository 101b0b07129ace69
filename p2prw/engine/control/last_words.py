"""How a connection ended, for whoever has learned from elsewhere that something is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

from p2prw.engine.control.channel import Channel
from p2prw.errors import DeadlineExceeded, PeerGone, PeerRefusedError, RemoteProtocolError


def how_it_ended(channel: Channel, within_s: float, pump: Callable[[], object]) -> PeerGone | PeerRefusedError | None:
    """Return the peer's refusal, or that it is gone, when either shows in `within_s` seconds; None: it is there.

    The end of a process tears its queue pairs and its connections down one after the other.
    """
    deadline = time.monotonic() + within_s
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                channel.expect(deadline_s=left_s, name="its last words", pump=pump)
            except RemoteProtocolError as error:
                if error.code != "unexpected_message":
                    return None
    except (PeerGone, PeerRefusedError) as error:
        return error
    except DeadlineExceeded:
        pass
    return None
