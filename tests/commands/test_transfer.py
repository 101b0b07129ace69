"""`write` and `read`: requests made of options, and what comes out on stdout, on stderr and as exit code."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal

import pytest
from jsonschema import Draft202012Validator

from p2prw.engine.events import Progress
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import (
    MemorySpec,
    Operation,
    PeerAddress,
    QueuePairOptions,
    Route,
    Timeouts,
    TlsClient,
    TransferRequest,
)
from p2prw.errors import PeerRefusedError
from p2prw.schema import load_schema

WRITE = ("write", "127.0.0.1/scratch", "--from", "host,size=1MiB")
READ = ("read", "127.0.0.1/scratch", "--to", "host,size=1MiB")


def test_defaults_are_the_models(run, engine):
    assert run(*WRITE).exit_code == 0
    request = engine.request
    assert request == TransferRequest(
        operation=Operation.WRITE, peer=PeerAddress("127.0.0.1"), region="scratch", memory=request.memory
    )
    assert request.memory == MemorySpec("host", None, {"size": "1MiB"}, "host,size=1MiB")


# Field of TransferRequest (or of its QueuePairOptions and Timeouts) -> options, value.
REACHED = {
    "size_bytes": (["-s", "64K"], 65536),
    "device": (["-d", "rxe0"], "rxe0"),
    "ib_port": (["-i", "2"], 2),
    "verbs_binding": (["--verbs-binding", "ibverbs"], "ibverbs"),
    "chunk_bytes": (["--chunk", "64K"], 65536),
    "signal_every": (["--signal-every", "4"], 4),
    "rate_limit_bytes_per_s": (["--rate-limit", "10Gb/s"], 1.25e9),
    "staging_bytes": (["--staging", "8M"], 8 << 20),
    "staging_chunk_bytes": (["--staging-chunk", "1M"], 1 << 20),
    "verify": (["--no-verify"], False),
    "shared": (["--shared"], True),
    "route": (["--route", "cpu"], Route.CPU),
    "require_direct": (["--require-direct"], True),
    "force_route": (["--force-route"], True),
    "overwrite": (["--overwrite"], True),
    "resume": (["--resume"], True),
    "retries": (["--retries", "3"], 3),
    "force_bound_device": (["--force-bound-device"], True),
    "force_block_device": (["--force-block-device", "/dev/loop0"], "/dev/loop0"),
    "via": (["--via", "p2pmem:0000:01:00.0"], parse_memory_spec("p2pmem:0000:01:00.0")),
    "tls": (
        ["--tls-ca", "a", "--tls-fingerprint", "SHA256:" + ":".join(["AB"] * 32), "--tls-cert", "c"],
        TlsClient(ca_file="a", fingerprint="ab" * 32, cert_file="c"),
    ),
    "max_sgl_rd": (["--max-sgl-rd", "8"], 8),
    "force_mr": (["--force-mr"], True),
    "inject": (["--inject", "drop=1%,seed=3"], "drop=1%,seed=3"),
    "pcap": (["--pcap", "x.pcap"], "x.pcap"),
    "gso": (["--no-gso"], False),
    "leaf": (["--no-leaf"], False),
    "queue_pair.depth": (["-t", "7"], 7),
    "queue_pair.max_send_sge": (["--max-send-sge", "3"], 3),
    "queue_pair.mtu_bytes": (["-m", "1024"], 1024),
    "queue_pair.timeout": (["--timeout", "18"], 18),
    "queue_pair.retry_cnt": (["--retry-cnt", "1"], 1),
    "queue_pair.rnr_retry": (["--rnr_retry", "2"], 2),
    "queue_pair.min_rnr_timer": (["--min-rnr-timer", "5"], 5),
    "queue_pair.max_rd_atomic": (["--max-rd-atomic", "4"], 4),
    "queue_pair.traffic_class": (["--tclass", "106"], 106),
    "queue_pair.service_level": (["--sl", "3"], 3),
    "queue_pair.pkey_index": (["--pkey-index", "1"], 1),
    "queue_pair.gid_index": (["-x", "3"], 3),
    "timeouts.connect_retry_s": (["--connect-retry", "1m"], 60.0),
    "timeouts.handshake_s": (["--handshake-timeout", "2s"], 2.0),
    "timeouts.idle_s": (["--idle-timeout", "500ms"], 0.5),
    "timeouts.drain_s": (["--drain-timeout", "1"], 1.0),
    "timeouts.time_limit_s": (["--time-limit", "2m"], 120.0),
}
ELSEWHERE = {"operation", "peer", "region", "memory", "region_offset", "token", "queue_pair", "timeouts"}
# The server's (test_serve.py), and bench's, which alone has a peer that writes.
ELSEWHERE |= {"timeouts.stop_s", "timeouts.client_s", "queue_pair.peer_writes", "queue_pair.peer_reads"}


def test_every_field_of_a_request_has_an_option():
    def names(cls, prefix=""):
        return {prefix + item.name for item in dataclasses.fields(cls)}

    wanted = names(TransferRequest) | names(QueuePairOptions, "queue_pair.") | names(Timeouts, "timeouts.")
    assert wanted == set(REACHED) | ELSEWHERE


@pytest.mark.parametrize("field", REACHED)
def test_option_reaches_the_request(run, engine, field):
    arguments, wanted = REACHED[field]
    assert run(*WRITE, *arguments).exit_code == 0
    value = engine.request
    for part in field.split("."):
        value = getattr(value, part)
    assert value == wanted


@pytest.mark.parametrize("field", REACHED)
def test_option_is_written_with_underscores_too(run, engine, field):
    arguments, _ = REACHED[field]
    spelled = ["--" + word[2:].replace("-", "_") if word.startswith("--") else word for word in arguments]
    assert run(*READ, *spelled).exit_code == 0


def test_target_and_port_reach_the_request(run, engine):
    run("write", "[2001:db8::1]:99/a.b-c_d+4K", "--from", "host,size=1M")
    assert engine.request.peer == PeerAddress("2001:db8::1", 99)
    assert (engine.request.region, engine.request.region_offset) == ("a.b-c_d", 4096)
    run("write", "h/x", "--from", "host,size=1M", "-p", "7")
    assert engine.request.peer == PeerAddress("h", 7)


def test_token_file_is_read_and_must_be_private(run, engine, tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    assert run(*WRITE, "--token-file", str(token)).exit_code == 0
    assert engine.request.token == b"s3cret"
    token.chmod(0o640)
    document, result = run.json(*WRITE, "--json", "--token-file", str(token))
    assert (result.exit_code, document["error"]["code"]) == (3, "token_file_mode")
    assert f"chmod 600 {token}" in result.stderr
    assert "s3cret" not in result.output


def test_result_text_tells_what_moved_and_how(run, engine):
    result = run(*WRITE)
    assert result.stdout.startswith("wrote     1 MiB (1048576 bytes)  host,size=1MiB -> 127.0.0.1:18515/scratch\n")
    assert "rate      2.0 MiB/s (0.02 Gb/s) over 500.0 ms" in result.stdout
    assert "local   cpu (not peer-to-peer), host memory, soft0 [soft]" in result.stdout
    assert "remote  cpu (not peer-to-peer)" in result.stdout
    assert f"verified  xxh3-128 {'0' * 32} by owner-cpu" in result.stdout
    assert result.stderr == "write host,size=1MiB -> 127.0.0.1:18515/scratch\n"


def test_json_is_one_document_and_nothing_else(run, engine):
    document, result = run.json(*WRITE, "--json")
    assert document["results"][0]["bytes"] == 1 << 20
    assert document["phases"] == {"open_s": 0.001, "steady_s": 0.5}
    assert document["route"]["local"]["peer_to_peer"] is False
    assert result.exit_code == 0


def test_nan_becomes_null(run, engine, make_ok):
    def result(request):
        row = dataclasses.replace(make_ok(request).results[0], bw_bytes_per_s=math.nan)
        return make_ok(request, results=(row,), params={"odd": math.inf})

    engine.result = result
    document, _ = run.json(*WRITE, "--json")
    assert document["results"][0]["bw_bytes_per_s"] is None
    assert document["params"]["odd"] is None


def test_failure_keeps_the_partial_result_and_the_code(run, engine, failing):
    engine.result = failing
    document, result = run.json(*READ, "--json")
    assert (document["status"], document["partial"], result.exit_code) == ("failed", True, 1)
    assert document["error"]["code"] == "remote_access"
    assert document["error"]["side"] == "remote"


def test_error_block_is_on_stderr_and_safe_for_a_terminal(run, engine, failing):
    engine.result = failing
    result = run(*READ)
    assert "\x1b" not in result.output
    assert result.stderr.endswith(
        "Error (from the peer): the peer's device refused\\x1b[2J\n  why:  rkey 7\n  try:  ask again\n"
    )
    assert "Error" not in result.stdout


def test_quiet_leaves_only_the_result(run, engine):
    engine.progress = [Progress("steady", 1, 2, 0.1, 1.0, 1, 2, "cpu")]
    assert run(*WRITE, "--quiet").stderr == ""
    assert run(*WRITE, "--quiet").stdout.startswith("wrote")


def test_json_stream_is_one_object_a_line(run, engine):
    engine.progress = [Progress("steady", 1, 2, 0.1, 1.0, 1, 2, "cpu", 3)]
    result = run(*WRITE, "--json-stream")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["started", "progress", "result"]
    for line in lines:
        Draft202012Validator(load_schema("stream.schema.json")).validate(line)
    Draft202012Validator(load_schema()).validate(lines[-1]["result"])
    assert lines[1]["retries"] == 3


def test_json_and_json_stream_exclude_each_other(run, engine):
    document, result = run.json(*WRITE, "--json", "--json-stream")
    assert (result.exit_code, document["error"]["code"]) == (2, "usage")


def test_dry_run_is_handed_to_the_engine(run, engine, make_ok):
    engine.result = lambda request: make_ok(request, status="planned", results=(), plan={"segments": []})
    document, _ = run.json(*WRITE, "--json", "--dry-run")
    assert engine.calls[-1]["dry_run"] is True
    assert (document["status"], document["plan"]) == ("planned", {"segments": []})


def test_exception_of_the_engine_is_still_a_document(run, engine):
    engine.raises = PeerRefusedError("busy", code="busy", side="remote")
    document, result = run.json(*WRITE, "--json")
    assert (result.exit_code, document["error"]["code"], document["command"]) == (7, "busy", "write")


def test_unexpected_exception_is_one_line_and_a_report(run, engine, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine.raises = KeyError("boom")
    document, result = run.json(*WRITE, "--json")
    assert (result.exit_code, document["error"]["code"]) == (1, "internal")
    (report,) = tmp_path.glob("p2prw-report-*.txt")
    assert "KeyError: 'boom'" in report.read_text()
    assert str(report) in result.stderr
    assert "Traceback" not in result.stderr
    assert report.stat().st_mode & 0o077 == 0
    assert "Traceback" in run(*WRITE, "--debug").stderr


def test_first_signal_is_handed_to_the_engine(run, engine, make_ok):
    def during(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM

    engine.during = during
    engine.result = lambda request: make_ok(request, status="interrupted", exit_code=143, partial=True)
    document, _ = run.json(*WRITE, "--json")
    assert (document["status"], document["exit_code"]) == ("interrupted", 143)


def test_handlers_are_put_back(run, engine):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(*WRITE)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("option", [["-n", "5"], ["-D", "3"], ["-q", "2"], ["-a"], ["--report_gbits"]])
@pytest.mark.parametrize("command", [WRITE, READ])
def test_measuring_options_name_bench(run, engine, command, option):
    document, result = run.json(*command, *option, "--json")
    assert (result.exit_code, document["error"]["code"]) == (2, "belongs_to_bench")
    assert "p2prw bench" in document["error"]["why"]
    assert engine.requests == []


USAGE = {
    "no target": (["write", "--from", "host"], "missing_peer"),
    "no region": (["write", "h", "--from", "host"], "bad_target"),
    "bad region": (["write", "h/a b", "--from", "host"], "bad_region_name"),
    "bare v6": (["write", "::1/x", "--from", "host"], "bad_peer"),
    "bad port": (["write", "h:99999/x", "--from", "host"], "bad_peer"),
    "port 0": (["write", "h:0/x", "--from", "host"], "bad_peer"),
    "two ports": (["write", "h:1/x", "--from", "host", "-p", "2"], "two_ports"),
    "no memory": (["write", "h/x"], "missing_memory"),
    "bad kind": (["write", "h/x", "--from", "hots"], "unknown_kind"),
    "bad size": ([*WRITE, "-s", "12Q"], "bad_size"),
    "bad offset": (["write", "h/x+zz", "--from", "host"], "bad_size"),
    "bad mtu": ([*WRITE, "-m", "1500"], "bad_value"),
    "bad route": ([*WRITE, "--route", "gpu"], "bad_value"),
    "bad number": ([*WRITE, "--retry-cnt", "8"], "bad_value"),
    "bad time": ([*WRITE, "--idle-timeout", "x"], "bad_duration"),
    "staging": ([*WRITE, "--staging", "1M"], "bad_size"),
    "unknown option": ([*WRITE, "--tx-depht", "3"], "unknown_option"),
    "extra word": ([*WRITE, "more"], "usage"),
    "wrong side": (["write", "h/x", "--to", "host"], "unknown_option"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors_are_documents_with_code_2(run, engine, name):
    arguments, code = USAGE[name]
    document, result = run.json(*arguments, "--json")
    assert (result.exit_code, document["error"]["code"]) == (2, code)
    assert result.stderr.startswith("Error: ")
    assert engine.requests == []


def test_option_without_its_value(run, engine):
    document, result = run.json(*WRITE, "--size", env={"P2PRW_JSON": "1"})
    assert (result.exit_code, document["error"]["code"]) == (2, "usage")


def test_unknown_option_names_the_nearest(run, engine):
    assert "did you mean --tx-depth?" in run(*WRITE, "--tx-depht", "3").stderr


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (("read", "h/x", "--from", "host"), "--to"),
        (("write", "h/x", "--memory", "host"), "--from"),
        (("bench", "h/x", "--memory", "host"), "--local-memory"),
        (("serve", "--memory", "host"), "--region"),
    ],
)
def test_another_commands_word_for_memory_brings_this_ones(run, engine, words, own):
    assert f"did you mean {own}?" in run(*words).stderr


def test_bare_v6_is_told_about_brackets(run, engine):
    assert "[::1]:18515" in run("write", "::1/x", "--from", "host").stderr


def test_show_config_tells_values_and_origins(run, engine, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("device: {mtu: 1024}\ntransfer: {peer: h/x, from: host}\n")
    env = {"P2PRW_TX_DEPTH": "9", "P2PRW_MTU": "2048"}
    document, result = run.json("write", "-c", str(path), "--chunk", "64K", "--show-config", "--json", env=env)
    rows = {row["name"]: row for row in document["results"]}
    assert (rows["mtu"]["value"], rows["mtu"]["origin"]) == (2048, "environment P2PRW_MTU")
    assert rows["tx_depth"]["value"] == 9
    assert (rows["chunk"]["value"], rows["chunk"]["origin"]) == (65536, "command line")
    assert rows["from"]["origin"] == f"file {path}:2:29"
    assert rows["sl"]["origin"] == "default"
    assert rows["peer"]["value"] == "h/x"
    assert engine.requests == [] and result.exit_code == 0
    text = run("write", "-c", str(path), "--show-config").stdout
    assert any(line.split() == ["mtu", "1024", "file", f"{path}:1:15"] for line in text.splitlines())


def test_show_config_works_where_no_request_can_be_made(run, engine):
    result = run("write", "--show-config")
    assert result.exit_code == 2
    assert "tx_depth" in result.stdout
    assert "PEER/REGION is missing" in result.stderr


def test_misspelt_variable_is_noticed(run, engine):
    assert "did you mean P2PRW_TX_DEPTH?" in run(*WRITE, env={"P2PRW_TX_DEPHT": "3"}).stderr
    assert "P2PRW_LAB" not in run(*WRITE, env={"P2PRW_LAB": "3"}).stderr


def test_bad_variable_is_named(run, engine):
    document, _ = run.json(*WRITE, env={"P2PRW_MTU": "1500", "P2PRW_JSON": "1"})
    assert document["error"]["what"].startswith("P2PRW_MTU: ")


@pytest.fixture
def pinned(monkeypatch):
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr("p2prw.engine.affinity.pin", calls.append)
    return calls


def test_cpus_are_bound_before_the_engine_starts(run, engine, pinned, monkeypatch):
    assert run(*WRITE, "--cpu", "0,2-3").exit_code == 0 and pinned == [(0, 2, 3)]
    monkeypatch.setenv("P2PRW_CPU", "1")
    assert run(*READ).exit_code == 0 and pinned[1:] == [(1,)]
    assert run(*READ, "--cpu", "any").exit_code == 0 and len(pinned) == 2


def test_a_cpu_that_is_not_there_is_refused_before_anything_is_opened(run, engine):
    result = run(*WRITE, "--cpu", "8000", "--json")
    assert result.exit_code == 3 and engine.requests == []
    assert json.loads(result.stdout)["error"]["code"] == "cpu_not_allowed"


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "-1", "0,,1", "99999999"])
def test_what_is_no_list_of_cpus_is_a_usage_error(run, engine, text):
    assert run(*WRITE, "--cpu", text).exit_code == 2


@pytest.mark.parametrize("text", ["10", "fast", "0MiB/s"])
def test_what_is_no_limit_is_a_usage_error(run, engine, text):
    assert run(*WRITE, "--rate-limit", text).exit_code == 2
