"""Real processes, real sockets, real files: how these tests start p2prw, watch it and clean up after it.

Every child is started with the interpreter that runs the tests and ended by its process id. A server that crashed,
reported a defect of its own or left a temporary file behind fails the test that used it, whatever that test looked at.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from p2prw.schema import load_schema

READY_S = 60.0
CLIENT_S = 120.0
VALIDATOR = Draft202012Validator(load_schema())
ROOT = Path(__file__).resolve().parents[2]

# Runs the command line and leaves the process's own memory figures behind. VmHWM of the process itself: the figure of
# getrusage() would hold what the test runner weighed when it forked.
MEASURED = """
import atexit, os, sys
def keep():
    with open("/proc/self/status") as status, open(os.environ["E2E_STATUS"], "w") as copy:
        copy.write(status.read())
atexit.register(keep)
from p2prw.cli import main
sys.argv[0] = "p2prw"
main()
"""

# A server that tells on SIGUSR1 what it holds: clients, leases, queue pairs, registered memory, objects.
PROBED = """
import gc, json, os, signal, sys
def tell(number, frame):
    from p2prw.engine.roce.device import RoceDevice
    from p2prw.engine.server.server import Server
    gc.collect()
    objects = gc.get_objects()
    devices = [item for item in objects if type(item) is RoceDevice]
    held = {
        "clients": sum(len(item._clients) for item in objects if type(item) is Server),
        "queue_pairs": sum(len(device._queue_pairs) for device in devices),
        "registrations": sum(len(device.memory) for device in devices),
        "objects": len(objects),
    }
    del objects, devices
    with open(os.environ["E2E_PROBE"] + ".new", "w") as file:
        json.dump(held, file)
    os.rename(os.environ["E2E_PROBE"] + ".new", os.environ["E2E_PROBE"])
