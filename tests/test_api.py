"""The library's few functions: targets, requests, a server on a thread, a transfer with progress."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2prw import api
from p2prw.engine.model import Operation, PeerAddress
from p2prw.engine.smoke.model import Preset
from p2prw.errors import RequestError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", (PeerAddress("host", 18515), None, 0)),
        ("host:99", (PeerAddress("host", 99), None, 0)),
        ("10.0.0.1/cmb", (PeerAddress("10.0.0.1", 18515), "cmb", 0)),
        ("10.0.0.1:99/c.m-b_1+1MiB", (PeerAddress("10.0.0.1", 99), "c.m-b_1", 1 << 20)),
        ("[fd00::1]:99/r+0x10", (PeerAddress("fd00::1", 99), "r", 16)),
        ("[::1]/r", (PeerAddress("::1", 18515), "r", 0)),
    ],
)
def test_targets(text, expected):
    assert api.parse_peer(text) == expected


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("", "bad_peer", "127.0.0.1:18515"),
        ("/r", "bad_peer", "127.0.0.1:18515"),
        ("h:0/r", "bad_peer", "h:18515"),
        ("h:99999/r", "bad_peer", "h:18515"),
        ("h:/r", "bad_peer", "h:18515"),
        ("fd00::1/r", "bad_peer", "[fd00::1]:18515"),
        ("[::1/r", "bad_peer", "[::1] or [::1]:18515"),
        ("h/r r", "bad_region_name", "p2prw regions"),
        ("h/" + "x" * 65, "bad_region_name", "p2prw regions"),
    ],
)
def test_what_is_no_target_is_refused_as_the_command_line_does(text, code, fix):
    with pytest.raises(RequestError) as caught:
        api.parse_peer(text)
    assert (caught.value.code, fix in str(caught.value.fix)) == (code, True)


def test_a_request_needs_a_region():
    with pytest.raises(RequestError, match="names no region") as caught:
        api.make_request(Operation.WRITE, "host:99", "host,size=1MiB")
    assert (caught.value.code, "p2prw regions host:99" in str(caught.value.fix)) == ("bad_target", True)


def test_progress_then_result_and_a_region_that_may_not_be_written():
    with api.serving({"mem": "host,size=1MiB,pattern=words:3"}, access="r") as address:
        steps = api.transfer(api.make_request(Operation.READ, f"{address}/mem", "host"))
        first = next(steps)
        assert first.bytes_total == 1 << 20 and first.route == "cpu"
        assert api.finish(steps).verify.status == "verified"
        refused = api.write(f"{address}/mem", "host,size=1MiB")
    assert refused.exit_code == 7 and refused.error is not None and refused.error.code == "read_only"


def test_a_measurement_is_a_call_and_wishes_that_contradict_each_other_raise():
    with api.serving({"mem": "host,size=64KiB"}) as address:
        result = api.bench(f"{address}/mem", tests=("bw", "lat"), sizes=(64,), iterations=5, verify=True)
    assert (result.exit_code, [row.verify for row in result.results]) == (0, ["verified", "verified"])
    with pytest.raises(RequestError, match="exclude each other"):
        api.bench("127.0.0.1:1/mem", sizes=(64,), sweep=True)


def test_a_server_that_cannot_open_raises_in_the_caller():
    with pytest.raises(RequestError), api.serving({"mem": "host"}):
        raise AssertionError("not reached")


def test_importing_the_library_loads_nothing_heavy():
    heavy = "numpy rich click yaml asyncio pyverbs xxhash zlib_ng"
    code = f"import sys, p2prw.api; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_transfer_of_plain_memory_does_not_load_numpy():
    """That is a third of what a command takes to start; patterns, device memory and benchmarks load it."""
    code = (
        "import sys\nfrom p2prw import api\nwith api.serving({'a': 'host,size=64KiB'}) as address:\n"
        "    result = api.write(f'{address}/a', 'host,size=64KiB')\nprint(result.exit_code, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 False"


def test_smoke():
    result = api.smoke(seed=7, devices=("soft0",), memories=("host",), preset=Preset.QUICK)
    assert (result.exit_code, result.count("pass"), result.request.seed) == (0, 6, 7)
