"""The command line between two network namespaces with 5 % loss: what a user would type, verified end to end."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.memory.file_parts import resume_paths
from p2prw.engine.memory.manifest import noted_blocks

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 30


def p2prw(namespace: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-m", "p2prw", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def wait_until_ready(server: subprocess.Popen[str], ready: Path) -> str:
    """Return what the server wrote to its --ready-file."""
    deadline = time.monotonic() + DEADLINE_S
    while not (ready.exists() and ready.read_text().strip()):
        assert server.poll() is None, server.communicate()[1]
        assert time.monotonic() < deadline, "the server is not ready"
        time.sleep(0.02)
    return ready.read_text().strip()


@pytest.mark.parametrize("operation", ["write", "read"])
@pytest.mark.parametrize("host", ["10.99.0.2", "[fd00:99::2]"], ids=["ipv4", "ipv6"])
def test_transfer_by_command_line(lossy: dict[int, Any], tmp_path: Path, host: str, operation: str) -> None:
    near, far = lossy[4096].names
    before = lossy[4096].dropped()
    ready = tmp_path / "ready"
    fill = ",pattern=words:7"
    served, local = ("", fill) if operation == "write" else (fill, "")
    server = p2prw(
        *(far, "serve", "--region", f"mem=host,size=8MiB{served},access=rw", "--listen", f"{host}:0", "--insecure"),
        *("--once", "--ready-file", str(ready), "--timeout", "13"),
    )
    try:
        peer = wait_until_ready(server, ready)
        client = p2prw(
            *(near, operation, f"{peer}/mem", "--from" if operation == "write" else "--to", f"host,size=8MiB{local}"),
            *("--json", "--timeout", "13", "--chunk", "256K"),
        )
        output, errors = client.communicate(timeout=60)
        document = json.loads(output)
        assert client.returncode == 0, errors
        assert (document["status"], document["verify"]["status"]) == ("ok", "verified")
        assert document["results"][0]["bytes"] == 8 << 20
        _, errors = server.communicate(timeout=30)
        assert server.returncode == 0, errors
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()
    assert lossy[4096].dropped() > before


def test_a_link_that_goes_down_and_comes_back(sound: Any, tmp_path: Path) -> None:
    """With --retries one command outlives it: what had arrived is not moved again, and all of it is verified."""
    near, far = sound.names
    content = random.Random(4).randbytes(16 << 20)
    (tmp_path / "in.bin").write_bytes(content)
    target, ready = tmp_path / "out.bin", tmp_path / "ready"
    server = p2prw(
        *(far, "serve", "--region", f"a=file:{target}", "--listen", "10.99.0.2:0", "--insecure"),
        *("--ready-file", str(ready), "--idle-timeout", "3s"),
    )
    client = None
    try:
        peer = wait_until_ready(server, ready)
        client = p2prw(
            *(near, "write", f"{peer}/a", "--from", f"file:{tmp_path}/in.bin", "--retries", "8", "--json"),
            *("--timeout", "13", "--mtu", "1024", "--no-gso", "--connect-retry", "1s"),
            # So that it is not over before the link goes down.
            *("--rate-limit", "8MB/s"),
        )
        deadline = time.monotonic() + DEADLINE_S
        while (noted_blocks(resume_paths(str(target))[1]) or 0) < 3:
            assert client.poll() is None, client.communicate()
            assert time.monotonic() < deadline, "nothing arrives"
            time.sleep(0.005)
        sound.set_link("down")
        time.sleep(2)
        assert client.poll() is None and not target.exists()
        sound.set_link("up")
        output, errors = client.communicate(timeout=90)
        document = json.loads(output)
        assert client.returncode == 0, errors
        assert document["verify"]["status"] == "verified"
        row = document["results"][0]
        assert row["reconnects"] >= 1 and row["bytes"] < len(content) + (16 << 20)
        assert target.read_bytes() == content
    finally:
        for process in (client, server):
            if process is not None:
                process.kill()
                process.communicate()
