"""Which clients have something to do, and their steps: sixty that only move bytes are not asked in every round."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2prw.engine.server.client import ServedClient


class Visits:
    """Driven by the server's loop: `round` each time around, `watch_writers` before it sleeps."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._restless: dict[ServedClient, None] = {}
        """In the order in which something happened to them."""
        self._writing: set[ServedClient] = set()
        """Those whose socket is watched for room, too."""

    def add(self, client: ServedClient) -> None:
        """Have a client take its steps: something happened to it."""
        self._restless[client] = None

    def forget(self, client: ServedClient) -> None:
        """Leave a client alone, before its descriptor is closed."""
        self._restless.pop(client, None)
        self._writing.discard(client)

    def round(self, now: float) -> bool:
        """Have each take a step; True when there was anything to do."""
        busy = False
        for client in list(self._restless):
            busy = client.step(now) or busy
            if not client.is_restless:
                self._restless.pop(client, None)
        return busy

    def watch_writers(self) -> None:
        """Have the selector wake us when there is room for what waits to be written, and only then."""
        writing = {client for client in self._restless if not client.gone and client.channel.wants_write}
        for client in writing ^ self._writing:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client in writing else 0)
            self._selector.modify(client.fileno, events, client)
        self._writing = writing
