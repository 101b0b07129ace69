"""Results side by side: alike or refused, worse or not."""

from __future__ import annotations

import copy

import pytest

from p2prw.errors import RequestError
from p2prw.scenario.compare import compare, figures, only_in


@pytest.fixture
def result(outcome):
    """A write as the command prints it, at this rate."""

    def make(rate=1e9, **params):
        end = {"chosen": "cpu", "mover": "cpu", "memory": "host", "driver": "soft"}
        row = {"operation": "write", "size_bytes": 4096, "chunk_bytes": 4096, "bw_bytes_per_s": rate}
        environment = {"device": {"provider": "soft", "driver": "soft"}, "negotiated": {"path_mtu_bytes": 4096}}
        return outcome(
            params={"tx_depth": 128, "inject": None, **params},
            environment=environment,
            route={"local": dict(end), "remote": dict(end)},
            results=[row],
        )

    return make


def run_of(**rows):
    return {
        "command": "run",
        "results": [{"name": name, "status": "pass", "result": inner} for name, inner in rows.items()],
    }


def test_a_rate_within_the_tolerance_is_no_loss(result):
    for after, worse in ((1e9, False), (0.951e9, False), (0.949e9, True), (2e9, False)):
        (change,) = compare(result(), result(after), 0.05)
        assert change.worse is worse and change.change == pytest.approx(after / 1e9 - 1)
        assert change.shown().startswith("worse" if worse else "ok")


UNLIKE = [
    (lambda d: d["results"][0].update(size_bytes=8192), "size in bytes was 4096 and is 8192"),
    (lambda d: d["results"][0].update(chunk_bytes=1), "chunk in bytes was 4096 and is 1"),
    (lambda d: d["params"].update(tx_depth=4), "depth was 128 and is 4"),
    (lambda d: d["params"].update(inject="drop=1%"), "faults was None and is drop=1%"),
    (lambda d: d["route"]["local"].update(chosen="odp"), "local route was cpu and is odp"),
    (lambda d: d["route"]["remote"].update(memory="file"), "remote memory was host and is file"),
    (
        lambda d: d["environment"]["device"].update(driver="mlx5_core"),
        "device kind was soft soft and is soft mlx5_core",
    ),
    (lambda d: d["environment"]["negotiated"].update(path_mtu_bytes=1024), "path MTU in bytes was 4096 and is 1024"),
]


@pytest.mark.parametrize(("change", "difference"), UNLIKE, ids=[text for _, text in UNLIKE])
def test_unlike_runs_are_refused_with_the_difference(result, change, difference):
    other = copy.deepcopy(result())
    change(other)
    with pytest.raises(RequestError) as caught:
        compare(result(), other, 0.05)
    assert difference in caught.value.what and caught.value.code == "unlike_runs"


def test_rows_of_runs_by_name(result):
    before = run_of(a=result(), b=result(), gone=result())
    after = run_of(a=result(), b=result(0.5e9), new=result())
    assert [(change.name, change.worse) for change in compare(before, after, 0.05)] == [("a", False), ("b", True)]
    assert only_in(before, after) == (["gone"], ["new"])


def test_failures_have_no_figure(result, outcome):
    assert list(figures(outcome(1))) == []
    with pytest.raises(RequestError, match="no figure in common"):
        compare(result(), run_of(a=result()), 0.05)
    assert list(figures({"command": "devices", "results": [{}]})) == []


def test_cells_of_smoke():
    end = {"chosen": "cpu", "mover": "cpu", "memory": "host", "driver": "soft"}
    cell = {
        "status": "pass",
        "device": "soft0",
        "memory": "host",
        "region": "h",
        "operation": "write",
        "size_class": "large",
        "size_bytes": 1,
        "region_offset_bytes": 0,
        "bw_bytes_per_s": 1e9,
        "route": {"local": end, "remote": end},
    }
    slower = {**cell, "bw_bytes_per_s": 0.5e9}
    (change,) = compare({"command": "smoke", "results": [cell]}, {"command": "smoke", "results": [slower]}, 0.05)
    assert change.worse and change.name == "soft0/host/h/write/large"
