"""Boots one guest, runs one command in it, brings back its output and exit code, and leaves no QEMU behind.

Output and exit code come through a shared folder, not over the console: on q35 the console is the serial port, and its
first lines get lost.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import GuestTimeout, LabError
from lab.fetch import Parts
from lab.outside import OutsideHost
from lab.places import REPOSITORY, cache_folder, locked
from lab.say import say
from lab.topology import Topology, qemu_options

GUEST_SCRIPTS = REPOSITORY / "lab/guest"
_POLL_S = 0.05
_KILL_WAIT_S = 10.0
_BOOTS = 3
_PANIC = b"Kernel panic"
# What udev would load at boot and nobody here uses; under software emulation each module costs up to five seconds.
_UNWANTED_MODULES = (
    "kvm,kvm_amd,kvm_intel,pcspkr,snd_pcsp,snd,ahci,libahci,libata,scsi_mod,i2c_i801,i2c_smbus,lpc_ich,"
    "iTCO_wdt,i6300esb,psmouse,joydev,evdev,serio_raw,parport,parport_pc,ppdev,floppy,button,rapl,ccp,sev_guest,drm,"
    "aesni_intel,ghash_clmulni_intel,sha512_ssse3,sha256_ssse3,sha1_ssse3,tpm_tis,tpm_crb"
)
_CONSOLE_LINES = 15


@dataclass(frozen=True, slots=True)
class BootRequest:
    """One guest and what it is to do."""

    command: Sequence[str]
    topology: Topology
    cpu: str | None = None
    kvm: bool = False
    rxe: bool = False
    peer: bool = False
    """Also a veth pair into a network namespace `peer`, with an rxe on this side of it."""
    memory: str = "2G"
    cpus: int = 2
    timeout_s: float = 600.0
    silence_s: float = 120.0
    """A kernel that says nothing for so long before the command begins hangs: it is killed and booted again."""
    environment: Mapping[str, str] = field(default_factory=dict)
    workdir: Path = REPOSITORY


class Run:
    """The folders of one run. Use as a context manager: a folder that it made is gone afterwards."""

    def __init__(self, topology: Topology, folder: Path | None = None) -> None:
        self._own = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="p2prw-lab-")) if folder is None else folder.resolve()
        self.shared = self.folder / "shared"
        self.files = self.folder / "files"
        for path in (self.shared, self.files):
            path.mkdir(parents=True, exist_ok=True)
        self.backing: dict[str, Path] = {}
        for file in topology.files():
            path = self.files / file.file_name
            self.backing[f"{file.kind}-{file.name}"] = path
            if not path.exists():
                with path.open("wb") as opened:
                    opened.truncate(file.length_bytes)
        self.outside = OutsideHost(self.shared / "outside", self.backing)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)


def boot(parts: Parts, request: BootRequest, run: Run, write: Callable[[bytes], None]) -> int:
    """Boot, hand the command's output to `write` as it comes, and return the command's exit code.

    One guest at a time on a machine: two under emulation make each other several times slower. The time limit counts
    from the boot. A kernel that patches its own code may hang or panic under emulation with two processors, before the
    command has begun: such a guest is booted again, which is said. Errors: GuestTimeout after killing the guest;
    LabError when it ended without a result.
    """
    (run.shared / "job.sh").write_text(job_script(parts, request, run.shared), encoding="utf-8")
    exit_code = run.shared / "exit_code"
    with locked(cache_folder() / "boot.lock", while_waiting="waiting for another guest to end"):
        deadline = time.monotonic() + request.timeout_s
        for left in reversed(range(_BOOTS)):
            trouble = _run_once(parts, request, run, write, deadline)
            if trouble is None:
                break
            if not left:
                raise GuestTimeout(f"{trouble}, {_BOOTS} times in turn{_last_words(run)}")
            say(f"{trouble}; booting it again{_last_words(run)}")
    try:
        return int(exit_code.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise LabError(f"the guest ended without a result{_last_words(run)}") from None


def _run_once(
    parts: Parts, request: BootRequest, run: Run, write: Callable[[bytes], None], deadline: float
) -> str | None:
    """Boot once. Return what went wrong where that was the kernel, before the command began; the guest is gone then."""
    output = run.shared / "output"
    for path in (output, run.shared / "exit_code"):
        path.unlink(missing_ok=True)
    with (
        (run.folder / "console").open("wb") as console,
        _guest(vng_command(parts, request, run), parts, console.fileno(), run.folder / "qemu.pid") as process,
    ):
        reader, heard = _Tail(output), _Heard(run.folder / "console")
        while process.poll() is None:
            run.outside.serve()
            write(reader.read())
            now = time.monotonic()
            if now > deadline:
                raise GuestTimeout(f"killed after {request.timeout_s:.0f} s (--timeout){_last_words(run)}")
            # The job makes this file at its start; from then on the console may well be silent.
            if heard.silent_s(now) > request.silence_s and not output.exists():
                return f"the guest's kernel said nothing for {request.silence_s:.0f} s while it booted"
            time.sleep(_POLL_S)
        write(reader.read())
    if not output.exists() and _PANIC in (run.folder / "console").read_bytes():
        return "the guest's kernel panicked while it booted"
    return None


def job_script(parts: Parts, request: BootRequest, shared: Path) -> str:
    """Return the script that the guest runs: environment, devices, the command."""
    environment = {
        "PATH": f"{GUEST_SCRIPTS / 'bin'}:{parts.guest_python.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        # Not P2PRW_...: those are p2prw's own settings, and it complains about one it does not know.
        "LAB_GUEST": "1",
        "LAB_SHARED": str(shared),
        "LAB_TOPOLOGY": request.topology.name,
        **request.environment,
    }
    lines = ["#!/bin/bash", f"exec >{shlex.quote(str(shared / 'output'))} 2>&1 </dev/null"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    scripts = [["cached.sh", str(REPOSITORY), *map(str, _unchanging(parts))]]
    scripts += [[name] for name, wanted in (("rxe.sh", request.rxe), ("peer.sh", request.peer)) if wanted]
    steps = [shlex.join(["bash", str(GUEST_SCRIPTS / name), *words]) for name, *words in scripts]
    steps += [f"cd {shlex.quote(str(request.workdir))}", shlex.join(request.command)]
    lines += [" && ".join(steps), "code=$?", f"echo $code >{shlex.quote(str(shared / 'exit_code'))}", "sync"]
    return "\n".join([*lines, "exit $code", ""])


def _unchanging(parts: Parts) -> list[Path]:
    """Return the folders that hold the guest's Python."""
    folders = [parts.guest_python.parents[1], *Path("/usr/lib").glob("python3*"), Path("/usr/lib/x86_64-linux-gnu")]
    return [folder for folder in folders if folder.is_dir()]


