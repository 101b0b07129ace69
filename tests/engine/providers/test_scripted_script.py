"""A script is data: its defaults are a perfect device, and its clock stands still."""

from __future__ import annotations

import dataclasses

import pytest

from p2prw.engine.model import WcStatus
from p2prw.engine.providers.scripted_script import Counts, Fault, ManualClock, Script


def test_default_script_has_no_fault_and_no_delay() -> None:
    script = Script()
    assert (script.faults, script.latency_s, script.bytes_per_s, script.completions_per_pump) == ((), 0.0, None, None)
    assert Fault(3) == Fault(3, WcStatus.SUCCESS)


def test_scripts_do_not_change_while_they_are_played() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Script().latency_s = 1.0  # type: ignore[misc]


def test_clock_moves_only_when_told() -> None:
    clock = ManualClock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    clock.advance(0.5)
    assert clock() == 5.5


def test_counts_start_at_zero_and_do_not_share_lists() -> None:
    counts = Counts()
    counts.windows.append(1)
    assert Counts() == Counts(windows=[])
