"""The grammar of expectations, and what each means for a result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.errors import P2prwError, RequestError
from p2prw.scenario.expect import METRICS, OUTCOMES, judge, link_bytes_per_s, parse_expectation, snake


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("bw >= 1 GiB/s", 2**30),
        ("bw>=1GiB/s", 2**30),
        ("bw > 1.5 MB/s", 1.5e6),
        ("bw >= 100 Gb/s", 12.5e9),
        ("bw <= 8 Gbps", 1e9),
        ("elapsed <= 50 us", 50e-6),
        ("lat_p99 <= 50 us", 50e-6),
        ("bytes == 64K", 65536),
        ("timeouts == 0", 0),
        ("exit_code == 7", 7),
        ("route == odp", "odp"),
        ("error == RemoteAccess", "remote_access"),
        ("error == remote_access", "remote_access"),
        ("peer_to_peer == true", "true"),
    ],
)
def test_forms(text, value):
    found = parse_expectation(text)
    assert found.value == (value if isinstance(value, str) else pytest.approx(value))
    assert not found.of_link
    assert parse_expectation(found.text) == found, "what is shown can be written"


def test_share_of_the_link():
    found = parse_expectation("bw >= 90% of link")
    assert found.of_link and found.value == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("bw", "METRIC OPERATOR VALUE"),
        ("bw => 1 GiB/s", "METRIC OPERATOR VALUE"),
        ("rout == odp", "did you mean 'route'"),
        ("bw >= 1 GiB", "a rate is a number with"),
        ("bw >= 90%", "cannot read '90%' as a rate"),
        ("route >= odp", "words are equal or they are not"),
        ("elapsed <= quick", "cannot read 'quick' as a time"),
        ("bytes == many", "cannot read 'many' as a size"),
        ("exit_code == -1", "no whole number"),
        ("error == __import__('os')", "is no word"),
        ("__import__('os').system('true') == 0", "METRIC OPERATOR VALUE"),
    ],
)
def test_what_is_wrong_is_explained(text, hint):
    with pytest.raises(RequestError) as caught:
        parse_expectation(text)
    assert hint in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        found = parse_expectation(text)
    except P2prwError:
        return
    assert found.metric in METRICS and parse_expectation(found.text) == found


@given(
    st.sampled_from(["bw >= {} MiB/s", "elapsed <= {} ms", "bytes == {}", "exit_code != {}", "bw < {}% of link"]),
    st.integers(0, 10**6),
)
def test_every_built_expectation_round_trips(form, number):
    found = parse_expectation(form.format(number))
    assert parse_expectation(found.text) == found
    assert found.is_outcome == (found.metric in OUTCOMES)


@given(st.from_regex(r"[A-Z][a-z]{1,5}([A-Z][a-z]{1,5}){0,3}", fullmatch=True))
def test_codes_in_either_spelling(word):
    assert snake(word) == snake(snake(word)) == snake(word).lower()


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("bw >= 1 GiB/s", "met"),
        ("bw > 1 GiB/s", "missed"),
        ("elapsed <= 400 ms", "missed"),
        ("bytes == 64K", "met"),
        ("route == cpu", "met"),
        ("remote_route == odp", "missed"),
        ("mover != nic", "met"),
        ("peer_to_peer == false", "met"),
        ("verify == verified", "met"),
        ("error == none", "met"),
        ("exit_code == 0", "met"),
        ("lat_p99 <= 50 us", "unknown"),
        ("bw >= 90% of link", "unknown"),
    ],
)
def test_judgement_of_a_good_write(outcome, text, verdict):
    found = judge(parse_expectation(text), 0, outcome())
    assert found.outcome == verdict, found
    assert (found.why is not None) == (verdict == "unknown")
    assert verdict in found.shown()


def test_link_speed_where_the_device_says_it(outcome):
    device = {"device": {"name": "mlx5_0", "rate_gbit_per_s": 2**33 / 1e9}}
    nic = {"chosen": "pin", "mover": "nic", "peer_to_peer": False, "memory": "host", "device": "mlx5_0"}
    fast = outcome(environment=device, route={"local": nic, "remote": nic})
    assert link_bytes_per_s(outcome(environment=device)) is None, "rxe's figure is made up"
    assert link_bytes_per_s(fast) == pytest.approx(2**30)
    assert judge(parse_expectation("bw >= 90% of link"), 0, fast).outcome == "met"
    assert judge(parse_expectation("bw > 101% of link"), 0, fast).outcome == "missed"


def test_latencies_are_microseconds_in_results_and_any_unit_in_files(outcome):
    document = outcome(results=[{"lat_p99_us": 49.0}])
    assert judge(parse_expectation("lat_p99 <= 50 us"), 0, document).outcome == "met"
    assert judge(parse_expectation("lat_p99 <= 0.04 ms"), 0, document).outcome == "missed"


def test_without_a_result_nothing_is_met():
    for metric in METRICS:
        if metric in ("exit_code", "error"):
            continue
        value = {"bw": "1 B/s", "bytes": "1", "elapsed": "1 s"}.get(metric, "1")
        try:
            expectation = parse_expectation(f"{metric} == {value}")
        except RequestError:
            expectation = parse_expectation(f"{metric} == word")
        assert judge(expectation, 1, None).outcome == "unknown", metric
    assert judge(parse_expectation("error == RemoteAccess"), 1, None).outcome == "missed"
