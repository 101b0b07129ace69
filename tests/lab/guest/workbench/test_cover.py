"""Whole transfers between the software device and rxe: every pair of sizes, path MTUs, families, directions and sides.

The usual run takes a pairwise selection, `--long` the whole product. A software client and a software server cannot
share an address (rxe sends to UDP 4791 only), so there is one resident server at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from typing import Any, NamedTuple

import pytest

from p2prw import api
from p2prw.engine.model import QueuePairOptions, Timeouts
from p2prw.units import MIB

RXE = {"v4": "10.9.1.1", "v6": "[fd09:1::1]"}
SOFT = {"v4": "10.9.1.2", "v6": "[fd09:1::2]"}
PATIENT = Timeouts(connect_retry_s=30.0, handshake_s=60.0, idle_s=60.0)
SIZES = (1, 3, 4096, MIB + 1)
BIG = 8 * MIB


class Case(NamedTuple):
    requester: str
    ip: str
    mtu_bytes: int
    operation: str
    size_bytes: int

    def __str__(self) -> str:
        return "-".join(str(value) for value in self)


EVERYTHING = [
    Case(*values) for values in product(("soft", "rxe"), ("v4", "v6"), (1024, 4096), ("write", "read"), SIZES)
]
BIG_ONES = [Case(*values, BIG) for values in product(("soft", "rxe"), ("v4", "v6"), (1024, 4096), ("write", "read"))]


def choose_pairwise(cases: list[Case]) -> list[Case]:
    """Take the case that covers most pairs not yet covered, until all are; the same each time."""
    left = {pair for case in cases for pair in pairs_of(case)}
    chosen = []
    while left:
        best = max(cases, key=lambda case: len(left & pairs_of(case)))
        chosen.append(best)
        left -= pairs_of(best)
    return chosen


def pairs_of(case: Case) -> set[tuple[Any, ...]]:
    return set(combinations(enumerate(case), 2))


PAIRWISE = choose_pairwise(EVERYTHING)
BIG_USUAL = [Case("soft", "v4", 4096, "write", BIG), Case("rxe", "v6", 1024, "write", BIG)]
USUAL = {*PAIRWISE, *BIG_USUAL}
# Sorted by server, so that each is started once.
PARAMETERS = [
    pytest.param((case.requester, case.ip), case, id=str(case), marks=[] if case in USUAL else [pytest.mark.long])
    for case in sorted([*EVERYTHING, *BIG_ONES])
]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, in_peer: Any) -> Iterator[str]:
    """A server on the side that does not ask."""
    requester, ip = request.param
    regions = {"mem": "host,size=9MiB", "known": "host,size=9MiB,pattern=words:3"}
    options: dict[str, Any] = {"insecure": True, "queue_pair": QueuePairOptions(timeout=18), "timeouts": PATIENT}
    if requester == "soft":
        with api.serving(regions, listen=f"{RXE[ip]}:0", **options) as address:
            yield str(address)
        return
    with in_peer():
        served = api.serving(regions, listen=f"{SOFT[ip]}:0", **options)
        address = served.__enter__()
    try:
        yield str(address)
    finally:
        served.__exit__(None, None, None)


@pytest.mark.parametrize(("server", "case"), PARAMETERS, indirect=["server"])
def test_a_whole_transfer(server: str, case: Case, in_peer: Any) -> None:
    options: dict[str, Any] = {
        "size_bytes": case.size_bytes,
        "queue_pair": QueuePairOptions(timeout=18, mtu_bytes=case.mtu_bytes),
        "timeouts": PATIENT,
    }
    memory = "host,size=9MiB,pattern=words:8" if case.operation == "write" else "host"
    target = f"{server}/{'mem' if case.operation == 'write' else 'known'}+5"
    move = api.write if case.operation == "write" else api.read
    if case.requester == "soft":
        with in_peer():
            result = move(target, memory, **options)
    else:
        result = move(target, memory, **options)
    assert (result.error, result.exit_code, result.verify.status) == (None, 0, "verified")
    assert result.results[0].bytes == case.size_bytes
    assert result.environment["negotiated"]["path_mtu_bytes"] == case.mtu_bytes
    assert result.local_route is not None and result.remote_route is not None
    sides = {"soft": ("soft", "rxe"), "rxe": ("rxe", "soft")}[case.requester]
    assert (result.local_route.driver, result.remote_route.driver) == sides


def test_the_selection_covers_every_pair_and_the_big_ones_every_mtu() -> None:
    wanted = {pair for case in EVERYTHING for pair in pairs_of(case)}
    assert wanted == {pair for case in PAIRWISE for pair in pairs_of(case)}
    assert {case.mtu_bytes for case in BIG_USUAL} == {1024, 4096}
    assert len(PAIRWISE) <= 12 < len(EVERYTHING) == 64, "a selection, not all of it"
