"""`--cpu`: run on these CPUs and no others. The kernel says which there are; what it silently leaves out is refused."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from p2prw.errors import HostError

MOST_CPUS = 8192
"""CONFIG_NR_CPUS of the largest distribution kernels."""


_processors_before: list[int] = []


def processors() -> int:
    """Return on how many CPUs this process might run, were it not for `--cpu`: then the other end has another one."""
    return max([own_processors(), *_processors_before])


def own_processors() -> int:
    """Return on how many CPUs this thread, and those it starts, may run."""
    return len(os.sched_getaffinity(0))


def pin(cpus: Iterable[int]) -> None:
    """Bind this thread, and those it starts, to `cpus`. HostError where one is not there or not allowed."""
    wanted = set(cpus)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, wanted)
        got = os.sched_getaffinity(0)
    except OSError:
        # EINVAL: none of them is there.
        got = set()
    if got == wanted:
        _processors_before[:] = [len(before)]
        return
    # sched_setaffinity(2) takes what it can of a set; all there are is what is allowed here (cpusets, containers).
    os.sched_setaffinity(0, range(MOST_CPUS))
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)
    shown = format_cpus(sorted(allowed))
    raise HostError(
        f"--cpu {format_cpus(sorted(wanted))}: CPU {format_cpus(sorted(wanted - allowed))} is not there or not allowed",
        why=f"this process may run on CPU {shown}",
        fix=f"--cpu {shown}",
        code="cpu_not_allowed",
    )


def current_cpus() -> str:
    """Return where this thread may run, as `0-3,8`."""
    return format_cpus(sorted(os.sched_getaffinity(0)))


def format_cpus(cpus: Sequence[int]) -> str:
    """Return sorted numbers as the kernel lists them: `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
