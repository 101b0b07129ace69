"""One run of another tool: its server, then its client, both on this host; neither outlives the run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from p2prw.against.tools import by_hand
from p2prw.engine.deadline import Deadline
from p2prw.errors import HostError
from p2prw.scenario.child import Child, end_all, wait_any

START_LIMIT_S = 15.0
RUN_LIMIT_S = 120.0
_GRACE_S = 2.0
_LOOK_S = 0.05
_LISTEN, _UNCONNECTED = "0A", "07"
_TABLES = {"tcp": _LISTEN, "tcp6": _LISTEN, "udp": _UNCONNECTED, "udp6": _UNCONNECTED}
_FIRST_PORT, _PORTS = 20000, 10000


def open_ports(net: Path = Path("/proc/net")) -> set[int]:
    """Return the ports that anything on this host waits at.

    Read from the kernel's tables: to connect and see would be a one-shot server's only client.
    """
    ports = set()
    for table, state in _TABLES.items():
        try:
            lines = (net / table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue  # no IPv6 on this host
        for line in lines:
            fields = line.split()
            if fields[3] == state:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def free_port(salt: int, taken: set[int]) -> int:
    """Return a port that nobody waits at; `salt` keeps two of us apart."""
    return next(
        port for n in range(_PORTS) if (port := _FIRST_PORT + (salt * 37 + n) % _PORTS) not in taken
    )  # fmt: skip


def run_pair(
    server: Sequence[str],
    client: Sequence[str],
    environ: Mapping[str, str],
    port: int,
    deadline: Deadline,
    ports: Callable[[], set[int]] = open_ports,
    assigned: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return what the client printed. HostError where one of them fails or hangs; a stop and the limit end both.

    `assigned` goes over `environ`: what stands before the program on the user's line.
    """
    environ = {**environ, **assigned}
    with _running(server, environ) as there:
        limit_s = deadline.clock() + deadline.left_s(START_LIMIT_S)
        while port not in ports():
            deadline.check("while a server of another tool starts")
            if there.ended or deadline.clock() > limit_s:
                raise _failed(server, assigned, there, f"did not listen on port {port}")
            wait_any([there], _LOOK_S)
        with _running(client, environ) as here:
            limit_s = deadline.clock() + deadline.left_s(RUN_LIMIT_S)
            while not here.ended:
                deadline.check("while another tool measures")
                if deadline.clock() > limit_s:
                    raise _failed(client, assigned, here, f"did not end in {RUN_LIMIT_S:g} s")
                wait_any([here], _LOOK_S)
            if here.exit_code != 0:
                raise _failed(client, assigned, here, f"ended with {here.exit_code}")
            return here.stdout


@contextmanager
def _running(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[Child]:
    try:
        child = Child(command[1:], environ, program=command[:1])
    except OSError as error:
        raise _no_tool(command[0], error) from error
    try:
        yield child
    finally:
        end_all([child], _GRACE_S)
        child.close()


def check_tool(program: str, environ: Mapping[str, str]) -> None:
    """Raise HostError `no_tool` where it is not there: before minutes of our own measuring, not after them."""
    if shutil.which(program, path=environ.get("PATH")) is None:
        raise _no_tool(program, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))


def _no_tool(program: str, error: OSError) -> HostError:
    return HostError(
        f"cannot run {program}: {(error.strerror or str(error)).lower()}",
        why="--against runs the other tool on this host",
        fix=f"apt install {_package(program)}, or its path in front of the name",
        code="no_tool",
        errno=error.errno,
    )


def _package(program: str) -> str:
    base = program.rpartition("/")[2]
    if base.startswith("ib_"):
        return "perftest"
    return "ucx-utils" if base.startswith("ucx_") else "libfabric-dev (and fabtests from source: benchmarks/README.md)"


def _failed(command: Sequence[str], assigned: Mapping[str, str], child: Child, what: str) -> HostError:
    said = [*child.stderr_tail.strip().splitlines(), *child.stdout.strip().splitlines()]
    return HostError(
        f"{command[0]} {what}",
        why=said[-1][:200] if said else "it said nothing",
        fix=f"run it by hand: {by_hand(command, assigned)}",
        code="tool_failed",
    )
