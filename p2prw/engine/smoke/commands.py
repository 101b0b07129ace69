"""The single command that does one cell again, and the server it talks to. Pure.

Files are made anew (`head -c`): those of the smoke test are gone when somebody pastes this.
"""

from __future__ import annotations

import ipaddress
import shlex

from p2prw.engine.memory.spec import format_memory_spec
from p2prw.engine.model import MemorySpec, Operation, PeerAddress, ServedRegion
from p2prw.engine.smoke.model import SmokeRequest
from p2prw.engine.smoke.regions import file_spec

CLIENT_FILE = "smoke-local.bin"
SERVER_FILE = "smoke-region.bin"


def client_command(
    operation: Operation,
    target: str,
    memory: MemorySpec,
    size_bytes: int,
    *,
    device: str,
    ib_port: int,
    request: SmokeRequest,
) -> str:
    """Return `p2prw write ...` or `p2prw read ...`; a source file is made first."""
    side = "--from" if operation is Operation.WRITE else "--to"
    words = ["p2prw", operation.value, target]
    made = ""
    if memory.kind == "file":
        memory = file_spec(CLIENT_FILE)
        made = _make_file(CLIENT_FILE, size_bytes) if operation is Operation.WRITE else ""
    words += [side, format_memory_spec(memory), "--size", str(size_bytes), *_device_words(device, ib_port, request)]
    if operation is Operation.READ and memory.kind == "file":
        words.append("--overwrite")
    if request.inject:
        words += ["--inject", request.inject]
    if request.peer is not None and request.token_file:
        words += ["--token-file", request.token_file]
    if request.peer is not None and request.tls is not None:
        for option, value in (
            ("--tls-ca", request.tls.ca_file),
            ("--tls-fingerprint", request.tls.fingerprint),
            ("--tls-cert", request.tls.cert_file),
            ("--tls-key", request.tls.key_file),
        ):
            words += [option, value] if value else []
    return made + shlex.join(words)


def serve_command(region: ServedRegion, address: str, *, device: str, ib_port: int, request: SmokeRequest) -> str:
    """Return `p2prw serve ... --once` for the region of one cell; the file behind it is made first."""
    made, memory = "", region.memory
    if memory.kind == "file":
        length_bytes = int(memory.options["size"])
        made, memory = _make_file(SERVER_FILE, length_bytes), file_spec(SERVER_FILE, length_bytes)
    words = ["p2prw", "serve", "--region", f"{region.name}={format_memory_spec(memory)}"]
    words += ["--listen", bracketed(address), "--once", *_device_words(device, ib_port, request)]
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        words.append("--insecure")
    return made + shlex.join(words)


def bracketed(address: str) -> str:
    """Return an address as a host of the command line: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def target_of(peer: PeerAddress | None, address: str, region: str, offset_bytes: int) -> str:
    """Return `10.0.0.1:18515/smoke-host+4099`."""
    where = bracketed(address) if peer is None else str(peer)
    return f"{where}/{region}" + (f"+{offset_bytes}" if offset_bytes else "")


def _device_words(device: str, ib_port: int, request: SmokeRequest) -> list[str]:
    words = ["--device", device] if device != "auto" else []
    if ib_port != 1:
        words += ["--ib-port", str(ib_port)]
    if request.verbs_binding != "auto":
        words += ["--verbs-binding", request.verbs_binding]
    return words + (["--force-bound-device"] if request.force_bound_device else [])


def _make_file(name: str, length_bytes: int) -> str:
    return f"head -c {length_bytes} /dev/urandom >{name}; "
