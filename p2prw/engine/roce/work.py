"""Work queue entries: what was posted and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2prw.engine.model import Opcode, WcStatus
from p2prw.engine.roce.memory_table import ScatterList

_IMM = frozenset({Opcode.RDMA_WRITE_WITH_IMM, Opcode.SEND_WITH_IMM})


@dataclass(slots=True, eq=False)
class SendWqe:
    """One posted request. PSNs are absolute and fixed when it is posted, because the path MTU is."""

    wr_id: int
    opcode: Opcode
    data: ScatterList
    remote_addr: int
    rkey: int
    signaled: bool
    imm_data: bytes | None
    first_psn: int
    psns: int
    """Packets of a WRITE or SEND; response packets of a READ."""
    start_bytes: int
    """Where its data begins in the stream of all WRITE and SEND data of this queue pair."""
    length_bytes: int
    local_error: WcStatus | None = None
    """Its own memory failed; reported when it is the oldest, so that what went before completes first."""

    # Asked for with every burst, so worked out once.
    end_psn: int = field(init=False)
    """The PSN after its last."""
    is_read: bool = field(init=False)
    """A READ takes PSNs for the peer's packets, not for its own."""
    is_send: bool = field(init=False)
    has_imm: bool = field(init=False)
    """Its last packet carries immediate data."""

    def __post_init__(self) -> None:
        self.end_psn = self.first_psn + self.psns
        self.is_read = self.opcode == Opcode.RDMA_READ
        self.is_send = self.opcode in (Opcode.SEND, Opcode.SEND_WITH_IMM)
        self.has_imm = self.opcode in _IMM


@dataclass(slots=True, eq=False)
class ReceiveWqe:
    """One posted receive buffer: takes a SEND, or the immediate data of a WRITE."""

    wr_id: int
    data: ScatterList
