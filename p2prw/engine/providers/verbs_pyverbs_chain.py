"""One work request as a chain of pyverbs' SendWRs, linked once: posted by one call, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2prw.engine.providers.verbs_pyverbs_regions import call


class PyverbsChain:
    """See `verbs_binding.BoundChain`. The links are raw pointers and never change: a shorter chain starts later."""

    def __init__(self, modules: Any, pair: Any, works: list[Any], signal_every: int) -> None:
        """`works` from the last to the first; they are closed here."""
        self._modules = modules
        self._qp = pair
        self._works = works
        self._signalled = works[::signal_every]

    def post(self, count: int, wr_ids: Sequence[int]) -> None:
        """ibv_post_send, once."""
        for work, wr_id in zip(self._signalled, reversed(wr_ids), strict=False):
            work.wr_id = wr_id
        call(self._modules, self._qp.post_send, self._works[count - 1])

    def close(self) -> None:
        """Free each work request once."""
        self._signalled = []
        while self._works:
            self._works.pop().close()
