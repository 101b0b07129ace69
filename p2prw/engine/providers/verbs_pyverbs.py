"""The pyverbs binding (rdma-core v44 and later); the only module that imports pyverbs, and it does so when opened.

What is worked around here, seen in pyverbs' sources and in the lab:
- WR and SGE objects leak in every release up to v64 (`__dealloc` is misspelt): one SGE object for each place in the
  list is made for a queue pair and rewritten. QPEx (wr_start ... wr_complete) copies it; where a provider has no QPEx,
  a SendWR is kept for each slot, made anew only where the SGEs differ, and closed exactly once (twice aborts).
- CQ.poll builds a WC object for each completion, CQEX none.
- sq_sig_all defaults to 1, send_flags to SIGNALED: both are always given.
- importing pyverbs configures the root logger to write INFO to stderr: undone.
- the GIL is held in every call: nothing here may block, big registrations come in slices.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from p2prw.engine.model import Opcode
from p2prw.engine.providers.verbs_binding import (
    MTU_BYTES,
    MTU_ENUM,
    QPT_RC,
    SIGNALED,
    UNSIGNALLED,
    BindingError,
    BoundContext,
    BoundQueuePair,
    HcaFacts,
    PathFacts,
    PolledCompletion,
    PortFacts,
    Posted,
    SendFacts,
    VerbsBinding,
)
from p2prw.engine.providers.verbs_memory import HeldRegion
from p2prw.engine.providers.verbs_pyverbs_chain import PyverbsChain
from p2prw.engine.providers.verbs_pyverbs_regions import PyverbsDm, call, held

# enum ibv_qp_init_attr_mask, ibv_qp_create_send_ops_flags
_INIT_ATTR_PD, _INIT_ATTR_SEND_OPS = 1 << 0, 1 << 6
_EX_WITH_WRITE, _EX_WITH_READ = 1 << 0, 1 << 4
_GRH_REQUIRED = 1


class _Modules:
    """pyverbs' modules, imported together: plain `pyverbs` imports even where `pyverbs.device` does not."""

    def __init__(self) -> None:
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        try:
            from pyverbs import addr, cq, device, mr, pd, qp, wr
            from pyverbs.pyverbs_error import PyverbsError
        finally:
            # pyverbs.base runs logging.basicConfig(level=INFO): its lines would corrupt the live display.
            for handler in [one for one in root.handlers if one not in handlers]:
                root.removeHandler(handler)
            root.setLevel(level)
        self.addr, self.cq, self.device, self.mr, self.pd, self.qp, self.wr = addr, cq, device, mr, pd, qp, wr
        self.error: type[Exception] = PyverbsError


def open_binding() -> VerbsBinding:
    """Import pyverbs; raises whatever its import raises."""
    return PyverbsBinding(_Modules())


class PyverbsBinding:
    """See `verbs_binding.VerbsBinding`."""

    name = "pyverbs"

    def __init__(self, modules: Any) -> None:
        self._modules = modules
        try:
            import pyverbs

            self.version: str | None = getattr(pyverbs, "__version__", None)  # only on masters after v64
        except ImportError:
            self.version = None

    def device_names(self) -> tuple[str, ...]:
        """ibv_get_device_list."""
        found = call(self._modules, self._modules.device.get_device_list)
        return tuple(one.name.decode() if isinstance(one.name, bytes) else str(one.name) for one in found)

    def open(self, name: str) -> BoundContext:
        """ibv_open_device and ibv_alloc_pd."""
        return PyverbsContext(self._modules, name)


