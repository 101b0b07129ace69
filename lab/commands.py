"""Running a host program quietly: its words are shown only when it fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from lab.errors import LabError

_TAIL_LINES = 12


def run(command: Sequence[str], *, failure: type[LabError], what: str, timeout_s: float = 600) -> str:
    """Run to the end and return standard output. Raises `failure` with `what` and the end of what it wrote."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except FileNotFoundError:
        raise failure(f"{what}: there is no program {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise failure(f"{what}: {command[0]} did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_TAIL_LINES:])
        raise failure(f"{what}: {command[0]} ended with {done.returncode}\n{tail}")
    return done.stdout
