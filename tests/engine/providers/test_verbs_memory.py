"""Buffers cut into slices: every byte once, in order, within what a peer can be told."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.model import MAX_REMOTE_SEGMENTS
from p2prw.engine.providers.verbs_binding import BindingError
from p2prw.engine.providers.verbs_memory import VerbsRegistration, cut_buffers


def buffers(lengths):
    return [SimpleNamespace(cpu_address=(n + 1) << 40, length_bytes=length) for n, length in enumerate(lengths)]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4), st.data())
def test_slices_hold_each_byte_once_in_order(lengths, data):
    total = sum(lengths)
    offset = data.draw(st.integers(0, total))
    length = data.draw(st.one_of(st.none(), st.integers(0, total - offset)))
    slice_bytes = data.draw(st.integers(1, 6000))
    made = buffers(lengths)
    pieces = list(cut_buffers(made, offset, length, slice_bytes))
    every = [buffer.cpu_address + n for buffer in made for n in range(buffer.length_bytes)]
    wanted = every[offset:] if length is None else every[offset : offset + length]
    assert [address + n for address, size in pieces for n in range(size)] == wanted
    assert len(pieces) <= MAX_REMOTE_SEGMENTS


def test_a_registration_closes_every_slice_whatever_one_says():
    closed = []

    def region(number, fail=False):
        def close():
            closed.append(number)
            if fail:
                raise BindingError("gone", 19)

        return SimpleNamespace(address=number * 100, length_bytes=10, lkey=number, rkey=number + 50, close=close)

    told: list[VerbsRegistration] = []
    registration = VerbsRegistration([region(1, fail=True), region(2)], told.append)
    assert [tuple(one) for one in registration.vec] == [(100, 10, 1), (200, 10, 2)]
    assert [tuple(one) for one in registration.remote_segments()] == [(100, 10, 51), (200, 10, 52)]
    registration.close()
    registration.close()
    assert closed == [1, 2] and told == [registration]
