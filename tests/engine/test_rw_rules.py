"""The kernel's rules alone: when an MR is needed, what one holds, how queues are sized, which limits are none."""

from __future__ import annotations

import pytest

from p2prw.engine.model import DeviceLimits, DmaSegment, Operation
from p2prw.engine.rw_rules import RwLimits, can_use_mr, mapping_problem, mr_factor, needs_mr
from p2prw.errors import RequestError

WRITE, READ = Operation.WRITE, Operation.READ


def limits(**changes):
    return RwLimits(**{"max_write_sge": 30, "max_read_sge": 30, **changes})


@pytest.mark.parametrize(
    ("direction", "nents", "changes", "needed"),
    [
        (WRITE, 999, {}, False),
        (WRITE, 999, {"iwarp": True, "max_sgl_rd": 16}, False),
        (READ, 1, {"iwarp": True}, True),
        (READ, 16, {"max_sgl_rd": 16}, False),
        (READ, 17, {"max_sgl_rd": 16}, True),
        (WRITE, 1, {"force_mr": True}, True),
    ],
)
def test_rdma_rw_io_needs_mr(direction, nents, changes, needed):
    """In the kernel's order: iWARP READ, max_sgl_rd, force_mr; a plain WRITE never."""
    assert (needs_mr(direction, nents, limits(**changes)) is not None) is needed


def test_example_e4_contexts_for_a_payload_of_256_pages():
    assert mr_factor(256, limits()) == 9
    assert mr_factor(256, limits(max_sgl_rd=16)) == 1
    assert not can_use_mr(limits()) and can_use_mr(limits(force_mr=True))


@pytest.mark.parametrize(
    "changes", [{"max_write_sge": 0}, {"max_read_sge": 0}, {"max_bytes_per_wr": 0}, {"max_sgl_rd": -1}]
)
def test_limits_under_which_nothing_moves_are_refused(changes):
    with pytest.raises(RequestError) as caught:
        limits(**changes)
    assert caught.value.errno == "EINVAL"


def test_limits_of_a_queue_pair_are_the_smaller_of_its_own_and_the_devices():
    device = DeviceLimits(max_sge=8, max_sge_rd=3, max_msg_bytes=1 << 20, iwarp=True)
    got = RwLimits.for_device(device, max_send_sge=16, chunk_bytes=1 << 30)
    assert (got.max_write_sge, got.max_read_sge, got.max_bytes_per_wr, got.iwarp) == (8, 3, 1 << 20, True)


@pytest.mark.parametrize(
    ("segments", "pages", "problem"),
    [
        ([(0, 4096), (8192, 4096)], 2, None),
        ([(0, 4000), (8192, 10)], 9, "does not continue"),
        ([(100, 3996), (8192, 10)], 9, None),
        ([(0, 3 * 4096)], 2, "2 pages"),
        ([(0, 1000), (1000, 96)], 1, None),
    ],
)
def test_what_one_mr_maps(segments, pages, problem):
    found = mapping_problem([DmaSegment(address, length, 1) for address, length in segments], pages)
    assert found is None if problem is None else problem in str(found)
