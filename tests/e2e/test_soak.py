"""One server for many minutes under transfers, kills and garbage: what it holds at the end is what it held early on."""

from __future__ import annotations

import random
import socket
import statistics
import struct
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import pytest

MIB = 1024 * 1024
WORKERS = 3
OPERATIONS_PER_ROUND = 4
MOST_GROWTH_BYTES = 8 * MIB
SLOW = ("--mtu", 256, "--no-gso", "--tx-depth", 4)


@dataclass(frozen=True)
class Sample:
    """What the server holds while nobody is connected."""

    resident_bytes: int
    descriptors: int
    held: dict[str, int]


class Worker:
    """One source of clients, each with regions that no other worker touches."""

    def __init__(self, number: int, one, p2prw, directory, counts: Counter[str]) -> None:
        self.dice = random.Random(f"soak {number}")
        self.number, self.one, self.p2prw, self.directory, self.counts = number, one, p2prw, directory, counts
        (directory / f"in{number}.bin").write_bytes(self.dice.randbytes(8 * MIB))

    def region(self, kind: str) -> str:
        return f"{self.one.address}/{kind}{self.number}"

    def honest(self) -> tuple[object, ...]:
        """A transfer that must end verified."""
        size = self.dice.randrange(1, 4 * MIB)
        words: tuple[tuple[object, ...], ...] = (
            ("write", self.region("mem"), "--from", f"host,size={size},pattern=words:{self.dice.randrange(99)}"),
            ("read", self.region("mem"), "--to", f"host,size={size}"),
            ("write", self.region("file"), "--from", f"file:in{self.number}.bin"),
            ("write", self.region("file"), "--from", f"file:in{self.number}.bin", "--resume"),
            ("read", self.region("file"), "--to", f"file:out{self.number}.bin", "--overwrite"),
        )
        return self.dice.choice(words)

    def run_round(self) -> None:
        for _ in range(OPERATIONS_PER_ROUND):
            choice = self.dice.random()
            if choice < 0.25:
                self.kill_one()
            elif choice < 0.5:
                self.talk_garbage()
                self.shoot_garbage()
            else:
                self.transfer(self.honest())

    def transfer(self, words: tuple[object, ...]) -> None:
        for _ in range(50):
            run = self.p2prw(*words)
            if run.code == 7 and run.document["error"]["code"] == "busy":
                # The server has yet to see that the one before was killed.
                self.counts["busy"] += 1
                time.sleep(0.1)
                continue
            run.ok()
            self.counts["verified"] += 1
            self.counts["bytes"] += run.row["bytes"]
            return
        raise AssertionError(f"always busy: {words}")

    def finish(self) -> None:
        """Go on with what a killed one has left behind for --resume, if there is anything."""
        self.transfer(("write", self.region("file"), "--from", f"file:in{self.number}.bin", "--resume"))

    def kill_one(self) -> None:
        words = self.dice.choice(
            [
                ("write", self.region("mem"), "--from", "host,size=4MiB", *SLOW),
                ("read", self.region("mem"), "--to", "host,size=4MiB", *SLOW),
                ("write", self.region("file"), "--from", f"file:in{self.number}.bin", *SLOW),
                ("write", self.region("file"), "--from", f"file:in{self.number}.bin", "--resume", *SLOW),
            ]
        )
        running = self.p2prw.start(*words)
        time.sleep(self.dice.uniform(0.2, 1.5))
        running.process.kill()
        running.process.communicate()
        self.counts["killed"] += 1

    def talk_garbage(self) -> None:
        """Connections that speak no p2prw, or begin and stop."""
        for _ in range(8):
            data = self.dice.choice(
                [
                    b"GET / HTTP/1.1\r\n\r\n",
                    self.dice.randbytes(self.dice.randrange(1, 3000)),
                    struct.pack(">I", 40) + self.dice.randbytes(40),
                    struct.pack(">I", 60000) + b"{",
                    b'\0\0\0\x15{"type":"list","page":',
                    b"",
                ]
            )
            with suppress(OSError), socket.create_connection((self.one.host, self.one.port), 10) as connection:
                connection.sendall(data)
                if self.dice.random() < 0.5:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.counts["garbage connections"] += 1

    def shoot_garbage(self) -> None:
        """Datagrams at the software device: rubbish, and headers that could be RoCE."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            for _ in range(500):
                data = bytearray(self.dice.randbytes(self.dice.randrange(0, 300)))
                if len(data) > 12 and self.dice.random() < 0.7:
                    data[:4] = bytes((self.dice.randrange(0x18), 0, 0xFF, 0xFF))
                with suppress(BlockingIOError):
                    stranger.sendto(data, (self.one.host, 4791))
            self.counts["garbage datagrams"] += 500
            time.sleep(0.05)
            with pytest.raises(BlockingIOError):
                stranger.recv(1)


def sample(one, until) -> Sample:
    held: dict[str, int] = {}

    def nobody_there() -> bool:
        held.update(one.probe())
        # A client that was killed while its sink is being synced has left before its queue pair has.
        return held["clients"] == held["queue_pairs"] == 0

    until(nobody_there, 90, "the last client to be forgotten")
    return Sample(one.memory("VmRSS"), one.descriptors(), dict(held))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_soak(server, p2prw, tmp_path, until, request, capsys):
    minutes = request.config.getoption("--soak-minutes")
    regions = [f"--region=mem{n}=host,size=4MiB" for n in range(WORKERS)]
    regions += [f"--region=file{n}=file:{tmp_path}/served{n}.bin" for n in range(WORKERS)]
    for number in range(WORKERS):
        (tmp_path / f"served{number}.bin").write_bytes(bytes(MIB))
    one = server(*regions, "--overwrite", "--idle-timeout", "60s", "--handshake-timeout", "5s", probed=True)
    counts: Counter[str] = Counter()
    workers = [Worker(number, one, p2prw, tmp_path, counts) for number in range(WORKERS)]
    samples: list[Sample] = []
    failures: list[BaseException] = []

    def run_round(worker: Worker) -> None:
        try:
            worker.run_round()
        except BaseException as error:
            failures.append(error)

    end = time.monotonic() + minutes * 60
    while time.monotonic() < end or len(samples) < 8:
        threads = [threading.Thread(target=run_round, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        samples.append(sample(one, until))
        p2prw.running.clear()
        # A log line for each client, kept for the test's own failures: of a soak the last ones do.
        del one.lines[:-500]
    for worker in workers:
        worker.finish()
    # What is made once (modules, caches) is made in the first quarter.
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    growth = {
        "resident_bytes": statistics.median(s.resident_bytes for s in late)
        - statistics.median(s.resident_bytes for s in early),
        "objects": statistics.median(s.held["objects"] for s in late)
        - statistics.median(s.held["objects"] for s in early),
    }
    last = samples[-1]
    with capsys.disabled():
        sys.stderr.write(
            f"\nsoak: {minutes:g} minutes, {len(samples)} samples, {dict(counts)}, early to late {growth}, "
            f"at the end {last.resident_bytes / MIB:.1f} MiB resident, {last.descriptors} descriptors, {last.held}\n"
        )
    assert {s.descriptors for s in samples} == {samples[0].descriptors}
    assert {s.held["queue_pairs"] for s in samples} == {0}
    assert {s.held["registrations"] for s in samples} == {samples[0].held["registrations"]}
    assert growth["resident_bytes"] <= MOST_GROWTH_BYTES
    assert growth["objects"] <= 500
    assert counts["verified"] >= len(samples)
    assert counts["killed"] and counts["garbage connections"] and counts["garbage datagrams"]
