"""Files to scenarios: rows and their command lines, and what is wrong with a file, with its place."""

from __future__ import annotations

import re

import pytest

from p2prw.config_settings import keys_of, settings_of
from p2prw.config_values import words_of
from p2prw.errors import RequestError
from p2prw.scenario.keys import ACTIONS, STEP_KEYS
from p2prw.scenario.model import address_mark, command_line
from p2prw.scenario.option_words import step_keys
from p2prw.scenario.read import MOST_ROWS

ONE = "steps:\n  - {name: w, write: {peer: 127.0.0.1/a, from: 'host,size=4K'}}\n"


def commands(scenario):
    addresses = scenario.planned_addresses()
    return [command_line(row.command_words(addresses)) for row in scenario.rows]


def test_a_matrix_over_servers(scenario, good):
    found = scenario(good)
    assert found.name == "good" and found.seed == 7 and len(found.rows) == 10
    servers = [row for row in found.rows if row.action == "serve"]
    assert [(row.listen, row.planned_address) for row in servers] == [
        ("127.0.0.1:0", "127.0.0.1:18515"),
        ("[::1]:0", "[::1]:18516"),
    ]
    write = next(row for row in found.rows if row.name == "move[size=4K,op=write,host=[::1]]")
    assert write.servers == (2,), "the server whose matrix has the same host"
    assert write.words[1] == f"{address_mark(2)}/scratch"
    assert commands(found)[write.number - 1] == (
        "p2prw write '[::1]:18516/scratch' --from host,size=4K,pattern=words:11 --size 4K --json"
    )


def test_every_row_has_data_of_its_own_made_from_one_seed(scenario, good):
    first, again, other = scenario(good), scenario(good), scenario(good, seed=8)
    assert commands(first) == commands(again) != commands(other)
    seeds = [re.findall(r"words:(\d+)", line) for line in commands(first)]
    # A write of what is there already would prove nothing.
    assert seeds[:4] == [["8", "8"], ["9", "9"], ["10"], ["11"]]


def test_a_pattern_in_the_file_is_kept(scenario):
    text = ONE.replace("size=4K", "size=4K,pattern=zero")
    assert "pattern=zero" in commands(scenario(text))[0] and "words" not in commands(scenario(text))[0]


def test_faults_get_the_seed_too(scenario):
    (line,) = commands(scenario("device: {inject: drop=1%}\n" + ONE, seed=40))
    assert "--inject drop=1%,seed=41" in line
    (line,) = commands(scenario("device: {inject: 'drop=1%,seed=3'}\n" + ONE, seed=40))
    assert "--inject drop=1%,seed=3 " in line


def test_maps_of_the_file_are_defaults_of_the_steps(scenario):
    text = """\
device: {name: soft0, mtu: 1024}
buffers: {source: {kind: host, size: 8K, pattern: zero}}
transfer: {peer: 127.0.0.1:9/a, from: source, no_verify: true, size: 4K}
steps:
  - {write: {}}
  - {write: {size: 8K, no_verify: false}, device: {mtu: 256}, time_limit: 5s}
"""
    first, second = commands(scenario(text))
    assert first == (
        "p2prw write 127.0.0.1:9/a --from host,size=8K,pattern=zero --size 4K "
        "--device soft0 --mtu 1024 --no-verify --json"
    )
    assert "--size 8K" in second and "--mtu 256" in second and "--verify" in second and "--time-limit 5s" in second


def test_variables_from_the_line_win(scenario, good):
    found = scenario(good, variables={"big": "2MiB"})
    assert "host,size=2MiB" in commands(found)[0]
    with pytest.raises(RequestError) as caught:
        scenario(good, variables={"bgi": "2MiB"})
    assert caught.value.code == "unknown_variable" and "big" in (caught.value.why or "")


def test_what_the_line_says_wins(scenario):
    text = "time_limit: 9s\non_failure: stop\nseed: 3\n" + ONE
    assert (scenario(text).time_limit_s, scenario(text).on_failure, scenario(text).seed) == (9.0, "stop", 3)
    found = scenario(text, time_limit_s=1.0, on_failure="continue", seed=5)
    assert (found.time_limit_s, found.on_failure, found.seed) == (1.0, "continue", 5)
    assert scenario(ONE).on_failure == "continue" and scenario(ONE).seed == 1 and scenario(ONE).name == "s"


