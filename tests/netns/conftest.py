"""Pairs of network namespaces joined by veth devices in which nftables drops 5 % of all UDP at random."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

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

    def set_link(self, state: str) -> None:
        """Take the near end `down` or `up`; its IPv4 address stays."""
        run("ip", "-n", self.names[0], "link", "set", "p2a", state)

    def dropped(self) -> int:
        total = 0
        for name in self.names:
            listed = json.loads(run("ip", "netns", "exec", name, "nft", "-j", "list", "counters"))
            total += sum(entry["counter"]["packets"] for entry in listed["nftables"] if "counter" in entry)
        return total

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)


def skip_without_tools() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root: sudo pytest tests/netns")
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install {package}")


@pytest.fixture
def sound() -> Iterator[Namespaces]:
    """A pair whose link loses nothing while it is up; `set_link` takes it down."""
    skip_without_tools()
    pair = Namespaces(8000)
    try:
        try:
            pair.open()
        except RuntimeError as exc:
            pytest.skip(f"this machine cannot make network namespaces: {exc}")
        yield pair
    finally:
        pair.close()


@pytest.fixture(scope="session")
def lossy() -> Iterator[dict[int, Namespaces]]:
    """A pair of namespaces for each path MTU: 1500 byte Ethernet gives 1024, jumbo frames give 4096."""
    skip_without_tools()
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
