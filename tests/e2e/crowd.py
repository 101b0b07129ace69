"""A crowd of clients for one server, run by test_many_clients.py: every client is a process that can be killed.

They are forks of one process that has imported everything, so that a client costs milliseconds and not the half second
of a Python that starts. A plan comes as JSON on stdin, what became of each client goes out as JSON on stdout.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from p2prw import api
from p2prw.engine import gids, session
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.handshake import ClientHandshake
from p2prw.engine.control.messages import Grant, Open, QueuePairInfo, Regions
from p2prw.engine.model import GidEntry, Operation, QueuePairOptions, TransferResult

assert session  # imported before the first fork
GID = gids.address_to_gid("127.0.0.1")
PATIENT = QueuePairOptions(timeout=20)
"""4 s without an answer instead of 0.5, seven times: fifty clients and their server share the cores of one machine."""
STAGING: dict[str, Any] = {"staging_bytes": 8 << 20, "staging_chunk_bytes": 1 << 20}


def outcome(result: TransferResult) -> dict[str, Any]:
    error, rows = result.error, result.results
    return {
        "exit_code": result.exit_code,
        "error": None if error is None else f"{error.code}: {error.what}",
        "verify": result.verify.status,
        "bytes": sum(row.bytes for row in rows),
        "bw_bytes_per_s": rows[0].bw_bytes_per_s if rows else None,
    }


# --- what one client does; each runs in a process of its own ------------------------------------------------------


def write(plan: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    memory = f"host,size={plan['size_bytes']},pattern=random:{client['number']}"
    return outcome(api.write(f"{plan['address']}/out{client['number']}", memory, queue_pair=PATIENT, **STAGING))


def read(plan: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    sink = f"file:{plan['folder']}/in{client['number']}.bin"
    return outcome(api.read(f"{plan['address']}/source", sink, queue_pair=PATIENT, **STAGING))


def victim(plan: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    """Far too much, slowly: it is killed long before its end."""
    region = f"{plan['address']}/victim{client['number']}"
    slow = QueuePairOptions(mtu_bytes=256, depth=4)
    request = api.make_request(
        Operation.WRITE, region, "host,size=128MiB", gso=False, queue_pair=slow, chunk_bytes=65536, **STAGING
    )
    steps = api.transfer(request)
    while True:
        try:
            progress = next(steps)
        except StopIteration as finished:
            return outcome(finished.value)
        if progress.bytes_done:
            os.write(client["out"], b"\n")


def equal(plan: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    size = plan["equal_bytes"]
    return outcome(
        api.write(f"{plan['address']}/equal+{client['number'] * size}", f"host,size={size}", queue_pair=PATIENT)
    )


def garbage(plan: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    """Say something that leads nowhere, and wait until the server has had enough."""
    host, _, port = plan["address"].rpartition(":")
    rng = random.Random(client["number"])
    with socket.create_connection((host, int(port)), 10) as sock:
        match client["said"]:
            case "bytes":
                sock.sendall(rng.randbytes(4096))
            case "http":
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            case "half a frame":
                sock.sendall((1000).to_bytes(4, "big") + b'{"type":')
            case "hello" | "lease":
                silent(Channel(sock), lease=client["said"] == "lease")
        sock.settimeout(plan["patience_s"])
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass  # closed with our bytes unread
    return {"closed": True}


def silent(channel: Channel, *, lease: bool) -> None:
    row = gids.to_wire([GidEntry(0, GID, "rocev2")])
    channel.run_handshake(ClientHandshake(nonce=secrets.token_hex(32), gid_table=row, udp_port=4791), deadline_s=30)
    if lease:
        pair = QueuePairInfo(77, 1, GID, 4096, 16, 16, udp_port=4799)
        channel.send(Open(region="quiet", offset=0, length=None, op="read", queue_pair=pair))
        channel.expect(Grant, Regions, deadline_s=30, name="the grant")


ROLES: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "write": write, "read": read, "victim": victim, "equal": equal, "garbage": garbage,
}  # fmt: skip


# --- the crowd ----------------------------------------------------------------------------------------------------


@dataclass
class Child:
    client: dict[str, Any]
    pid: int
    answer: int
    started_s: float
    kill_at_s: float | None
    condemned: bool = False
    said: bytearray = field(default_factory=bytearray)


def start(plan: dict[str, Any], client: dict[str, Any], gate: int | None = None) -> Child:
    """Fork a client; with `gate` it waits until that pipe is closed."""
    answer, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(answer)
            if gate is not None:
                os.read(gate, 1)
            said = ROLES[client["role"]](plan, {**client, "out": out})
            os.write(out, json.dumps(said).encode())
            code = 0
        except BaseException as error:
            os.write(out, json.dumps({"defect": f"{type(error).__name__}: {error}"}).encode())
        finally:
            os._exit(code)
    os.close(out)
    now = time.monotonic()
    at_once = client.get("kill_after") == "start"
    return Child(client, pid, answer, now, now + client["kill_after_s"] if at_once else None)


def finish(child: Child) -> dict[str, Any]:
    while data := os.read(child.answer, 65536):
        child.said += data
    os.close(child.answer)
    _, status = os.waitpid(child.pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    told = json.loads(child.said) if child.said.strip() else {}
    return {**child.client, "killed": killed, "wall_s": time.monotonic() - child.started_s, **told}


def run(plan: dict[str, Any], clients: list[dict[str, Any]], together: int) -> list[dict[str, Any]]:
    """Run them, so many at a time; who is not done at the deadline of all is killed and says so."""
    waiting = list(clients)
    running: list[Child] = []
    done: list[dict[str, Any]] = []
    end_s = time.monotonic() + plan["deadline_s"]
    while waiting or running:
        while waiting and len(running) < together:
            running.append(start(plan, waiting.pop(0)))
        now = time.monotonic()
        for child in running:
            if child.kill_at_s is not None and now >= child.kill_at_s:
                os.kill(child.pid, signal.SIGKILL)
                child.kill_at_s = None
        if now > end_s:
            for child in running:
                os.kill(child.pid, signal.SIGKILL)
            done += [{**finish(child), "late": True} for child in running]
            return done
        ready, _, _ = select.select([child.answer for child in running], [], [], 0.01)
        for child in [one for one in running if one.answer in ready]:
            data = os.read(child.answer, 65536)
            child.said += data
            if data and child.client.get("kill_after") == "first bytes" and not child.condemned:
                # A victim says that bytes are on their way, again and again until it is killed.
                child.condemned, child.kill_at_s = True, now + child.client["kill_after_s"]
            if not data:
                running.remove(child)
                done.append(finish(child))
    return done


def run_at_once(plan: dict[str, Any], clients: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Start them behind a gate and open it: all begin within milliseconds."""
    gate, opener = os.pipe()
    children = [start(plan, client, gate) for client in clients]
    # The children hold copies of `opener`: a byte for each is what opens, not the end of the pipe.
    time.sleep(0.2)
    os.write(opener, b"x" * len(clients))
    done = [finish(child) for child in children]
    os.close(gate)
    os.close(opener)
    return done


def main() -> None:
    plan = json.load(sys.stdin)
    started_s = time.monotonic()
    done = run(plan, plan["clients"], plan["together"])
    wall_s = time.monotonic() - started_s
    equals = run_at_once(plan, plan["equals"]) if plan["equals"] else []
    json.dump({"clients": done, "equals": equals, "wall_s": wall_s}, sys.stdout)


if __name__ == "__main__":
    main()
