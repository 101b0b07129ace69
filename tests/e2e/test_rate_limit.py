"""`serve --client-rate-limit` between two processes: who is told the limit keeps to it, who does not is ended.

No rate is measured here. A bucket lets so many bytes leave in so much time and not more, so a machine that is slow
makes elapsed times longer and none of these bounds wrong.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.control.messages import PINGPONG, RESUME
from p2prw.engine.model import QueuePairOptions
from p2prw.engine.pace import BURST_S, lower_limit
from p2prw.engine.server.rate import BURST_BYTES, TOLERANCE
from p2prw.units import KIB, MIB

RATE = 4_000_000
SIZE = MIB
ROUND_BYTES = 4 * MIB
"""What one round of the server's loop may take in before it looks: 16 bursts of 64 KiB, and READs under way."""


@pytest.fixture
def limited(server, tmp_path):
    """A server with a limit, a host region and a file sink; its events as JSON."""
    one = server(
        "--region=mem=host,size=64MiB", f"--region=sink=file:{tmp_path}/sink.bin", "--overwrite",
        "--client-rate-limit", f"{RATE}B/s", "--json-stream",
    )  # fmt: skip

    def ended() -> dict[str, Any]:
        """The first `ended` event, once the server has stopped."""
        one.wait_for_line(" ended after ")
        one.stop()
        events = [json.loads(line) for line in one.stdout.splitlines()]
        fields: dict[str, Any] = next(event["fields"] for event in events if event.get("kind") == "ended")
        return fields

    return one, ended


def held(row: dict[str, Any], rate: float = RATE, by: str = "server") -> None:
    """The row names the limit, and no more left than the bucket lets through in that time."""
    assert (row["rate_limit_bytes_per_s"], row["rate_limit_by"]) == (rate, by)
    # Elapsed is first post to last completion, so what left last had waited for its turn.
    assert row["bytes"] <= rate * (row["elapsed_s"] + BURST_S) + max(4096, rate / 10)


@pytest.mark.parametrize(("operation", "end"), [("write", "--from"), ("read", "--to")])
def test_a_client_keeps_to_the_servers_limit(limited, p2prw, operation, end):
    one, ended = limited
    run = p2prw(operation, f"{one.address}/mem", end, f"host,size={SIZE}").ok()
    held(run.row)
    assert run.document["params"]["rate_limit_bytes_per_s"] is None
    assert run.row["bytes"] == SIZE and run.row["chunk_bytes"] == RATE // 10 // 4096 * 4096
    fields = ended()
    assert fields["ended"] == "ok"
    # Flushing READs are seen too, 8 bytes at a time.
    assert SIZE <= fields["moved_bytes"] <= SIZE + 4096


def test_the_lower_limit_holds(limited, p2prw):
    one, _ = limited
    runs = p2prw.together(
        *(("write", f"{one.address}/mem+{index * MIB}", "--from=host,size=512KiB", "--rate-limit", rate)
          for index, rate in enumerate(("2MB/s", "1GB/s")))
    )  # fmt: skip
    held(runs[0].ok().row, 2e6, "client")
    held(runs[1].ok().row)
    assert runs[1].document["params"]["rate_limit_bytes_per_s"] == 1e9


def test_through_a_file_too(limited, p2prw, tmp_path, data):
    one, _ = limited
    (tmp_path / "source.bin").write_bytes(data(SIZE))
    held(p2prw("write", f"{one.address}/sink", "--from", f"file:{tmp_path}/source.bin").ok().row)
    assert (tmp_path / "sink.bin").read_bytes() == data(SIZE)


def test_a_measurement_keeps_to_it_whatever_it_is_of(limited, p2prw):
    one, ended = limited
    run = p2prw(
        "bench", f"{one.address}/mem", "--test", "all", "--sizes", "32K", "--iters", 20, "-q", 1, "--post-list", 64,
        "--lat-by", "ping-pong", "--verify",
    ).ok()  # fmt: skip
    for row in run.document["results"]:
        held(row)
    bandwidth, latency = run.document["results"]
    assert (bandwidth["test"], latency["test"]) == ("bw", "lat")
    assert bandwidth["post_list"] == RATE // (32 * KIB) // 10
    assert ended()["ended"] == "ok"


