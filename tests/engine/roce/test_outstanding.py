"""READs on the wire: counted at once, as a look at each would count them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.roce.outstanding import OutstandingReads, ReadPiece


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    gaps=st.data(),
    base=st.integers(0, 1 << 24),
    asks_anew=st.booleans(),
)
def test_counts_are_those_of_a_look_at_each(sizes, gaps, base, asks_anew):
    """PSNs of WRITEs may lie between them; some were answered, and after a loss some are to be asked for again."""
    reads, plain, psn = OutstandingReads(), [], base
    for size in sizes:
        psn += gaps.draw(st.integers(0, 3))
        reads.ask(psn, psn + size)
        plain.append((psn, psn + size))
        psn += size
    una = gaps.draw(st.integers(base, psn))
    reads.answered(una)
    plain = [piece for piece in plain if piece[1] > una]
    assert [piece[:2] for piece in reads] == plain
    sent = gaps.draw(st.integers(una, psn)) if asks_anew else psn
    whole = [piece for piece in plain if piece[1] <= sent]
    assert reads.on_the_wire(una, sent) == (len(whole), sum(end - max(first, una) for first, end in whole))
    for at in range(base, psn + 1):
        found = reads.at(at)
        assert (found[:2] if found else None) == next((one for one in plain if one[0] <= at < one[1]), None)


def test_what_was_forgotten_counts_no_more():
    reads = OutstandingReads()
    assert reads.on_the_wire(5, 5) == (0, 0)
    reads.answered(5)
    reads.ask(5, 8)
    reads.clear()
    reads.ask(8, 10)
    assert reads[0] == ReadPiece(8, 10, 2) and reads.on_the_wire(8, 10) == (1, 2)
