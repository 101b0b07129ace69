"""The service manager above a server: sockets that it listens on for us, and datagrams that tell it how we are.

What sd_listen_fds(3) and sd_notify(3) describe, in the few lines that it takes; where the environment names no manager
nothing is taken and nothing is sent. What the sockets are good for is checked in `listener.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from p2prw.errors import HostError

_FIRST_FD = 3
"""SD_LISTEN_FDS_START (systemd/sd-daemon.h)."""
_MOST_FDS = 64
_STATUS_INTERVAL_S = 1.0
_AFTER_THE_LIMIT_S = 10.0  # for closing files and the last fsync


class ServiceManager:
    """What `environ` says of a manager, as process `pid`; HostError `bad_inherited_socket` where it makes no sense."""

    def __init__(self, environ: Mapping[str, str], *, pid: int) -> None:
        self.listen_fds = _listen_fds(environ, pid)
        """Descriptors of listening sockets that were handed to us; empty: we open our own."""
        self._notify_address = _notify_address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog_interval_s = _watchdog_interval_s(environ, pid)
        self._next_watchdog_s = 0.0
        self._next_status_s = 0.0
        self._status = ""

    def ready(self, status: str) -> None:
        """Clients may come."""
        self._tell("READY=1", f"STATUS={status}")

    def stopping(self, status: str, limit_s: float) -> None:
        """No new clients; what runs may take `limit_s`, whatever the unit's TimeoutStopSec= says."""
        extend_us = int((limit_s + _AFTER_THE_LIMIT_S) * 1e6)
        self._tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={extend_us}")

    def tick(self, now: float, status: str) -> None:
        """The loop is alive; call it several times a second. `status` goes out when it has changed."""
        lines = []
        if self._watchdog_interval_s is not None and now >= self._next_watchdog_s:
            self._next_watchdog_s = now + self._watchdog_interval_s
            lines.append("WATCHDOG=1")
        if status != self._status and now >= self._next_status_s:
            self._next_status_s, self._status = now + _STATUS_INTERVAL_S, status
            lines.append(f"STATUS={status}")
        if lines:
            self._tell(*lines)

    def _tell(self, *lines: str) -> None:
        if self._notify_address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # A manager that does not read must not stop the loop.
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self._notify_address)
        except OSError:
            pass  # it went away, or is busy; transfers go on


def _listen_fds(environ: Mapping[str, str], pid: int) -> tuple[int, ...]:
    count_text, pid_text = environ.get("LISTEN_FDS"), environ.get("LISTEN_PID")
    if count_text is None or pid_text is None:
        return ()
    # Digits only: int() also takes signs, spaces and underscores.
    if not (pid_text.isascii() and pid_text.isdigit() and count_text.isascii() and count_text.isdigit()):
        raise _nonsense(f"LISTEN_PID={pid_text!r} and LISTEN_FDS={count_text!r} are no numbers")
    if int(pid_text) != pid:
        return ()  # meant for a parent of ours, that forgot to take them out of the environment
    count = int(count_text)
    if count > _MOST_FDS:
        raise _nonsense(f"LISTEN_FDS={count_text} sockets are more than {_MOST_FDS}")
    return tuple(range(_FIRST_FD, _FIRST_FD + count))


def _nonsense(why: str) -> HostError:
    return HostError(
        "cannot take over the sockets of the service manager",
        why=why,
        fix="systemctl cat p2prw.socket; without socket activation: env -u LISTEN_FDS -u LISTEN_PID p2prw serve ...",
        code="bad_inherited_socket",
    )


def _notify_address(text: str) -> str | None:
    """Return the address to send to; `@name` is the abstract socket `name` (unix(7)). None: nobody listens."""
    if text.startswith("@") and len(text) > 1:
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Return half of what the manager waits, as sd_watchdog_enabled(3) recommends; None: it does not watch us."""
    usec, watched = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(pid))
    if not (usec.isascii() and usec.isdigit()) or int(usec) == 0 or watched != str(pid):
        return None
    return int(usec) / 2e6
