"""Command lines of perftest, ucx_perftest and fi_rma_bw: what they measure, what they lack, what they print. Pure.

Every figure keeps the tool's own definition: perftest's "MB/sec" and ucx_perftest's "MB/s" are MiB/s (2^20), fabtests'
MB/sec is 10^6.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2prw.engine.model import Operation
from p2prw.errors import HostError, RequestError
from p2prw.units import MIB, parse_size


@dataclass(frozen=True, slots=True)
class Options:
    """How a family of tools spells what must be equal on both sides; empty: it has no such option."""

    size: tuple[str, ...]
    iterations: tuple[str, ...]
    depth: tuple[str, ...] = ()
    queue_pairs: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    mtu: tuple[str, ...] = ()
    signal_every: tuple[str, ...] = ()
    warm_up: tuple[str, ...] = ()
    server_port: str = "-p"
    client_port: str = "-p"
    server_address: str = ""
    """Without it the server listens on an address of its own choice, which need not be ours."""
    both_ways: tuple[str, ...] = ()
    always: tuple[str, ...] = ()


PERFTEST = Options(
    ("-s", "--size"), ("-n", "--iters"), ("-t", "--tx-depth"), ("-q", "--qp"), ("-d", "--ib-dev"), ("-m", "--mtu"),
    ("-Q", "--cq-mod"), both_ways=("-b", "--bidirectional"), always=("-F",),
)  # fmt: skip
UCX = Options(("-s",), ("-n",), ("-O",), warm_up=("-w",), always=("-f",))
FABTESTS = Options(("-S",), ("-I",), ("-W",), warm_up=("-w",), server_port="-B", client_port="-P", server_address="-s")


@dataclass(frozen=True, slots=True)
class Tool:
    """What one tool, or one test of it, measures."""

    options: Options
    test: str
    operation: Operation
    lat_by: str | None = None
    """As in `BenchRow`."""
    always_both_ways: bool = False
    """It has no other way, and its figure is that of one of the two directions."""
    remarks: tuple[str, ...] = ()
    """What differs from p2prw whatever is asked for."""


_W, _R = Operation.WRITE, Operation.READ
TOOLS: dict[str, Tool] = {
    "ib_write_bw": Tool(PERFTEST, "bw", _W),
    "ib_read_bw": Tool(PERFTEST, "bw", _R),
    "ib_write_lat": Tool(PERFTEST, "lat", _W, "ping-pong"),
    "ib_read_lat": Tool(PERFTEST, "lat", _R, "completion"),
    "ucx_perftest ucp_put_bw": Tool(UCX, "bw", _W),
    "ucx_perftest ucp_get": Tool(UCX, "bw", _R),
    "ucx_perftest ucp_put_lat": Tool(UCX, "lat", _W, "ping-pong"),
    "fi_rma_bw writedata": Tool(
        FABTESTS, "bw", _W, remarks=("fi_rma_bw -o writedata is a WRITE with immediate: the other side sees each",)
    ),
    "fi_rma_bw write": Tool(
        FABTESTS, "bw", _W, always_both_ways=True,
    ),
    "fi_rma_bw read": Tool(
        FABTESTS, "bw", _R, always_both_ways=True,
    ),
}  # fmt: skip
_TEST_OPTION = {"ucx_perftest": ("-t",), "fi_rma_bw": ("-o",)}
_DEFAULT_TEST = {"fi_rma_bw": "write"}


def by_hand(words: Sequence[str], assigned: Mapping[str, str]) -> str:
    """Return a line for a shell: the command with what is assigned to its environment."""
    return " ".join((*(f"{name}={shlex.quote(value)}" for name, value in assigned.items()), shlex.join(words)))


@dataclass(frozen=True, slots=True)
class Command:
    """A command line that was understood."""

    name: str
    """As in TOOLS."""
    program: str
    words: tuple[str, ...]
    """Without the program."""
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def tool(self) -> Tool:
        """Return what it measures."""
        return TOOLS[self.name]

    def has(self, spellings: Sequence[str]) -> bool:
        """Tell whether an option without a value is given."""
        return any(word in spellings for word in self.words)

    def value(self, spellings: Sequence[str]) -> str | None:
        """Return what is given for an option: `-s N`, `-sN`, `--size N` or `--size=N`; the last one counts."""
        found = None
        for index, word in enumerate(self.words):
            for spelling in spellings:
                if word == spelling and index + 1 < len(self.words):
                    found = self.words[index + 1]
                elif spelling.startswith("--") and word.startswith(spelling + "="):
                    found = word.partition("=")[2]
                elif not spelling.startswith("--") and word.startswith(spelling) and len(word) > len(spelling):
                    found = word[len(spelling) :]
        return found


def parse_command(text: str) -> Command:
    """Return the command of `--against`; assignments may stand in front of it. RequestError where it is unknown."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _usage(f"--against {text!r}: {str(error).lower()}", "it is split into words as a shell does") from error
    environ: dict[str, str] = {}
    while words and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", words[0], re.DOTALL):
        name, _, value = words.pop(0).partition("=")
        environ[name] = value
    if not words:
        raise _usage("--against names no program", f"known: {_known()}")
    program = words.pop(0)
    base = program.rpartition("/")[2]
    command = Command(base, program, tuple(words), environ)
    if base in _TEST_OPTION:
        test = command.value(_TEST_OPTION[base]) or _DEFAULT_TEST.get(base, "")
        command = Command(f"{base} {test}".strip(), program, tuple(words), environ)
    if command.name not in TOOLS:
        raise _usage(f"--against {command.name}: p2prw cannot read what that measures", f"known: {_known()}")
    return command