def test_smoke_steps_take_the_options_of_smoke(scenario):
    text = "steps: [{name: s, time_limit: 90s, smoke: {quick: true, device: [soft0, rxe0], peer: 10.0.0.1}}]"
    assert commands(scenario(text, seed=4)) == [
        "p2prw smoke 10.0.0.1 --quick --device soft0 --device rxe0 --seed 5 --time-limit 90s --json"
    ]
    with pytest.raises(RequestError, match=r"s\.yaml:1:29: smoke: unknown key 'quik'"):
        scenario("steps: [{name: s, smoke: {quik: true}}]".replace("s, ", "s,   "))


def test_bench_steps_take_the_options_of_bench(scenario, environ):
    text = """\
device: {name: soft0, tx_depth: 32, mtu: 512}
buffers: {here: "host,size=1MiB,numa=0"}
steps:
  - {name: server, serve: {regions: {a: "host,size=1MiB"}}}
  - name: b
    matrix: {test: [bw, lat]}
    device: {mtu: 1024}
    time_limit: 90s
    bench: {peer: "${server.address}/a", test: "${test}", sizes: "4K,64K", tx_depth: 8, verify: on, local_memory: here}
    expect: lat_p99 <= 1 s
"""
    # What the step says wins over the variables of its environment, as it does for a write.
    outside = {"P2PRW_TX_DEPTH": "3", "P2PRW_MTU": "nonsense"}
    plan = scenario(text, environ={**environ, **outside})
    bandwidth, latency = plan.rows[1:]
    assert bandwidth.action == "bench" and bandwidth.servers == (1,)
    assert command_line(bandwidth.command_words(plan.planned_addresses())) == (
        "p2prw bench 127.0.0.1:18515/a --device soft0 --mtu 1024 --test bw --sizes 4K,64K --tx-depth 8 --verify "
        "--local-memory host,size=1MiB,numa=0 --time-limit 90s --json"
    )
    assert "lat" in latency.words


def test_loops_and_parallel_steps(scenario):
    found = scenario(ONE + "  - {name: r, read: {peer: 127.0.0.1/a, to: host}, repeat: 3}\n")
    assert [row.name for row in found.rows] == ["w", "r#1", "r#2", "r#3"]
    read = "read: {peer: h/a, to: host}"
    found = scenario(f"steps: [{{parallel: [{{name: a, {read}}}, {{name: b, {read}}}]}}]")
    assert [(row.name, row.group, row.together) for row in found.rows] == [("a", 0, True), ("b", 0, True)]


def test_the_environment_is_looked_at_where_the_file_is_silent(scenario, environ, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "token").chmod(0o600)
    text = "steps: [{name: s, serve: {listen: '0.0.0.0:0', regions: {a: 'host,size=4K'}}}]"
    with pytest.raises(RequestError) as caught:
        scenario(text)
    assert caught.value.code == "needs_token"
    outside = {"P2PRW_TOKEN_FILE": str(tmp_path / "token"), "P2PRW_LISTEN": "nonsense::"}
    found = scenario(text, environ={**environ, **outside})
    assert "token" not in commands(found)[0]


def test_bench_steps_begin_with_the_files_bench_map(scenario):
    plan = scenario("""
buffers: {here: "host,size=2MiB"}
bench: {iters: 7, local_memory: here, qp: 2}
steps:
  - bench: {peer: "127.0.0.1:1/a", qp: 1}
""")
    (row,) = plan.rows
    words = "bench 127.0.0.1:1/a --local-memory host,size=2MiB --iters 7 --qp 1"
    assert " ".join(row.words).startswith(words)


def test_smoke_steps_take_the_words_of_device(scenario):
    text = """\
device: {name: rxe0, inject: drop=1%, tx_depth: 9}
steps:
  - {name: a, smoke: {quick: true}}
  - {name: b, smoke: {quick: true, device: [soft0, rxe1]}, device: {verbs_binding: pyverbs}}
  - {name: c, smoke: {quick: true}, device: {name: soft0}}
"""
    assert commands(scenario(text)) == [
        "p2prw smoke --device rxe0 --inject drop=1%,seed=2 --quick --seed 2 --json",
        "p2prw smoke --verbs-binding pyverbs --inject drop=1%,seed=3 --quick --device soft0 --device rxe1 "
        "--seed 3 --json",
        "p2prw smoke --device soft0 --inject drop=1%,seed=4 --quick --seed 4 --json",
    ]