class PyverbsContext:
    """See `verbs_binding.BoundContext`."""

    def __init__(self, modules: Any, name: str) -> None:
        self._modules = modules
        self._context = call(modules, modules.device.Context, name=name)
        try:
            self._pd = call(modules, modules.pd.PD, self._context)
        except BaseException:
            self._context.close()
            raise
        self._closed = False

    def query_device(self) -> HcaFacts:
        """ibv_query_device."""
        attr = call(self._modules, self._context.query_device)
        return HcaFacts(
            max_sge=attr.max_sge,
            max_sge_rd=attr.max_sge_rd or attr.max_sge,
            max_qp_wr=attr.max_qp_wr,
            max_qp_rd_atom=attr.max_qp_rd_atom,
            max_qp_init_rd_atom=attr.max_qp_init_rd_atom,
            max_cqe=attr.max_cqe,
            max_dm_bytes=self._max_dm_bytes(),
        )

    def _max_dm_bytes(self) -> int:
        if not hasattr(self._modules.device, "DM") or not hasattr(self._modules.mr, "DMMR"):
            return 0
        try:
            return int(call(self._modules, self._context.query_device_ex).max_dm_size)
        except BindingError:
            return 0

    def query_port(self, port: int) -> PortFacts:
        """ibv_query_port."""
        attr = call(self._modules, self._context.query_port, port)
        return PortFacts(
            active_mtu_bytes=MTU_BYTES.get(int(attr.active_mtu), 1024),
            max_msg_bytes=attr.max_msg_sz,
            lid=attr.lid,
            grh_required=bool(getattr(attr, "flags", 0) & _GRH_REQUIRED),
        )

    def register(self, address: int, length_bytes: int, access: int) -> HeldRegion:
        """ibv_reg_mr."""
        region = call(self._modules, self._modules.mr.MR, self._pd, length_bytes, access, address=address)
        return held(self._modules, region, address, length_bytes)

    def register_dmabuf(self, fd: int, offset: int, length_bytes: int, access: int) -> HeldRegion:
        """ibv_reg_dmabuf_mr; pyverbs' iova is the offset."""
        kind = getattr(self._modules.mr, "DmaBufMR", None)
        if kind is None:
            raise BindingError("this pyverbs has no DmaBufMR (it came with v34)", 95)
        region = call(self._modules, kind, self._pd, length_bytes, access, dmabuf=fd, offset=offset)
        return held(self._modules, region, offset, length_bytes)

    def allocate_dm(self, length_bytes: int) -> PyverbsDm:
        """ibv_alloc_dm."""
        kind = getattr(self._modules.device, "DM", None)
        if kind is None or not hasattr(self._modules.mr, "DMMR"):
            raise BindingError("this pyverbs has no device memory", 95)
        attributes = self._modules.device.AllocDmAttr(length_bytes)
        return PyverbsDm(self._modules, self._pd, call(self._modules, kind, self._context, attributes))

    def create_queue_pair(self, depth: int, max_send_sge: int) -> BoundQueuePair:
        """ibv_create_qp_ex with CQEX where the provider has both, else the plain verbs."""
        try:
            return ExtendedQueuePair(self._modules, self._context, self._pd, depth, max_send_sge)
        except BindingError:
            return PlainQueuePair(self._modules, self._context, self._pd, depth, max_send_sge)

    def close(self) -> None:
        """Dealloc the PD, close the device."""
        if self._closed:
            return
        self._closed = True
        try:
            call(self._modules, self._pd.close)
        finally:
            call(self._modules, self._context.close)