@dataclass(frozen=True, slots=True)
class Wanted:
    """What p2prw measures, and on what: the other tool is asked for the same."""

    test: str
    operation: Operation
    size_bytes: int
    iterations: int
    """What the tool is told where the command does not say."""
    depth: int
    queue_pairs: int
    lat_by: str | None
    signal_every: int | None = None
    warm_up: int = 0
    both_ways: bool = False
    walk_bytes: int | None = None
    is_limited: bool = False
    """A `--rate-limit` of ours bounds it."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What p2prw's first run turned out to have: a device and a path MTU."""

    device: str
    driver: str
    path_mtu_bytes: int | None


@dataclass(frozen=True, slots=True)
class Launch:
    """Two command lines, ports and host left out, and what still differs between the two sides."""

    words: tuple[str, ...]
    differs: tuple[str, ...]


def check(command: Command, wanted: Wanted) -> None:
    """Raise RequestError, before anything runs, where the two would measure different things."""
    tool, options = command.tool, command.tool.options
    unlike, leave = [], []
    if (tool.test, tool.operation) != (wanted.test, wanted.operation):
        unlike.append(f"{command.name} measures {tool.test} of {tool.operation}, p2prw {wanted.test} of "
                      f"{wanted.operation}")  # fmt: skip
    elif tool.lat_by != wanted.lat_by:
        unlike.append(f"{command.name} measures latency by {tool.lat_by}, p2prw by {wanted.lat_by}")
    given = command.value(options.size)
    if given is not None and parse_size(given, "size of --against") != wanted.size_bytes:
        unlike.append(f"{command.name} sends {given} bytes, p2prw {wanted.size_bytes}")
    queue_pairs = command.value(options.queue_pairs)
    if queue_pairs is not None and int_of(queue_pairs) != wanted.queue_pairs:
        unlike.append(f"{command.name} has {queue_pairs} queue pairs, p2prw {wanted.queue_pairs}")
    if wanted.queue_pairs > 1 and not options.queue_pairs:
        unlike.append(f"{command.name} has one connection, p2prw {wanted.queue_pairs} queue pairs")
    if wanted.both_ways and not options.both_ways and not tool.always_both_ways:
        unlike.append(f"{command.name} measures one direction, -b asks p2prw for both")
        leave.append("-b")
    if wanted.walk_bytes is not None:
        unlike.append(f"{command.name} sends the same bytes again and again, --walk asks p2prw for others")
        leave.append("--walk")
    if wanted.is_limited:
        unlike.append(f"--rate-limit holds p2prw back, and not {command.name}")
        leave.append("--rate-limit")
    if command.has(options.both_ways) and not wanted.both_ways:
        unlike.append(f"{command.name} is asked for both directions, p2prw for one")
    if unlike:
        raise RequestError(
            f"--against {command.name}: the two would not measure the same",
            why="; ".join(unlike),
            fix=f"--test {tool.test} --op {tool.operation} -s {given or wanted.size_bytes}"
            + (f" --lat-by {tool.lat_by}" if tool.lat_by else "")
            + (" -b" if command.has(options.both_ways) else "")
            + (f", and leave {' and '.join(leave)} away" if leave else ""),
            code="unlike",
        )


