"""The dry run tells what the contexts would do: counted here by walking every work request."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2prw.engine.model import DmaSegment, Operation, RemoteSegment
from p2prw.engine.plan import LINE_COLUMNS, MAX_LISTED_SEGMENTS, describe_plan, plan_lines
from p2prw.engine.rw import RwLimits, build_contexts
from p2prw.errors import RequestError
from p2prw.units import KIB, MIB


def vec_of(*lengths: int) -> tuple[DmaSegment, ...]:
    return tuple(DmaSegment((1 << 40) + (k << 34), length, 0x100 + k) for k, length in enumerate(lengths))


def remotes_of(*lengths: int) -> tuple[RemoteSegment, ...]:
    return tuple(RemoteSegment((1 << 44) + (k << 34), length, 0x900 + k) for k, length in enumerate(lengths))


LIMITS = RwLimits(4, 2, 100 * KIB)


@given(
    st.lists(st.integers(1, 400 * KIB), min_size=1, max_size=12),
    st.lists(st.integers(1, 400 * KIB), min_size=1, max_size=5),
    st.sampled_from(list(Operation)),
    st.integers(1, 20),
    st.integers(1, 40),
)
@settings(max_examples=80, deadline=None)
def test_counts_are_those_of_the_work_requests(local, remote, direction, depth, signal_every):
    vec, remotes = vec_of(*local), remotes_of(*remote)
    plan = describe_plan(vec, remotes, direction, LIMITS, depth=depth, signal_every=signal_every)
    wrs = [
        (k, context.wr(i))
        for k, context in enumerate(build_contexts(vec, remotes, direction, LIMITS))
        for i in range(context.nr_wqes)
    ]
    every = min(depth, signal_every)
    signalled = [k for n, (k, _) in enumerate(wrs, 1) if n % every == 0 or n == len(wrs)]

    assert plan["length_bytes"] == sum(w.length_bytes for _, w in wrs) == min(sum(local), sum(remote))
    assert plan["totals"]["wrs"] == plan["totals"]["nr_wqes"] == len(wrs)
    assert plan["totals"]["sges"] == sum(len(w.sges) for _, w in wrs)
    assert plan["totals"]["signalled_wqes"] == len(signalled)
    assert plan["totals"]["wr_min_bytes"] == min(w.length_bytes for _, w in wrs)
    assert plan["totals"]["wr_max_bytes"] == max(w.length_bytes for _, w in wrs)
    for k, context in enumerate(plan["contexts"]):
        mine = [w for owner, w in wrs if owner == k]
        assert (context["wrs"], context["sges"]) == (len(mine), sum(len(w.sges) for w in mine))
        assert context["signalled_wqes"] == signalled.count(k)
        assert int(context["remote_address"], 16) == mine[0].remote_addr
    assert json.loads(json.dumps(plan)) == plan
    assert max(len(line) for line in plan_lines(plan)) <= LINE_COLUMNS


def test_the_text_of_a_write_to_two_segments():
    plan = describe_plan(
        vec_of(MIB, 256 * KIB),
        remotes_of(MIB, MIB),
        Operation.WRITE,
        RwLimits(16, 16, 512 * KIB),
        depth=128,
        signal_every=2,
    )
    assert plan_lines(plan) == [
        "plan: write 1.25 MiB as RDMA_WRITE, 3 WRs to 2 remote segments",
        "  limits: 16 SGEs a WR, at most 512 KiB a WR, depth 128, one in 2 signalled",
        "  local: 2 segments",
        "    0x10000000000  1 MiB  lkey 0x100",
        "    0x10400000000  256 KiB  lkey 0x101",
        "  remote 0: 0x100000000000  1 MiB  rkey 0x900",
        "    SINGLE_WR: one segment and no MR needed (kernel: rdma_rw_init_single_wr)",
        "    2 WRs of 512 KiB, split by bytes, with 2 SGEs, 1 signalled; rdma_rw_ctx_init would count 1 WQE",
        "  remote 1: 0x100400000000  256 KiB  rkey 0x901",
        "    SINGLE_WR: one segment and no MR needed (kernel: rdma_rw_init_single_wr)",
        "    1 WR of 256 KiB with 1 SGE, 1 signalled; rdma_rw_ctx_init would count 1 WQE",
        "total: 3 WRs, 3 SGEs, 2 signalled WRs, at most 3 in flight; rdma_rw_ctx_init would count 2 WQEs",
    ]


def test_an_mr_context_names_the_rule_and_what_the_kernel_could_not_do():
    plan = describe_plan(
        vec_of(*[2 * MIB] * 33),
        remotes_of(66 * MIB),
        Operation.READ,
        RwLimits(30, 30, MIB, max_sgl_rd=16),
        depth=64,
        signal_every=16,
    )
    context = plan["contexts"][0]
    assert (context["type"], context["kernel_function"]) == ("MR", "rdma_rw_io_needs_mr")
    assert (context["wrs"], context["kernel_wqes"], context["kernel_wqes_reused"]) == (66, 2, 3)
    assert "256 pages" in context["kernel_problem"]
    text = " ".join(" ".join(plan_lines(plan)).split())
    assert "MR: READ of 33 segments, more than max_sgl_rd 16 (kernel: rdma_rw_io_needs_mr)" in text
    assert "2 WQEs (3 with recycled MRs)" in text
    assert "in the kernel this would fail: ib_map_mr_sg maps fewer segments" in text


def test_long_lists_are_cut_with_a_count():
    plan = describe_plan(
        vec_of(*[4096] * 100),
        remotes_of(*[4096] * 100),
        Operation.WRITE,
        RwLimits(16, 16, None),
        depth=8,
        signal_every=8,
    )
    assert plan["local"]["segments"] == 100
    assert len(plan["local"]["listed"]) == MAX_LISTED_SEGMENTS
    assert len(plan["contexts"]) == 100
    lines = plan_lines(plan)
    assert "    ... and 68 more segments" in lines
    assert "  ... and 84 more remote segments" in lines
    assert "  limits: 16 SGEs a WR, no byte limit, depth 8, one in 8 signalled" in lines


def test_a_staged_plan_says_how_often_it_repeats():
    plan = describe_plan(vec_of(MIB), remotes_of(MIB), Operation.WRITE, LIMITS, depth=8, signal_every=2)
    plan["staging"] = {"chunk_bytes": MIB, "chunks": 10}
    plan["transfer_bytes"] = 10 * MIB - 1
    assert "  staged: this is one chunk of 1 MiB; 10 chunks make 10.00 MiB" in plan_lines(plan)


def test_size_zero_is_a_plan_too():
    plan = describe_plan((), remotes_of(4096), Operation.READ, LIMITS, depth=8, signal_every=4, length=0)
    assert plan["totals"]["wrs"] == plan["totals"]["signalled_wqes"] == plan["totals"]["wr_min_bytes"] == 0
    assert plan_lines(plan)[0] == "plan: read 0 B as RDMA_READ, 0 WRs to 0 remote segments"


def test_offsets_are_those_of_the_contexts_and_errors_pass_through():
    plan = describe_plan(
        vec_of(8192),
        remotes_of(8192),
        Operation.WRITE,
        LIMITS,
        depth=8,
        signal_every=1,
        offset=4096,
        length=100,
        remote_offset=50,
    )
    assert plan["local"]["listed"] == [{"address": hex((1 << 40) + 4096), "length_bytes": 100, "lkey": "0x100"}]
    assert plan["contexts"][0]["remote_address"] == hex((1 << 44) + 50)
    with pytest.raises(RequestError):
        describe_plan(
            vec_of(4096), remotes_of(4096), Operation.WRITE, LIMITS, depth=8, signal_every=1, offset=1, length=4096
        )