@pytest.mark.parametrize(("operation", "end"), [("write", "--from"), ("read", "--to")])
def test_losses_are_no_reason_to_end_a_client(server, p2prw, operation, end):
    one = server("--region=mem=host,size=4MiB", "--client-rate-limit", "8MB/s", "--inject", "drop=2%,seed=7")
    run = p2prw(operation, f"{one.address}/mem", end, "host,size=4MiB").ok()
    held(run.row, 8e6)


def test_a_message_that_takes_too_long_under_it_is_said_before_anything_moves(server, p2prw):
    one = server("--region=mem=host,size=4MiB", "--client-rate-limit", "10KB/s")
    error = p2prw("bench", f"{one.address}/mem", "--sizes", "1M").failed(2, "usage")
    assert "takes 105 s at the server's --client-rate-limit" in error["what"]


# --- those who do not keep to it ---------------------------------------------------------------------------------


@pytest.fixture
def deaf(monkeypatch):
    """Clients of this process do not hear of a server's limit: an older release."""
    monkeypatch.setattr("p2prw.engine.peer.CAPABILITIES", (RESUME, PINGPONG))
    for module in ("client", "mover"):
        monkeypatch.setattr(f"p2prw.engine.{module}.lower_limit", lambda own, servers: lower_limit(own, None))


@pytest.mark.parametrize("way", [api.write, api.read])
def test_who_does_not_keep_to_it_is_refused(limited, deaf, way):
    one, ended = limited
    # A send queue of 512 KiB holds less than the limit lets pass, so some are completed before the refusal.
    options: dict[str, Any] = {"chunk_bytes": 64 * KIB, "queue_pair": QueuePairOptions(depth=8)}
    result = way(f"{one.address}/mem", "host,size=64MiB", **options)
    assert result.exit_code == 7 and result.error is not None
    assert (result.error.code, result.error.side) == ("rate_exceeded", "remote")
    assert result.error.why and result.error.fix and f"--rate-limit {RATE}B/s" in result.error.fix
    assert result.partial and result.verify.status == "unverified"
    assert any("older and does not keep to that by itself" in warning for warning in result.warnings)
    fields = ended()
    assert fields["ended"] == "rate_exceeded" and fields["whole_bytes"] == 0
    allowance = RATE + BURST_BYTES + RATE * (1 + TOLERANCE) * fields["elapsed_s"]
    assert result.results[0].bytes <= allowance + ROUND_BYTES
    if way is api.write:
        assert fields["moved_bytes"] <= allowance + ROUND_BYTES


def test_an_unfinished_file_of_who_was_refused_is_thrown_away(limited, deaf, tmp_path, parts):
    one, ended = limited
    with (tmp_path / "source.bin").open("wb") as file:
        file.truncate(32 * MIB)
    result = api.write(f"{one.address}/sink", f"file:{tmp_path}/source.bin")
    assert result.error is not None and result.error.code == "rate_exceeded"
    assert ended()["ended"] == "rate_exceeded"
    assert not (tmp_path / "sink.bin").exists() and parts(tmp_path) == []


def test_an_older_client_that_was_told_by_its_user_keeps_to_it(limited, deaf):
    one, ended = limited
    result = api.write(f"{one.address}/mem", "host,size=6MiB", rate_limit_bytes_per_s=float(RATE))
    assert result.exit_code == 0 and result.results[0].rate_limit_by == "client"
    assert ended()["ended"] == "ok"


def test_a_small_transfer_of_an_older_client_passes_with_a_word(limited, deaf):
    one, _ = limited
    result = api.write(f"{one.address}/mem", "host,size=64KiB")
    assert result.exit_code == 0 and any("--rate-limit 4000000B/s" in warning for warning in result.warnings)
