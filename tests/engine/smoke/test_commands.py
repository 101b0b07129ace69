"""What is printed can be pasted: the command line itself reads it back."""

from __future__ import annotations

import shlex

import pytest

from p2prw.cli import cli
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Operation, PeerAddress, ServedRegion
from p2prw.engine.smoke.commands import client_command, serve_command, target_of

MEMORIES = ["host,size=65,pattern=random:9", "file:/tmp/gone/source-3.bin", "p2pmem:0000:01:00.0,size=65"]


def parses(command: str) -> None:
    """The part after the file is made is understood by p2prw itself."""
    words = shlex.split(command.rpartition("; ")[2])
    assert words[0] == "p2prw"
    assert cli.main([*words[1:], "--show-config"], standalone_mode=False) == 0


@pytest.mark.parametrize("operation", list(Operation))
@pytest.mark.parametrize("memory", MEMORIES)
def test_clients(ask, capsys, operation, memory):
    target = target_of(None, "::1", "smoke-host", 4099)
    command = client_command(
        operation, target, parse_memory_spec(memory), 65, device="soft:::1", ib_port=1, request=ask(inject="corrupt=1")
    )
    parses(command)
    assert "[::1]/smoke-host+4099" in command
    assert "--inject corrupt=1" in command
    assert "/tmp/gone" not in command
    makes_file = command.startswith("head -c 65 /dev/urandom >smoke-local.bin; ")
    assert makes_file == ("file" in memory and operation == "write")


def test_servers(ask, capsys):
    region = ServedRegion(name="smoke-file", memory=parse_memory_spec("file:/tmp/gone/region.bin,size=99"))
    here = serve_command(region, "::1", device="soft:::1", ib_port=1, request=ask())
    assert here.startswith("head -c 99 /dev/urandom >smoke-region.bin; p2prw serve ")
    assert "--insecure" not in here
    parses(here)
    there = serve_command(region, "10.9.0.1", device="rxe0", ib_port=2, request=ask(force_bound_device=True))
    parses(there)
    for option in ("--insecure", "--ib-port 2", "--force-bound-device"):
        assert option in there


def test_a_peer_is_asked_with_the_token_that_was_used(ask):
    request = ask(peer=PeerAddress("10.0.0.1", 9), token_file="my token")
    command = client_command(
        Operation.READ,
        target_of(request.peer, "", "smoke-host", 0),
        parse_memory_spec("host"),
        8,
        device="auto",
        ib_port=1,
        request=request,
    )
    assert command == "p2prw read 10.0.0.1:9/smoke-host --to host --size 8 --token-file 'my token'"
