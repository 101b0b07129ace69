"""What a work queue entry knows of itself."""

from __future__ import annotations

import random

import pytest

from p2prw.engine.model import Access, Opcode
from p2prw.engine.roce.memory_table import MemoryTable, ScatterList
from p2prw.engine.roce.work import SendWqe


@pytest.mark.parametrize(
    ("opcode", "is_read", "has_imm"),
    [
        (Opcode.RDMA_WRITE, False, False),
        (Opcode.RDMA_WRITE_WITH_IMM, False, True),
        (Opcode.SEND, False, False),
        (Opcode.SEND_WITH_IMM, False, True),
        (Opcode.RDMA_READ, True, False),
    ],
)
def test_kinds(opcode, is_read, has_imm):
    data = ScatterList(MemoryTable(random.Random(1).getrandbits), [], Access.LOCAL_READ)
    wqe = SendWqe(1, opcode, data, 0, 0, True, None, 10, 3, 0, 0)
    assert (wqe.is_read, wqe.has_imm, wqe.end_psn) == (is_read, has_imm, 13)
