"""How large the large cells of --full are: what fits into the time that is left, and said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw.engine.model import Operation
from p2prw.engine.smoke.budget import FULL_S, PROBE_BYTES, Budget, make_budget, probe_of, resized
from p2prw.engine.smoke.model import Preset, SizeClass
from p2prw.engine.smoke.plan import make_plan
from p2prw.units import MIB

MOST = 64 * MIB


@pytest.fixture
def cells(ask, soft, memories):
    return make_plan(ask(preset=Preset.FULL), [soft], memories, None, "/folder").cells


def test_only_full_has_a_budget_and_it_counts_what_is_to_come(ask, cells):
    assert make_budget(ask(), cells, 5.0) is None
    budget = make_budget(ask(preset=Preset.FULL), cells, 5.0)
    assert budget is not None and budget.end_s == 5.0 + FULL_S
    assert budget.large == sum(cell.size_class is SizeClass.LARGE for cell in cells) > 0
    assert budget.large + budget.others == len(cells)


def test_a_share_leaves_what_the_other_cells_will_take(cells):
    budget = Budget(end_s=100.0, large=4, others=10)
    assert budget.share_s(0.0) == 25.0
    other = next(cell for cell in cells if cell.size_class is not SizeClass.LARGE)
    large = next(cell for cell in cells if cell.size_class is SizeClass.LARGE)
    budget.ended(other, 2.0)
    assert budget.share_s(2.0) == (100 - 2 - 9 * 2) / 4
    budget.ended(large, 1.0)
    assert budget.share_s(3.0) == (100 - 3 - 9 * 2) / 3
    assert budget.share_s(1000.0) == 0.0


@pytest.mark.parametrize(
    ("probe_s", "fits_bytes"),
    [(1e-9, MOST), (0.1, MOST), (1.0, 10 * MIB), (5.1, MIB), (11.0, MIB), (0.0, MOST)],
)
def test_what_fits_is_what_the_probe_says(probe_s, fits_bytes):
    budget = Budget(end_s=10.0, large=1, others=0)
    assert budget.fitting_bytes(0.0, probe_s, MOST) == fits_bytes


def test_a_cell_of_another_size_is_the_same_cell_and_says_what_it_was_to_be(ask, cells):
    request = ask(preset=Preset.FULL)
    for cell in cells:
        if cell.size_class is not SizeClass.LARGE:
            continue
        smaller = resized(cell, 3 * MIB, request, "127.0.0.1")
        assert (smaller.size_bytes, smaller.wanted_bytes, smaller.seed) == (3 * MIB, cell.size_bytes, cell.seed)
        assert f"--size {3 * MIB}" in smaller.command and f"/{cell.region}" in smaller.command
        back = resized(smaller, cell.size_bytes, request, "127.0.0.1")
        assert replace(back, wanted_bytes=None) == cell, "all that depends on the size is made anew"


def test_a_probe_has_other_bytes(ask, cells):
    cell = next(one for one in cells if one.size_class is SizeClass.LARGE and one.kind == "host")
    probe = probe_of(cell, ask(preset=Preset.FULL), "127.0.0.1")
    assert probe.size_bytes == PROBE_BYTES and probe.seed != cell.seed
    assert probe.memory.options["pattern"] == f"random:{probe.seed}" and probe.operation is Operation.READ
