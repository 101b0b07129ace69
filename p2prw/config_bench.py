"""Effective settings to the request of `p2prw bench`."""

from __future__ import annotations

from p2prw.config import Settings
from p2prw.config_requests import client_request
from p2prw.engine.bench.model import TESTS, BenchRequest
from p2prw.engine.model import Operation


def bench_request(settings: Settings, target_text: str | None) -> BenchRequest:
    """Return the request. RequestError: a word is missing or wrong; HostError: the token file."""
    test, operation = settings["test"], settings["op"]
    return BenchRequest(
        connection=client_request(settings, target_text, Operation.WRITE, "local_memory"),
        operations=tuple(Operation) if operation == "both" else (Operation(operation),),
        tests=TESTS if test == "all" else (test,),
        sizes=settings["sizes"],
        sweep=settings["all"],
        iterations=settings["iters"],
        duration_s=settings["duration"],
        warm_up=settings["warm_up"],
        queue_pairs=settings["qp"],
        walk_bytes=settings["walk"],
        post_list=settings["post_list"],
        lat_by=settings["lat_by"],
        both_ways=settings["bidirectional"],
        verify=settings["verify"],
        min_bw_bytes_per_s=settings["min_bw"],
        max_latency_us=settings["max_lat"] or {},
    )