signal.signal(signal.SIGUSR1, tell)
from p2prw.cli import main
sys.argv[0] = "p2prw"
main()
"""

# Root without the capabilities that make file modes void: what an ordinary user meets. A child that changes its user
# instead could not read the interpreter where that lives in root's home.
WITHOUT_OVERRIDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
if os.geteuid() == 0:
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
"""
NOTHING_LOCKED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
"""
THEN_RUN = """
os.execv(sys.executable, [sys.executable, "-m", "p2prw", *sys.argv[1:]])
"""


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: the tree under test, and no P2PRW_ variable of the outside."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("P2PRW_")}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", **(extra or {})}


def status_bytes(text: str, name: str) -> int:
    """A figure of /proc/PID/status in bytes."""
    (line,) = [line for line in text.splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024


def wait_until(condition: Callable[[], object], deadline_s: float, what: str) -> None:
    """Poll until `condition` holds; AssertionError that names `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s} s for {what}"
        time.sleep(0.01)


@dataclass
class Run:
    """A client that has ended."""

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    wall_s: float
    status: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """The one document of `--json`, held against the schema and the exit code."""
        document: dict[str, Any] = json.loads(self.stdout)
        VALIDATOR.validate(document)
        assert document["exit_code"] == self.code, self
        return document

    @property
    def row(self) -> dict[str, Any]:
        (row,) = self.document["results"]
        return dict(row)

    @property
    def peak_bytes(self) -> int:
        """VmHWM of a `measured` client."""
        return status_bytes(self.status, "VmHWM")

    def ok(self) -> Run:
        """Ended well and verified."""
        assert self.code == 0, self
        document = self.document
        assert document["status"] == "ok" and document["error"] is None and not document["partial"], self
        if document["command"] in ("write", "read"):
            assert document["verify"]["status"] == "verified", self
        return self

    def failed(self, exit_code: int, *codes: str) -> dict[str, Any]:
        """Ended with `exit_code` and an error of one of `codes` that says what, why and what to try; the error."""
        assert self.code == exit_code, self
        assert "Traceback" not in self.stderr, self
        document = self.document
        assert document["status"] in ("failed", "interrupted"), self
        error: dict[str, Any] = document["error"]
        assert error["code"] in codes, self
        assert error["what"], self
        assert error["why"], f"no why: {error}"
        assert error["try"], f"nothing to try: {error}"
        # The same words for a person.
        assert error["what"] in self.stderr and "why:" in self.stderr and "try:" in self.stderr, self
        assert document["verify"]["status"] != "verified", self
        return error

    def interrupted(self, number: signal.Signals = signal.SIGINT) -> dict[str, Any]:
        """Ended by a signal that it was sent, and still told the truth; the document."""
        assert self.code == 128 + number, self
        assert "Traceback" not in self.stderr, self
        document = self.document
        assert document["status"] == "interrupted", self
        assert document["error"]["code"] == ("interrupted" if number == signal.SIGINT else "terminated")
        assert document["verify"]["status"] == "unverified"
        return document


@dataclass
class Running:
    """A client on its way."""

    arguments: tuple[str, ...]
    process: subprocess.Popen[str]
    started_s: float
    status_path: Path | None = None

    def finish(self, deadline_s: float = CLIENT_S) -> Run:
        """Wait for its end; killed and failed at the deadline."""
        try:
            stdout, stderr = self.process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            stdout, stderr = self.process.communicate()
            pytest.fail(f"{self.arguments} still ran after {deadline_s} s\n{stdout}\n{stderr}")
        wall_s = time.monotonic() - self.started_s
        status = self.status_path.read_text() if self.status_path else ""
        return Run(self.arguments, self.process.returncode, stdout, stderr, wall_s, status)

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> Run:
        """Signal it while it runs and wait for its end."""
        assert self.process.poll() is None, f"it ended before it could be interrupted: {self.finish()}"
        self.process.send_signal(number)
        return self.finish(60)

    def end(self) -> None:
        """Kill what still runs; for teardown."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Cli:
    """Runs `python -m p2prw`; with --json unless told otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[Running] = []

    def start(
        self,
        *arguments: object,
        json: bool = True,
        measured: bool = False,
        env: dict[str, str] | None = None,
        file_modes_count: bool = False,
        no_memlock: bool = False,
    ) -> Running:
        """Start a client and return at once."""
        words = tuple(str(argument) for argument in arguments) + (("--json",) if json else ())
        extra = dict(env or {})
        status_path = None
        if measured:
            status_path = self.directory / f"status-{len(self.running)}"
            extra["E2E_STATUS"] = str(status_path)
        how = ("-c", MEASURED) if measured else ("-m", "p2prw")
        if file_modes_count or no_memlock:
            how = ("-c", (WITHOUT_OVERRIDE if file_modes_count else NOTHING_LOCKED) + THEN_RUN)
        process = subprocess.Popen(
            [sys.executable, *how, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(extra),
            cwd=self.directory,
        )
        running = Running(words, process, time.monotonic(), status_path)
        self.running.append(running)
        return running

    def __call__(self, *arguments: object, deadline_s: float = CLIENT_S, **options: Any) -> Run:
        """Run a client to its end."""
        return self.start(*arguments, **options).finish(deadline_s)

    def together(self, *commands: tuple[object, ...]) -> list[Run]:
        """Run clients side by side: a start costs more than what most of them do."""
        return [running.finish() for running in [self.start(*words) for words in commands]]

    def end(self) -> None:
        """Kill what still runs."""
        for running in self.running:
            running.end()


@dataclass
class ServerProcess:
    """A `serve` in a process of its own."""

    directory: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen[str]
    address: str = ""
    code: int | None = None
    stdout: str = ""
    lines: list[str] = field(default_factory=list)
    may_fail: bool = False
    """The test ends it in a way that is no clean end (kill -9)."""
    probe_path: Path | None = None
    _reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def read_lines(self) -> None:
        def read() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                self.lines.append(line)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()

    def log(self) -> str:
        return "".join(self.lines)

    def wait_for_line(self, text: str, deadline_s: float = 60.0, after: int = 0) -> None:
        """Wait until a line of stderr (from line `after` on) holds `text`."""
        end = time.monotonic() + deadline_s
        while not any(text in line for line in self.lines[after:]):
            assert self.process.poll() is None, f"the server ended; it said\n{self.log()}"
            assert time.monotonic() < end, f"waited {deadline_s} s for {text!r} from the server; it said\n{self.log()}"
            time.sleep(0.01)

    def memory(self, name: str) -> int:
        """VmHWM, VmRSS, ... in bytes."""
        return status_bytes(Path(f"/proc/{self.pid}/status").read_text(), name)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def probe(self) -> dict[str, int]:
        """What a server that was started with `probed=True` holds now."""
        assert self.probe_path is not None
        self.probe_path.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait_until(self.probe_path.exists, 30, "the server's own figures")
        held: dict[str, int] = json.loads(self.probe_path.read_text())
        return held

    def join(self, deadline_s: float = 60.0) -> int:
        """Wait for its own end."""
        if self.code is None:
            self.process.wait(deadline_s)
            assert self._reader is not None and self.process.stdout is not None
            self._reader.join(30)
            self.stdout = self.process.stdout.read()
            self.process.stdout.close()
            if self.process.stderr:
                self.process.stderr.close()
            self.code = self.process.returncode
        return self.code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, wait, return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.join()

    def check(self) -> None:
        """It ended well, said nothing of a defect and left nothing half done."""
        try:
            code = self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.join()
            pytest.fail(f"the server did not stop on SIGTERM\n{self.log()}")
        assert "Traceback" not in self.log(), self.log()
        if not self.may_fail:
            assert code == 0, f"the server ended with {code}\n{self.log()}"
            assert partial_files(self.directory) == []


def partial_files(directory: Path) -> list[Path]:
    """Temporary names of unfinished sinks."""
    return sorted(directory.rglob("*.part"))


def launch(directory: Path, *arguments: object, listen: str = "127.0.0.1:0", **options: Any) -> ServerProcess:
    """Start `serve` and wait until clients may come."""
    count = len(list(directory.glob("ready*")))
    ready = directory / f"ready{count}-{os.getpid()}"
    words = ("serve", *(str(argument) for argument in arguments), "--listen", listen, "--ready-file", str(ready))
    extra = dict(options.get("env") or {})
    probe_path = directory / f"probe{count}" if options.get("probed") else None
    if probe_path is not None:
        extra["E2E_PROBE"] = str(probe_path)
    how = ("-m", "p2prw") if probe_path is None else ("-c", PROBED)
    process = subprocess.Popen(
        [sys.executable, *how, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(extra),
        cwd=directory,
    )
    started = ServerProcess(directory, words, process, probe_path=probe_path)
    started.read_lines()
    end = time.monotonic() + READY_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            started.join()
            pytest.fail(f"the server did not start: {words}\n{started.log()}")
        time.sleep(0.01)
    started.address = ready.read_text().strip()
    return started


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers; each is stopped and checked at the end of the test."""
    started: list[ServerProcess] = []

    def start(*arguments: object, **options: Any) -> ServerProcess:
        started.append(launch(tmp_path, *arguments, **options))
        return started[-1]

    yield start
    failures = []
    for one in started:
        try:
            one.check()
        except BaseException as error:
            failures.append(error)
    if failures:
        raise failures[0]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for a whole module: host regions a to d of 4 MiB, `ro` and `wo`, and a file region."""
    directory = tmp_path_factory.mktemp("scratch")
    (directory / "fixed.bin").write_bytes(bytes(range(256)) * 4096)
    regions = [f"--region={name}=host,size=4MiB" for name in "abcd"]
    regions += ["--region=ro=host,size=64KiB,access=r", "--region=wo=host,size=64KiB,access=w"]
    regions += [f"--region=file=file:{directory}/fixed.bin,access=r"]
    one = launch(directory, *regions)
    yield one
    one.check()


@pytest.fixture
def p2prw(tmp_path: Path) -> Iterator[Cli]:
    """Run the command line in a process of its own."""
    cli = Cli(tmp_path)
    yield cli
    cli.end()


@pytest.fixture
def until() -> Callable[[Callable[[], object], float, str], None]:
    return wait_until


@pytest.fixture
def parts() -> Callable[[Path], list[Path]]:
    """Temporary files of unfinished sinks under a directory."""
    return partial_files


@pytest.fixture
def still_serves(p2prw: Cli) -> Callable[[ServerProcess], None]:
    """The server answers, lists its regions and none of them is held."""

    def check(one: ServerProcess) -> None:
        rows = p2prw("regions", one.address).ok().document["results"]
        assert rows and not any(row["busy"] for row in rows), rows

    return check


@pytest.fixture
def data() -> Callable[[int, int], bytes]:
    """Bytes that repeat nowhere near, the same for the same seed."""
    import random

    def make(size: int, seed: int = 1) -> bytes:
        return random.Random(seed).randbytes(size)

    return make
