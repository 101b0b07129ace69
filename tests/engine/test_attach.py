"""Both ends of a grant: the shape of staging, what bounds a work request, registrations that end with their stack."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.attach import attach_local, make_scratch, rw_limits, staging_shape
from p2prw.engine.ends import DirectLocal, RingLocal
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import DeviceLimits, Operation, PeerAddress, TransferRequest
from p2prw.engine.providers.scripted import ScriptedDevice
from p2prw.units import KIB, MIB

REQUEST = TransferRequest(
    operation=Operation.WRITE, peer=PeerAddress("h"), region="r", memory=parse_memory_spec("host,size=1MiB")
)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, (4096, 2)), (4097, (8192, 2)), (4 * MIB, (4 * MIB, 2)), (20 * MIB, (4 * MIB, 5)), (1 << 40, (4 * MIB, 8))],
)
def test_a_ring_is_no_bigger_than_the_transfer_or_the_limit(length, expected):
    assert staging_shape(32 * MIB, 4 * MIB, length) == expected


@given(st.integers(4096, 1 << 34), st.integers(4096, 1 << 30), st.integers(0, 1 << 50))
def test_a_ring_has_two_to_256_slots_within_its_bytes(staging_bytes, chunk_bytes, length):
    chunk, slots = staging_shape(staging_bytes, chunk_bytes, length)
    assert 2 <= slots <= 256 and 1 <= chunk <= chunk_bytes
    assert slots == 2 or slots * chunk <= staging_bytes


def test_mapped_memory_is_registered_whole_and_staged_memory_as_a_ring():
    device = ScriptedDevice()
    memory = HostMemory.from_buffer(bytearray(3 * MIB))
    with ExitStack() as stack:
        direct = attach_local(stack, device, memory, REQUEST, 2 * MIB, staged=False)
        assert isinstance(direct.end, DirectLocal) and direct.vec[0].length_bytes == 2 * MIB and not direct.filenos
        ring = attach_local(
            stack,
            device,
            memory,
            replace(REQUEST, staging_bytes=MIB, staging_chunk_bytes=256 * KIB),
            2 * MIB,
            staged=True,
        )
        assert isinstance(ring.end, RingLocal) and ring.end.span_bytes == 256 * KIB
        assert ring.vec[0].length_bytes == MIB and len(ring.filenos) == 1
        assert make_scratch(stack, device).sge.length_bytes == MIB
        assert device.counts.registrations_open == 3
    assert device.counts.registrations_open == 0


def test_a_read_on_a_software_device_is_bounded_by_our_own_socket_buffer():
    info = ScriptedDevice(limits=DeviceLimits(max_sge=8, max_sge_rd=3, max_msg_bytes=512 * KIB)).info
    reading = replace(REQUEST, operation=Operation.READ)
    assert rw_limits(REQUEST, info, 100_000).max_bytes_per_wr == 512 * KIB
    assert rw_limits(reading, info, 100_000).max_bytes_per_wr == 49152
    assert rw_limits(reading, info, 10).max_bytes_per_wr == 4096
    assert rw_limits(reading, replace(info, mover="nic"), 10).max_bytes_per_wr == 512 * KIB
    limits = rw_limits(REQUEST, info, 1)
    assert (limits.max_write_sge, limits.max_read_sge) == (8, 3)
