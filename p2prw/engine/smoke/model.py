"""The nouns of a smoke test: what takes part, what is to be done, what came of it. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from p2prw.engine.model import (
    ErrorReport,
    MemorySpec,
    Operation,
    PeerAddress,
    ServedRegion,
    Timeouts,
    TlsClient,
    TransferResult,
)
from p2prw.units import KIB, MIB


class SizeClass(StrEnum):
    """What a cell tries: one packet, sizes and offsets that nothing is aligned to, many work requests."""

    SMALL = "small"
    ODD = "odd"
    LARGE = "large"


class Preset(StrEnum):
    """How much is done."""

    QUICK = "quick"
    USUAL = "usual"
    FULL = "full"


SMALL_BYTES = 64
LARGE_BYTES = {Preset.QUICK: 1 * MIB, Preset.USUAL: 8 * MIB, Preset.FULL: 64 * MIB}
MOST_ODD_OFFSET = 16 * KIB
SERVED_BYTES = LARGE_BYTES[Preset.USUAL] + MOST_ODD_OFFSET
"""A region of `serve --smoke`: a client with larger wishes makes do with it."""


_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeRequest:
    """Everything `smoke` needs; built by the command line or by a program."""

    seed: int
    """All data, odd sizes and odd offsets follow from it."""
    peer: PeerAddress | None = None
    """None: every device with itself."""
    devices: tuple[str, ...] = ()
    """Empty: every device (with a peer: the one on the way to it)."""
    memories: tuple[str, ...] = ()
    """Kinds (`p2pmem`) or specs (`bar:0000:01:00.0/2`). Empty: everything that is nobody else's."""
    preset: Preset = Preset.USUAL
    inject: str | None = None
    """Faults of the client's software device: a smoke test must be able to fail."""
    token: bytes | None = field(default=None, repr=False)
    token_file: str | None = None
    """Where the token came from, for the commands that are shown."""
    tls: TlsClient | None = None
    """For the peer; a server in this process needs none."""
    timeouts: Timeouts = _TIMEOUTS
    verbs_binding: str = "auto"
    force_bound_device: bool = False


def place_of(device: str, ib_port: int) -> str:
    """Return what tells the ports of one device apart."""
    return device if ib_port == 1 else f"{device}/{ib_port}"


@dataclass(frozen=True, slots=True)
class SmokeDevice:
    """A device that takes part."""

    name: str
    address: str
    """Where a server on it listens; the control connection decides which addresses are used."""
    provider: str
    ib_port: int = 1
    no_route: dict[str, str] = field(default_factory=dict)
    """Memory kind -> why this device has no way to it, as far as that is known by class."""
    dm_bytes: int = 0
    """Memory of its own (kind `dm`)."""
    driver: str = ""

    @property
    def place(self) -> str:
        """Return the device, with its port where that is not the first."""
        return place_of(self.name, self.ib_port)


@dataclass(frozen=True, slots=True)
class SmokeMemory:
    """Memory that takes part."""

    kind: str
    name: str
    """A spec without options: `host`, `p2pmem:0000:01:00.0`; for files `file`."""
    most_bytes: int | None = None
    """As much as one end may take of it; None: as much as is wanted."""
    named: bool = False
    """Asked for by name: then it is a failure that it cannot be had."""


@dataclass(frozen=True, slots=True)
class SmokeRegion:
    """The other end of a cell."""

    name: str
    memory: str
    """The memory behind it, as `SmokeMemory.name`."""
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that does not take part. No failure."""

    device: str | None
    """None: on no device."""
    memory: str | None
    """None: the device as a whole."""
    reason: str
    region: str | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One transfer."""

    number: int
    device: str
    ib_port: int
    local: str
    """`SmokeMemory.name` of this end."""
    kind: str
    memory: MemorySpec
    """As it is opened."""
    remote: str
    region: str
    operation: Operation
    size_class: SizeClass
    size_bytes: int
    offset_bytes: int
    """In the region."""
    seed: int
    """Of this cell's data: no two cells move the same bytes, so what another one left behind is no success."""
    peer: PeerAddress | None
    """None: the loopback's server, whose port is known once it listens."""
    command: str
    serve_command: str | None
    """None: the peer's own."""
    wanted_bytes: int | None = None
    """What its class wants, where it is smaller for want of time (`--full`)."""

    @property
    def place(self) -> str:
        """Return the device, with its port where that is not the first: `mlx5_0/2`."""
        return place_of(self.device, self.ib_port)


@dataclass(frozen=True, slots=True)
class LoopbackServer:
    """What serves one device's cells."""

    device: str
    ib_port: int
    address: str
    regions: tuple[ServedRegion, ...]
    files: tuple[tuple[str, int], ...] = ()
    """(path, bytes) of files to fill before it starts."""


@dataclass(frozen=True, slots=True)
class SmokePlan:
    """What will be done, in order. Cells of one device stand together."""

    cells: tuple[Cell, ...]
    skips: tuple[Skip, ...]
    servers: dict[str, LoopbackServer]
    """Place -> its server; empty with a peer."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """What came of a cell: `pass`, `fail`, or `not_run` (a signal, the time limit, a peer that is gone)."""

    cell: Cell
    status: str
    exit_code: int = 0
    elapsed_s: float = 0.0
    reason: str | None = None
    error: ErrorReport | None = None
    transfer: TransferResult | None = None


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """The whole outcome: every planned cell is in it, whatever happened."""

    request: SmokeRequest
    cells: tuple[CellResult, ...]
    skips: tuple[Skip, ...]
    exit_code: int
    elapsed_s: float
    error: ErrorReport | None = None
    """The worst of what went wrong."""
    stopped: bool = False
    """A signal or the time limit ended it."""
    warnings: tuple[str, ...] = ()

    def count(self, status: str) -> int:
        """Return how many cells ended so."""
        return sum(1 for one in self.cells if one.status == status)


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A cell begins."""

    cell: Cell


@dataclass(frozen=True, slots=True)
class CellRunning:
    """It goes on: a few times a second."""

    cell: Cell
    bytes_done: int


@dataclass(frozen=True, slots=True)
class CellDone:
    """It has ended."""

    result: CellResult


SmokeEvent = CellStarted | CellRunning | CellDone
