"""`serve`: the request, events on stderr, the document, the code."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from typing import Any, ClassVar

import pytest
from jsonschema import Draft202012Validator

from p2prw.engine.events import ServeEvent
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import PeerAddress, ServeRequest, TlsServer
from p2prw.errors import HostError, InterruptedTransfer
from p2prw.schema import load_schema

SCRATCH = ("serve", "--region", "scratch=host,size=1MiB")


class FakeServer:
    """`p2prw.engine.server.server.Server` for these tests."""

    requests: ClassVar[list[ServeRequest]] = []
    code = 0
    bind_error: Exception | None = None

    def __init__(self, request: ServeRequest, manager: Any = None, stop: Any = None) -> None:
        self.requests.append(request)
        self.address = PeerAddress(request.listen.host, request.listen.port or 40000)

    def __enter__(self) -> FakeServer:
        if self.bind_error:
            raise self.bind_error
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, stop: Any, on_event: Any = None) -> int:
        on_event(ServeEvent("listening", f"listening on {self.address}", {"address": str(self.address)}))
        on_event(ServeEvent("joined", "client \x1b[31mred joined", {"peer": "1.2.3.4"}))
        if self.code:
            on_event(ServeEvent("failed", "client 1 failed", {"code": "remote_access"}))
        return self.code


@pytest.fixture
def server(monkeypatch):
    fake = type("Fake", (FakeServer,), {"requests": []})
    module: Any = types.ModuleType("p2prw.engine.server.server")
    module.Server = fake
    monkeypatch.setitem(sys.modules, "p2prw.engine.server.server", module)
    return fake


def test_whoever_ends_a_server_while_it_takes_memory_means_it(run, server, monkeypatch):
    monkeypatch.setattr(server, "bind_error", InterruptedTransfer(signal_number=15))
    result = run(*SCRATCH)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "stopped before anybody could come\n", "")
    document, _ = run.json(*SCRATCH, "--json")
    assert document["status"] == "ok" and document["results"] == []


def test_region_and_defaults(run, server):
    result = run(*SCRATCH)
    assert result.exit_code == 0
    (request,) = server.requests
    assert request == ServeRequest(regions=request.regions)
    assert [(r.name, r.memory.text, r.access) for r in request.regions] == [("scratch", "host,size=1MiB", "rw")]
    assert "listening on 127.0.0.1:18515\n" in result.stderr
    assert "\x1b" not in result.output
    assert result.stdout.startswith("served 127.0.0.1:18515: 1 joined")


REACHED = {
    "listen": (["--listen", "127.0.0.1:0"], PeerAddress("127.0.0.1", 0)),
    "device": (["-d", "soft0"], "soft0"),
    "ib_port": (["-i", "2"], 2),
    "verbs_binding": (["--verbs-binding", "ibverbs"], "ibverbs"),
    "once": (["--once"], True),
    "ready_file": (["--ready-file", "r"], "r"),
    "metrics": (["--metrics", "127.0.0.1:0"], PeerAddress("127.0.0.1", 0)),
    "metrics_file": (["--metrics-file", "m"], "m"),
    "insecure": (["--insecure"], True),
    "allow": (["--allow", "10.0.0.0/8, 192.0.2.7"], ("10.0.0.0/8", "192.0.2.7/32")),
    "client_bytes": (["--client-bytes", "1G"], 1 << 30),
    "client_regions": (["--client-regions", "2"], 2),
    "passive": (["--passive"], True),
    "client_rate_limit_bytes_per_s": (["--client-rate-limit", "10Gb/s"], 1.25e9),
    "tls": (
        ["--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"],
        TlsServer(cert_file="c", key_file="k", client_ca_file="a"),
    ),
    "max_clients": (["--max-clients", "3"], 3),
    "staging_bytes": (["--staging", "8M"], 8 << 20),
    "staging_chunk_bytes": (["--staging_chunk", "1M"], 1 << 20),
    "via": (["--via", "p2pmem:0000:01:00.0"], parse_memory_spec("p2pmem:0000:01:00.0")),
    "overwrite": (["--overwrite"], True),
    "force_bound_device": (["--force-bound-device"], True),
    "force_block_device": (["--force-block-device", "/dev/loop0"], "/dev/loop0"),
    "inject": (["--inject", "drop=1%"], "drop=1%"),
    "pcap": (["--pcap", "p"], "p"),
    "gso": (["--no-gso"], False),
    "leaf": (["--no-leaf"], False),
}


def test_every_field_of_a_request_has_an_option():
    names = {item.name for item in dataclasses.fields(ServeRequest)}
    assert names == set(REACHED) | {"regions", "token", "queue_pair", "timeouts"}


@pytest.mark.parametrize("field", REACHED)
def test_option_reaches_the_request(run, server, field):
    arguments, wanted = REACHED[field]
    assert run(*SCRATCH, *arguments).exit_code == 0
    assert getattr(server.requests[-1], field) == wanted


def test_many_regions_with_access(run, server):
    run("serve", "--region", "a=host,size=1M,access=r", "--region", r"b=file:/x\,y,access=w,size=2M")
    a, b = server.requests[-1].regions
    assert (a.access, a.memory.options) == ("r", {"size": "1M"})
    assert (b.access, b.memory.arg) == ("w", "/x,y")


def test_regions_of_the_environment_stand_on_lines(run, server):
    run("serve", env={"P2PRW_REGION": "a=host,size=1M\nb=host,size=2M"})
    assert [region.name for region in server.requests[-1].regions] == ["a", "b"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]"])
def test_loopback_needs_no_token(run, server, host):
    assert run(*SCRATCH, "--listen", host).exit_code == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1:99", "[::]", "example.org"])
def test_other_addresses_need_a_token_or_insecure(run, server, tmp_path, host):
    document, _ = run.json(*SCRATCH, "--listen", host, "--json")
    assert (document["exit_code"], document["error"]["code"]) == (2, "needs_token")
    assert server.requests == []
    token = tmp_path / "t"
    token.write_text("x")
    token.chmod(0o600)
    assert run(*SCRATCH, "--listen", host, "--token-file", str(token)).exit_code == 0
    assert server.requests[-1].token == b"x"
    assert run(*SCRATCH, "--listen", host, "--insecure").exit_code == 0


def test_port_option_is_the_port_of_listen(run, server):
    run(*SCRATCH, "-p", "99")
    assert server.requests[-1].listen == PeerAddress("127.0.0.1", 99)
    assert run(*SCRATCH, "-p", "99", "--listen", "127.0.0.1:98").exit_code == 2


USAGE = {
    "none": (["serve"], "missing_region"),
    "no name": (["serve", "--region", "host,size=1M"], "bad_region"),
    "twice": ([*SCRATCH, "--region", "scratch=host"], "bad_region"),
    "bad access": (["serve", "--region", "a=host,access=x"], "bad_access"),
    "metrics without a port": ([*SCRATCH, "--metrics", "127.0.0.1"], "missing_port"),
    "bad memory": (["serve", "--region", "a=hots"], "unknown_kind"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors(run, server, name):
    arguments, code = USAGE[name]
    document, result = run.json(*arguments, "--json")
    assert (result.exit_code, document["error"]["code"]) == (2, code)
    assert server.requests == []


def test_json_lists_events(run, server):
    document, _ = run.json(*SCRATCH, "--json")
    assert [row["kind"] for row in document["results"]] == ["listening", "joined"]
    assert document["params"]["listen"] == "127.0.0.1:18515"


def test_json_stream_has_a_line_for_each_event(run, server):
    lines = [json.loads(line) for line in run(*SCRATCH, "--json-stream").stdout.splitlines()]
    assert [line["event"] for line in lines] == ["serve", "serve", "result"]
    for line in lines:
        Draft202012Validator(load_schema("stream.schema.json")).validate(line)


def test_once_ends_with_its_clients_code(run, server):
    server.code = 4
    document, result = run.json(*SCRATCH, "--once", "--json")
    assert result.exit_code == 4
    assert document["error"]["code"] == "remote_access"


def test_quiet_shows_failures_only(run, server):
    server.code = 1
    assert run(*SCRATCH, "--quiet").stderr == "client 1 failed\n"


def test_bind_error_is_code_3(run, server):
    server.bind_error = HostError("port 18515 is in use", code="port_in_use", fix="--listen 127.0.0.1:0")
    document, result = run.json(*SCRATCH, "--json")
    assert (result.exit_code, document["error"]["code"]) == (3, "port_in_use")
    assert "try:  --listen 127.0.0.1:0" in result.stderr
