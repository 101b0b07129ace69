"""What is named becomes required."""

from __future__ import annotations

import pytest

from p2prw.engine.doctor.findings import Ask, is_soft
from p2prw.engine.memory.spec import parse_memory_spec

BAR = "bar:0000:01:00.0/2"


@pytest.mark.parametrize(
    ("ask", "verbs_device", "kind", "needs_soft"),
    [
        (Ask(), None, None, True),
        (Ask(device="soft:eth0"), None, None, True),
        (Ask(device="mlx5_0"), "mlx5_0", None, False),
        (Ask(memory=parse_memory_spec(BAR)), None, "bar", True),
        (Ask(pair=("mlx5_0", "p2pmem:0000:01:00.0")), None, "p2pmem", True),
        (Ask(pair=("mlx5_0", "cuda:0,size=1MiB")), None, "cuda", True),
        (Ask(device="rxe0", pair=("mlx5_0", "dm,size=4K")), "rxe0", "dm", False),
    ],
)
def test_what_was_named(ask, verbs_device, kind, needs_soft):
    assert (ask.verbs_device, ask.kind, ask.needs_soft) == (verbs_device, kind, needs_soft)


def test_lacking_is_a_failure_for_what_was_named_only():
    ask = Ask(device="mlx5_0", memory=parse_memory_spec(BAR))
    assert ask.lacking(verbs=True) == ask.lacking(kind="bar") == ask.lacking(device="mlx5_0") == "fail"
    assert ask.lacking(kind="p2pmem") == ask.lacking(device="rxe0") == ask.lacking() == "warn"
    assert Ask().lacking(verbs=True, kind="bar", device="mlx5_0") == "warn"


def test_names_of_the_software_device():
    assert is_soft("soft0") and is_soft("soft:10.0.0.1")
    assert not is_soft("softly0") and not is_soft("rxe0")
