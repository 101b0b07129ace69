"""A reliable connected queue pair over a binding: bring-up, posting in chains, polling, statuses by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from p2prw.engine.model import Completion, Opcode, QueuePairAttributes, QueuePairOptions, Sge, WcStatus
from p2prw.engine.providers.base import QueuePairCounters
from p2prw.engine.providers.verbs_binding import (
    UNSIGNALLED,
    BindingError,
    BoundChain,
    BoundContext,
    PathFacts,
    Posted,
    SendFacts,
)
from p2prw.engine.providers.verbs_explain import explain_modify
from p2prw.errors import HostError, LocalProtocolError, TransferError

if TYPE_CHECKING:
    from p2prw.engine.providers.verbs import VerbsDevice

HOP_LIMIT = 64
ROCE_UDP_PORT = 4791
_KNOWN = {int(status): status for status in WcStatus}


class VerbsQueuePair:
    """See `p2prw.engine.providers.base.QueuePair`. Posts are gathered and leave as one chain with `flush`."""

    def __init__(
        self, device: VerbsDevice, context: BoundContext, options: QueuePairOptions, access: int, psn: int
    ) -> None:
        """Create and go to INIT. HostError where limits are exceeded or the port refuses."""
        info = device.info
        limits = info.limits
        row = next((one for one in info.gids if options.gid_index in (None, one.index)), None)
        if row is None:
            raise HostError(
                f"{info.name} has no usable GID" + (f" {options.gid_index}" if options.gid_index is not None else ""),
                why="a RoCE port has one for each address of its netdev",
                fix=f"ip address add 192.0.2.1/24 dev {info.netdev or 'NETDEV'}; p2prw devices",
                code="no_gid",
            )
        self.depth = min(options.depth, limits.max_qp_wr)
        mtu_bytes = min(options.mtu_bytes or info.active_mtu_bytes, info.active_mtu_bytes)
        self._device = device
        self._options = options
        self._gid = row
        self._access = access
        self._max_sges = max(1, min(options.max_send_sge, limits.max_sge))
        self.counters = QueuePairCounters()
        self._batch: list[Posted] = []
        self._posted: deque[tuple[int, int, Opcode, int]] = deque()
        """What has not completed, oldest first: (id of the last, how many, opcode, bytes of each)."""
        self.outstanding = 0
        """Work requests that have not completed."""
        self._chains: list[VerbsChain] = []
        try:
            self._bound = context.create_queue_pair(self.depth, self._max_sges)
        except BindingError as error:
            raise HostError(
                f"{info.name} cannot make a queue pair of depth {self.depth}, {self._max_sges} SGEs: {error.reason}",
                why=f"the device holds {limits.max_qp_wr} WQEs and {limits.max_sge} SGEs, less in combination",
                fix="--tx-depth 32, --max-send-sge 1; ulimit -l unlimited",
                code="cannot_create_queue_pair",
                errno=error.errno_name,
            ) from error
        self._closed = False
        try:
            self._modify("INIT", lambda: self._bound.to_init(device.port, options.pkey_index, access), mtu_bytes)
        except BaseException:
            self._bound.close()
            raise
        self.local = QueuePairAttributes(
            qpn=self._bound.qpn,
            psn=psn,
            gid=row.gid,
            mtu_bytes=mtu_bytes,
            max_rd_atomic=min(options.max_rd_atomic, limits.max_rd_atomic),
            max_dest_rd_atomic=min(options.max_rd_atomic, limits.max_dest_rd_atomic),
            udp_port=ROCE_UDP_PORT,
            lid=device.lid,
        )

    def __repr__(self) -> str:
        return f"<VerbsQueuePair {self.local.qpn:#x} outstanding={self.outstanding} of {self.depth}>"

    # --- bring-up

    def connect(self, remote: QueuePairAttributes) -> None:
        """Go to RTR and RTS. HostError names the attribute that is most likely wrong."""
        options, local, device = self._options, self.local, self._device
        ethernet = device.info.link_layer == "Ethernet"
        if ethernet and remote.udp_port != ROCE_UDP_PORT:
            raise HostError(
                f"the peer is on UDP port {remote.udp_port}, {device.info.name} sends to 4791 only",
                why="a NIC and the kernel's rxe know one RoCE port; the peer's software device found it taken",
                fix="free UDP port 4791 at the peer (ss -lunp), or --device soft:NETDEV here",
                code="udp_port",
            )
        mtu_bytes = min(local.mtu_bytes, remote.mtu_bytes)
        path = PathFacts(
            port=device.port,
            dest_qpn=remote.qpn,
            rq_psn=remote.psn,
            path_mtu_bytes=mtu_bytes,
            max_dest_rd_atomic=min(local.max_dest_rd_atomic, max(1, remote.max_rd_atomic)),
            min_rnr_timer=options.min_rnr_timer,
            dgid=remote.gid,
            sgid_index=self._gid.index,
            # RoCE has no other header; InfiniBand needs it beyond its own subnet, or where the port asks for it.
            is_global=ethernet or device.grh_required or not remote.lid or remote.gid[:16] != local.gid[:16],
            dlid=0 if ethernet else remote.lid,
            service_level=options.service_level,
            traffic_class=options.traffic_class,
            hop_limit=HOP_LIMIT,
        )
        send = SendFacts(
            sq_psn=local.psn,
            timeout=options.timeout,
            retry_cnt=options.retry_cnt,
            rnr_retry=options.rnr_retry,
            max_rd_atomic=min(local.max_rd_atomic, max(1, remote.max_dest_rd_atomic)),
        )
        self._modify("RTR", lambda: self._bound.to_rtr(path), mtu_bytes)
        self._modify("RTS", lambda: self._bound.to_rts(send), mtu_bytes)

    def _modify(self, step: str, modify: Callable[[], None], mtu_bytes: int) -> None:
        try:
            modify()
        except BindingError as error:
            why, fix = explain_modify(step, error.errno_name, mtu_bytes, self._gid.index)
            raise HostError(
                f"{self._device.info.name}: the queue pair did not reach {step}: {error.reason}",
                why=why,
                fix=fix,
                code="queue_pair",
                errno=error.errno_name,
            ) from error

    # --- moving

    def post_rdma(
        self, wr_id: int, opcode: Opcode, sges: Sequence[Sge], remote_addr: int, rkey: int, *, signaled: bool
    ) -> None:
        """Add one WR to the chain that the next `flush` posts."""
        if self.outstanding >= self.depth:
            raise LocalProtocolError(f"more than {self.depth} work requests outstanding")
        if len(sges) > self._max_sges:
            raise LocalProtocolError(f"{len(sges)} SGEs in a work request, the queue pair has {self._max_sges}")
        self._batch.append(Posted(wr_id, opcode, sges, remote_addr, rkey, signaled))
        length_bytes = sges[0].length_bytes if len(sges) == 1 else sum(sge.length_bytes for sge in sges)
        self._posted.append((wr_id, 1, opcode, length_bytes))
        self.outstanding += 1

    def flush(self) -> None:
        """Post the chain. TransferError with errno where the send queue takes no more."""
        if not self._batch or self._closed:
            return
        batch, self._batch = self._batch, []
        try:
            self._bound.post(batch)
        except BindingError as error:
            raise self._post_error(len(batch), error) from error

    def _post_error(self, count: int, error: BindingError) -> TransferError:
        return TransferError(
            f"{self._device.info.name} did not take {count} work requests: {error.reason}",
            why="the send queue is full or the queue pair is in error",
            fix="--tx-depth 32; dmesg | tail",
            code="post_failed",
            errno=error.errno_name,
        )

    def build_chain(
        self, opcode: Opcode, sges: Sequence[Sge], remote_addr: int, rkey: int, *, length: int, signal_every: int
    ) -> VerbsChain:
        """See `p2prw.engine.providers.base.ChainingQueuePair`."""
        if len(sges) > self._max_sges:
            raise LocalProtocolError(f"{len(sges)} SGEs in a work request, the queue pair has {self._max_sges}")
        bound = self._bound.build_chain(Posted(0, opcode, sges, remote_addr, rkey, False), length, signal_every)
        chain = VerbsChain(self, bound, opcode, sum(sge.length_bytes for sge in sges), signal_every)
        self._chains.append(chain)
        return chain

    def post_chain(
        self, bound: BoundChain, opcode: Opcode, length_bytes: int, signal_every: int, wr_id: int, count: int
    ) -> None:
        """Post `count` of a chain, after what was gathered before; for `VerbsChain`."""
        if self.outstanding + count > self.depth:
            raise LocalProtocolError(f"more than {self.depth} work requests outstanding")
        if self._closed:
            return
        self.flush()
        first = (count - 1) % signal_every + 1
        wr_ids = range(wr_id + first - 1, wr_id + count, signal_every)
        try:
            bound.post(count, wr_ids)
        except BindingError as error:
            raise self._post_error(count, error) from error
        self.outstanding += count
        for signalled in wr_ids:
            self._posted.append((signalled, first, opcode, length_bytes))
            first = signal_every

    def forget_chain(self, chain: VerbsChain) -> None:
        """Drop a chain that closed itself."""
        self._chains.remove(chain)

    def set_window(self, window_bytes: int) -> None:
        """Nothing: hardware and the kernel pace themselves."""

    def poll(self, max_completions: int = 64) -> list[Completion]:
        """Return completions, oldest first. TransferError where the port was lost or the queue cannot be polled."""
        self.flush()
        try:
            found = self._bound.poll(max_completions)
        except BindingError as error:
            raise TransferError(
                f"the completion queue of {self._device.info.name} failed: {error.reason}",
                why="it overran, or the device is gone",
                fix="dmesg | tail",
                code="poll_failed",
                errno=error.errno_name,
            ) from error
        if not found:
            if self._posted:
                self._device.check()
            return []
        self._device.completed()
        return [self._completion(*one) for one in found]

    def _completion(self, wr_id: int, status: int, vendor_err: int) -> Completion:
        opcode, length_bytes = Opcode.RDMA_WRITE, 0
        posted = self._posted
        if wr_id >= UNSIGNALLED:
            # One of a chain failed. Completions come in order, so it is of the oldest run that is long enough.
            following = wr_id - UNSIGNALLED
            wr_id = next((last for last, count, _, _ in posted if count > following), following) - following
        # An entry retires every older one: those were not signalled.
        while posted and posted[0][0] <= wr_id:
            _, count, opcode, length_bytes = posted.popleft()
            self.outstanding -= count
        if posted and posted[0][0] - posted[0][1] < wr_id:
            # Only where one failed before the end of its run; what follows comes as flushed.
            last, count, opcode, length_bytes = posted[0]
            posted[0] = (last, last - wr_id, opcode, length_bytes)
            self.outstanding -= count - (last - wr_id)
        return Completion(
            wr_id,
            _KNOWN.get(status, WcStatus.GENERAL_ERR),
            opcode,
            length_bytes if status == 0 else 0,
            self.local.qpn,
            vendor_err=vendor_err,
        )

    def close(self) -> None:
        """Destroy; what is outstanding is dropped. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._batch.clear()
        self._posted.clear()
        self.outstanding = 0
        for chain in list(self._chains):
            chain.close()
        try:
            self._bound.close()
        except BindingError:
            # A device that is gone takes its queue pairs with it.
            pass
        self._device.forget(self)


class VerbsChain:
    """See `p2prw.engine.providers.base.Chain`."""

    def __init__(
        self, pair: VerbsQueuePair, bound: BoundChain, opcode: Opcode, length_bytes: int, signal_every: int
    ) -> None:
        self._pair = pair
        self._bound = bound
        self._opcode = opcode
        self._length_bytes = length_bytes
        self._signal_every = signal_every
        self._closed = False

    def post(self, wr_id: int, count: int) -> None:
        """Post the last `count` of it."""
        self._pair.post_chain(self._bound, self._opcode, self._length_bytes, self._signal_every, wr_id, count)

    def close(self) -> None:
        """Free the work requests. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._bound.close()
            self._pair.forget_chain(self)
