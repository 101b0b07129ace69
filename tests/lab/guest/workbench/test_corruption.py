"""Bytes that go wrong behind every CRC: flipped from outside the guest, or by a sender under a right ICRC."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.model import Operation, QueuePairOptions, Timeouts
from p2prw.units import MIB

OPTIONS = QueuePairOptions(timeout=18)
PATIENT = Timeouts(connect_retry_s=30.0, handshake_s=60.0, idle_s=60.0)
SIZE = MIB + 77
BAD = MIB + 5


def run_and_spoil(request: Any, spoil: Any) -> Any:
    """Run a transfer; `spoil()` once everything has drained and before anything is digested.

    The phase `drain` is told when every byte is settled at both ends; the digests begin when the generator goes on.
    """
    steps = api.transfer(request)
    spoilt = False
    while True:
        try:
            progress = next(steps)
        except StopIteration as finished:
            assert spoilt, "the transfer never drained"
            return finished.value
        if progress.phase == "drain":
            assert progress.bytes_done == SIZE and not spoilt
            spoil()
            spoilt = True


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.READ])
def test_a_byte_flipped_from_outside_between_drain_and_digest(ivshmem, outside, tmp_path, operation):
    data = random.Random(21).randbytes(SIZE)
    (tmp_path / "source.bin").write_bytes(data)
    options: dict[str, Any] = {"device": "rxe0", "queue_pair": OPTIONS, "timeouts": PATIENT}
    bar = f"bar:{ivshmem}/2,offset=4MiB,size={SIZE}"
    regions = {"bar": bar} if operation is Operation.WRITE else {"mem": f"file:{tmp_path}/source.bin"}

    def flip() -> None:
        at = 4 * MIB + BAD
        assert outside.peek("ivshmem-shared", at, 1) == data[BAD : BAD + 1], "it has arrived"
        outside.poke("ivshmem-shared", at, bytes([data[BAD] ^ 0x10]))

    with api.serving(regions, listen="10.9.0.1:0", insecure=True, **options) as address:
        ours, target = (f"file:{tmp_path}/source.bin", "bar") if operation is Operation.WRITE else (bar, "mem")
        result = run_and_spoil(api.make_request(operation, f"{address}/{target}", ours, **options), flip)
    assert result.error is not None
    assert (result.exit_code, result.error.code) == (4, "verify_mismatch")
    verify = result.verify
    assert (verify.status, verify.first_bad_offset, verify.classification) == ("mismatch", BAD, "corrupt")
    assert "1 flipped bit in 1 byte" in verify.why
    assert result.results[0].bytes == SIZE and result.partial


@pytest.mark.parametrize("operation", ["write", "read"])
def test_a_byte_that_the_kernels_icrc_check_lets_pass(in_peer, operation):
    """rxe checks every ICRC: a packet it takes has a right one, and only the digest knows that the byte is wrong."""
    regions = {"mem": "host,size=2MiB,pattern=words:3"}
    options: dict[str, Any] = {"queue_pair": OPTIONS, "timeouts": PATIENT}
    with api.serving(regions, listen="10.9.1.1:0", insecure=True, **options) as address, in_peer():
        move: Any = api.write if operation == "write" else api.read
        memory = "host,size=2MiB,pattern=words:8" if operation == "write" else "host"
        result = move(f"{address}/mem", memory, size_bytes=SIZE, inject=f"corrupt={BAD}", **options)
    assert (result.local_route.driver, result.remote_route.driver) == ("soft", "rxe")
    assert (result.exit_code, result.error.code) == (4, "verify_mismatch")
    assert (result.verify.first_bad_offset, result.verify.classification) == (BAD, "corrupt")
    assert result.results[0].retransmitted_packets == 0
