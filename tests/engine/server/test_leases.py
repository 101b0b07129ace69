"""Leases: writers exclusive, readers shared, `--shared` opts out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.model import Operation
from p2prw.engine.server.leases import Lease, LeaseTable

WRITE, READ = Operation.WRITE, Operation.READ


def lease(
    name: str, offset: int, length: int, operation: Operation, *, shared: bool = False, region: str = "r"
) -> Lease:
    return Lease(name, region, offset, length, operation, shared, "client")


def test_readers_share_and_writers_do_not():
    table = LeaseTable()
    table.add(lease("a", 0, 100, READ))
    assert table.conflict(lease("b", 50, 100, READ)) is None
    standing = table.conflict(lease("c", 99, 1, WRITE))
    assert standing is not None and standing.id == "a"
    assert table.conflict(lease("c", 100, 1, WRITE)) is None
    assert table.conflict(lease("c", 0, 100, WRITE, region="other")) is None


def test_a_released_range_is_free_again():
    table = LeaseTable()
    table.add(lease("a", 0, 10, WRITE))
    assert table.busy("r") and len(table) == 1
    table.remove("a")
    table.remove("a")
    assert not table.busy("r") and table.conflict(lease("b", 0, 10, WRITE)) is None


def test_both_must_opt_out():
    table = LeaseTable()
    table.add(lease("a", 0, 10, WRITE, shared=True))
    assert table.conflict(lease("b", 0, 10, WRITE)) is not None
    assert table.conflict(lease("b", 0, 10, WRITE, shared=True)) is None


def test_an_empty_range_conflicts_with_nothing():
    table = LeaseTable()
    table.add(lease("a", 0, 10, WRITE))
    assert table.conflict(lease("b", 10, 0, WRITE)) is None


ranges = st.tuples(st.integers(0, 40), st.integers(0, 20), st.sampled_from([WRITE, READ]))


@given(ranges, ranges)
def test_conflict_is_symmetric_and_agrees_with_sets_of_bytes(first, second):
    a, b = lease("a", *first), lease("b", *second)
    common = set(range(a.offset, a.offset + a.length_bytes)) & set(range(b.offset, b.offset + b.length_bytes))
    writes = WRITE in (a.operation, b.operation)
    assert a.conflicts(b) == b.conflicts(a)
    if a.length_bytes and b.length_bytes:
        assert a.conflicts(b) == (bool(common) and writes)
