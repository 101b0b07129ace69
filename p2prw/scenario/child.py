"""The one door to subprocesses: p2prw as a child, or a tool it is held against, read through pipes, bound to our life.

Pipes and no files: a full disk must not cost a result. A session of its own, so that a Ctrl-C at the terminal reaches
us alone and we decide who is told; PR_SET_PDEATHSIG, so that even `kill -9` of us leaves no server behind.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

MOST_OUTPUT_BYTES = 64 << 20
STDERR_TAIL_BYTES = 16 << 10
_PIECE_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h

PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


class Child:
    """One running command. Driven by `wait_any`, which reads its pipes: a child that nobody reads stands still."""

    def __init__(
        self, words: Sequence[str], environ: Mapping[str, str], *, program: Sequence[str] | None = None
    ) -> None:
        """Start `p2prw WORDS`, or another program with them. OSError where the system cannot start it."""
        self.started_s = time.monotonic()
        self.ended_s: float | None = None
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        # -P: the directory we are in is no place for modules; the package is named where it is instead.
        path = os.pathsep.join(filter(None, (PACKAGE_PARENT, environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [*(program or (sys.executable, "-P", "-m", "p2prw")), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environ, "PYTHONPATH": path},
            start_new_session=True,
            preexec_fn=_dies_with(os.getpid()),
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.open_pipes = {"stdout": self.process.stdout, "stderr": self.process.stderr}
        for pipe in self.open_pipes.values():
            os.set_blocking(pipe.fileno(), False)

    @property
    def ended(self) -> bool:
        """Return True once it has exited and all it said was read."""
        if self.ended_s is None and not self.open_pipes and self.process.poll() is not None:
            self.ended_s = time.monotonic()
        return self.ended_s is not None

    @property
    def exit_code(self) -> int:
        """Return its exit code; negative for a signal, as subprocess has it."""
        code = self.process.poll()
        assert code is not None, "asked before it ended"
        return code

    @property
    def elapsed_s(self) -> float:
        """Return how long it ran, or has been running."""
        return (self.ended_s or time.monotonic()) - self.started_s

    @property
    def stdout(self) -> str:
        """Return all of its stdout."""
        return self._output["stdout"].decode("utf-8", "replace")

    @property
    def stderr_tail(self) -> str:
        """Return the last of its stderr."""
        return self._output["stderr"].decode("utf-8", "replace")

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def read(self, name: str) -> None:
        """Take what the pipe holds; close it at its end."""
        pipe = self.open_pipes[name]
        try:
            piece = os.read(pipe.fileno(), _PIECE_BYTES)
        except BlockingIOError:
            return
        kept = self._output[name]
        if not piece:
            pipe.close()
            del self.open_pipes[name]
        elif name == "stderr":
            kept += piece
            del kept[:-STDERR_TAIL_BYTES]
        elif len(kept) + len(piece) <= MOST_OUTPUT_BYTES:
            kept += piece

    def close(self) -> None:
        """Kill it if it still runs, and let go of everything."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in self.open_pipes.values():
            pipe.close()
        self.open_pipes.clear()


def wait_any(children: Iterable[Child], timeout_s: float) -> None:
    """Read what the children say for at most `timeout_s`; return early once one of them ends."""
    running = [child for child in children if not child.ended]
    if not running:
        time.sleep(timeout_s)
        return
    deadline_s = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for child in running:
            for name, pipe in child.open_pipes.items():
                selector.register(pipe, selectors.EVENT_READ, (child, name))
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not selector.get_map():
                # All pipes are closed: what is left is the moment between that and the exit.
                time.sleep(min(left_s, 0.005))
            for key, _ in selector.select(left_s) if selector.get_map() else ():
                child, name = key.data
                before = child.open_pipes[name]
                child.read(name)
                if name not in child.open_pipes:
                    selector.unregister(before)
            if any(child.ended for child in running):
                return


def end_all(children: Iterable[Child], grace_s: float, number: int = signal.SIGTERM) -> None:
    """Signal all of them, wait `grace_s`, kill what is left; nothing of them lives afterwards."""
    running = [child for child in children if not child.ended]
    for child in running:
        child.signal(number)
    deadline_s = time.monotonic() + grace_s
    while any(not child.ended for child in running) and (left_s := deadline_s - time.monotonic()) > 0:
        wait_any(running, left_s)
    for child in running:
        if not child.ended:
            child.signal(signal.SIGKILL)
    for child in running:
        while not child.ended and child.process.poll() is None:
            wait_any([child], 0.05)
        if not child.ended:
            # What it said last is still in the pipes.
            wait_any([child], 0.05)
        child.close()


def _dies_with(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # The parent may have died before that call; then nobody would ever send it.
        if os.getppid() != parent:
            os._exit(1)

    return prepare
