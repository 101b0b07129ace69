"""Other tools' command lines and outputs: recorded ones, and what must be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2prw.against.tools import TOOLS, Setup, Wanted, check, parse_command, parse_output, plan
from p2prw.engine.model import Operation
from p2prw.errors import HostError, RequestError
from p2prw.units import MIB

WANTED = Wanted("bw", Operation.WRITE, 65536, iterations=500, depth=64, queue_pairs=1, lat_by=None, warm_up=50)
RXE = Setup("rxe0", "rxe", 1024)
SOFT = Setup("soft0", "soft", 4096)


@pytest.mark.parametrize(
    ("line", "file", "bw", "lat_us", "size"),
    [
        ("ib_write_bw", "ib_write_bw", 5.80 * MIB, None, 65536),
        ("ib_read_bw", "ib_read_bw", 6.79 * MIB, None, 65536),
        ("ib_write_bw", "ib_write_bw_gbits", 0.079359e9 / 8, None, 4096),
        ("ib_write_lat", "ib_write_lat", None, None, 64),
        ("ib_read_lat", "ib_read_lat", None, None, 64),
        ("ucx_perftest -t ucp_put_bw", "ucx_put_bw", 65.24 * MIB, None, None),
        ("ucx_perftest -t ucp_get", "ucx_get", 99.57 * MIB, None, None),
        ("ucx_perftest -t ucp_put_lat", "ucx_put_lat", None, 19.550, None),
        ("fi_rma_bw -o read", "fi_rma_bw_read", 83.21e6, None, None),
    ],
)
def test_the_last_row_of_a_recorded_output_is_the_figure(recorded, line, file, bw, lat_us, size):
    command, text = parse_command(line), recorded(file)
    found = parse_output(command, text)
    assert found.size_bytes == size
    if "_lat" in line and line.startswith("ib_"):
        # t_typical: the fifth column of the only row.
        row = next(words for words in map(str.split, text.splitlines()) if words[:1] == ["64"])
        bw, lat_us = None, float(row[4])
    assert found.bw_bytes_per_s == (None if bw is None else pytest.approx(bw))
    assert found.lat_us == lat_us


@pytest.mark.parametrize("text", ["", "Couldn't connect to 127.0.0.1:18515\n", " #bytes #iterations\n 65536 1000\n"])
@pytest.mark.parametrize("line", ["ib_write_bw", "ib_read_lat", "ucx_perftest -t ucp_get", "fi_rma_bw"])
def test_an_output_without_a_figure_is_an_error_not_a_zero(line, text):
    with pytest.raises(HostError) as caught:
        parse_output(parse_command(line), text)
    assert caught.value.code == "tool_output"


def test_a_command_is_split_as_a_shell_does():
    command = parse_command("UCX_TLS=tcp A='x y' /opt/bin/ucx_perftest -t ucp_get -s64K --foo=1")
    assert command.environ == {"UCX_TLS": "tcp", "A": "x y"}
    assert (command.program, command.name) == ("/opt/bin/ucx_perftest", "ucx_perftest ucp_get")
    assert command.value(("-s", "--size")) == "64K" and command.value(("--foo",)) == "1"
    assert command.value(("-n",)) is None


@pytest.mark.parametrize(
    "line", ["", "X=1", "iperf3 -c", "ucx_perftest", "ucx_perftest -t tag_bw", "fi_rma_bw -o flush", "ib_write_bw 'x"]
)
def test_what_cannot_be_read_is_usage(line):
    with pytest.raises(RequestError) as caught:
        parse_command(line)
    assert caught.value.code == "bad_against" and caught.value.why and caught.value.fix


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_is_compared_with_what_it_measures_only(name):
    base, _, test = name.partition(" ")
    option = {"ucx_perftest": "-t", "fi_rma_bw": "-o"}.get(base)
    command = parse_command(f"{base} {option} {test}" if option else base)
    tool = command.tool
    same = replace(WANTED, test=tool.test, operation=tool.operation, lat_by=tool.lat_by)
    check(command, same)
    if tool.always_both_ways or tool.options.both_ways:
        check(command, replace(same, both_ways=True))
    else:
        with pytest.raises(RequestError, match=name):
            check(command, replace(same, both_ways=True))
    other = Operation.READ if tool.operation is Operation.WRITE else Operation.WRITE
    for unlike in (
        replace(same, operation=other),
        replace(same, test="lat" if tool.test == "bw" else "bw"),
        replace(same, lat_by="some other way"),
        replace(same, walk_bytes=1 << 30),
        replace(same, is_limited=True),
    ):
        with pytest.raises(RequestError) as caught:
            check(command, unlike)
        assert caught.value.code == "unlike" and name in (caught.value.why or "")


@pytest.mark.parametrize(
    ("words", "changes"), [("-s 4096", {}), ("--size=1M", {}), ("-q 2", {}), ("-q 1", {"queue_pairs": 4})]
)
def test_sizes_and_queue_pairs_must_be_equal(words, changes):
    with pytest.raises(RequestError):
        check(parse_command(f"ib_write_bw {words}"), replace(WANTED, **changes))


def test_perftest_is_told_all_that_p2prw_uses():
    launch = plan(parse_command("ib_write_bw"), replace(WANTED, signal_every=8, queue_pairs=2), RXE)
    assert " ".join(launch.words) == "-d rxe0 -s 65536 -n 500 -t 64 -Q 8 -q 2 -m 1024 -F"
    assert launch.differs == ()


def test_what_the_command_says_stands_and_is_named():
    launch = plan(parse_command("ib_write_bw -n 100 -t 16 -m 1024 -F"), WANTED, RXE)
    assert launch.words.count("-F") == 1 and launch.words.count("-n") == 1
    assert launch.differs == ("messages of a run: 100 in ib_write_bw, 500 in p2prw",
                              "outstanding: 16 in ib_write_bw, 64 in p2prw")  # fmt: skip


@pytest.mark.parametrize(("words", "setup"), [("", SOFT), ("-d mlx5_0", RXE)])
def test_perftest_on_another_device_is_refused(words, setup):
    with pytest.raises(HostError) as caught:
        plan(parse_command(f"ib_write_bw {words}"), WANTED, setup)
    assert caught.value.code == "unlike" and setup.device in (caught.value.why or "")


def test_another_transport_is_named():
    launch = plan(parse_command("UCX_TLS=tcp ucx_perftest -t ucp_put_bw"), WANTED, SOFT)
    assert " ".join(launch.words) == "-t ucp_put_bw -s 65536 -n 500 -O 64 -w 50 -f"
    assert launch.differs == ("transport: UCX_TLS=tcp in ucx_perftest ucp_put_bw, RoCEv2 on soft0 in p2prw",)
    assert "not set" in plan(parse_command("ucx_perftest -t ucp_put_bw"), WANTED, SOFT).differs[0]
    both = plan(parse_command("fi_rma_bw -p 'tcp;ofi_rxm'"), WANTED, SOFT).differs
    assert "both directions" in both[0] and "tcp;ofi_rxm" in both[1]


@pytest.mark.parametrize("words", ["", "-b", "--bidirectional"])
def test_both_directions_are_asked_of_perftest_once(words):
    command, wanted = parse_command(f"ib_write_bw {words}"), replace(WANTED, both_ways=True)
    check(command, wanted)
    launch = plan(command, wanted, RXE)
    assert sum(word in ("-b", "--bidirectional") for word in launch.words) == 1 and launch.differs == ()


@pytest.mark.parametrize("words", ["-b", "--bidirectional"])
def test_both_directions_of_perftest_against_one_of_ours_are_no_pair(words):
    with pytest.raises(RequestError) as caught:
        check(parse_command(f"ib_read_bw {words}"), replace(WANTED, operation=Operation.READ))
    assert caught.value.code == "unlike" and (caught.value.fix or "").endswith(" -b")


@pytest.mark.parametrize(("both_ways", "said"), [(False, "p2prw -b does the same"), (True, "so is p2prw's here")])
def test_a_tool_that_knows_only_both_directions_is_named(both_ways, said):
    launch = plan(parse_command("fi_rma_bw -o write"), replace(WANTED, both_ways=both_ways), SOFT)
    assert "-b" not in launch.words and any(said in text for text in launch.differs)
