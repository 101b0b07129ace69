"""A chain posts a suffix of itself, touches the ids of signalled requests only, and frees each request once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2prw.engine.providers.verbs_binding import BindingError
from p2prw.engine.providers.verbs_pyverbs_chain import PyverbsChain


class Work:
    def __init__(self, number: int) -> None:
        self.wr_id, self.closed, self.touched = -number, 0, 0

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("touched", getattr(self, "touched", 0) + (name == "wr_id"))
        super().__setattr__(name, value)

    def close(self) -> None:
        self.closed += 1


class PyverbsError(Exception):
    error_code = 12


def chain_of(length: int, signal_every: int) -> tuple[PyverbsChain, list[Work], list[Any]]:
    works = [Work(number) for number in range(length)]
    posted: list[Any] = []
    pair = SimpleNamespace(post_send=posted.append)
    return PyverbsChain(SimpleNamespace(error=PyverbsError), pair, list(works), signal_every), works, posted


@pytest.mark.parametrize(("count", "ids", "first"), [(8, [1, 4, 7], 7), (4, [1, 4], 3), (3, [9], 2), (1, [5], 0)])
def test_a_suffix_is_posted_and_the_signalled_ones_get_their_ids(count, ids, first):
    chain, works, posted = chain_of(8, 3)
    before = [one.touched for one in works]
    chain.post(count, ids)
    # From the last to the first: the chain begins where `count` are left.
    assert posted == [works[first]]
    assert [works[place].wr_id for place in range(0, 3 * len(ids), 3)] == ids[::-1]
    assert sum(one.touched for one in works) - sum(before) == len(ids)


def test_a_refusal_keeps_its_errno():
    chain, _, _ = chain_of(2, 1)

    def refuse(_: Any) -> None:
        raise PyverbsError

    chain._qp = SimpleNamespace(post_send=refuse)
    with pytest.raises(BindingError) as caught:
        chain.post(2, [0, 1])
    assert caught.value.errno_name == "ENOMEM"


def test_each_is_freed_once():
    chain, works, _ = chain_of(4, 2)
    chain.close()
    chain.close()
    assert [one.closed for one in works] == [1] * 4
