"""The nouns of p2prw: every arrow of the flow is one of these frozen dataclasses. Data only, no behaviour, no I/O.

Glossary, one word for one thing:
    segment     one (address, length, key) entry of a dma vec
    dma vec     tuple of segments: local memory as a device sees it; no page, no CPU pointer
    SGE         one entry of a work request's local list; it lies within one segment
    WR / WQE    a work request as we build it / as it sits in the send queue
    region      memory a server offers under a name
    lease       the right of one client to one byte range of a region
    staging     registered host chunks that files and bounced memory pass through, one slot each
    route       how bytes get between memory and wire: dmabuf, pin, odp, dm, cpu, bounce
    burst       up to 64 KiB of equal RoCE packets sent or received by one system call
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, StrEnum
from typing import Any, Generic, NamedTuple, TypeVar


class Operation(StrEnum):
    """What the client asks for; it names the direction seen from the client."""

    WRITE = "write"
    READ = "read"


class Access(IntFlag):
    """Rights of a registration; values of `enum ibv_access_flags` (libibverbs/verbs.h)."""

    LOCAL_READ = 0
    LOCAL_WRITE = 1
    REMOTE_WRITE = 2
    REMOTE_READ = 4


class Opcode(IntEnum):
    """Values of `enum ibv_wr_opcode` (libibverbs/verbs.h)."""

    RDMA_WRITE = 0
    RDMA_WRITE_WITH_IMM = 1
    SEND = 2
    SEND_WITH_IMM = 3
    RDMA_READ = 4


class WcStatus(IntEnum):
    """Values and names of `enum ibv_wc_status` (libibverbs/verbs.h), without the IBV_WC_ prefix."""

    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_EEC_OP_ERR = 3
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    MW_BIND_ERR = 6
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    RETRY_EXC_ERR = 12
    RNR_RETRY_EXC_ERR = 13
    LOC_RDD_VIOL_ERR = 14
    REM_INV_RD_REQ_ERR = 15
    REM_ABORT_ERR = 16
    INV_EECN_ERR = 17
    INV_EEC_STATE_ERR = 18
    FATAL_ERR = 19
    RESP_TIMEOUT_ERR = 20
    GENERAL_ERR = 21


class Route(StrEnum):
    """How bytes get between memory and wire (docs/contract.md, Routes)."""

    DMABUF = "dmabuf"
    PIN = "pin"
    ODP = "odp"
    DM = "dm"
    CPU = "cpu"
    BOUNCE = "bounce"


VERBS_BINDINGS = ("pyverbs", "ibverbs")
"""Python bindings of libibverbs, in the order in which `auto` tries them."""


class Offer(StrEnum):
    """What a kind of memory can give to a device that wants to reach it."""

    PAGES = "pages"
    CPU_MAPPING = "cpu_mapping"
    DMABUF = "dmabuf"
    STAGED = "staged"
    """Reached only by pread and pwrite through staging chunks."""


PHASES = (
    "open",
    "map",
    "register",
    "exchange",
    "connect",
    "resume",
    "first_byte",
    "steady",
    "drain",
    "verify",
    "close",
)


# --- the dma vec and the rw context's words ---------------------------------------------------------------


class DmaSegment(NamedTuple):
    """One entry of a dma vec: what a scatterlist entry was, without its page."""

    address: int
    """DMA address (MR iova + offset), not a CPU pointer."""
    length_bytes: int
    lkey: int


DmaVec = tuple[DmaSegment, ...]


class Sge(NamedTuple):
    """`struct ibv_sge`: address, length (< 2^32), lkey."""

    address: int
    length_bytes: int
    lkey: int


class RemoteSegment(NamedTuple):
    """One contiguous piece of the peer's region; at most `MAX_REMOTE_SEGMENTS` make a region."""

    address: int
    length_bytes: int
    rkey: int


MAX_REMOTE_SEGMENTS = 256


class WorkRequest(NamedTuple):
    """One one-sided work request, as computed by `RwContext.wr(i)`."""

    opcode: Opcode
    sges: tuple[Sge, ...]
    remote_addr: int
    rkey: int
    length_bytes: int


class Completion(NamedTuple):
    """`struct ibv_wc`. When status is an error only wr_id, status, qp_num and vendor_err mean anything."""

    wr_id: int
    status: WcStatus
    opcode: Opcode
    byte_len: int
    qp_num: int
    imm_data: bytes | None = None
    vendor_err: int = 0


