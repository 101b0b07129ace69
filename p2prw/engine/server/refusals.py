"""What a server tells a client that may not stay, or not come in. Pure: where time decides, it is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from p2prw.engine.model import PeerAddress, Timeouts
from p2prw.engine.server.leases import Lease
from p2prw.errors import P2prwError, PeerRefusedError


def overdue(
    timeouts: Timeouts, now: float, *, since_s: float, last_heard_s: float, authenticated: bool
) -> PeerRefusedError | None:
    """Return why a client, connected `since_s`, must go now; None: it may stay."""
    if not authenticated:
        # From the connection on: who sends a byte now and then is no closer to its end.
        return _handshake_took_too_long(timeouts.handshake_s) if now - since_s > timeouts.handshake_s else None
    if now - last_heard_s > timeouts.idle_s:
        return PeerRefusedError(
            f"nothing was heard for {timeouts.idle_s:g} s (--idle-timeout)",
            why="a silent client holds memory that others may want",
            fix="a larger --idle-timeout at the server",
            code="idle",
        )
    if timeouts.client_s is not None and now - since_s > timeouts.client_s:
        return PeerRefusedError(
            f"its {timeouts.client_s:g} s are over (--client-time-limit)",
            why="no client may stay for longer, however busy it is",
            fix="a larger --client-time-limit at the server; files go on where they stopped with --resume",
            code="client_time_limit",
        )
    return None


def _handshake_took_too_long(limit_s: float) -> PeerRefusedError:
    return PeerRefusedError(
        f"the handshake was not done after {limit_s:g} s (--handshake-timeout)",
        why="whoever has not said who it is may not stay",
        fix="a larger --handshake-timeout at the server; is this port what you meant?",
        code="handshake_timeout",
    )


def full(max_clients: int) -> PeerRefusedError:
    """For a newcomer when all places are taken."""
    return PeerRefusedError(
        f"the server has its {max_clients} clients already",
        why="--max-clients bounds how many may be connected at a time",
        fix="try again later, or a larger --max-clients at the server",
        code="too_many_clients",
    )


def stopping() -> PeerRefusedError:
    """For whoever would begin something once the server was asked to stop."""
    return PeerRefusedError(
        "the server is stopping",
        why="it was asked to end; it finishes what runs and begins nothing new",
        fix="try again when it has been started again",
        code="stopping",
    )


def stopped(stop_s: float) -> PeerRefusedError:
    """For a transfer that was not done when the time for it was over."""
    return PeerRefusedError(
        "the server has stopped before the transfer was done",
        why=f"it was asked to end and waited {stop_s:g} s (--stop-timeout), or was asked twice",
        fix="start it again, then repeat; --resume goes on with files, --retries N by itself",
        code="server_stopped",
    )


def unknown_region(name: str, offered: Sequence[str], address: PeerAddress) -> PeerRefusedError:
    """For a region that is not offered; names the nearest one."""
    near = get_close_matches(name, offered, n=1)
    return PeerRefusedError(
        f"no region named {name!r}",
        why=f"offered here: {', '.join(sorted(offered)) or 'none'}",
        fix=f"{address}/{near[0]}" if near else f"p2prw regions {address}",
        code="unknown_region",
    )


def busy(standing: Lease) -> PeerRefusedError:
    """For who wants what `standing` holds."""
    return PeerRefusedError(
        f"region {standing.region!r} is busy",
        why=f"{standing.holder} holds it, or the bytes from offset {standing.offset} on, "
        f"for {standing.operation.value}",
        fix="try again later, take another range, or --shared on both sides (the result is then unverified)",
        code="busy",
    )


def passive() -> PeerRefusedError:
    """For a client that wants the server to post something."""
    return PeerRefusedError(
        "this server posts nothing towards its clients (--passive)",
        why="a ping-pong, and a measurement in both directions, need its CPU and its sends",
        fix="--lat-by completion, and no --bidirectional; or a server without --passive",
        code="passive",
    )


def one_way() -> PeerRefusedError:
    """For a client that wants both directions where its rate is limited."""
    return PeerRefusedError(
        "this server limits the rate of each client (--client-rate-limit), and posts nothing by itself then",
        why="the limit is kept by who posts; what the server posted would come on top of it",
        fix="leave --bidirectional away, or a server without --client-rate-limit",
        code="rate_limited",
    )


def defect(error: Exception) -> P2prwError:
    """For a client that met a defect of ours."""
    return P2prwError(
        f"the server failed: {type(error).__name__}: {error}",
        why="a defect of p2prw; the server's own output has the traceback",
        fix="report it with that output",
        code="server_defect",
    )


def unseen_rate(device: str) -> str:
    """Return the warning that `--client-rate-limit` is a request rather than a bound on a device."""
    return (
        f"--client-rate-limit: {device} serves READs and WRITEs by itself, unseen; clients are told the limit and keep "
        "to it, and only what passes through staging (files, bounced memory) is held to it here"
    )
