"""A verbs binding without a device: queue pairs in this process copy real memory, and a script says what goes wrong.

It stands in for pyverbs and the wheel where there is no RDMA: everything above the binding (devices, bring-up, the
route ladder, whole transfers) runs over it unchanged. `write_sysfs` makes the tree that a device of that kind has.
"""

from __future__ import annotations

import ctypes
import errno
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from p2prw.engine.model import Opcode, WcStatus
from p2prw.engine.providers.verbs_binding import (
    LOCAL_WRITE,
    ON_DEMAND,
    REMOTE_READ,
    REMOTE_WRITE,
    UNSIGNALLED,
    BindingError,
    HcaFacts,
    PathFacts,
    PolledCompletion,
    PortFacts,
    Posted,
    SendFacts,
)


@dataclass(slots=True)
class VerbsScript:
    """What goes wrong, and what was done."""

    pin_errno: int = 0
    """Plain registrations of addresses in `special` fail with this errno."""
    odp_errno: int = 0
    dmabuf_errno: int = errno.EOPNOTSUPP
    dm_errno: int = 0
    """Allocations of device memory, of which `hca.max_dm_bytes` says how much there is, fail with this errno."""
    special: list[range] = field(default_factory=list)
    """Address ranges that stand for device memory."""
    odp_fails_in_use: bool = False
    """ODP registrations of special memory succeed, and their use completes with LOC_PROT_ERR."""
    odp_ignores_offsets: bool = False
    """ODP memory is reached from the start of the page, as rxe does it."""
    modify_errno: dict[str, int] = field(default_factory=dict)
    """`INIT`, `RTR`, `RTS` -> errno."""
    loopback: bool = True
    """False: a queue pair that is connected to itself completes with RETRY_EXC_ERR."""
    post_errno: int = 0
    regions_open: int = 0
    queue_pairs_open: int = 0
    contexts_open: int = 0
    dms_open: int = 0
    chains: list[int] = field(default_factory=list)
    """Length of each posted chain."""


class ScriptedBinding:
    """See `verbs_binding.VerbsBinding`. Contexts of one binding reach each other."""

    name = "scripted"
    version: str | None = None

    def __init__(
        self, script: VerbsScript | None = None, names: Sequence[str] = ("rxe0",), *, hca: HcaFacts | None = None
    ) -> None:
        self.script = script or VerbsScript()
        self.names = tuple(names)
        self.hca = hca or HcaFacts(
            max_sge=32, max_sge_rd=32, max_qp_wr=16384, max_qp_rd_atom=128, max_qp_init_rd_atom=128, max_cqe=32767
        )
        self.port = PortFacts(active_mtu_bytes=4096, max_msg_bytes=1 << 23, lid=0)
        self.pairs: dict[int, ScriptedPair] = {}
        self.regions: dict[int, ScriptedRegion] = {}
        self.dmabufs: dict[int, int] = {}
        """Descriptor -> address of the bytes behind it; importing another one gives a region without memory."""
        self.numbers = count(17)

    def device_names(self) -> tuple[str, ...]:
        """The script's names."""
        return self.names

    def open(self, name: str) -> ScriptedContext:
        """Open one of the names."""
        if name not in self.names:
            raise BindingError(f"no device {name}", errno.ENODEV)
        self.script.contexts_open += 1
        return ScriptedContext(self)


class ScriptedContext:
    """See `verbs_binding.BoundContext`."""

    def __init__(self, binding: ScriptedBinding) -> None:
        self._binding = binding
        self._open = True

    def query_device(self) -> HcaFacts:
        """Return the script's limits."""
        return self._binding.hca

    def query_port(self, port: int) -> PortFacts:
        """Return the script's port."""
        return self._binding.port

    def register(self, address: int, length_bytes: int, access: int) -> ScriptedRegion:
        """Remember the range, or fail as the script says."""
        script = self._binding.script
        if access & REMOTE_WRITE and not access & LOCAL_WRITE:
            raise BindingError("remote write without local write", errno.EINVAL)
        special = any(address in one for one in script.special)
        number = script.odp_errno if access & ON_DEMAND else script.pin_errno if special else 0
        if number:
            raise BindingError("register", number)
        broken = special and bool(access & ON_DEMAND) and script.odp_fails_in_use
        return ScriptedRegion(self._binding, address, address, length_bytes, access, broken)

    def register_dmabuf(self, fd: int, offset: int, length_bytes: int, access: int) -> ScriptedRegion:
        """Fail, or give a region that has an address range and no memory behind it."""
        if self._binding.script.dmabuf_errno:
            raise BindingError("dmabuf", self._binding.script.dmabuf_errno)
        memory = self._binding.dmabufs.get(fd)
        return ScriptedRegion(
            self._binding, offset, None if memory is None else memory + offset, length_bytes, access, False
        )

    def allocate_dm(self, length_bytes: int) -> ScriptedDm:
        """Give host bytes that only queue pairs reach."""
        number = self._binding.script.dm_errno
        if number or length_bytes > self._binding.hca.max_dm_bytes:
            raise BindingError("alloc_dm", number or errno.ENOMEM)
        return ScriptedDm(self._binding, length_bytes)

    def create_queue_pair(self, depth: int, max_send_sge: int) -> ScriptedPair:
        """Make a queue pair in RESET."""
        if depth > self._binding.hca.max_qp_wr:
            raise BindingError("create", errno.EINVAL)
        return ScriptedPair(self._binding, depth)

    def close(self) -> None:
        """Count it."""
        if self._open:
            self._open = False
            self._binding.script.contexts_open -= 1