# --- devices and queue pairs --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GidEntry:
    """One row of a port's GID table; zero GIDs are never listed."""

    index: int
    gid: str
    """32 hex digits; IPv4 as ::ffff:a.b.c.d."""
    type: str
    """`rocev2`, `rocev1` or `ib`."""
    netdev: str | None = None
    up: bool = True


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What bounds a work request on a device and port."""

    max_sge: int = 32
    max_sge_rd: int = 32
    max_msg_bytes: int = 1 << 31
    """`port_attr.max_msg_sz`; InfiniBand's own limit is 2^31."""
    max_qp_wr: int = 16384
    max_rd_atomic: int = 16
    max_dest_rd_atomic: int = 16
    iwarp: bool = False
    max_dm_bytes: int = 0
    """`max_dm_size`: how much memory of its own (`dm`) the device has."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device says about itself; `mover` is who carries the bytes: `nic` or `cpu`."""

    name: str
    provider: str
    """`soft`, `verbs` or `scripted`."""
    driver: str
    mover: str
    link_layer: str
    state: str
    active_mtu_bytes: int
    gids: tuple[GidEntry, ...]
    limits: DeviceLimits
    netdev: str | None = None
    address: str | None = None
    udp_port: int | None = None
    pci_address: str | None = None
    numa_node: int | None = None
    note: str | None = None
    binding: str | None = None
    """The verbs binding it is driven through: `pyverbs` or `ibverbs`."""
    codec: str | None = None
    """What makes and checks a software device's packets: `python`, or `compiled` and how it computes CRCs."""
    port: int = 1
    rate_gbit_per_s: float | None = None
    """What the port says it signals at; rxe always says 2.5 or 100, whatever its netdev does."""
    netdev_mtu_bytes: int | None = None
    opened: bool = True
    """False: limits and MTU are this program's defaults, because nobody could ask the device."""


@dataclass(frozen=True, slots=True)
class QueuePairOptions:
    """Settable queue pair attributes; the defaults of docs/contract.md (Providers)."""

    depth: int = 128
    max_send_sge: int = 16
    mtu_bytes: int | None = None
    """Path MTU wanted (256..4096); None takes the port's."""
    timeout: int = 17
    """Exponent: 4.096 us x 2^timeout (17 is 0.54 s)."""
    retry_cnt: int = 6
    rnr_retry: int = 6
    min_rnr_timer: int = 12
    max_rd_atomic: int = 16
    traffic_class: int = 0
    service_level: int = 0
    pkey_index: int = 0
    gid_index: int | None = None
    peer_writes: bool = False
    """A client whose memory the server may write to: a measurement. What it may reach, keys say."""
    peer_reads: bool = False
    """The same for its READs."""


@dataclass(frozen=True, slots=True)
class QueuePairAttributes:
    """What one side tells the other so that a reliable connected queue pair can be brought to RTS."""

    qpn: int
    psn: int
    gid: str
    """32 hex digits."""
    mtu_bytes: int
    max_rd_atomic: int
    max_dest_rd_atomic: int
    udp_port: int = 4791
    lid: int = 0


# --- memory -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """`KIND[:ARG][,key=value...]`, parsed but not opened."""

    kind: str
    arg: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    """As the user wrote it, for messages."""


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What the bytes of a resumed transfer come from; where any of it differs, what has arrived is of no use."""

    name: str
    """The memory kind at the client, the region's name at a server."""
    offset: int
    bytes: int
    mtime_ns: int | None = None
    """Files; of other memory digests alone tell."""


# --- requests and results -----------------------------------------------------------------------------------


