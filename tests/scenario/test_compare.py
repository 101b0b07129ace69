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


def test_of_what_was_measured_several_times_the_median_counts(result):
    def bench(*rates):
        made = {"test": "bw", "operation": "write", "size_bytes": 65536, "queue_pairs": 1, "tx_depth": 128,
                "signal_every": 32, "post_list": None, "lat_by": None, "complete": True}  # fmt: skip
        document = result()
        document.update(command="bench", results=[{**made, "bw_bytes_per_s": rate} for rate in rates])
        return document

    (change,) = compare(bench(1e9, 5e9, 2e9), bench(2.1e9, 1e8, 9e9), 0.05)
    assert (change.before, change.after) == (2e9, 2.1e9)
    limited = bench(1e9)
    limited["results"][0]["rate_limit_bytes_per_s"] = 2e9
    with pytest.raises(RequestError, match="rate limit"):
        compare(bench(1e9), limited, 0.05)


UNLIKE = [
    (lambda d: d["results"][0].update(rate_limit_bytes_per_s=1e8), "rate limit was None and is 100000000.0"),
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
    whole = compare(
        run_of(s={"command": "smoke", "results": [cell]}), run_of(s={"command": "smoke", "results": [cell]}), 0
    )
    assert [(one.name, one.worse) for one in whole] == [("s/soft0/host/h/write/large", False)]


@pytest.fixture
def bench(result):
    """A bench of bandwidth at two sizes and of latency at one; arguments change its rows."""

    def make(sizes=(2, 65536), rate=1e9, p99=20.0, exit_code=0, **changes):
        document = result()
        common = {"operation": "write", "complete": True, "queue_pairs": 1, "tx_depth": 128, "signal_every": 32,
                  "post_list": 32, "lat_by": None, "lat_p50_us": None, "lat_p99_us": None}  # fmt: skip
        rows = [
            {
                **common,
                "test": "bw",
                "size_bytes": size,
                "bw_bytes_per_s": rate,
                "msg_rate_per_s": rate / size,
                **changes,
            }
            for size in sizes
        ]
        latency = {"test": "lat", "size_bytes": 2, "lat_by": "completion", "lat_p50_us": 10.0, "lat_p99_us": p99}
        slow = {"bw_bytes_per_s": 1.0, "msg_rate_per_s": 1.0}
        rows.append({**common, **latency, **slow, **changes})
        return {**document, "command": "bench", "results": rows, "exit_code": exit_code}

    return make


def test_bench_is_compared_row_by_row(bench):
    changes = compare(bench(), bench(rate=0.9e9, p99=30.0), 0.05)
    assert [(change.name, change.metric, change.worse) for change in changes] == [
        ("bench bw write 2 B", "msg_rate_per_s", True),
        ("bench bw write 64 KiB", "bw_bytes_per_s", True),
        ("bench lat write 2 B", "lat_p50_us", False),
        ("bench lat write 2 B", "lat_p99_us", True),
    ]
    assert changes[3].row() == {
        "name": "bench lat write 2 B", "metric": "lat_p99_us", "before_lat_p99_us": 20.0, "after_lat_p99_us": 30.0,
        "change": 0.5, "worse": True,
    }  # fmt: skip
    assert changes[3].shown() == "worse    +50.0%  bench lat write 2 B  p99 20.0 us -> p99 30.0 us"
    assert "500000000 messages/s -> 450000000 messages/s" in changes[0].shown()


def test_less_latency_and_more_rate_are_no_loss(bench):
    assert not any(change.worse for change in compare(bench(), bench(rate=2e9, p99=1.0, exit_code=5), 0.0))


def test_bench_inside_a_run(bench, result):
    before = run_of(b=bench(), w=result())
    changes = compare(before, run_of(b=bench(p99=40.0), w=result()), 0.05)
    assert [change.name for change in changes if change.worse] == ["b lat write 2 B"]
    assert changes[-1].name == "w"


def test_another_size_in_a_sweep_is_only_in_one(bench):
    before, after = run_of(b=bench(sizes=(2, 4096))), run_of(b=bench(sizes=(2, 8192)))
    assert len(compare(before, after, 0.05)) == 3
    assert only_in(before, after) == (["b bw write 4 KiB"], ["b bw write 8 KiB"])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"queue_pairs": 2}, "bench: the runs are not alike: queue pairs was 1 and is 2"),
        ({"tx_depth": 16}, "depth was 128 and is 16"),
        ({"operation": "read"}, "operation was write and is read"),
        ({"post_list": 1}, "post list was 32 and is 1"),
        ({"size_bytes": 8}, "size in bytes was 2 and is 8"),
        ({"lat_by": "ping_pong"}, "latency by was"),
        ({"both_ways": True}, "both ways was"),
    ],
)
def test_unlike_benches_are_refused_with_the_difference(bench, changes, difference):
    with pytest.raises(RequestError) as caught:
        compare(bench(), bench(**changes), 0.05)
    assert difference in caught.value.what and caught.value.code == "unlike_runs"


def test_what_bench_did_not_finish_has_no_figure(bench):
    assert list(figures(bench(complete=False))) == [] and list(figures(bench(exit_code=1))) == []
