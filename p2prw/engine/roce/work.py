"""Work queue entries: what was posted and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass

from p2prw.engine.model import Opcode, WcStatus
from p2prw.engine.roce.memory_table import ScatterList
from p2prw.engine.roce.opcodes import EDGES
from p2prw.engine.roce.packet import push_reth

# Looked up once: an enum's member by its class costs more than a comparison.
_READ, _SEND = Opcode.RDMA_READ, Opcode.SEND
_WRITE_WITH_IMM, _SEND_WITH_IMM = Opcode.RDMA_WRITE_WITH_IMM, Opcode.SEND_WITH_IMM


class SendWqe:
    """One posted request. PSNs are absolute and fixed when it is posted, because the path MTU is.

    A plain class: it is made for every message, and a dataclass with what is worked out here takes twice the time.
    """

    __slots__ = (
        *("wr_id", "opcode", "data", "remote_addr", "rkey", "signaled", "imm_data", "first_psn", "psns", "start_bytes"),
        *("length_bytes", "local_error", "end_psn", "is_read", "is_send", "has_imm"),
    )

    def __init__(
        self,
        wr_id: int,
        opcode: Opcode,
        data: ScatterList,
        remote_addr: int,
        rkey: int,
        signaled: bool,
        imm_data: bytes | None,
        first_psn: int,
        psns: int,
        start_bytes: int,
        length_bytes: int,
        local_error: WcStatus | None = None,
    ) -> None:
        self.wr_id = wr_id
        self.opcode = opcode
        self.data = data
        self.remote_addr = remote_addr
        self.rkey = rkey
        self.signaled = signaled
        self.imm_data = imm_data
        self.first_psn = first_psn
        self.psns = psns
        """Packets of a WRITE or SEND; response packets of a READ."""
        self.start_bytes = start_bytes
        """Where its data begins in the stream of all WRITE and SEND data of this queue pair."""
        self.length_bytes = length_bytes
        self.local_error = local_error
        """Its own memory failed; reported when it is the oldest, so that what went before completes first."""
        self.end_psn = first_psn + psns
        """The PSN after its last."""
        self.is_read = opcode == _READ
        """A READ takes PSNs for the peer's packets, not for its own."""
        self.is_send = opcode in (_SEND, _SEND_WITH_IMM)
        self.has_imm = opcode in (_WRITE_WITH_IMM, _SEND_WITH_IMM)
        """Its last packet carries immediate data."""

    def edge(self, *, starts: bool, ends: bool) -> tuple[int, bytes]:
        """Return opcode and extension headers of its FIRST, LAST or ONLY packet."""
        imm = ends and self.has_imm
        extension = b""
        if starts and not self.is_send:
            extension = push_reth(self.remote_addr, self.rkey, self.length_bytes)
        if imm:
            extension += self.imm_data or bytes(4)
        return EDGES[self.is_send, starts, ends, imm], extension


@dataclass(slots=True, eq=False)
class ReceiveWqe:
    """One posted receive buffer: takes a SEND, or the immediate data of a WRITE."""

    wr_id: int
    data: ScatterList