def vng_command(parts: Parts, request: BootRequest, run: Run) -> list[str]:
    """Return the command that boots the guest (virtme-ng's vng)."""
    options = qemu_options(request.topology, run.files, cpu=request.cpu)
    options += ["-pidfile", str(run.folder / "qemu.pid")]
    # A second look at the host's files, for cached.sh.
    options += ["-fsdev", "local,id=lab,path=/,security_model=none,readonly=on,multidevs=remap"]
    options += ["-device", "virtio-9p-pci,fsdev=lab,mount_tag=p2prw-lab"]
    words = ["vng", "--verbose", "--force-9p", "--disable-microvm", "-r", str(parts.kernel.image)]
    words += [] if request.kvm else ["--disable-kvm"]
    words += ["--memory", request.memory, "--cpus", str(request.cpus)]
    words += [f"--rwdir={run.shared}"]
    for option in ("mitigations=off", f"module_blacklist={_UNWANTED_MODULES}", *request.topology.kernel):
        words += ["--append", option]
    # vng puts this through a shell.
    words += [f"--qemu-opts={shlex.join(options)}"]
    return [*words, "--exec", f"bash {shlex.quote(str(run.shared / 'job.sh'))}"]


@contextmanager
def _guest(command: list[str], parts: Parts, console: int, pid_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join((str(parts.tools), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    process = subprocess.Popen(
        ["nice", "-n", "10", *command],
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        env=os.environ | {"PATH": path},
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process, pid_file)


def _end(process: subprocess.Popen[bytes], pid_file: Path) -> None:
    """Kill what is left: vng, virtme-run and QEMU are one process group, QEMU also said its number."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.kill(_qemu_pid(pid_file), signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError, ValueError):
        pass
    process.wait(timeout=_KILL_WAIT_S)


def _qemu_pid(pid_file: Path) -> int:
    pid = int(pid_file.read_text(encoding="utf-8"))
    # A number may have been given to somebody else since.
    if b"qemu" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        raise ValueError
    return pid


def _last_words(run: Run) -> str:
    try:
        lines = (run.folder / "console").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "; the console's last lines:\n" + "\n".join(f"  {line}" for line in lines[-_CONSOLE_LINES:])


class _Heard:
    """When a growing file last grew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = -1
        self._since = 0.0

    def silent_s(self, now: float) -> float:
        size = self._path.stat().st_size
        if size != self._size:
            self._size, self._since = size, now
        return now - self._since


class _Tail:
    """What a growing file has gained since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                gained = file.read()
        except FileNotFoundError:
            return b""
        self._offset += len(gained)
        return gained
