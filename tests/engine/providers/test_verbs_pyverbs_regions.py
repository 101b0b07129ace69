"""Errors of pyverbs become ours with their errno; regions and device memory close once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2prw.engine.providers.verbs_binding import BindingError
from p2prw.engine.providers.verbs_pyverbs_regions import PyverbsDm, call, held


class PyverbsError(Exception):
    error_code = -1


class Closing(SimpleNamespace):
    closed = 0

    def close(self):
        self.closed += 1


def register_dm(pd, length, access, dm, offset):
    return Closing(lkey=access, rkey=offset)


MODULES: Any = SimpleNamespace(error=PyverbsError, mr=SimpleNamespace(DMMR=register_dm))


@pytest.mark.parametrize(("error", "number"), [(PyverbsError("lost"), 0), (MemoryError(), 12)])
def test_what_a_verb_raises(error, number):
    def fail():
        raise error

    with pytest.raises(BindingError) as caught:
        call(MODULES, fail)
    assert caught.value.number == number
    error.error_code = 14
    if isinstance(error, PyverbsError):
        with pytest.raises(BindingError) as caught:
            call(MODULES, fail)
        assert caught.value.errno_name == "EFAULT"
    with pytest.raises(ZeroDivisionError):
        call(MODULES, lambda: 1 / 0)


def test_what_is_closed_once():
    inner: Any = Closing(lkey=1, rkey=2)
    region = held(MODULES, inner, 4096, 10)
    memory: Any = Closing()
    dm = PyverbsDm(MODULES, "pd", memory)
    piece = dm.register(64, 10, 5)
    assert (piece.lkey, piece.rkey, piece.address, piece.length_bytes) == (5 | 32, 64, 0, 10)
    for _ in range(2):
        region.close()
        dm.close()
    assert (inner.closed, memory.closed) == (1, 1)