def test_what_has_commas_may_be_a_list(scenario):
    step = 'bench: {peer: "h:1/a", test: lat, sizes: [4K, "${large}", 1M], max_lat: [p99=50ms, p50=20ms]}'
    (line,) = commands(scenario(f"vars: {{large: 64K}}\ndevice: {{cpu: [0, 2-3]}}\nsteps: [{{{step}}}]"))
    for words in ("--sizes 4K,64K,1M", "--max-lat p99=50ms,p50=20ms", "--cpu 0,2-3"):
        assert words in line


def test_a_servers_time_limit_is_told_to_it(scenario):
    (line,) = commands(scenario("steps: [{name: s, time_limit: 9s, serve: {regions: {a: 'host,size=4K'}}}]"))
    assert "--time-limit 9s" in line


def test_steps_of_a_named_parallel_are_named_after_it(scenario):
    read = "read: {peer: h/a, to: host}"
    found = scenario(f"steps: [{{name: p, parallel: [{{{read}}}, {{name: b, {read}}}]}}]")
    assert [row.name for row in found.rows] == ["p-read-1", "b"]


WRONG = [
    ("stpes: []\n", "s.yaml:1:1: the file: unknown key 'stpes'", "did you mean 'steps'?"),
    ("seed: 1\n", "steps are missing", "p2prw help scenario"),
    ("transfer: {peer: h/r, from: host}\n", "steps are missing", "s.yaml (or read)"),
    ("seed: x\n", "s.yaml:1:7: seed: expected a number", "seed: 0   (or up to"),
    ("steps: []\n", "s.yaml:1:8: steps: there is none", ""),
    ("steps: {}\n", "expected a list", ""),
    ("", "is empty", ""),
    (ONE.replace("write", "wirte"), "s.yaml:2:15: step 1: unknown key 'wirte'", "did you mean 'write'?"),
    (ONE.replace("from", "form"), "s.yaml:2:42: transfer: unknown key 'form'", "did you mean 'from'?"),
    (ONE.replace("size=4K", "size=4Q"), "s.yaml:2:48", "64K"),
    (ONE.replace("127.0.0.1/a", "127.0.0.1"), "s.yaml:2:29", "/NAME"),
    (ONE.replace("peer: 127.0.0.1/a, ", ""), "s.yaml:2:5: w: PEER/REGION is missing", ""),
    (ONE.replace(", from: 'host,size=4K'", ""), "s.yaml:2:5: w: --from MEMORY is missing", ""),
    (ONE.replace("name: w", "name: w, expect: bw > fast"), "s.yaml:2:23: w.expect: bw: cannot read 'fast'", "1 GiB/s"),
    (ONE.replace("name: w", "name: w, skip_unless: rott"), "s.yaml:2:28: w.skip_unless: unknown need", "root"),
    (ONE.replace("name: w", "name: w, repeat: 0"), "s.yaml:2:23: w.repeat: expected a number from 1", ""),
    (ONE.replace("name: w", "name: w, time_limit: soon"), "s.yaml:2:27: w.time_limit", "10s"),
    (ONE.replace("name: w", "name: w, op: write"), "op and transfer stand together", ""),
    (ONE.replace("name: w", "name: w, read: {}"), "expected one of serve, write", ""),
    (ONE.replace("name: w", "name: w, matrix: {a: []}"), "s.yaml:2:27: step 1.matrix.a: needs values", ""),
    (ONE.replace("name: w", "name: w, matrix: {seed-x: [1]}"), "cannot be the name of a variable", ""),
    (ONE.replace("4K", "${size}"), "s.yaml:2:48: there is no variable 'size'", "vars:"),
    (ONE.replace("127.0.0.1/a", "'${srv.address}/a'"), "${srv.address} names no server", "{name: server, serve"),
    (ONE + ONE.partition("\n")[2], "s.yaml:3:5: there are two steps named 'w'", "w-2"),
    (ONE.replace("name: w", "name: w, device: {mtu: 1000}"), "s.yaml:2:29: device.mtu", "512"),
    (
        "steps: [{smoke: {}, device: {mtu: 512}}]",
        "s.yaml:1:30: device: mtu: smoke has no such option",
        "leave mtu away",
    ),
    ("steps: [{smoke: {quick: true, full: true}}]", "s.yaml:1:9: smoke-1: --quick and --full", ""),
    (ONE.replace("from:", "to: host, from:"), "s.yaml:2:42: transfer: to: write has no such option", "leave to away"),
    (
        "steps: [{serve: {ready_file: r, regions: {a: 'host,size=1K'}}}]",
        "s.yaml:1:30: serve.ready_file: run has one of its own",
        "",
    ),
    (
        "transfer: {sise: 4K}\n" + "steps: [{serve: {regions: {a: 'host,size=1K'}}}]",
        "s.yaml:1:12: transfer: unknown",
        "size",
    ),
    ("steps: [{bench: {}}]", "s.yaml:1:9: bench-1: PEER/REGION is missing", ""),
    ("steps: [{bench: {peer: h/a, size: 4K}}]", "s.yaml:1:29: bench: unknown key 'size'", "did you mean 'sizes'?"),
    ("steps: [{bench: {peer: h/a, sizes: 4Q}}]", "s.yaml:1:36: bench.sizes", ""),
    ("steps: [{bench: {peer: h/a, plot: a.svg}}]", "bench: unknown key 'plot'", ""),
    ("steps: [{parallel: [{parallel: []}]}]", "not inside another", ""),
    ("seed: -1\n" + ONE, "s.yaml:1:7: seed", ""),
    ("on_failure: halt\n" + ONE, "s.yaml:1:13: on_failure", ""),
    ("vars: {seed: 1}\n" + ONE, "s.yaml:1:8: vars: 'seed'", ""),
    (
        ONE.replace("name: w", "name: w, matrix: {a: [" + ",".join(map(str, range(MOST_ROWS + 1))) + "]}"),
        f"more than {MOST_ROWS} rows",
        "fewer values",
    ),
]


