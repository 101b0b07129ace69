"""Transfers between two network namespaces while nftables drops 5 % of all UDP at random, in both directions.

Here the kernel loses the packets, not our own shim: real veth devices, real GSO and GRO, real path MTUs. Where a burst
travels as one piece (GSO over veth), nftables drops whole bursts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.timeout(150)]

REPOSITORY = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
SIZE = 8 << 20
TIMEOUT = 14  # 67 ms: a lost tail costs little


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
        assert line, f"the worker ended with {self.process.wait(30)}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def tell(self, message: dict[str, Any] | None = None) -> None:
        self.stdin.write(json.dumps(message or {}) + "\n")
        self.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


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
def test_five_percent_loss(lossy: dict[int, Any], family: str, mtu_bytes: int, operation: str, gso: bool) -> None:
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


def test_link_local_addresses_carry_their_netdev(lossy: dict[int, Any]) -> None:
    """fe80:: addresses are bound to the netdev, because a GID cannot name one."""
    names = lossy[1024].names
    devices = []
    for name, device in zip(names, ("p2a", "p2b"), strict=True):
        command = ["ip", "-json", "-n", name, "address", "show", "dev", device]
        listed = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
        (local,) = [entry["local"] for entry in listed[0]["addr_info"] if entry["scope"] == "link"]
        devices.append(f"soft:{local}%{device}")
    client, server = transfer(names, (devices[0], devices[1]), "write", True)
    assert client["failed"] is None
    assert client["sha256"] == server["sha256"]
