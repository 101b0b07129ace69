"""What this package needs of a verbs binding, in a few small protocols, and which binding is taken.

Two implementations stand behind it: `verbs_pyverbs` (rdma-core's own, works only with the distribution's Python and
the same rdma-core version) and `verbs_ibverbs` (the PyPI wheel `ibverbs`, any Python, needs just libibverbs.so.1).
All numbers are libibverbs' own ABI (infiniband/verbs.h), so that neither binding's enum modules are touched: pyverbs
moved and reshaped them between versions 44 and 64.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from p2prw.engine.model import VERBS_BINDINGS, Opcode, Sge
from p2prw.errors import HostError, RequestError, errno_name

# enum ibv_access_flags
LOCAL_WRITE = 1
REMOTE_WRITE = 2
REMOTE_READ = 4
ZERO_BASED = 32
ON_DEMAND = 64
# enum ibv_send_flags
SIGNALED = 2
# enum ibv_qp_type
QPT_RC = 2
# enum ibv_mtu
MTU_BYTES = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
MTU_ENUM = {size: number for number, size in MTU_BYTES.items()}


class BindingError(Exception):
    """A verb failed. `number` is the kernel's errno, 0 where the binding lost it (pyverbs reads it late)."""

    def __init__(self, what: str, number: int = 0) -> None:
        super().__init__(what)
        self.what = what
        self.number = max(0, number)

    @property
    def errno_name(self) -> str | None:
        """`EFAULT` and friends; None where unknown."""
        return errno_name(self.number) if self.number else None

    @property
    def reason(self) -> str:
        """The kernel's words where there is a number, else the binding's."""
        return f"{os.strerror(self.number)} ({self.errno_name})" if self.number else self.what


@dataclass(frozen=True, slots=True)
class PortFacts:
    """`struct ibv_port_attr`, what is used of it."""

    active_mtu_bytes: int
    max_msg_bytes: int
    lid: int
    grh_required: bool = False
    """IBV_QPF_GRH_REQUIRED: an InfiniBand port that wants a global route header always."""


@dataclass(frozen=True, slots=True)
class HcaFacts:
    """`struct ibv_device_attr`, what is used of it."""

    max_sge: int
    max_sge_rd: int
    max_qp_wr: int
    max_qp_rd_atom: int
    max_qp_init_rd_atom: int
    max_cqe: int
    max_dm_bytes: int = 0
    """`max_dm_size` of `struct ibv_device_attr_ex`; 0 too where the binding cannot ask or allocate."""


@dataclass(frozen=True, slots=True)
class PathFacts:
    """INIT to RTR: where the peer is and how it is reached (`struct ibv_qp_attr`)."""

    port: int
    dest_qpn: int
    rq_psn: int
    path_mtu_bytes: int
    max_dest_rd_atomic: int
    min_rnr_timer: int
    dgid: str
    """32 hex digits."""
    sgid_index: int
    is_global: bool
    dlid: int
    service_level: int
    traffic_class: int
    hop_limit: int


@dataclass(frozen=True, slots=True)
class SendFacts:
    """RTR to RTS."""

    sq_psn: int
    timeout: int
    retry_cnt: int
    rnr_retry: int
    max_rd_atomic: int


class Posted(NamedTuple):
    """One work request on its way to the send queue."""

    wr_id: int
    opcode: Opcode
    sges: Sequence[Sge]
    remote_addr: int
    rkey: int
    signaled: bool


UNSIGNALLED = 1 << 63
"""Id of an unsignalled work request of a chain, plus how many follow it up to the signalled one; seen if it fails."""


class PolledCompletion(NamedTuple):
    """One entry of the completion queue."""

    wr_id: int
    status: int
    vendor_err: int


class BoundRegion(Protocol):
    """A memory region."""

    lkey: int
    rkey: int
    address: int
    """What SGEs and peers count from: the virtual address, or the offset in a dma-buf."""
    length_bytes: int

    def close(self) -> None:
        """Deregister. Safe to call twice."""


class BoundDm(Protocol):
    """Device memory."""

    def register(self, offset: int, length_bytes: int, access: int) -> BoundRegion:
        """ibv_reg_dm_mr with ZERO_BASED (EINVAL without): SGEs and peers count from 0, not from an address."""

    def close(self) -> None:
        """ibv_free_dm, after its regions. Safe to call twice."""


class BoundChain(Protocol):
    """One work request, linked to itself `length` times; every `signal_every`-th is signalled, counted from the end."""

    def post(self, count: int, wr_ids: Sequence[int]) -> None:
        """Post the last `count` of them with one doorbell; `wr_ids` are for the signalled ones, oldest first.

        Nothing is touched for the others: their ids are `UNSIGNALLED` + how many follow up to the signalled one.
        """

    def close(self) -> None:
        """Free it; verbs copied what was posted. Safe to call twice."""


