"""p2prw as a library: what the command line does, as function calls. Nothing here prints or exits.

from p2prw import api

result = api.write("10.0.0.1:18515/cmb", "file:image.bin")
print(result.status, result.results[0].bw_bytes_per_s, result.verify.status)

for progress in api.transfer(request): ...      # the same with live progress; see `transfer`
with api.serving({"cmb": "host,size=64MiB"}) as address: ...
assert api.smoke().exit_code == 0               # every device and memory kind of this host
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from p2prw.engine.events import Progress
from p2prw.engine.model import (
    DEFAULT_PORT,
    Operation,
    PeerAddress,
    ServedRegion,
    ServeRequest,
    TransferRequest,
    TransferResult,
)
from p2prw.engine.steps import finish as finish
from p2prw.engine.stop import StopRequest
from p2prw.targets import Host, parse_host, parse_target

if TYPE_CHECKING:
    from p2prw.engine.bench.model import BenchResult
    from p2prw.engine.smoke.model import SmokeResult


def parse_peer(text: str) -> tuple[PeerAddress, str | None, int]:
    """Return (peer, region, offset in bytes) of `HOST[:PORT][/REGION[+OFFSET]]` or `[V6]:PORT/...`. RequestError."""
    if "/" not in text:
        return _address(parse_host(text)), None, 0
    target = parse_target(text)
    return _address(target.peer), target.region, target.offset_bytes


def _address(host: Host) -> PeerAddress:
    return PeerAddress(host.host, DEFAULT_PORT if host.port is None else host.port)


def make_request(
    operation: Operation, target: str, memory: str, *, via: str | None = None, **options: Any
) -> TransferRequest:
    """Return the request for `target` ("HOST:PORT/REGION+OFFSET") and `memory` (a memory spec).

    `options` are fields of `TransferRequest`; `via` is written as memory is. RequestError: something cannot be read.
    """
    from p2prw.engine.memory.spec import parse_memory_spec

    place = parse_target(target, "target")
    return TransferRequest(
        operation=operation,
        peer=_address(place.peer),
        region=place.region,
        region_offset=place.offset_bytes,
        memory=parse_memory_spec(memory),
        via=parse_memory_spec(via) if via is not None else None,
        **options,
    )


def transfer(
    request: TransferRequest, *, dry_run: bool = False, stop: StopRequest | None = None
) -> Generator[Progress, None, TransferResult]:
    """Yield Progress while the transfer runs and return its TransferResult (the generator's value)."""
    from p2prw.engine.session import run_transfer

    return (yield from run_transfer(request, dry_run=dry_run, stop=stop))


def write(target: str, source: str, **options: Any) -> TransferResult:
    """Write local memory `source` into `target` and verify it. Failures are in the result (`error`, `exit_code`)."""
    return finish(transfer(make_request(Operation.WRITE, target, source, **options)))


def read(target: str, sink: str, **options: Any) -> TransferResult:
    """Read `target` into local memory `sink` and verify it. Failures are in the result (`error`, `exit_code`)."""
    return finish(transfer(make_request(Operation.READ, target, sink, **options)))


def smoke(peer: str | None = None, *, seed: int | None = None, **options: Any) -> SmokeResult:
    """Test every device and memory kind of this host, alone or against `peer` ("HOST:PORT"); `.exit_code` says it all.

    `options` are fields of `SmokeRequest`. P2prwError for what precedes the first cell, such as a device that is not
    there; `engine.smoke.session.smoke` is the same with what happens to each cell.
    """
    from p2prw.engine.smoke.model import SmokeRequest
    from p2prw.engine.smoke.session import smoke as run_smoke

    address = parse_peer(peer)[0] if peer is not None else None
    request = SmokeRequest(seed=secrets.randbits(32) if seed is None else seed, peer=address, **options)
    return finish(run_smoke(request))


def bench(
    target: str, memory: str = "host", *, connection: Mapping[str, Any] | None = None, **wishes: Any
) -> BenchResult:
    """Measure `target`, which holds nothing of value afterwards; failures are in the result.

    `wishes` are fields of `BenchRequest`, `connection` those of `TransferRequest` (device, queue pair, token).
    RequestError for wishes that contradict each other. `engine.bench.session.run_bench` is the same with samples and
    with rows as they come.
    """
    from p2prw.engine.bench.model import BenchRequest
    from p2prw.engine.bench.session import run_bench

    request = make_request(Operation.WRITE, target, memory, **(connection or {}))
    return finish(run_bench(BenchRequest(connection=request, **wishes)))


@contextmanager
def serving(
    regions: Mapping[str, str],
    *,
    listen: str = "127.0.0.1:0",
    access: str = "rw",
    via: str | None = None,
    **options: Any,
) -> Iterator[PeerAddress]:
    """Serve `regions` (name -> memory spec) on a thread of this process; yields the address with its real port.

    `options` are fields of `ServeRequest`; `via` is written as memory is. A P2prwError of opening is raised here.
    """
    from p2prw.engine.memory.spec import parse_memory_spec
    from p2prw.engine.server.server import Server

    host, _, port = listen.rpartition(":")
    request = ServeRequest(
        regions=tuple(
            ServedRegion(name=name, memory=parse_memory_spec(spec), access=access) for name, spec in regions.items()
        ),
        listen=PeerAddress(host.strip("[]"), int(port)),
        via=parse_memory_spec(via) if via is not None else None,
        **options,
    )
    stop = StopRequest()
    with Server(request) as server:
        thread = threading.Thread(target=server.run, args=(stop,), name="p2prw-serve", daemon=True)
        thread.start()
        try:
            yield server.address
        finally:
            stop.end_now()
            thread.join(timeout=10)
