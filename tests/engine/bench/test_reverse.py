"""Both directions at once, against a real server in this process over the software device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.bench.model import BenchRequest, BenchResult
from p2prw.engine.bench.reverse import Oncoming, incoming_of
from p2prw.engine.bench.session import run_bench
from p2prw.engine.control import messages
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Reversed
from p2prw.engine.model import Operation
from p2prw.engine.providers.scripted import Fault, ManualClock, Script, ScriptedDevice, ScriptedFabric
from p2prw.engine.stop import StopRequest
from p2prw.errors import RequestError

WRITE, READ = Operation.WRITE, Operation.READ


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with api.serving({"mem": "host,size=256KiB,pattern=words:5"}) as address:
        yield str(address)


def measure(target: str, *, stop: StopRequest | None = None, **wishes: Any) -> BenchResult:
    wishes = {"both_ways": True, "iterations": 60, "warm_up": 5, **wishes}
    connection = api.make_request(WRITE, target, wishes.pop("memory", "host"))
    result: BenchResult = api.finish(run_bench(BenchRequest(connection=connection, **wishes), stop=stop))
    return result


@pytest.mark.parametrize("operation", [WRITE, READ])
def test_both_directions_move_and_are_verified(served, operation):
    result = measure(f"{served}/mem", operations=(operation,), sizes=(1, 4097, 65536), verify=True)
    assert result.error is None and result.exit_code == 0
    for row, size in zip(result.results, (1, 4097, 65536), strict=True):
        assert (row.size_bytes, row.both_ways, row.complete, row.verify) == (size, True, True, "verified")
        assert row.out_messages == 60 and row.in_messages is not None and row.in_messages > 0
        assert row.messages == 60 + row.in_messages and row.bytes == row.messages * size
        assert row.out_bw_bytes_per_s is not None and row.in_bw_bytes_per_s is not None
        assert row.bw_bytes_per_s == pytest.approx(row.out_bw_bytes_per_s + row.in_bw_bytes_per_s)
        assert row.msg_rate_per_s is not None and row.msg_rate_per_s * size == pytest.approx(row.bw_bytes_per_s)
        assert row.in_elapsed_s and row.in_bw_bytes_per_s == pytest.approx(row.in_messages * size / row.in_elapsed_s)
        assert (row.intervals, row.bw_median_bytes_per_s) == (0, None)
    assert result.params["bidirectional"] is True


def test_several_queue_pairs_by_time(served):
    (row,) = measure(
        f"{served}/mem", sizes=(16384,), iterations=None, duration_s=0.3, queue_pairs=3, post_list=4, verify=True
    ).results
    assert row.complete and row.verify == "verified" and row.queue_pairs == 3
    assert row.out_messages and row.in_messages and row.elapsed_s >= 0.3


def test_a_read_leaves_the_region_as_it_was(served):
    before = api.read(f"{served}/mem", "host").verify.remote_digest
    assert measure(f"{served}/mem", operations=(READ,), sizes=(65536,)).exit_code == 0
    assert api.read(f"{served}/mem", "host").verify.remote_digest == before


def test_one_direction_says_nothing_of_two(served):
    (row,) = measure(f"{served}/mem", both_ways=False, sizes=(64,)).results
    assert not row.both_ways and row.in_messages is row.out_messages is row.in_bw_bytes_per_s is None
    assert row.intervals > 0 and row.messages == 60


def test_the_ends_of_a_ping_pong_and_of_both_directions_are_told_apart(served, monkeypatch):
    monkeypatch.setattr("p2prw.engine.server.client.CAPABILITIES", (messages.RESUME, messages.PINGPONG))
    result = measure(f"{served}/mem", sizes=(8,))
    assert result.error is not None and (result.error.code, result.exit_code) == ("no_reverse", 7)


def test_a_passive_server_refuses():
    with api.serving({"mem": "host,size=64KiB"}, passive=True) as address:
        result = measure(f"{address}/mem", sizes=(8,))
        alone = measure(f"{address}/mem", sizes=(8,), both_ways=False)
    assert result.error is not None and (result.error.code, result.exit_code) == ("passive", 7)
    assert alone.exit_code == 0


def test_a_write_only_region_is_not_sent_back():
    with api.serving({"mem": "host,size=64KiB"}, access="w") as address:
        result = measure(f"{address}/mem", sizes=(8,))
    assert result.error is not None and (result.error.code, result.exit_code) == ("bad_right", 7)


def test_local_memory_without_a_second_piece_is_refused(served, tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 64)
    result = measure(f"{served}/mem", sizes=(64,), memory=f"file:{tmp_path}/f")
    assert result.error is not None and result.exit_code == 3


@pytest.mark.parametrize("wishes", [{"tests": ("lat",)}, {"tests": ("bw", "lat")}])
def test_latency_has_no_second_direction(served, wishes):
    with pytest.raises(RequestError, match="--bidirectional"):
        measure(f"{served}/mem", **wishes)


def test_a_rate_limit_would_bind_one_side_only(served):
    connection = replace(api.make_request(WRITE, f"{served}/mem", "host"), rate_limit_bytes_per_s=1e6)
    with pytest.raises(RequestError, match="--bidirectional"):
        run_bench(BenchRequest(connection=connection, both_ways=True))


def test_a_stop_in_the_middle_keeps_both_figures_and_the_server_goes_on(served):
    stop = StopRequest()
    connection = api.make_request(WRITE, f"{served}/mem", "host")
    steps = run_bench(BenchRequest(connection=connection, both_ways=True, sizes=(4096,), iterations=1 << 39), stop=stop)
    while True:
        try:
            next(steps)
            stop.set(2)
        except StopIteration as finished:
            result: BenchResult = finished.value
            break
    (row,) = result.results
    assert (result.exit_code, result.partial, row.complete) == (130, True, False)
    assert row.out_messages and row.in_messages and row.bw_bytes_per_s
    assert measure(f"{served}/mem", sizes=(64,)).exit_code == 0


@pytest.fixture
def scripted(monkeypatch):
    """A measurement between two scripted devices of one fabric; the script is the server's."""

    def run(script: Script, operation: Operation) -> BenchResult:
        fabric = ScriptedFabric()
        monkeypatch.setattr(
            "p2prw.engine.client.open_device", lambda *_, **__: (ScriptedDevice("near", fabric=fabric), "scripted")
        )
        monkeypatch.setattr(
            "p2prw.engine.server.server.open_device",
            lambda *_, **__: (ScriptedDevice("far", fabric=fabric, script=script), "scripted"),
        )
        with api.serving({"mem": "host,size=64KiB,pattern=words:3"}) as address:
            return measure(f"{address}/mem", operations=(operation,), sizes=(4096,), verify=True)

    return run