@pytest.mark.parametrize(("text", "what", "fix"), WRONG, ids=[what for _, what, _ in WRONG])
def test_what_is_wrong_is_found_before_anything_runs(scenario, text, what, fix):
    with pytest.raises(RequestError) as caught:
        scenario(text)
    assert what in caught.value.what and fix in (caught.value.fix or ""), caught.value
    assert caught.value.why and caught.value.fix and caught.value.exit_code == 2


def test_two_servers_that_fit_are_one_too_many(scenario, good):
    text = good.replace(', host: ["127.0.0.1", "[::1]"]}\n    op', "}\n    op")
    with pytest.raises(RequestError, match="names no server, or more than one") as caught:
        scenario(text)
    assert "server[host=127.0.0.1]" in (caught.value.why or "")


SEVERAL = """\
naem: x
seed: -1
vars: {big: 1M, 1x: 2}
device: {mtu: 7}
steps:
  - {name: srv, serve: {regoins: {}, listen: "127.0.0.1:0"}}
  - {name: w, matrix: {op: [write, read], size: [1K, 2K]}, op: "${op}", expect: bw > fast, transfer: {
      peer: "${srv.address}/a", form: host, chunk: 4Q, to: host}}
  - {wirte: {}}
  - {name: v, read: {peer: "${sorry}", to: host}, repeat: 0, skip_unless: rott}
"""


def test_all_that_is_wrong_is_told_each_once_in_the_order_of_the_file(scenario):
    with pytest.raises(RequestError) as caught:
        scenario(SEVERAL)
    error = caught.value
    assert [re.sub(r".*s.yaml:", "", one.what)[:34] for one in (error, *error.more)] == [
        "1:1: the file: unknown key 'naem'",
        "2:7: seed: expected a number from ",
        "3:17: vars: '1x' cannot be the nam",
        "4:15: device.mtu: '7' is none of i",
        "6:25: serve: unknown key 'regoins'",
        "7:81: w.expect: bw: cannot read 'f",
        "8:33: transfer: unknown key 'form'",
        "8:52: transfer.chunk: cannot read ",
        "9:6: step 3: unknown key 'wirte'",
        "10:59: v.repeat: expected a number",
    ]
    assert error.unshown == 1 and error.fix == "did you mean 'name'?"


