"""Binding to CPUs: what is allowed holds, what is not is refused and changes nothing."""

from __future__ import annotations

import os

import pytest

from p2prw.engine import affinity
from p2prw.engine.affinity import current_cpus, format_cpus, pin, processors
from p2prw.errors import HostError


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setattr(affinity, "_processors_before", [])
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def test_one_cpu_of_those_that_are_there():
    cpu = max(os.sched_getaffinity(0))
    pin([cpu])
    assert os.sched_getaffinity(0) == {cpu} and current_cpus() == str(cpu)


def test_who_is_pinned_leaves_the_others_to_the_other_end():
    before = len(os.sched_getaffinity(0))
    assert processors() == before
    pin([max(os.sched_getaffinity(0))])
    assert len(os.sched_getaffinity(0)) == 1 and processors() == before


@pytest.mark.parametrize("with_a_good_one", [True, False])
def test_what_is_not_there_is_refused_and_changes_nothing(with_a_good_one):
    before = os.sched_getaffinity(0)
    missing = 8000
    with pytest.raises(HostError, match="CPU 8000 is not there or not allowed") as caught:
        pin([min(before), missing] if with_a_good_one else [missing])
    assert caught.value.code == "cpu_not_allowed" and caught.value.exit_code == 3
    assert f"--cpu {format_cpus(sorted(before))}" in str(caught.value.fix)
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(("cpus", "text"), [([0], "0"), ([0, 1, 2], "0-2"), ([0, 2, 3, 8], "0,2-3,8"), ([], "")])
def test_as_the_kernel_lists_them(cpus, text):
    assert format_cpus(cpus) == text
