"""Transfers that are over, and what is held on all devices together."""

from __future__ import annotations

from p2prw.engine.model import Operation
from p2prw.engine.providers.base import DeviceUsage
from p2prw.engine.server.counters import ServerCounters, ServerState
from p2prw.engine.server.leases import Lease


def test_devices_are_added_up():
    state = ServerState(clients=3, leases=2, devices={"a": DeviceUsage(1, 4), "b": DeviceUsage(2, 8)})
    assert (state.queue_pairs, state.registrations) == (3, 12)
    assert ServerState(0, 0, {}).queue_pairs == 0


def test_only_what_was_released_whole_counts_its_bytes():
    counters = ServerCounters()
    lease = Lease("1", "mem", 0, 100, Operation.READ, shared=False, holder="h")
    counters.count_transfer(lease, 40)
    counters.count_transfer(lease, 0)
    counters.count_transfer(lease, None)
    assert counters.transfers == {("mem", "read", "kept"): 2, ("mem", "read", "broken_off"): 1}
    assert counters.kept_bytes == {("mem", "read"): 40}