class ScriptedRegion:
    """See `verbs_binding.BoundRegion`."""

    def __init__(
        self, binding: ScriptedBinding, address: int, memory: int | None, length_bytes: int, access: int, broken: bool
    ) -> None:
        self.lkey = self.rkey = next(binding.numbers)
        self.address = address
        self.memory = memory
        self.length_bytes = length_bytes
        self.access = access
        self.broken = broken
        self._binding = binding
        binding.regions[self.lkey] = self
        binding.script.regions_open += 1

    def holds(self, address: int, length_bytes: int) -> bool:
        """Tell whether the range lies inside."""
        return self.address <= address and address + length_bytes <= self.address + self.length_bytes

    def close(self) -> None:
        """Forget the key."""
        if self._binding.regions.pop(self.lkey, None) is not None:
            self._binding.script.regions_open -= 1


class ScriptedDm:
    """See `verbs_binding.BoundDm`."""

    def __init__(self, binding: ScriptedBinding, length_bytes: int) -> None:
        self._binding = binding
        self._bytes = ctypes.create_string_buffer(length_bytes)
        self._open = True
        binding.script.dms_open += 1

    def register(self, offset: int, length_bytes: int, access: int) -> ScriptedRegion:
        """Give a region whose addresses begin at 0."""
        if offset + length_bytes > len(self._bytes):
            raise BindingError("reg_dm_mr", errno.EINVAL)
        memory = ctypes.addressof(self._bytes) + offset
        return ScriptedRegion(self._binding, 0, memory, length_bytes, access, False)

    def close(self) -> None:
        """Count it."""
        if self._open:
            self._open = False
            self._binding.script.dms_open -= 1


class ScriptedPair:
    """See `verbs_binding.BoundQueuePair`. A request completes when it is posted, data and all."""

    def __init__(self, binding: ScriptedBinding, depth: int) -> None:
        self.qpn = next(binding.numbers)
        self.access = 0
        self.path: PathFacts | None = None
        self.send: SendFacts | None = None
        self._binding = binding
        self._queue: deque[PolledCompletion] = deque()
        self._failed = False
        binding.pairs[self.qpn] = self
        binding.script.queue_pairs_open += 1

    def _step(self, step: str) -> None:
        number = self._binding.script.modify_errno.get(step, 0)
        if number:
            raise BindingError(step, number)

    def to_init(self, port: int, pkey_index: int, access: int) -> None:
        """RESET to INIT."""
        self._step("INIT")
        self.access = access

    def to_rtr(self, path: PathFacts) -> None:
        """INIT to RTR."""
        self._step("RTR")
        self.path = path

    def to_rts(self, send: SendFacts) -> None:
        """RTR to RTS."""
        self._step("RTS")
        self.send = send

    def post(self, requests: Sequence[Posted]) -> None:
        """Carry each request out."""
        if self._binding.script.post_errno:
            raise BindingError("post", self._binding.script.post_errno)
        self._binding.script.chains.append(len(requests))
        for request in requests:
            status = WcStatus.WR_FLUSH_ERR if self._failed else self._carry(request)
            self._failed = self._failed or status is not WcStatus.SUCCESS
            if request.signaled or status is not WcStatus.SUCCESS:
                self._queue.append(PolledCompletion(request.wr_id, int(status), 0))

    def build_chain(self, request: Posted, length: int, signal_every: int) -> ScriptedChain:
        """Remember it."""
        return ScriptedChain(self, request, length, signal_every)

    def _carry(self, request: Posted) -> WcStatus:
        binding = self._binding
        assert self.path is not None and self.send is not None
        peer = binding.pairs.get(self.path.dest_qpn)
        if peer is None or (peer is self and not binding.script.loopback):
            return WcStatus.RETRY_EXC_ERR
        writing = request.opcode is Opcode.RDMA_WRITE
        right = REMOTE_WRITE if writing else REMOTE_READ
        far = binding.regions.get(request.rkey)
        length = sum(sge.length_bytes for sge in request.sges)
        if far is None or not far.access & peer.access & right or not far.holds(request.remote_addr, length):
            return WcStatus.REM_ACCESS_ERR
        remote = request.remote_addr
        for address, length_bytes, lkey in request.sges:
            near = binding.regions.get(lkey)
            if near is None or near.broken or not near.holds(address, length_bytes):
                return WcStatus.LOC_PROT_ERR
            if near.memory is not None and far.memory is not None:
                ours, theirs = self._reached(near, address), self._reached(far, remote)
                target, source = (theirs, ours) if writing else (ours, theirs)
                ctypes.memmove(target, source, length_bytes)
            remote += length_bytes
        return WcStatus.SUCCESS

    def _reached(self, region: ScriptedRegion, address: int) -> int:
        assert region.memory is not None
        astray = self._binding.script.odp_ignores_offsets and region.access & ON_DEMAND
        place = region.memory + address - region.address
        return place - place % 4096 if astray else place

    def poll(self, most: int) -> list[PolledCompletion]:
        """Return what has completed."""
        return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]

    def close(self) -> None:
        """Forget the queue pair."""
        if self._binding.pairs.pop(self.qpn, None) is not None:
            self._binding.script.queue_pairs_open -= 1