class BoundQueuePair(Protocol):
    """A reliable connected queue pair with a completion queue of its own."""

    qpn: int

    def to_init(self, port: int, pkey_index: int, access: int) -> None:
        """RESET to INIT."""

    def to_rtr(self, path: PathFacts) -> None:
        """INIT to RTR."""

    def to_rts(self, send: SendFacts) -> None:
        """RTR to RTS."""

    def post(self, requests: Sequence[Posted]) -> None:
        """Post a chain with one doorbell where the binding can."""

    def build_chain(self, request: Posted, length: int, signal_every: int) -> BoundChain:
        """Build `request` `length` times over; its id and `signaled` mean nothing."""

    def poll(self, most: int) -> list[PolledCompletion]:
        """Return up to `most` completions, never blocking."""

    def close(self) -> None:
        """Destroy queue pair and completion queue, in this order. Safe to call twice."""


class BoundContext(Protocol):
    """An opened device with one protection domain."""

    def query_device(self) -> HcaFacts:
        """ibv_query_device."""

    def query_port(self, port: int) -> PortFacts:
        """ibv_query_port."""

    def register(self, address: int, length_bytes: int, access: int) -> BoundRegion:
        """ibv_reg_mr; holds the GIL in pyverbs, so callers go in slices."""

    def register_dmabuf(self, fd: int, offset: int, length_bytes: int, access: int) -> BoundRegion:
        """ibv_reg_dmabuf_mr with iova = offset. The MR keeps its own reference to the dma-buf."""

    def allocate_dm(self, length_bytes: int) -> BoundDm:
        """ibv_alloc_dm. BindingError where device or binding has none."""

    def create_queue_pair(self, depth: int, max_send_sge: int) -> BoundQueuePair:
        """ibv_create_cq and ibv_create_qp, RC, not every WR signalled; still in RESET."""

    def close(self) -> None:
        """Dealloc the protection domain and close the device. Safe to call twice."""


class VerbsBinding(Protocol):
    """A binding that imports."""

    name: str
    version: str | None

    def device_names(self) -> tuple[str, ...]:
        """ibv_get_device_list; BindingError where ib_uverbs is not loaded."""

    def open(self, name: str) -> BoundContext:
        """ibv_open_device and ibv_alloc_pd."""


# --- which one ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Unfit:
    name: str
    missing: bool
    why: str


_INSTALL = {
    "pyverbs": "apt install python3-pyverbs (and a venv of /usr/bin/python3 with --system-site-packages)",
    "ibverbs": "pip install 'p2prw[ibverbs]'",
}
_REPAIR = {
    "pyverbs": "PyPI's pyverbs N works with rdma-core N only: pip uninstall pyverbs; apt install python3-pyverbs; "
    "or --verbs-binding ibverbs",
    "ibverbs": "apt install libibverbs1 ibverbs-providers",
}


def load_binding(wanted: str = "auto", importer: Callable[[str], object] | None = None) -> VerbsBinding:
    """Import a binding, the first that works for `auto`; the import is the test, because a half-fit one raises there.

    Errors: HostError `no_binding` (nothing installed) and `binding_unusable` (installed, and why it cannot be used).
    """
    if wanted != "auto" and wanted not in VERBS_BINDINGS:
        raise RequestError(
            f"--verbs-binding {wanted}: there is no such binding",
            why=f"it is auto or one of {', '.join(VERBS_BINDINGS)}",
            fix="--verbs-binding auto",
            code="bad_binding",
        )
    unfit: list[_Unfit] = []
    for name in VERBS_BINDINGS if wanted == "auto" else (wanted,):
        tried = _try(name, importer or import_module)
        if not isinstance(tried, _Unfit):
            return tried
        unfit.append(tried)
    installed = [one for one in unfit if not one.missing]
    if installed:
        raise HostError(
            f"the verbs binding {installed[0].name} is installed but unusable",
            why="; ".join(f"{one.name}: {one.why}" for one in unfit),
            fix=_REPAIR[installed[0].name],
            code="binding_unusable",
        )
    raise HostError(
        "no verbs binding is installed" if wanted == "auto" else f"the verbs binding {wanted} is not installed",
        why="; ".join(one.why for one in unfit),
        fix="  or  ".join(_INSTALL[one.name] for one in unfit),
        code="no_binding",
    )


def _try(name: str, importer: Callable[[str], object]) -> VerbsBinding | _Unfit:
    try:
        module = importer(f"p2prw.engine.providers.verbs_{name}")
        return cast("Callable[[], VerbsBinding]", module.open_binding)()  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == name:
            top = "." not in error.name
            return _Unfit(name, missing=top, why=f"no Python module {error.name}")
        return _Unfit(name, missing=False, why=str(error))
    except Exception as error:
        # ImportError for a libibverbs of another version; a second try in the same process even gives KeyError.
        return _Unfit(name, missing=False, why=f"{type(error).__name__}: {error}")


def no_device_error(what: str, why: str) -> HostError:
    """Return the third of the three: the binding is fine, and there is nothing to open."""
    return HostError(
        what,
        why=why,
        fix="p2prw devices; modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0 (software RoCE); --device soft0",
        code="no_device",
    )
