"""Transfers between two network namespaces while nftables drops 5 % of all UDP at random, in both directions.

Here the kernel loses the packets, not our own shim: real veth devices, real GSO and GRO, real path MTUs. Where a burst
travels as one piece (GSO over veth), nftables drops whole bursts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.timeout(150)]

REPOSITORY = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
SIZE = 8 << 20
TIMEOUT = 13  # 34 ms: a lost tail costs little
RULES = """
table inet loss {
    counter dropped {}
    chain input {
        type filter hook input priority 0; policy accept;
        meta l4proto udp numgen random mod 100 < 5 counter name dropped drop
    }
}
"""


def run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Namespaces:
    """Two namespaces joined by a veth pair; `p2a` and `p2b` are their ends."""

    def __init__(self, mtu_bytes: int) -> None:
        self.names = [f"p2prw-{os.getpid()}-{mtu_bytes}-{end}" for end in "ab"]
        self.mtu_bytes = mtu_bytes

    def open(self) -> None:
        a, b = self.names
        for name in self.names:
            run("ip", "netns", "add", name)
            # Duplicate address detection would keep link-local addresses from being bound for two seconds.
            no_dad = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"
            run("ip", "netns", "exec", name, "sh", "-c", no_dad)
        run("ip", "-n", a, "link", "add", "p2a", "type", "veth", "peer", "name", "p2b", "netns", b)
        for host, (name, device) in enumerate(((a, "p2a"), (b, "p2b")), start=1):
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", device, "mtu", str(self.mtu_bytes), "up")
            run("ip", "-n", name, "address", "add", f"10.99.0.{host}/24", "dev", device)
            run("ip", "-n", name, "address", "add", f"fd00:99::{host}/64", "dev", device, "nodad")

    def drop_some(self) -> None:
        for name in self.names:
            run("ip", "netns", "exec", name, "nft", "-f", "-", stdin=RULES)

    def dropped(self) -> int:
        total = 0
        for name in self.names:
            listed = json.loads(run("ip", "netns", "exec", name, "nft", "-j", "list", "counters"))
            total += sum(entry["counter"]["packets"] for entry in listed["nftables"] if "counter" in entry)
        return total

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def lossy() -> Iterator[dict[int, Namespaces]]:
    """A pair of namespaces for each path MTU: 1500 byte Ethernet gives 1024, jumbo frames give 4096."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root: sudo pytest tests/netns")
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install {package}")
    made = {1024: Namespaces(1500), 4096: Namespaces(9000)}
    try:
        try:
            for pair in made.values():
                pair.open()
                pair.drop_some()
        except RuntimeError as exc:
            pytest.skip(f"this machine cannot make network namespaces with nftables: {exc}")
        yield made
    finally:
        for pair in made.values():
            pair.close()


class End:
    """One worker process."""

    def __init__(self, namespace: str, role: str, device: str, *options: str) -> None:
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, str(WORKER), role, device, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    @property
    def stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended with {self.process.wait(10)}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def tell(self, message: dict[str, Any] | None = None) -> None:
        self.stdin.write(json.dumps(message or {}) + "\n")
        self.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


def transfer(names: list[str], devices: tuple[str, str], operation: str, gso: bool) -> list[dict[str, Any]]:
    """Run one transfer and return what client and server said at the end, with `mtu_bytes` of the client."""
    options = ["--operation", operation, "--size", str(SIZE), "--gso", str(int(gso)), "--timeout", str(TIMEOUT)]
    ends = [
        End(name, role, device, *options)
        for name, role, device in zip(names, ("client", "server"), devices, strict=True)
    ]
    try:
        hellos = [end.hear() for end in ends]
        for end, other in zip(ends, hellos[::-1], strict=True):
            end.tell(other)
        for end in ends:
            assert end.hear() == {"connected": True}
        ends[0].tell()
        client = ends[0].hear()
        ends[1].tell()
        server = ends[1].hear()
    finally:
        for end in ends:
            end.close()
    client["attributes"], server["attributes"] = (hello["attributes"] for hello in hellos)
    return [client, server]


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "singles"])
@pytest.mark.parametrize("operation", ["write", "read"])
@pytest.mark.parametrize("mtu_bytes", [1024, 4096])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_five_percent_loss(
    lossy: dict[int, Namespaces], family: str, mtu_bytes: int, operation: str, gso: bool
) -> None:
    namespaces = lossy[mtu_bytes]
    # By netdev name IPv4 comes first.
    devices = ("soft:p2a", "soft:10.99.0.2") if family == "ipv4" else ("soft:fd00:99::1", "soft:fd00:99::2")
    before = namespaces.dropped()
    client, server = transfer(namespaces.names, devices, operation, gso)
    dropped = namespaces.dropped() - before
    assert client["failed"] is None
    assert client["sha256"] == server["sha256"]
    assert dropped > 0, "without loss this test has shown nothing"
    assert client["attributes"]["mtu_bytes"] == mtu_bytes
    assert server["attributes"]["udp_port"] == 4791
    assert [end["gso"] for end in (client, server)] == [gso, gso]
    assert client["warnings"] == server["warnings"] == []
    assert client["counters"]["icrc_errors"] == server["counters"]["icrc_errors"] == 0
    if not gso:
        # Thousands of packets of their own: some data was lost for certain and had to be asked for or sent again.
        assert client["counters"]["retransmitted_packets"] > 0


def test_link_local_addresses_carry_their_netdev(lossy: dict[int, Namespaces]) -> None:
    """fe80:: addresses are bound to the netdev, because a GID cannot name one."""
    names = lossy[1024].names
    devices = []
    for name, device in zip(names, ("p2a", "p2b"), strict=True):
        listed = json.loads(run("ip", "-json", "-n", name, "address", "show", "dev", device))
        (local,) = [entry["local"] for entry in listed[0]["addr_info"] if entry["scope"] == "link"]
        devices.append(f"soft:{local}%{device}")
    client, server = transfer(names, (devices[0], devices[1]), "write", True)
    assert client["failed"] is None
    assert client["sha256"] == server["sha256"]