def plan(command: Command, wanted: Wanted, setup: Setup) -> Launch:
    """Return the tool's words, completed with what p2prw uses. HostError where they are not on one device."""
    tool, options = command.tool, command.tool.options
    words, differs = list(command.words), list(tool.remarks)
    if tool.always_both_ways:
        both = "and so is p2prw's here" if wanted.both_ways else "p2prw -b does the same"
        differs.append(f"{command.name} runs in both directions at once; its figure is that of one direction, {both}")
    if wanted.both_ways and options.both_ways and not command.has(options.both_ways):
        words.append(options.both_ways[0])

    def same(spellings: tuple[str, ...], value: int | str | None, what: str) -> None:
        if not spellings or value is None:
            return
        given = command.value(spellings)
        if given is None:
            words.extend((spellings[0], str(value)))
        elif given != str(value):
            differs.append(f"{what}: {given} in {command.name}, {value} in p2prw")

    if options.device:
        given = command.value(options.device)
        if setup.driver == "soft" or given not in (None, setup.device):
            raise HostError(
                f"--against {command.name}: not on the same device",
                why=f"p2prw measures {setup.device}, {command.name} needs a verbs device"
                if setup.driver == "soft"
                else f"p2prw measures {setup.device}, {command.name} is told {given}",
                fix="-d rxe0 (any verbs device) for p2prw, or --against ucx_perftest for the software device",
                code="unlike",
            )
        same(options.device, setup.device, "device")
    else:
        differs.append(f"transport: {_transport(command)} in {command.name}, RoCEv2 on {setup.device} in p2prw")
    same(options.size, wanted.size_bytes, "size")
    same(options.iterations, wanted.iterations, "messages of a run")
    if wanted.test == "bw":
        same(options.depth, wanted.depth, "outstanding")
        same(options.signal_every, wanted.signal_every, "signal one in")
        if wanted.queue_pairs > 1:
            same(options.queue_pairs, wanted.queue_pairs, "queue pairs")
    same(options.mtu, setup.path_mtu_bytes, "path MTU")
    same(options.warm_up, wanted.warm_up, "warm-up messages")
    words += [word for word in options.always if word not in words]
    return Launch(tuple(words), tuple(differs))


def _transport(command: Command) -> str:
    if command.name.startswith("fi_"):
        return f"provider {command.value(('-p', '--provider')) or 'of its own choice'}"
    chosen = command.environ.get("UCX_TLS")
    return f"UCX_TLS={chosen}" if chosen else "UCX's own choice (UCX_TLS is not set)"


# --- what they print ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """One of the two, as `Tool.test` says."""

    bw_bytes_per_s: float | None = None
    lat_us: float | None = None
    """The median."""
    size_bytes: int | None = None
    """Where the output says it."""


_NUMBER = r"\s+([0-9.]+)"
_PERFTEST_BW = re.compile(r"^\s*(\d+)\s+(\d+)" + _NUMBER * 3, re.MULTILINE)
_PERFTEST_LAT = re.compile(r"^\s*(\d+)\s+(\d+)" + _NUMBER * 4, re.MULTILINE)
_UCX = re.compile(r"^(?:Final:)?\s+(\d+)" + _NUMBER * 7 + r"\s*$", re.MULTILINE)
_FABTESTS = re.compile(r"^\S+\s+\S+\s+\S+\s+[0-9.]+s" + _NUMBER * 3 + r"\s*$", re.MULTILINE)
_BW_UNITS = {"MB/sec": MIB, "MiB/sec": MIB, "Gb/sec": 1e9 / 8}


def parse_output(command: Command, text: str) -> Found:
    """Return the figure of the last row. HostError `tool_output` where there is none, or one of another size."""
    tool = command.tool
    found = {PERFTEST: _perftest, UCX: _ucx, FABTESTS: _fabtests}[tool.options](text, tool.test)
    if found is None or not (found.bw_bytes_per_s or found.lat_us):
        raise HostError(
            f"{command.name} ran, and its output has no figure p2prw can read",
            why=(text.strip().splitlines() or ["it printed nothing"])[-1][:200],
            fix=f"run it by hand: {by_hand((command.program, *command.words), command.environ)}",
            code="tool_output",
        )
    return found


def _perftest(text: str, test: str) -> Found | None:
    table = text[text.rfind("#bytes") :]
    if test == "lat":
        rows = _PERFTEST_LAT.findall(table)
        return Found(lat_us=float(rows[-1][4]), size_bytes=int(rows[-1][0])) if rows else None
    rows = _PERFTEST_BW.findall(table)
    unit = next((factor for word, factor in _BW_UNITS.items() if word in table), None)
    if not rows or unit is None:
        return None
    return Found(bw_bytes_per_s=float(rows[-1][3]) * unit, size_bytes=int(rows[-1][0]))


def _ucx(text: str, test: str) -> Found | None:
    rows = _UCX.findall(text)
    if not rows:
        return None
    _, median_us, _, _, _, overall_mib, _, _ = rows[-1]
    return Found(lat_us=float(median_us)) if test == "lat" else Found(bw_bytes_per_s=float(overall_mib) * MIB)


def _fabtests(text: str, test: str) -> Found | None:
    rows = _FABTESTS.findall(text)
    return Found(bw_bytes_per_s=float(rows[-1][0]) * 1e6) if rows else None


def int_of(text: str) -> int | None:
    """Return the number, None where it is none."""
    return int(text) if text.isdecimal() else None


def _known() -> str:
    return ", ".join(TOOLS)


def _usage(what: str, why: str) -> RequestError:
    return RequestError(what, why=why, fix='--against "UCX_TLS=tcp ucx_perftest -t ucp_put_bw"', code="bad_against")
