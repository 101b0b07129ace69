"""Moving and verifying a grant: phases by the loop's own clock, blocks read back over RDMA, errors of a bad report."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from p2prw.engine.attach import LocalAttachment, make_scratch, rw_limits
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import Grant, RouteInfo, Segment
from p2prw.engine.deadline import Deadline
from p2prw.engine.ends import DirectLocal
from p2prw.engine.memory.host import HostMemory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import Access, Operation, PeerAddress, QueuePairOptions, TransferRequest, VerifyReport
from p2prw.engine.mover import Mover, verify_error
from p2prw.engine.peer import PeerLink, attributes_to_wire
from p2prw.engine.phases import PhaseClock
from p2prw.engine.providers.scripted import Script, ScriptedDevice, ScriptedFabric
from p2prw.engine.routes import choose_route
from p2prw.engine.stop import StopRequest

LENGTH = 300_000


@pytest.fixture
def make_mover():
    """A mover of 300,000 bytes from `near` to `far` over a scripted device whose clock ticks at each look."""
    with ExitStack() as stack:

        def make(*, flushable: bool = True, script: Script | None = None, memory: str = "host,size=300000"):
            now = [0.0]

            def clock() -> float:
                now[0] += 0.001
                return now[0]

            fabric = ScriptedFabric()
            device = ScriptedDevice("near", fabric=fabric, script=script, clock=clock)
            other = ScriptedDevice("far", fabric=fabric, clock=clock)
            near, far = bytearray(b"\x5a" * LENGTH), bytearray(LENGTH)
            request = TransferRequest(
                operation=Operation.WRITE,
                peer=PeerAddress("h"),
                region="r",
                memory=parse_memory_spec(memory),
                chunk_bytes=65536,
                signal_every=1,
            )
            pair, peer_pair = device.create_queue_pair(QueuePairOptions()), other.create_queue_pair(QueuePairOptions())
            pair.connect(peer_pair.local)
            local = device.register(HostMemory.from_buffer(near).buffers(), Access.LOCAL_READ)
            rights = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ
            remote = other.register(HostMemory.from_buffer(far).buffers(), rights)
            ours, theirs = socket.socketpair()
            stack.enter_context(Channel(theirs))
            link = PeerLink(stack.enter_context(Channel(ours)), device, Deadline(clock, StopRequest()), pair)
            route = choose_route(device.info, "host", staged=False)
            grant = Grant(
                "0" * 16,
                LENGTH,
                tuple(Segment(*segment) for segment in remote.remote_segments()),
                1 << 20,
                RouteInfo("cpu", "cpu", False, "host", "far", "scripted"),
                attributes_to_wire(peer_pair.local),
                flushable=flushable,
            )
            limits = rw_limits(request, device.info, 1 << 20)
            mover = Mover(request, link, grant, limits, make_scratch(stack, device), route)
            return mover, LocalAttachment(DirectLocal(local.vec), local.vec, route), near, far, device, clock

        yield make


def test_the_three_phases_share_the_loops_time(make_mover):
    mover, local, near, far, _, clock = make_mover(script=Script(latency_s=0.05, bytes_per_s=1e6))
    phases = PhaseClock(clock)
    began = clock()
    list(mover.move(local, phases))
    took = clock() - began
    assert far == near
    assert set(phases.seconds) >= {"first_byte", "steady", "drain"}
    assert sum(phases.seconds[name] for name in ("first_byte", "steady", "drain")) == pytest.approx(took, abs=0.01)
    assert phases.seconds["first_byte"] >= 0.05 and phases.seconds["steady"] > 0


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (12_345, 70_000), (LENGTH - 3, 3)])
def test_a_block_is_read_back_over_rdma(make_mover, offset, length):
    mover, local, _, far, *_ = make_mover()
    list(mover.move(local, PhaseClock(lambda: 0.0)))
    far[offset] ^= 0xFF
    assert mover.read_back(offset, length) == bytes(far[offset : offset + length])


def test_what_may_not_be_read_back_is_not(make_mover):
    mover, local, *_, device, _ = make_mover(flushable=False)
    list(mover.move(local, PhaseClock(lambda: 0.0)))
    posts = device.counts.posts
    assert mover.read_back(0, 100) is None and device.counts.posts == posts
    assert posts == 5, "five chunks of 64 KiB and no flush: write-only keys have no READ"


def test_a_read_back_that_fails_hides_no_mismatch(make_mover):
    mover, local, *_ = make_mover()
    list(mover.move(local, PhaseClock(lambda: 0.0)))
    mover.link.channel.close()
    assert mover.read_back(0, 100) is None


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("mismatch", "verify_mismatch", ("mismatch", "byte 77", "all_ff")),
        ("unstable", "verify_unstable", ("unstable",)),
    ],
)
def test_a_bad_report_is_an_error_that_ends_4(status, code, words):
    bad = status == "mismatch"
    report = VerifyReport(
        status, first_bad_offset=77 if bad else None, classification="all_ff" if bad else None, why="w"
    )
    error = verify_error(report)
    assert (error.exit_code, error.code, error.why) == (4, code, "w") and error.fix
    assert all(word in error.what for word in words)
