"""The binding of the PyPI wheel `ibverbs` (rdma4py): any Python, loads libibverbs.so.1 at import, releases the GIL.

Its SGE objects cannot be rewritten and are ordinary Python objects; its SendWR can, so one is kept for each slot. What
it does not tell: max_sge_rd (taken as max_sge), the port's GRH-required flag, and it has no ODP query. It has no
ibv_alloc_dm either: `dm` needs pyverbs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from p2prw.engine.providers.verbs_binding import (
    MTU_BYTES,
    MTU_ENUM,
    QPT_RC,
    SIGNALED,
    UNSIGNALLED,
    BindingError,
    BoundContext,
    BoundDm,
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

# enum ibv_qp_state, ibv_qp_attr_mask
_INIT, _RTR, _RTS = 1, 2, 3
_STATE, _ACCESS, _PKEY, _PORT, _AV, _MTU, _TIMEOUT = 1 << 0, 1 << 3, 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 9
_RETRY, _RNR, _RQ_PSN, _RD_ATOMIC, _MIN_RNR, _SQ_PSN = 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 15, 1 << 16
_DEST_RD_ATOMIC, _DEST_QPN = 1 << 17, 1 << 20


def open_binding() -> VerbsBinding:
    """Import the wheel; ImportError where libibverbs.so.1 is missing."""
    import ibverbs

    return IbverbsBinding(ibverbs)


def _call(verb: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return verb(*args, **kwargs)
    except OSError as error:
        # VerbsError is one; so is what dlsym complains with.
        raise BindingError(str(error), error.errno or 0) from error
    except (RuntimeError, NotImplementedError) as error:
        raise BindingError(str(error)) from error


class IbverbsBinding:
    """See `verbs_binding.VerbsBinding`."""

    name = "ibverbs"

    def __init__(self, module: Any) -> None:
        self._module = module
        self.version: str | None = getattr(module, "__version__", None)

    def device_names(self) -> tuple[str, ...]:
        """ibv_get_device_list."""
        return tuple(_text(one.name) for one in _call(self._module.get_device_list))

    def open(self, name: str) -> BoundContext:
        """ibv_open_device and ibv_alloc_pd."""
        for device in _call(self._module.get_device_list):
            if _text(device.name) == name:
                return IbverbsContext(self._module, _call(device.open))
        raise BindingError(f"no verbs device {name}", 19)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


class IbverbsContext:
    """See `verbs_binding.BoundContext`."""

    def __init__(self, module: Any, context: Any) -> None:
        self._module = module
        self._context: Any = context
        try:
            self._pd: Any = _call(context.alloc_pd)
        except BaseException:
            context.close()
            raise
        self._closed = False

    def query_device(self) -> HcaFacts:
        """ibv_query_device."""
        attr = _call(self._context.query_device)
        return HcaFacts(
            max_sge=attr.max_sge,
            max_sge_rd=getattr(attr, "max_sge_rd", attr.max_sge),
            max_qp_wr=attr.max_qp_wr,
            max_qp_rd_atom=attr.max_qp_rd_atom,
            max_qp_init_rd_atom=getattr(attr, "max_qp_init_rd_atom", attr.max_qp_rd_atom),
            max_cqe=attr.max_cqe,
        )

    def query_port(self, port: int) -> PortFacts:
        """ibv_query_port."""
        attr = _call(self._context.query_port, port)
        return PortFacts(MTU_BYTES.get(int(attr.active_mtu), 1024), attr.max_msg_sz, attr.lid)

    def register(self, address: int, length_bytes: int, access: int) -> HeldRegion:
        """ibv_reg_mr."""
        region = _call(self._pd.reg_mr, address, length_bytes, access)
        return HeldRegion(region, address, length_bytes, _call)

    def register_dmabuf(self, fd: int, offset: int, length_bytes: int, access: int) -> HeldRegion:
        """ibv_reg_dmabuf_mr with iova = offset, as pyverbs does it."""
        region = _call(self._pd.reg_dmabuf_mr, offset, length_bytes, offset, fd, access)
        return HeldRegion(region, offset, length_bytes, _call)

    def allocate_dm(self, length_bytes: int) -> BoundDm:
        """The wheel has no ibv_alloc_dm."""
        raise BindingError("the ibverbs wheel has no device memory: --verbs-binding pyverbs")

    def create_queue_pair(self, depth: int, max_send_sge: int) -> BoundQueuePair:
        """ibv_create_cq and ibv_create_qp."""
        return IbverbsQueuePair(self._module, self._context, self._pd, depth, max_send_sge)

    def close(self) -> None:
        """Dealloc the PD, close the device."""
        if self._closed:
            return
        self._closed = True
        try:
            _call(self._pd.close)
        finally:
            _call(self._context.close)


class IbverbsQueuePair:
    """See `verbs_binding.BoundQueuePair`."""

    def __init__(self, module: Any, context: Any, pd: Any, depth: int, max_send_sge: int) -> None:
        self._module = module
        self._depth = depth
        self._cq: Any = _call(context.create_cq, depth + 1)
        try:
            attr = module.QPInitAttr(
                self._cq,
                self._cq,
                qp_type=QPT_RC,
                max_send_wr=depth,
                max_recv_wr=1,
                max_send_sge=max_send_sge,
                max_recv_sge=1,
                sq_sig_all=False,
            )
            self._qp: Any = _call(pd.create_qp, attr)
        except BaseException:
            self._cq.close()
            raise
        self.qpn = int(self._qp.qp_num)
        self._slots = [module.SendWR() for _ in range(depth)]

    def to_init(self, port: int, pkey_index: int, access: int) -> None:
        """RESET to INIT."""
        self._modify(
            _STATE | _PKEY | _PORT | _ACCESS,
            qp_state=_INIT,
            pkey_index=pkey_index,
            port_num=port,
            qp_access_flags=access,
        )

    def to_rtr(self, path: PathFacts) -> None:
        """INIT to RTR."""
        address = self._module.AHAttr(
            dgid=bytes.fromhex(path.dgid),
            sgid_index=path.sgid_index,
            dlid=path.dlid,
            is_global=int(path.is_global),
            port_num=path.port,
            hop_limit=path.hop_limit,
            traffic_class=path.traffic_class,
            sl=path.service_level,
        )
        self._modify(
            _STATE | _AV | _MTU | _DEST_QPN | _RQ_PSN | _DEST_RD_ATOMIC | _MIN_RNR,
            ah_attr=address,
            qp_state=_RTR,
            path_mtu=MTU_ENUM[path.path_mtu_bytes],
            dest_qp_num=path.dest_qpn,
            rq_psn=path.rq_psn,
            max_dest_rd_atomic=path.max_dest_rd_atomic,
            min_rnr_timer=path.min_rnr_timer,
        )

    def to_rts(self, send: SendFacts) -> None:
        """RTR to RTS."""
        self._modify(
            _STATE | _TIMEOUT | _RETRY | _RNR | _SQ_PSN | _RD_ATOMIC,
            qp_state=_RTS,
            timeout=send.timeout,
            retry_cnt=send.retry_cnt,
            rnr_retry=send.rnr_retry,
            sq_psn=send.sq_psn,
            max_rd_atomic=send.max_rd_atomic,
        )

    def _modify(self, mask: int, **fields: Any) -> None:
        _call(self._qp.modify, mask, **fields)

    def post(self, requests: Sequence[Posted]) -> None:
        """ibv_post_send of the whole chain."""
        sge = self._module.SGE
        chain = []
        for wr_id, opcode, sges, remote_addr, rkey, signaled in requests:
            work = self._slots[wr_id % self._depth]
            work.wr_id = wr_id
            work.opcode = int(opcode)
            work.send_flags = SIGNALED if signaled else 0
            work.remote_addr = remote_addr
            work.rkey = rkey
            work.sg_list = [sge(address, length_bytes, lkey) for address, length_bytes, lkey in sges]
            chain.append(work)
        _call(self._qp.post_send, chain)

    def build_chain(self, request: Posted, length: int, signal_every: int) -> IbverbsChain:
        """A list of work requests; the wheel links them anew at each post."""
        return IbverbsChain(self._module, self._qp, request, length, signal_every)

    def poll(self, most: int) -> list[PolledCompletion]:
        """ibv_poll_cq."""
        return [
            PolledCompletion(one.wr_id, int(one.status), one.vendor_err if one.status else 0)
            for one in _call(self._cq.poll, most)
        ]

    def close(self) -> None:
        """Destroy the queue pair, then its completion queue."""
        pair, self._qp = self._qp, None
        queue, self._cq = self._cq, None
        try:
            if pair is not None:
                _call(pair.close)
        finally:
            if queue is not None:
                _call(queue.close)


class IbverbsChain:
    """See `verbs_binding.BoundChain`."""

    def __init__(self, module: Any, pair: Any, request: Posted, length: int, signal_every: int) -> None:
        sges = [module.SGE(address, length_bytes, lkey) for address, length_bytes, lkey in request.sges]
        self._qp: Any = pair
        self._signal_every = signal_every
        self._works = [
            module.SendWR(
                wr_id=UNSIGNALLED + following % signal_every,
                sg_list=sges,
                opcode=int(request.opcode),
                send_flags=0 if following % signal_every else SIGNALED,
                remote_addr=request.remote_addr,
                rkey=request.rkey,
            )
            for following in range(length - 1, -1, -1)
        ]

    def post(self, count: int, wr_ids: Sequence[int]) -> None:
        """ibv_post_send of the whole chain."""
        works = self._works
        place = len(works) - 1 - (len(wr_ids) - 1) * self._signal_every
        for wr_id in wr_ids:
            works[place].wr_id = wr_id
            place += self._signal_every
        _call(self._qp.post_send, works[-count:])

    def close(self) -> None:
        """Drop the objects."""
        self._works.clear()