class _QueuePair:
    """What both kinds share: the way to RTS."""

    _qp: Any
    _cq: Any

    def __init__(self, modules: Any, max_send_sge: int) -> None:
        self._modules = modules
        self.qpn = 0
        self._sges = [modules.wr.SGE(0, 0, 0) for _ in range(max_send_sge)]

    def build_work(self, request: Posted) -> Any:
        """Return an unsignalled SendWR; it has its own copy of the SGEs."""
        count = len(request.sges)
        for slot, (address, length_bytes, lkey) in zip(self._sges, request.sges, strict=False):
            slot.addr, slot.length, slot.lkey = address, length_bytes, lkey
        return self._modules.wr.SendWR(opcode=int(request.opcode), num_sge=count, sg=self._sges[:count], send_flags=0)

    def build_chain(self, request: Posted, length: int, signal_every: int) -> PyverbsChain:
        """ibv_post_send of linked SendWRs; such a batch may come between those of wr_start ... wr_complete."""
        works: list[Any] = []
        for following in range(length):
            work = self.build_work(request)
            work.set_wr_rdma(request.rkey, request.remote_addr)
            work.wr_id = UNSIGNALLED + following % signal_every
            work.send_flags = 0 if following % signal_every else SIGNALED
            if works:
                work.next_wr = works[-1]
            works.append(work)
        return PyverbsChain(self._modules, self._qp, works, signal_every)

    def to_init(self, port: int, pkey_index: int, access: int) -> None:
        """RESET to INIT."""
        attr = self._modules.qp.QPAttr(port_num=port)
        attr.pkey_index = pkey_index
        attr.qp_access_flags = access
        call(self._modules, self._qp.to_init, attr)

    def to_rtr(self, path: PathFacts) -> None:
        """INIT to RTR."""
        addr = self._modules.addr
        route = None
        if path.is_global:
            # A GlobalRoute without a GID copies garbage, and GID takes eight groups of four digits only.
            gid = addr.GID(":".join(path.dgid[start : start + 4] for start in range(0, 32, 4)))
            route = addr.GlobalRoute(
                dgid=gid,
                sgid_index=path.sgid_index,
                hop_limit=path.hop_limit,
                traffic_class=path.traffic_class,
            )
        attr = self._modules.qp.QPAttr(port_num=path.port)
        attr.ah_attr = call(
            self._modules,
            addr.AHAttr,
            dlid=path.dlid,
            sl=path.service_level,
            is_global=int(path.is_global),
            port_num=path.port,
            gr=route,
        )
        attr.path_mtu = MTU_ENUM[path.path_mtu_bytes]
        attr.dest_qp_num = path.dest_qpn
        attr.rq_psn = path.rq_psn
        attr.max_dest_rd_atomic = path.max_dest_rd_atomic
        attr.min_rnr_timer = path.min_rnr_timer
        call(self._modules, self._qp.to_rtr, attr)

    def to_rts(self, send: SendFacts) -> None:
        """RTR to RTS."""
        attr = self._modules.qp.QPAttr()
        attr.sq_psn = send.sq_psn
        attr.timeout = send.timeout
        attr.retry_cnt = send.retry_cnt
        attr.rnr_retry = send.rnr_retry
        attr.max_rd_atomic = send.max_rd_atomic
        call(self._modules, self._qp.to_rts, attr)

    def close(self) -> None:
        """Destroy the queue pair, then its completion queue."""
        pair, self._qp = self._qp, None
        queue, self._cq = self._cq, None
        try:
            if pair is not None:
                call(self._modules, pair.close)
        finally:
            if queue is not None:
                call(self._modules, queue.close)