class ScriptedChain:
    """See `verbs_binding.BoundChain`."""

    def __init__(self, pair: ScriptedPair, request: Posted, length: int, signal_every: int) -> None:
        self._pair = pair
        self._request = request
        self._length = length
        self._signal_every = signal_every

    def post(self, count: int, wr_ids: Sequence[int]) -> None:
        """Post each, with the ids that a real chain has."""
        assert count <= self._length
        ids, chain = list(wr_ids), []
        for following in range(count - 1, -1, -1):
            after = following % self._signal_every
            wr_id = UNSIGNALLED + after if after else ids.pop(0)
            chain.append(self._request._replace(wr_id=wr_id, signaled=not after))
        self._pair.post(chain)

    def close(self) -> None:
        """Nothing to free."""


def write_sysfs(
    root: Path,
    name: str = "rxe0",
    *,
    driver: str = "rxe",
    gids: Sequence[tuple[str, str]] = (("fe80:0000:0000:0000:0000:00ff:fe00:0001", "RoCE v2"),),
    netdev: str = "dummy0",
    state: str = "4: ACTIVE",
    node_type: str = "1: CA",
    link_layer: str = "Ethernet",
    operstate: str = "unknown",
) -> None:
    """Write the sysfs files of one device with one port below `root`; software drivers get no `device` link."""
    base = root / "class/infiniband" / name
    port = base / "ports/1"
    for folder in (port / "gids", port / "gid_attrs/types", port / "gid_attrs/ndevs", port / "hw_counters"):
        folder.mkdir(parents=True, exist_ok=True)
    (base / "node_type").write_text(f"{node_type}\n")
    (port / "state").write_text(f"{state}\n")
    (port / "link_layer").write_text(f"{link_layer}\n")
    for index, (gid, kind) in enumerate(gids):
        (port / f"gids/{index}").write_text(f"{gid}\n")
        (port / f"gid_attrs/types/{index}").write_text(f"{kind}\n")
        (port / f"gid_attrs/ndevs/{index}").write_text(f"{netdev}\n")
    (root / "class/net" / netdev).mkdir(parents=True, exist_ok=True)
    (root / "class/net" / netdev / "operstate").write_text(f"{operstate}\n")
    if driver not in ("rxe", "siw"):
        function = root / "devices/pci0000:00/0000:00:02.0"
        (function / "drivers").mkdir(parents=True, exist_ok=True)
        (function / "driver").symlink_to(function / "drivers" / driver)
        (function / "drivers" / driver).mkdir()
        (function / "numa_node").write_text("0\n")
        (base / "device").symlink_to(function)
        (root / "bus/pci/devices").mkdir(parents=True, exist_ok=True)
        (root / "bus/pci/devices/0000:00:02.0").symlink_to(function)
