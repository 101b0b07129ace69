"""Error completions: a code for machines, a reason and a next step for people."""

from __future__ import annotations

import pytest

from p2prw.engine.completion import completion_error
from p2prw.engine.model import Completion, Opcode, WcStatus


@pytest.mark.parametrize("status", [status for status in WcStatus if status is not WcStatus.SUCCESS])
def test_every_status_has_a_code_a_reason_and_a_next_step(status):
    error = completion_error(Completion(7, status, Opcode.RDMA_WRITE, 0, 0x11), 4096, 8192)
    assert error.exit_code == (7 if status is WcStatus.REM_ACCESS_ERR else 1) and error.wc_status == status.name
    assert error.why and error.fix and error.code.islower()
    assert "work request 7" in error.what and "4096 of 8192 bytes" in error.what
    assert error.side == ("remote" if status.name.startswith("REM_") else "local")