class ExtendedQueuePair(_QueuePair):
    """QPEx and CQEX: a whole chain with one doorbell, no object built for a post or a completion."""

    def __init__(self, modules: Any, context: Any, pd: Any, depth: int, max_send_sge: int) -> None:
        super().__init__(modules, max_send_sge)
        qp, cq = modules.qp, modules.cq
        if not hasattr(qp, "QPEx") or not hasattr(cq, "CQEX"):
            raise BindingError("this pyverbs has no extended queue pairs", 95)
        self._cq = call(modules, cq.CQEX, context, cq.CqInitAttrEx(cqe=depth + 1, wc_flags=0))
        try:
            attr = qp.QPInitAttrEx(
                qp_type=QPT_RC,
                scq=self._cq,
                rcq=self._cq,
                cap=qp.QPCap(max_send_wr=depth, max_recv_wr=1, max_send_sge=max_send_sge, max_recv_sge=1),
                sq_sig_all=0,
                comp_mask=_INIT_ATTR_PD | _INIT_ATTR_SEND_OPS,
                pd=pd,
                send_ops_flags=_EX_WITH_WRITE | _EX_WITH_READ,
            )
            self._qp = call(modules, qp.QPEx, context, attr)
        except BaseException:
            self._cq.close()
            raise
        self.qpn = int(self._qp.qp_num)
        self._poll_attr = cq.PollCqAttr()

    def post(self, requests: Sequence[Posted]) -> None:
        """ibv_wr_start ... ibv_wr_complete."""
        pair, slots = self._qp, self._sges
        pair.wr_start()
        for wr_id, opcode, sges, remote_addr, rkey, signaled in requests:
            pair.wr_id = wr_id
            pair.wr_flags = SIGNALED if signaled else 0
            if opcode is Opcode.RDMA_WRITE:
                pair.wr_rdma_write(rkey, remote_addr)
            else:
                pair.wr_rdma_read(rkey, remote_addr)
            for slot, (address, length_bytes, lkey) in zip(slots, sges, strict=False):
                slot.addr = address
                slot.length = length_bytes
                slot.lkey = lkey
            if len(sges) == 1:
                pair.wr_set_sge(slots[0])
            else:
                pair.wr_set_sge_list(len(sges), slots[: len(sges)])
        call(self._modules, pair.wr_complete)

    def poll(self, most: int) -> list[PolledCompletion]:
        """ibv_start_poll and ibv_end_poll for each entry, never ibv_next_poll.

        Where the queue runs empty rxe's next_poll (rdma-core, providers/rxe/rxe.c) has already consumed the last entry
        and unlocked; the end_poll that other providers need then skips one more, and old entries come again.
        """
        queue, attr = self._cq, self._poll_attr
        found: list[PolledCompletion] = []
        # 0, or ENOENT for an empty queue; end_poll may only follow a start that found something.
        while len(found) < most and not queue.start_poll(attr):
            status = int(queue.status)
            found.append(PolledCompletion(queue.wr_id, status, queue.read_vendor_err() if status else 0))
            queue.end_poll()
        return found


class PlainQueuePair(_QueuePair):
    """For providers without the extended verbs: one post_send for each request, over SendWRs that are kept."""

    def __init__(self, modules: Any, context: Any, pd: Any, depth: int, max_send_sge: int) -> None:
        super().__init__(modules, max_send_sge)
        qp = modules.qp
        self._cq = call(modules, modules.cq.CQ, context, depth + 1)
        try:
            attr = qp.QPInitAttr(
                qp_type=QPT_RC,
                scq=self._cq,
                rcq=self._cq,
                cap=qp.QPCap(max_send_wr=depth, max_recv_wr=1, max_send_sge=max_send_sge, max_recv_sge=1),
                sq_sig_all=0,
            )
            self._qp = call(modules, qp.QP, pd, attr)
        except BaseException:
            self._cq.close()
            raise
        self.qpn = int(self._qp.qp_num)
        self._depth = depth
        self._kept: dict[int, tuple[tuple[Any, ...], Any]] = {}
        """Slot -> (opcode and SGEs, SendWR)."""

    def post(self, requests: Sequence[Posted]) -> None:
        """ibv_post_send, one by one: chaining through next_wr keeps raw pointers that cannot be unset again."""
        for request in requests:
            slot = request.wr_id % self._depth
            shape = (request.opcode, *request.sges)
            kept = self._kept.get(slot)
            if kept is not None and kept[0] == shape:
                work = kept[1]
            else:
                work = self.build_work(request)
                self._kept[slot] = (shape, work)
                if kept is not None:
                    # Exactly once: a second close frees the list again and aborts the process (v44 to v64).
                    kept[1].close()
            work.wr_id = request.wr_id
            work.send_flags = SIGNALED if request.signaled else 0
            work.set_wr_rdma(request.rkey, request.remote_addr)
            call(self._modules, self._qp.post_send, work)

    def poll(self, most: int) -> list[PolledCompletion]:
        """ibv_poll_cq."""
        _, found = call(self._modules, self._cq.poll, most)
        return [PolledCompletion(one.wr_id, int(one.status), one.vendor_err if one.status else 0) for one in found]

    def close(self) -> None:
        """Destroy, and free each kept work request once."""
        kept, self._kept = self._kept, {}
        for _, work in kept.values():
            work.close()
        super().close()