@pytest.mark.parametrize("operation", [WRITE, READ])
def test_the_servers_direction_is_verified_too(scripted, operation):
    assert scripted(Script(), operation).exit_code == 0
    lost = tuple(Fault(number, lose_data=True) for number in range(100_000))
    result = scripted(Script(faults=lost), operation)
    assert result.error is not None and (result.error.code, result.exit_code) == ("verify_mismatch", 4)
    assert result.results[0].complete and result.results[0].verify == "mismatch"
    assert result.verify.first_bad_offset == 0


def test_lanes_are_added_each_over_its_own_time():
    lease = "0" * 16
    found = incoming_of([Reversed(lease, 10, 1_000_000_000, 1), Reversed(lease, 30, 2_000_000_000, 2)])
    assert (found.messages, found.elapsed_s, found.msg_rate_per_s, found.retransmitted_packets) == (40, 2.0, 25.0, 3)
    assert incoming_of([Reversed(lease, 0, 0, 0)]).msg_rate_per_s == 0


def test_a_server_that_limits_rates_posts_nothing_by_itself():
    with api.serving({"mem": "host,size=64KiB"}, client_rate_limit_bytes_per_s=1e9) as address:
        result = measure(f"{address}/mem", sizes=(8,))
    assert result.error is not None and (result.error.code, result.exit_code) == ("rate_limited", 7)


@pytest.mark.parametrize("answer", ["Reversing", "Reversed"])
def test_an_answer_for_another_lease_is_none(served, monkeypatch, answer):
    make_answer = messages.MESSAGE_TYPES[answer.lower()]
    monkeypatch.setattr(Channel, "send", lying(Channel.send, make_answer))
    result = measure(f"{served}/mem", sizes=(8,))
    assert result.exit_code == 7 and result.error is not None and result.error.code == "bad_lease"


def lying(send: Any, kind: type[Any]) -> Any:
    def lie(channel: Channel, message: Any) -> None:
        send(channel, replace(message, lease="f" * 16) if isinstance(message, kind) else message)

    return lie


def test_windows_for_ever_do_not_keep_who_was_stopped():
    """After Ctrl-C the end of the other direction is waited for as long as a drain may take, whatever else is said."""
    clock, said = ManualClock(), []

    def window(*_: Any, **__: Any) -> messages.Window:
        clock.advance(0.1)
        said.append(1)
        return messages.Window(5)

    link = SimpleNamespace(
        channel=SimpleNamespace(expect=window, send=lambda _: None),
        deadline=SimpleNamespace(clock=clock),
        device=SimpleNamespace(pump=None, filenos=lambda: ()),
    )
    one: Any = SimpleNamespace(link=link, grant=SimpleNamespace(lease="0" * 16))
    nothing: Any = None
    assert Oncoming(one, nothing, nothing, (), 1, WRITE).settle(1.0) is None
    assert 9 <= len(said) <= 11