def test_one_mistake_is_told_once_whatever_refers_to_it(scenario):
    text = ONE.replace("127.0.0.1/a", "'${srv.address}/a'").replace("steps:\n", "steps:\n  - {name: srv, serve: {}}\n")
    for broken in (text, text.replace("serve: {}", "serv: {}"), "vras: {x: 1}\n" + ONE.replace("4K", "${x}")):
        with pytest.raises(RequestError) as caught:
            scenario(broken)
        assert caught.value.more == (), caught.value


# --- no key is accepted and ignored ---------------------------------------------------------------------------------

CANDIDATES = (
    "true",
    "3",
    "8K",
    "4096",
    "7s",
    "3 GiB/s",
    "p99=5us",
    "drop=2%",
    "127.0.0.2",
    "udmabuf,size=8K",
    "ab" * 32,
)
SECTION_STEPS = {
    "serve": ("serve", "regions: {a: 'host,size=4K'}"),
    "write": ("transfer", "peer: 127.0.0.1/a, from: 'host,size=4K'"),
    "read": ("transfer", "peer: 127.0.0.1/a, to: 'host,size=4K'"),
    "smoke": ("smoke", "peer: 127.0.0.1"),
    "bench": ("bench", "peer: 127.0.0.1/a"),
}


def value_for(setting):
    """Return a text that the setting takes and that is not its default."""
    for text in (*map(str, words_of(setting.parse)), *CANDIDATES):
        try:
            if setting.parse(text, "x") != setting.default:
                return text
        except RequestError:
            continue
    raise AssertionError(setting.name)


def keys_of_step(step):
    section = SECTION_STEPS[step][0]
    if section in ("smoke", "bench"):
        settings = {setting.name: setting for setting in settings_of(section)}
        return {key: settings[key] for key in step_keys(section) if key != "peer"}
    return keys_of(section)


CASES = [(step, "step", key) for step in SECTION_STEPS for key in keys_of_step(step)]
CASES += [(step, "device", key) for step in SECTION_STEPS for key in keys_of("device")]


def test_no_word_of_any_step_is_accepted_and_ignored(scenario, tmp_path):
    """Each word of each kind of step changes the command line or is refused."""
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o600)
    ignored, taken = [], 0
    for step, where, key in CASES:
        setting = (keys_of_step(step) if where == "step" else keys_of("device"))[key]
        own = SECTION_STEPS[step][1]
        value = str(token) if key == "token_file" else value_for(setting)
        words = f"{{{key}: '{value}'}}"
        said = f"{own}, {words[1:-1]}" if key not in ("from", "to", "listen") or f"{key}:" not in own else own
        device = f", device: {words}" if where == "device" else ""
        text = f"steps: [{{{step}: {{{said if where == 'step' else own}}}{device}}}]"
        plain = scenario(f"steps: [{{{step}: {{{own}}}}}]").rows[0]
        try:
            (row,) = scenario(text).rows
        except RequestError:
            continue
        taken += 1
        if said != own and (row.words, row.listen) == (plain.words, plain.listen):
            ignored.append((step, where, key, value))
    assert not ignored
    assert taken > 150, "the candidates are good enough to be taken"


@pytest.mark.parametrize("step", SECTION_STEPS)
def test_no_key_beside_the_action_is_ignored(scenario, step):
    own = SECTION_STEPS[step][1]
    plain = scenario(f"steps: [{{{step}: {{{own}}}}}]")
    extra = {"name": "x", "expect": "exit_code == 0", "skip_unless": "root", "time_limit": "9s", "repeat": "2",
             "matrix": "{a: [1, 2]}", "device": "{name: soft0}"}  # fmt: skip
    assert {*extra, "op", *ACTIONS} == set(STEP_KEYS)
    for key, value in extra.items():
        changed = scenario(f"steps: [{{{step}: {{{own}}}, {key}: {value}}}]")
        assert changed.rows != plain.rows, key
