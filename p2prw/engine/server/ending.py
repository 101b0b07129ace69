"""The one line about a connection that a log keeps: who it was, what it had, how it ended. Pure.

Never a token, a nonce, a key or a lease's name: a log is read by more people than a token file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2prw.units import exact_size


@dataclass(slots=True)
class Ending:
    """Filled while a client is here; `describe` when it has gone."""

    client: str
    """HOST:PORT"""
    agent: str | None = None
    """The program it said it is."""
    authenticated: bool = False
    token: bool = False
    """It has proven that it knows the token."""
    tls: bool = False
    operations: dict[str, None] = field(default_factory=dict)
    """`write`, `read`, in the order of its leases."""
    whole_bytes: int = 0
    """Of the leases that were released whole."""
    moved_bytes: int | None = None
    """What the server saw it move; None where its device shows nothing of that."""

    def accept(self, agent: str, *, token: bool, tls: bool) -> None:
        """Note who it is, once it is through its handshake."""
        self.agent, self.authenticated, self.token, self.tls = agent, True, token, tls

    def count_moved(self, moved_bytes: int | None) -> None:
        """Add what a lease moved, where that is known."""
        if moved_bytes is not None:
            self.moved_bytes = (self.moved_bytes or 0) + moved_bytes

    def describe(
        self, code: str | None, exit_code: int, elapsed_s: float, granted_bytes: int = 0, regions: Iterable[str] = ()
    ) -> tuple[str, dict[str, object]]:
        """Return the line and its fields; `code` is that of the error that ended it, if any did."""
        ended = code or ("ok" if exit_code == 0 else "broken_off")
        names = list(regions)
        what = "nothing granted"
        if self.operations:
            what = (
                f"{', '.join(self.operations)} {', '.join(names)}, {exact_size(granted_bytes)} granted, "
                f"{exact_size(self.whole_bytes)} whole"
            )
        locks = " and ".join(word for word, has in (("token", self.token), ("TLS", self.tls)) if has)
        text = f"{self.client} ended after {elapsed_s:.1f} s: {ended}; {what}; {locks or 'no token, no TLS'}"
        return text, {
            "client": self.client,
            "agent": self.agent,
            "authenticated": self.authenticated,
            "token": self.token,
            "tls": self.tls,
            "operations": list(self.operations),
            "regions": names,
            "granted_bytes": granted_bytes,
            "whole_bytes": self.whole_bytes,
            "moved_bytes": self.moved_bytes,
            "elapsed_s": elapsed_s,
            "ended": ended,
            "exit_code": exit_code,
        }