DEFAULT_PORT = 18515
"""perftest's."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a server listens."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Every wait has a name and a deadline, in seconds."""

    connect_retry_s: float = 10.0
    """Go on trying to reach the server for this long."""
    handshake_s: float = 10.0
    """Each answer of the control channel before data moves."""
    idle_s: float = 30.0
    """No byte, frame or completion for this long ends the transfer."""
    drain_s: float = 5.0
    """After Ctrl-C: for what is in flight."""
    time_limit_s: float | None = None
    """The whole command."""
    client_s: float | None = 24 * 3600.0
    """At a server: from a client's connection to its end, however busy it is. None: no limit."""
    stop_s: float = 30.0
    """At a server: how long transfers may still take after it was asked to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsClient:
    """How a client opens TLS: at least one of `ca_file` and `fingerprint` says whom it trusts."""

    ca_file: str | None = None
    """Certificates in PEM, or `system`: the server's must be signed by one of them, for the host that was named."""
    fingerprint: str | None = None
    """SHA-256 of the server's certificate, 64 hex digits in lower case."""
    cert_file: str | None = None
    """Our own, for a server that asks; in PEM."""
    key_file: str | None = None
    """None: the key is in `cert_file`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServer:
    """A server's certificate, and whose clients it takes."""

    cert_file: str
    key_file: str | None = None
    """None: the key is in `cert_file`."""
    client_ca_file: str | None = None
    """Set: a client needs a certificate that is signed by one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRequest:
    """Everything `write` and `read` need; built by the command line or by a program."""

    operation: Operation
    peer: PeerAddress
    region: str
    memory: MemorySpec
    region_offset: int = 0
    size_bytes: int | None = None
    """None: the smaller of local size and region size minus offset."""
    device: str = "auto"
    ib_port: int = 1
    """Port of a verbs device; the software device has one."""
    verbs_binding: str = "auto"
    """`auto`, `pyverbs` or `ibverbs`."""
    queue_pair: QueuePairOptions = QueuePairOptions()
    chunk_bytes: int = 1024 * 1024
    """Most bytes of one work request."""
    signal_every: int | None = None
    """One in N is signalled; None: chosen from depth."""
    rate_limit_bytes_per_s: float | None = None
    """Most that is posted, all queue pairs together; None: what the device takes."""
    staging_bytes: int = 32 * 1024 * 1024
    staging_chunk_bytes: int = 4 * 1024 * 1024
    timeouts: Timeouts = Timeouts()
    token: bytes | None = field(default=None, repr=False)
    tls: TlsClient | None = None
    verify: bool = True
    shared: bool = False
    route: Route | None = None
    require_direct: bool = False
    force_route: bool = False
    overwrite: bool = False
    resume: bool = False
    """Go on with what an earlier transfer of the same bytes left at a file sink, and leave what arrives to the next."""
    retries: int = 0
    """Connect again and go on, at most so many times, when the way to the peer or the peer itself is lost."""
    force_bound_device: bool = False
    force_block_device: str | None = None
    via: MemorySpec | None = None
    """`p2pmem:BDF`: where a file is staged instead of in host memory."""
    max_sgl_rd: int = 0
    """The kernel's device hint, unreadable from user space; 0 is never."""
    force_mr: bool = False
    inject: str | None = None
    """Faults made on purpose by the software device: `drop=1%,dup=...,reorder=...,seed=N`."""
    pcap: str | None = None
    gso: bool = True
    leaf: bool = True
    """Let compiled code make and check packets on the software device, where it was built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRegion:
    """One `--region NAME=MEMORY,access=...` of a server."""

    name: str
    memory: MemorySpec
    access: str = "rw"
    """`r`, `w` or `rw`, seen from the client: r may be READ, w may be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """Everything `serve` needs."""

    regions: tuple[ServedRegion, ...]
    listen: PeerAddress = PeerAddress("127.0.0.1")
    device: str = "auto"
    ib_port: int = 1
    """Port of a verbs device; the software device has one."""
    verbs_binding: str = "auto"
    """`auto`, `pyverbs` or `ibverbs`."""
    queue_pair: QueuePairOptions = QueuePairOptions()
    once: bool = False
    ready_file: str | None = None
    metrics: PeerAddress | None = None
    """Where scrapers find the figures."""
    metrics_file: str | None = None
    """Where the node exporter's textfile collector finds them."""
    token: bytes | None = field(default=None, repr=False)
    tls: TlsServer | None = None
    insecure: bool = False
    allow: tuple[str, ...] = ()
    """Networks (CIDR) that clients may come from; empty: all."""
    max_clients: int = 64
    client_bytes: int | None = None
    """What one client may be granted, all its leases together. None: no limit."""
    client_regions: int | None = None
    client_rate_limit_bytes_per_s: float | None = None
    """How many different regions one client may use, and what it may move in a second. None: no limit."""
    passive: bool = False
    """Post nothing towards clients: neither a ping-pong's answers nor the other direction of a measurement."""
    timeouts: Timeouts = Timeouts()
    staging_bytes: int = 32 * 1024 * 1024
    staging_chunk_bytes: int = 4 * 1024 * 1024
    via: MemorySpec | None = None
    """`p2pmem:BDF`: where served files are staged instead of in host memory."""
    overwrite: bool = False
    force_bound_device: bool = False
    force_block_device: str | None = None
    inject: str | None = None
    pcap: str | None = None
    gso: bool = True
    leaf: bool = True
    """Let compiled code make and check packets on the software device, where it was built."""


