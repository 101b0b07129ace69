"""Packets and runs as they go to the driver."""

from __future__ import annotations

import pytest

from p2prw.engine.roce.burst import MAX_BURST_BYTES, Connection
from p2prw.engine.roce.icrc import Flow
from p2prw.engine.roce.opcodes import RcOpcode


def connect(mtu, segments):
    return Connection(Flow((bytes(4), 1), (bytes(4), 2)), ("0.0.0.0", 2), 0x11, mtu, segments)


@pytest.mark.parametrize(
    ("mtu", "segments", "most"), [(4096, 64, 15), (4096, 1, 1), (4096, 0, 1), (1024, 64, 62), (256, 128, 128)]
)
def test_a_burst_keeps_to_the_kernels_limits(mtu, segments, most):
    connection = connect(mtu, segments)
    assert connection.max_segments == most
    assert most * connection.segment_bytes <= MAX_BURST_BYTES


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 255])
def test_padding_is_zero_and_counted(length):
    burst = connect(256, 1).single(RcOpcode.SEND_ONLY, 1, b"", [memoryview(b"\xff" * length)], length)
    raw = b"".join(burst.buffers)
    pad = -length & 3
    assert burst.length_bytes == burst.segment_bytes == len(raw) == 16 + length + pad
    assert raw[1] >> 4 & 3 == pad
    assert raw[12 : 12 + length + pad] == b"\xff" * length + bytes(pad)


@pytest.mark.parametrize("cuts", [[300, 468], [1, 766, 1], [256, 256, 256], [100] * 7 + [68], [0, 768]])
def test_data_in_pieces_makes_the_same_run(lab, cuts):
    data = memoryview(lab.pattern(768))
    whole = connect(256, 64).middle_run(RcOpcode.WRITE_MIDDLE, 9, [data], 3, ack_last=True)
    pieces, start = [], 0
    for cut in cuts:
        pieces.append(data[start : start + cut])
        start += cut
    split = connect(256, 64).middle_run(RcOpcode.WRITE_MIDDLE, 9, pieces, 3, ack_last=True)
    assert b"".join(split) == b"".join(whole)
