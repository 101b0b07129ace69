"""Work to its end."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from p2prw.engine.steps import finish


def count(to: int, fail_at: int | None = None) -> Generator[int, None, str]:
    for number in range(to):
        if number == fail_at:
            raise ValueError(number)
        yield number
    return f"{to} done"


def test_the_outcome_is_what_the_steps_return_and_each_is_shown() -> None:
    seen: list[int] = []
    assert finish(count(3), seen.append) == "3 done" and seen == [0, 1, 2]
    assert finish(count(3)) == "3 done"
    assert finish(count(0), seen.append) == "0 done" and len(seen) == 3


def test_what_is_raised_on_the_way_passes_through() -> None:
    seen: list[int] = []
    with pytest.raises(ValueError, match="2"):
        finish(count(5, fail_at=2), seen.append)
    assert seen == [0, 1]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(count(5), stop)
