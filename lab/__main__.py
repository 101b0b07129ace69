"""The command line of `lab/run` and `lab/fetch`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lab.boot import BootRequest, Run, boot
from lab.errors import LabError
from lab.fetch import fetch
from lab.say import say
from lab.topology import Topology, load_topology, topology_names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab/run",
        usage="lab/run [OPTIONS] -- COMMAND...",
        description="Run a command in a guest with real kernel RDMA and a described PCI tree (lab/README.md).",
        epilog="Exit code: the command's; 2 bad options, 70 this machine lacks something or the guest died, "
        "75 something could not be fetched, 124 the guest ran past --timeout.",
    )
    parser.add_argument("--topology", metavar="NAME", help=f"one of {', '.join(topology_names())}; or a YAML file")
    parser.add_argument("--cpu", metavar="MODEL", help="QEMU's processor model, such as EPYC")
    parser.add_argument("--kernel", metavar="PATH", type=Path, help="boot this kernel image instead of Debian's")
    parser.add_argument("--kvm", action="store_true", help="use /dev/kvm (one that exists may still not work)")
    parser.add_argument("--rxe", action="store_true", help="bring up rxe0 on dummy0 (10.9.0.1) before the command")
    parser.add_argument("--peer", action="store_true", help="also rxe1 on a veth whose other end is in netns `peer`")
    parser.add_argument("--memory", default="2G", help="of the guest (default %(default)s)")
    parser.add_argument("--cpus", type=int, default=2, help="of the guest (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds, then it is killed (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the run here: backing files (used where there), console")
    parser.add_argument("--fetch-only", action="store_true", help="make everything ready and boot nothing")
    parser.add_argument("--update", action="store_true", help="look for a newer kernel than the one in the cache")
    parser.add_argument("command", nargs="*", metavar="COMMAND")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run with the words after the program's name; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.command and not options.fetch_only:
        parser.error("say what to run in the guest, after --")
    # An ended terminal must not leave a guest behind: turn it into an exception that passes the clean-up.
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    try:
        topology = load_topology(options.topology) if options.topology else Topology("bare")
        parts = fetch(kernel_path=options.kernel, update=options.update)
        if options.fetch_only:
            say(f"ready: kernel {parts.kernel.version or parts.kernel.image}, {parts.guest_python}")
            return 0
        request = BootRequest(
            command=options.command,
            topology=topology,
            cpu=options.cpu,
            kvm=options.kvm,
            rxe=options.rxe,
            peer=options.peer,
            memory=options.memory,
            cpus=options.cpus,
            timeout_s=options.timeout,
        )
        with Run(topology, options.folder) as run:
            return boot(parts, request, run, _write)
    except LabError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _write(data: bytes) -> None:
    if data:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _stop(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
