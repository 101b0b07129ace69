"""The rw context against the kernel's worked examples, a brute-force model of rw.c, and its own promises."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2prw.engine.model import DeviceLimits, DmaSegment, Opcode, Operation, RemoteSegment
from p2prw.engine.rw import KernelOp, RwContext, RwLimits, RwType, build_contexts, can_use_mr, mr_factor, rw_ctx_init
from p2prw.errors import RequestError
from p2prw.units import GIB, KIB, MIB

READ, WRITE = Operation.READ, Operation.WRITE


def vec_of(*lengths: int, base: int = 1 << 40, gap: int = 1 << 34) -> tuple[DmaSegment, ...]:
    """Segments far apart, each with its own lkey."""
    return tuple(DmaSegment(base + k * gap, length, 0x100 + k) for k, length in enumerate(lengths))


def limits_of(sges: int = 4, read_sges: int | None = None, **changes) -> RwLimits:
    return RwLimits(sges, read_sges or sges, **{"max_bytes_per_wr": None, **changes})


def all_wrs(context: RwContext):
    return [context.wr(i) for i in range(context.nr_wqes)]


# --- the worked examples of the kernel's algorithm, with their exact numbers --------------------------------


def test_e1_write_of_ten_segments_with_an_offset():
    context = rw_ctx_init(vec_of(*[64 * KIB] * 10), 0x10000000, 7, WRITE, limits_of(4), offset=4096)

    assert context.type is RwType.MULTI_WR
    assert [(len(w.sges), w.length_bytes, w.remote_addr) for w in all_wrs(context)] == [
        (4, 258048, 0x10000000),
        (4, 262144, 0x1003F000),
        (2, 131072, 0x1007F000),
    ]
    assert context.length_bytes == 651264
    assert (context.nr_wqes, context.kernel_wqes, context.kernel_wqes_reused) == (3, 3, 3)
    assert {w.rkey for w in all_wrs(context)} == {7}
    assert {w.opcode for w in all_wrs(context)} == {Opcode.RDMA_WRITE}
    assert context.wr(0).sges[0] == ((1 << 40) + 4096, 61440, 0x100)
    assert [context.kernel_op(i) for i in range(3)] == [
        KernelOp(len(w.sges), w.length_bytes, w.remote_addr) for w in all_wrs(context)
    ]


def test_e1_an_offset_past_a_segment_skips_it_whole():
    context = rw_ctx_init(vec_of(*[64 * KIB] * 10), 0x10000000, 7, WRITE, limits_of(4), offset=69632)

    assert [len(w.sges) for w in all_wrs(context)] == [4, 4, 1]
    assert context.length_bytes == 585728
    assert context.kernel_wqes == 3


E2_VEC = vec_of(*[4 * KIB] * 600, gap=4 * KIB)


def test_e2_iwarp_read_registers_and_never_needs_local_inv():
    context = rw_ctx_init(E2_VEC, 0x10000000, 7, READ, limits_of(16, iwarp=True, pages_per_mr=512))

    assert context.type is RwType.MR
    assert context.kernel_function == "rdma_rw_io_needs_mr"
    assert "iWARP" in context.reason
    assert [context.kernel_op(i) for i in range(context.kernel_ops)] == [
        KernelOp(256, MIB, 0x10000000),
        KernelOp(256, MIB, 0x10100000),
        KernelOp(88, 88 * 4096, 0x10200000),
    ]
    assert (context.kernel_wqes, context.kernel_wqes_reused) == (6, 6)
    assert context.kernel_mr_problem() is None
    # Ours: no REG_MR can be posted, so one SGE a WR and one WR a segment.
    assert context.nr_wqes == 600
    assert all(len(w.sges) == 1 for w in all_wrs(context))


def test_e2_write_with_force_mr_invalidates_recycled_mrs():
    context = rw_ctx_init(E2_VEC, 0x10000000, 7, WRITE, limits_of(16, force_mr=True, pages_per_mr=512))

    assert context.type is RwType.MR
    assert (context.kernel_wqes, context.kernel_wqes_reused) == (6, 9)


def test_e3_a_long_read_on_mlx5_needs_an_mr_and_falls_back_to_multi_wr():
    vec = vec_of(*[2 * MIB] * 33)
    with_hint = rw_ctx_init(vec, 0, 7, READ, limits_of(30, max_sgl_rd=16))
    assert with_hint.type is RwType.MR
    assert with_hint.reason == "READ of 33 segments, more than max_sgl_rd 16"
    assert (with_hint.kernel_ops, with_hint.kernel_wqes) == (1, 2)

    # What the kernel does when the MR pool is empty (EAGAIN), and what user space does without the hint.
    without = rw_ctx_init(vec, 0, 7, READ, limits_of(64, 30))
    assert without.type is RwType.MULTI_WR
    assert [(len(w.sges), w.length_bytes, w.remote_addr) for w in all_wrs(without)] == [
        (30, 62914560, 0),
        (3, 6291456, 0x3C00000),
    ]


def test_e4_mr_factor():
    assert mr_factor(256, limits_of(16), max_sge_rd=30) == 9
    assert mr_factor(256, limits_of(30)) == 9
    assert mr_factor(256, limits_of(16, force_mr=True), max_sge_rd=30) == 1
    assert mr_factor(257, limits_of(16, max_sgl_rd=1, pages_per_mr=512)) == 2


# --- choice of type -----------------------------------------------------------------------------------------


def test_the_offset_is_skipped_before_the_type_is_chosen():
    vec = vec_of(4096, 4096, 4096)
    limits = limits_of(4, max_sgl_rd=2)
    assert rw_ctx_init(vec, 0, 1, READ, limits).type is RwType.MR
    assert rw_ctx_init(vec, 0, 1, READ, limits, offset=4096).type is RwType.MULTI_WR
    assert rw_ctx_init(vec, 0, 1, READ, limits, offset=8192).type is RwType.SINGLE_WR
    assert rw_ctx_init(vec, 0, 1, WRITE, limits).type is RwType.MULTI_WR


def test_a_plain_write_never_uses_an_mr_on_iwarp():
    assert rw_ctx_init(vec_of(4096, 4096), 0, 1, WRITE, limits_of(4, iwarp=True)).type is RwType.MULTI_WR


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, False), ({"iwarp": True}, True), ({"max_sgl_rd": 3}, True), ({"force_mr": True}, True)],
)
def test_can_use_mr_sizes_queues(changes, expected):
    assert can_use_mr(limits_of(4, **changes)) is expected


def test_direction_decides_opcode_and_sge_limit():
    vec = vec_of(*[4096] * 6)
    read = rw_ctx_init(vec, 0, 1, READ, limits_of(6, 2))
    assert (read.opcode, read.nr_wqes, read.max_sge) == (Opcode.RDMA_READ, 3, 2)
    write = rw_ctx_init(vec, 0, 1, WRITE, limits_of(6, 2))
    assert (write.opcode, write.nr_wqes, write.max_sge) == (Opcode.RDMA_WRITE, 1, 6)


def test_the_kernels_mr_is_limited_in_pages_though_it_splits_by_segments():
    too_long = rw_ctx_init(vec_of(*[2 * MIB] * 33), 0, 7, READ, limits_of(30, max_sgl_rd=16))
    assert "256 pages of 4 KiB" in str(too_long.kernel_mr_problem())

    gap = rw_ctx_init(vec_of(4096, 100, 4096), 0, 7, WRITE, limits_of(4, force_mr=True))
    assert "does not continue a page" in str(gap.kernel_mr_problem())

    # Segments that meet inside a page are joined, and the page is counted once.
    joined = (DmaSegment(0x1100, 0x700, 1), DmaSegment(0x1800, 0x100, 1), DmaSegment(0x1900, 0x1700, 1))
    assert rw_ctx_init(joined, 0, 7, WRITE, limits_of(4, force_mr=True, pages_per_mr=3)).kernel_mr_problem() is None
    assert rw_ctx_init(vec_of(1, 1), 0, 7, WRITE, limits_of(4)).kernel_mr_problem() is None
    # Three operations, the last of which has the gap.
    late = vec_of(*[4096] * 4, gap=4096) + vec_of(100, 4096, base=1 << 50)
    assert rw_ctx_init(late, 0, 7, WRITE, limits_of(4, force_mr=True, pages_per_mr=2)).kernel_mr_problem()


# --- sizes --------------------------------------------------------------------------------------------------


def test_a_tebibyte_segment_is_arithmetic():
    started = time.perf_counter()
    context = rw_ctx_init(vec_of(1 << 40), 1 << 20, 7, WRITE, limits_of(16, max_bytes_per_wr=MIB))
    took_s = time.perf_counter() - started

    assert context.nr_wqes == 1 << 20
    assert context.kernel_wqes == 1
    assert context.wr(999_999) == (
        Opcode.RDMA_WRITE,
        (((1 << 40) + 999_999 * MIB, MIB, 0x100),),
        (1 << 20) + 999_999 * MIB,
        7,
        MIB,
    )
    # Building 2^20 work requests takes more than a second; this is microseconds.
    assert took_s < 0.1


def test_a_segment_of_4_gib_is_cut_at_an_sge_even_without_a_byte_limit():
    context = rw_ctx_init(vec_of(4096, 10 * GIB), 0, 7, WRITE, limits_of(16))
    sizes = [sge.length_bytes for w in all_wrs(context) for sge in w.sges]
    assert sum(sizes) == 10 * GIB + 4096
    assert max(sizes) < 1 << 32
    # The longest SGE there is stays whole, as in the kernel.
    longest = rw_ctx_init(vec_of((1 << 32) - 1, (1 << 32) - 1), 0, 7, WRITE, limits_of(16))
    assert (longest.nr_wqes, longest.wr_bytes(0)) == (1, (1 << 33) - 2)


def test_size_zero_posts_nothing():
    for context in (
        rw_ctx_init(vec_of(4096), 0, 7, WRITE, limits_of(), length=0),
        rw_ctx_init(vec_of(4096), 0, 7, READ, limits_of(iwarp=True), offset=4096, length=0),
        rw_ctx_init((), 0, 7, WRITE, limits_of(), length=0),
    ):
        assert (context.nr_wqes, context.kernel_wqes, context.length_bytes, context.sge_count()) == (0, 0, 0, 0)
        assert context.wr_bytes_range() == (0, 0)
        assert "size 0" in context.reason
        with pytest.raises(IndexError):
            context.wr(0)


def test_wr_index_is_checked():
    context = rw_ctx_init(vec_of(4096), 0, 7, WRITE, limits_of())
    for call in (context.wr, context.wr_offset, context.wr_bytes, context.kernel_op):
        for index in (-1, 1):
            with pytest.raises(IndexError, match="of 1"):
                call(index)


def test_repr_tells_what_it_is():
    context = rw_ctx_init(vec_of(64 * KIB, 64 * KIB), 0x1000, 7, READ, limits_of(4, max_bytes_per_wr=100 * KIB))
    assert repr(context) == "<RwContext MULTI_WR RDMA_READ 131072 B in 2 segments -> 2 WRs @0x1000>"


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "errno"),
    [
        ({"offset": 8192}, "offset_past_end", "EIO"),
        ({"offset": 9000, "length": 0}, "offset_past_end", "EIO"),
        ({"length": 8193}, "length_past_end", "EINVAL"),
        ({"offset": 1, "length": 8192}, "length_past_end", "EINVAL"),
        ({"offset": -1}, "bad_range", "EINVAL"),
        ({"length": -1}, "bad_range", "EINVAL"),
        ({"dma_vec": ()}, "empty_vec", "EINVAL"),
        ({"dma_vec": vec_of(4096, 0)}, "bad_segment", "EINVAL"),
        ({"dma_vec": (DmaSegment((1 << 64) - 1, 2, 0),)}, "bad_segment", "EINVAL"),
        ({"dma_vec": (DmaSegment(-1, 2, 0),)}, "bad_segment", "EINVAL"),
        ({"dma_vec": (DmaSegment(0, 2, 1 << 32),)}, "bad_segment", "EINVAL"),
        ({"remote_addr": (1 << 64) - 8191}, "bad_remote_segment", "EOVERFLOW"),
        ({"remote_addr": -1}, "bad_remote_segment", "EOVERFLOW"),
        ({"rkey": 1 << 32}, "bad_remote_segment", "EOVERFLOW"),
    ],
)
def test_errors_carry_the_kernels_errno(arguments, code, errno):
    whole = {
        "dma_vec": vec_of(4096, 4096),
        "remote_addr": 0,
        "rkey": 7,
        "direction": WRITE,
        "limits": limits_of(),
        **arguments,
    }
    with pytest.raises(RequestError) as caught:
        rw_ctx_init(**whole)
    assert (caught.value.code, caught.value.errno) == (code, errno)


def test_the_last_byte_of_the_address_space_can_be_used():
    top = (1 << 64) - 4096
    context = rw_ctx_init((DmaSegment(top, 4096, 0),), top, 7, WRITE, limits_of())
    assert context.wr(0).remote_addr + context.wr(0).length_bytes == 1 << 64


@pytest.mark.parametrize(
    "changes",
    [{"max_write_sge": 0}, {"max_read_sge": 0}, {"max_bytes_per_wr": 0}, {"pages_per_mr": 0}, {"max_sgl_rd": -1}],
)
def test_limits_under_which_nothing_moves_are_refused(changes):
    with pytest.raises(RequestError) as caught:
        RwLimits(**{"max_write_sge": 1, "max_read_sge": 1, **changes})
    assert caught.value.code == "bad_limits"


def test_limits_of_a_device():
    device = DeviceLimits(max_sge=30, max_sge_rd=4, max_msg_bytes=1 << 31, iwarp=True)
    limits = RwLimits.for_device(device, max_send_sge=16, chunk_bytes=MIB, max_sgl_rd=2, force_mr=True)
    assert limits == RwLimits(16, 4, MIB, max_sgl_rd=2, force_mr=True, iwarp=True)
    assert RwLimits.for_device(device, max_send_sge=64, chunk_bytes=1 << 40) == RwLimits(30, 4, 1 << 31, iwarp=True)


# --- the brute-force model of rw.c --------------------------------------------------------------------------


def kernel_model(vec, remote_addr, max_sge, offset):
    """rdma_rw_ctx_init + rdma_rw_init_map_wrs, statement by statement: [(sges, remote_addr)]."""
    segments = list(vec)
    while segments and offset >= segments[0].length_bytes:
        offset -= segments[0].length_bytes
        segments.pop(0)
    ops = []
    total = 0
    for _ in range(-(-len(segments) // max_sge)):
        sges = []
        start = total
        for _ in range(min(len(segments), max_sge)):
            address, length, lkey = segments.pop(0)
            sges.append((address + offset, length - offset, lkey))
            total += length - offset
            offset = 0
        ops.append((sges, remote_addr + start))
    return ops


def trimmed(vec, length):
    """The vec as the kernel would get it for a transfer of `length` bytes from its start."""
    out = []
    for address, size, lkey in vec:
        if length <= 0:
            break
        out.append(DmaSegment(address, min(size, length), lkey))
        length -= size
    return out


lengths = st.one_of(st.integers(1, 64), st.integers(1, 1 << 20), st.sampled_from([4096, 65536]))
vectors = st.lists(lengths, min_size=1, max_size=40).map(lambda sizes: vec_of(*sizes))
directions = st.sampled_from([READ, WRITE])


@st.composite
def transfers(draw):
    vec = draw(vectors)
    total = sum(s.length_bytes for s in vec)
    offset = draw(st.integers(0, total - 1))
    length = draw(st.none() | st.integers(1, total - offset))
    return vec, offset, length


@given(transfers(), directions, st.integers(1, 9), st.integers(0, 1 << 40))
@settings(max_examples=150, deadline=None)
def test_without_a_byte_limit_it_is_the_kernels_algorithm(transfer, direction, max_sge, remote_addr):
    vec, offset, length = transfer
    context = rw_ctx_init(vec, remote_addr, 7, direction, limits_of(max_sge), offset, length)
    model = kernel_model(vec if length is None else trimmed(vec, offset + length), remote_addr, max_sge, offset)

    assert [(list(w.sges), w.remote_addr) for w in all_wrs(context)] == model
    assert context.kernel_wqes == context.nr_wqes == len(model)
    assert [context.kernel_op(i)[0] for i in range(len(model))] == [len(sges) for sges, _ in model]
    assert context.type is (RwType.SINGLE_WR if len(context.segments) == 1 else RwType.MULTI_WR)


@given(
    transfers(),
    directions,
    st.builds(
        RwLimits,
        max_write_sge=st.integers(1, 9),
        max_read_sge=st.integers(1, 9),
        max_bytes_per_wr=st.none() | st.integers(1 << 10, 1 << 21),
        max_sgl_rd=st.integers(0, 5),
        force_mr=st.booleans(),
        iwarp=st.booleans(),
        pages_per_mr=st.integers(1, 300),
    ),
)
@settings(max_examples=200, deadline=None)
def test_every_byte_is_covered_once_and_in_order_within_all_limits(transfer, direction, limits):
    vec, offset, length = transfer
    context = rw_ctx_init(vec, 1 << 30, 7, direction, limits, offset, length)
    length = sum(s.length_bytes for s in vec) - offset if length is None else length
    max_sge = limits.max_read_sge if direction is READ else limits.max_write_sge

    covered: list[tuple[int, int, int]] = []
    done = 0
    sges = 0
    for index, w in enumerate(all_wrs(context)):
        assert w.remote_addr == (1 << 30) + done
        assert context.wr_offset(index) == done
        assert w.length_bytes == context.wr_bytes(index) == sum(s.length_bytes for s in w.sges) > 0
        assert len(w.sges) <= (1 if context.type is RwType.MR else max_sge)
        assert limits.max_bytes_per_wr is None or w.length_bytes <= limits.max_bytes_per_wr
        for address, size, lkey in w.sges:
            assert 0 < size < 1 << 32
            # Join pieces of one segment again; segments never touch in these vectors.
            if covered and covered[-1][0] + covered[-1][1] == address:
                covered[-1] = (covered[-1][0], covered[-1][1] + size, lkey)
            else:
                covered.append((address, size, lkey))
        done += w.length_bytes
        sges += len(w.sges)

    model = kernel_model(trimmed(vec, offset + length), 0, 1, offset)
    assert covered == [tuple(sge) for (sge,), _ in model]
    assert done == context.length_bytes == length
    assert sges == context.sge_count()
    sizes = [context.wr_bytes(i) for i in range(context.nr_wqes)]
    assert context.wr_bytes_range() == (min(sizes), max(sizes))

    ops = [context.kernel_op(i) for i in range(context.kernel_ops)]
    assert sum(op.segments for op in ops) == len(model)
    assert sum(op.length_bytes for op in ops) == length
    per_op = {RwType.MR: 2}.get(context.type, 1)
    assert context.kernel_wqes == per_op * len(ops)


# --- several remote segments --------------------------------------------------------------------------------


@given(transfers(), st.lists(st.integers(0, 1 << 19), min_size=1, max_size=12), st.integers(0, 1 << 19), directions)
@settings(max_examples=150, deadline=None)
def test_contexts_walk_both_sides_together(transfer, remote_sizes, remote_offset, direction):
    vec, offset, length = transfer
    remotes = [RemoteSegment(k << 40, size, 0x900 + k) for k, size in enumerate(remote_sizes)]
    rest = sum(remote_sizes) - remote_offset
    if rest < 0 or (length is not None and length > rest):
        with pytest.raises(RequestError) as caught:
            build_contexts(vec, remotes, direction, limits_of(3), offset, length, remote_offset=remote_offset)
        assert caught.value.code == "remote_too_short"
        return
    contexts = build_contexts(vec, remotes, direction, limits_of(3), offset, length, remote_offset=remote_offset)
    length = min(sum(s.length_bytes for s in vec) - offset, rest) if length is None else length

    assert sum(context.length_bytes for context in contexts) == length
    # Piece by piece: the local ranges follow each other, and so do the remote ones.
    position, remote_position = offset, remote_offset
    for context in contexts:
        assert context.length_bytes > 0
        assert (
            context.segments == rw_ctx_init(vec, 0, 7, direction, limits_of(3), position, context.length_bytes).segments
        )
        k = context.rkey - 0x900
        assert context.remote_addr == (k << 40) + remote_position - sum(remote_sizes[:k])
        position += context.length_bytes
        remote_position += context.length_bytes
        assert remote_position <= sum(remote_sizes[: k + 1])


def test_contexts_of_size_zero_and_too_many_segments():
    remotes = [RemoteSegment(0, 4096, 1)]
    assert build_contexts(vec_of(4096), remotes, WRITE, limits_of(), length=0) == ()
    assert build_contexts((), remotes, WRITE, limits_of(), length=0) == ()
    assert build_contexts(vec_of(4096), [RemoteSegment(0, 0, 1)], WRITE, limits_of()) == ()
    with pytest.raises(RequestError) as caught:
        build_contexts(vec_of(4096), remotes * 257, WRITE, limits_of())
    assert (caught.value.code, caught.value.errno) == ("too_many_segments", "E2BIG")
    with pytest.raises(RequestError) as caught:
        build_contexts(vec_of(4096), remotes, WRITE, limits_of(), remote_offset=-1, length=1)
    assert caught.value.code == "remote_too_short"
