"""A server among many: honest clients, clients that are killed, strangers, many at a time; nothing is left of them."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from p2prw.engine.pattern import Pattern

CROWD = Path(__file__).with_name("crowd.py")
GARBAGE = ("bytes", "http", "half a frame", "hello", "lease")
KIB, MIB = 1024, 1024 * 1024
HELD = ("p2prw_clients", "p2prw_leases", "p2prw_queue_pairs", "p2prw_registrations", "process_open_fds")


@dataclass(frozen=True)
class Mode:
    clients: int
    together: int
    size_bytes: int
    equals: int
    equal_bytes: int
    deadline_s: float
    silence_s: float
    """What the server allows for a handshake, and for silence: starved honest clients must get through, too."""


SUITE = Mode(clients=40, together=10, size_bytes=512 * KIB, equals=8, equal_bytes=4 * MIB, deadline_s=120, silence_s=15)
LONG = Mode(clients=200, together=50, size_bytes=4 * MIB, equals=16, equal_bytes=32 * MIB, deadline_s=280, silence_s=60)


def crowd(mode: Mode, seed: int) -> list[dict[str, Any]]:
    """A tenth is killed at a random moment, a tenth talks garbage, the others write and read by turns; shuffled."""
    rng = random.Random(seed)
    tenth = mode.clients // 10
    clients: list[dict[str, Any]] = []
    for number in range(mode.clients):
        if number < tenth:
            when = "start" if number % 4 == 3 else "first bytes"
            delay_s = rng.uniform(0.0, 1.0)
            clients.append({"role": "victim", "number": number, "kill_after": when, "kill_after_s": delay_s})
        elif number < 2 * tenth:
            clients.append({"role": "garbage", "number": number, "said": GARBAGE[number % len(GARBAGE)]})
        else:
            clients.append({"role": ("write", "read")[number % 2], "number": number})
    rng.shuffle(clients)
    # Those that are waited for come first: their deadlines pass while the others work.
    return sorted(clients, key=lambda client: client["role"] != "garbage")


def figures(url: str) -> dict[str, float]:
    """The server's figures, summed over their labels; of transfers those that were broken off."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(url, timeout=30) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                if sample.labels.get("outcome") == "kept":
                    continue
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@pytest.mark.parametrize("mode", [SUITE, pytest.param(LONG, marks=pytest.mark.long)], ids=["suite", "long"])
def test_many_clients_of_every_kind(server, tmp_path, mode, until, record_property):
    clients = crowd(mode, seed=7)
    source = random.Random(3).randbytes(mode.size_bytes)
    (tmp_path / "source.bin").write_bytes(source)
    writers = [client["number"] for client in clients if client["role"] == "write"]
    readers = [client["number"] for client in clients if client["role"] == "read"]
    victims = [client["number"] for client in clients if client["role"] == "victim"]
    regions = [f"--region=source=file:{tmp_path}/source.bin,access=r", "--region=quiet=host,size=64KiB"]
    regions += [f"--region=out{number}=file:{tmp_path}/out{number}.bin" for number in writers]
    regions += [f"--region=victim{number}=file:{tmp_path}/victim{number}.bin" for number in victims]
    regions += [f"--region=equal=host,size={mode.equals * mode.equal_bytes}"]
    silence = (f"--idle-timeout={mode.silence_s}s", f"--handshake-timeout={mode.silence_s}s")
    limits = (*silence, "--staging=8MiB", "--staging-chunk=1MiB", "--overwrite")
    one = server(*regions, *limits, "--metrics=127.0.0.1:0", "--max-clients=64", "--timeout=20")
    one.wait_for_line("metrics: ")
    (url,) = [line.split()[-1] for line in one.lines if line.startswith("metrics: ")]

    def run(some: list[dict[str, Any]], equals: int = 0) -> dict[str, Any]:
        plan = {
            "address": one.address,
            "folder": str(tmp_path),
            "clients": some,
            "together": mode.together,
            "size_bytes": mode.size_bytes,
            "equals": [{"role": "equal", "number": number} for number in range(equals)],
            "equal_bytes": mode.equal_bytes,
            "deadline_s": mode.deadline_s,
            "patience_s": 2 * mode.silence_s + 30,
        }
        done = subprocess.run(
            [sys.executable, str(CROWD)], input=json.dumps(plan), capture_output=True, text=True, timeout=295
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def settled() -> dict[str, float]:
        """What is held once everybody is gone."""
        until(lambda: figures(url)["p2prw_clients"] == 0, 30, "the last client to be let go")
        return figures(url)

    # Once around first, so that what is made once for all is made; the same files are written again.
    run([client for client in clients if client["role"] in ("write", "read")][: mode.together])
    for number in readers:
        (tmp_path / f"in{number}.bin").unlink(missing_ok=True)
    before = settled()
    crowded = run(clients, mode.equals)
    after = settled()

    assert len(crowded["clients"]) == mode.clients
    for client in crowded["clients"]:
        assert "defect" not in client and "late" not in client, client
        if client["role"] == "victim":
            assert client["killed"], client
        elif client["role"] == "garbage":
            assert client["closed"], client
        else:
            assert (client["exit_code"], client["error"], client["verify"]) == (0, None, "verified")
            assert client["bytes"] == mode.size_bytes
    # Not only by p2prw's own word.
    for number in writers:
        wanted = bytes(Pattern("random", number).bytes_at(0, mode.size_bytes))
        assert (tmp_path / f"out{number}.bin").read_bytes() == wanted
    for number in readers:
        assert (tmp_path / f"in{number}.bin").read_bytes() == source
    for number in victims:
        assert not (tmp_path / f"victim{number}.bin").exists()

    assert [(name, after[name]) for name in HELD] == [(name, before[name]) for name in HELD]
    grown = after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
    assert grown < 16 * MIB, f"resident memory grew by {grown / MIB:.1f} MiB"

    equal = [client["bw_bytes_per_s"] for client in crowded["equals"] if client["exit_code"] == 0]
    assert len(equal) == mode.equals, crowded["equals"]
    for name, value in {
        "wall_s": round(crowded["wall_s"], 1),
        "slowest_honest_s": round(max(c["wall_s"] for c in crowded["clients"] if c["role"] in ("write", "read")), 1),
        "resident_before_mib": round(before["process_resident_memory_bytes"] / MIB, 1),
        "resident_after_mib": round(after["process_resident_memory_bytes"] / MIB, 1),
        "descriptors_before_and_after": int(before["process_open_fds"]),
        "broken_off": int(after["p2prw_transfers_total"]),
        "equal_rates_mib_per_s": [round(rate / MIB, 1) for rate in sorted(equal)],
        "equal_rates_max_by_min": round(max(equal) / min(equal), 2),
        "equal_rates_deviation": round(statistics.pstdev(equal) / statistics.mean(equal), 3),
    }.items():
        record_property(name, value)