@dataclass(frozen=True, slots=True)
class RouteAttempt:
    """One rung of the ladder: what was tried and what came back."""

    route: str
    ok: bool
    errno: str | None = None
    wc_status: str | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class ViaReport:
    """The other leg of a staged file, between file and ring, where the ring is a device's memory (`--via`).

    The `RouteReport` it stands in speaks of the leg between ring and wire.
    """

    memory: str
    """The kind of the ring's memory: `p2pmem`."""
    pci_address: str
    """Whose memory the ring is in."""
    mover: str
    """`drive`: the controller behind the file reads and writes the ring by its own DMA."""
    peer_to_peer: bool
    """No host memory lies between file and ring."""
    drive: str | None = None
    """PCI address of that controller, where one is behind the file."""
    host_bytes: int = 0
    """Bytes that went through host memory all the same: the last part of a block that a sink ends with."""


@dataclass(frozen=True, slots=True)
class RouteReport:
    """How one end reached its memory; `peer_to_peer` is true only for device memory moved by a NIC, or a `via` ring."""

    chosen: str
    mover: str
    peer_to_peer: bool
    memory: str
    """The memory kind: `host`, `file`, `bar`, ..."""
    device: str
    driver: str
    staged: bool = False
    attempts: tuple[RouteAttempt, ...] = ()
    via: ViaReport | None = None
    """Set where a file is staged in a device's memory."""


@dataclass(frozen=True, slots=True)
class TransferStats:
    """One row of `results`."""

    operation: str
    size_bytes: int
    bytes: int
    """Bytes whose completion was seen; with reconnects over all attempts, those that were moved again too."""
    elapsed_s: float
    """First post to last completion; registration and verification are outside."""
    bw_bytes_per_s: float | None
    wqes_posted: int
    wqes_signalled: int
    kernel_wqes: int
    chunk_bytes: int
    retransmitted_packets: int = 0
    rnr_naks: int = 0
    sequence_naks: int = 0
    timeouts: int = 0
    skipped_bytes: int = 0
    """Bytes that had arrived before this command began: compared at both ends and not moved."""
    reconnects: int = 0
    rate_limit_bytes_per_s: float | None = None
    rate_limit_by: str | None = None
    """The lower one of `--rate-limit` (`client`) and the server's `--client-rate-limit` (`server`), and whose it is."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verification found. `status`: verified, unverified, mismatch, unstable."""

    status: str
    method: str | None = None
    """`owner-cpu`, `owner-loopback-read` or `client-read-back`."""
    algorithm: str | None = None
    block_bytes: int | None = None
    blocks: int = 0
    elapsed_s: float = 0.0
    local_digest: str | None = None
    remote_digest: str | None = None
    first_bad_offset: int | None = None
    classification: str | None = None
    why: str | None = None
    blocks_ahead: int = 0
    """Blocks of the source that were digested while the bytes travelled (rxe)."""


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """An error as it stands in the JSON result."""

    code: str
    what: str
    why: str | None = None
    fix: str | None = None
    wc_status: str | None = None
    errno: str | None = None
    side: str = "local"


Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[Row]):
    """What every `p2prw/1` document of work done over a lease says, whatever its rows are."""

    command: str
    status: str
    """`ok`, `failed`, `interrupted`, `planned` (dry run)."""
    exit_code: int
    params: Mapping[str, Any]
    environment: Mapping[str, Any]
    local_route: RouteReport | None
    remote_route: RouteReport | None
    results: tuple[Row, ...]
    verify: VerifyReport
    phases: Mapping[str, float]
    """Seconds for each of PHASES that was reached."""
    warnings: tuple[str, ...] = ()
    partial: bool = False
    error: ErrorReport | None = None
    plan: Mapping[str, Any] | None = None
    """Of a dry run, or where it was to be kept: see `p2prw.engine.plan`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferResult(Outcome[TransferStats]):
    """The whole outcome of a transfer; reporters turn it into text or the document."""
