"""What tests in the guest are given: its devices by name, a look from outside, both ends of a wire."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.oracle import Oracle, disagreements, loses_bus_addresses
from lab.outside import OutsideGuest
from p2prw.engine.model import Opcode, QueuePairAttributes
from p2prw.engine.topology.pairs import Topology

PCI = Path("/sys/bus/pci/devices")
NETNS = Path("/run/netns/peer")
CLONE_NEWNET = 0x40000000
MTUS = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}
# infiniband/verbs.h; the names live in different pyverbs modules from version to version.
IBV_QPT_RC, IBV_SEND_SIGNALED, IBV_QP_STATE = 2, 2, 1
ALL_ACCESS = 1 | 2 | 4


@pytest.fixture(scope="session")
def nvme() -> Callable[[str], str]:
    """Serial number -> PCI address, such as 0000:03:00.0."""
    found = {}
    for controller in Path("/sys/class/nvme").iterdir():
        found[(controller / "serial").read_text().strip()] = (controller / "device").resolve().name
    return found.__getitem__


@pytest.fixture(scope="session")
def nvme_disk() -> Callable[[str], Path]:
    """Serial number -> block device."""
    found = {}
    for controller in Path("/sys/class/nvme").iterdir():
        found[(controller / "serial").read_text().strip()] = Path("/dev") / f"{controller.name}n1"
    return found.__getitem__


@pytest.fixture(scope="session")
def ivshmem() -> str:
    """PCI address of the (first) ivshmem device; its BAR 2 is the file `ivshmem-shared` on the host."""
    return min(path.name for path in PCI.iterdir() if (path / "device").read_text().strip() == "0x1110")


@pytest.fixture(scope="session")
def outside() -> OutsideGuest:
    """Look at backing files from the host's side."""
    return OutsideGuest(Path(os.environ["LAB_SHARED"]) / "outside")


@pytest.fixture(scope="session")
def in_peer() -> Callable[[], Any]:
    """`with in_peer():` sockets opened inside live in network namespace `peer`, and stay there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: Path | str) -> None:
        with open(path) as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {path}")

    @contextmanager
    def inside() -> Iterator[None]:
        with open("/proc/self/ns/net") as own:
            enter(NETNS)
            try:
                yield
            finally:
                enter(f"/proc/self/fd/{own.fileno()}")

    return inside


class VerbsEnd:
    """The least RC queue pair and memory region that pyverbs makes: the kernel's end of an interoperation test."""

    def __init__(self, device: str, gid_index: int, length_bytes: int, mtu_bytes: int) -> None:
        modules = {name: importlib.import_module(f"pyverbs.{name}") for name in ("device", "pd", "cq", "qp", "mr")}
        modules |= {name: importlib.import_module(f"pyverbs.{name}") for name in ("addr", "wr")}
        self._m = modules
        self.gid_index, self.mtu_bytes = gid_index, mtu_bytes
        self.context = modules["device"].Context(name=device)
        self.pd = modules["pd"].PD(self.context)
        self.cq = modules["cq"].CQ(self.context, 128)
        cap = modules["qp"].QPCap(max_send_wr=64, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        # sq_sig_all is 1 by default, and every WR would make a completion.
        init = modules["qp"].QPInitAttr(qp_type=IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap, sq_sig_all=0)
        self.qp = modules["qp"].QP(self.pd, init)
        self.mr = modules["mr"].MR(self.pd, length_bytes, ALL_ACCESS)

    def attributes(self) -> QueuePairAttributes:
        gid = self.context.query_gid(1, self.gid_index).gid.replace(":", "")
        return QueuePairAttributes(self.qp.qp_num, 0x123456, gid, self.mtu_bytes, 16, 16)

    def connect(self, remote: QueuePairAttributes, *, retry_cnt: int = 6) -> None:
        gid = ":".join(remote.gid[index : index + 4] for index in range(0, 32, 4))
        addr, qp = self._m["addr"], self._m["qp"]
        route = addr.GlobalRoute(dgid=addr.GID(gid), sgid_index=self.gid_index)
        attr = qp.QPAttr(port_num=1)
        attr.qp_access_flags = ALL_ACCESS
        attr.path_mtu = MTUS[min(self.mtu_bytes, remote.mtu_bytes)]
        attr.dest_qp_num, attr.rq_psn, attr.sq_psn = remote.qpn, remote.psn, 0x123456
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 16
        attr.min_rnr_timer, attr.timeout, attr.rnr_retry, attr.retry_cnt = 12, 14, 6, retry_cnt
        attr.ah_attr = addr.AHAttr(gr=route, is_global=1, port_num=1)
        self.qp.to_rts(attr)

    def post(self, wr_id: int, opcode: Opcode, offset: int, length_bytes: int, remote_addr: int, rkey: int) -> None:
        wr = self._m["wr"]
        sge = wr.SGE(self.mr.buf + offset, length_bytes, self.mr.lkey)
        send = wr.SendWR(wr_id=wr_id, opcode=int(opcode), num_sge=1, sg=[sge], send_flags=IBV_SEND_SIGNALED)
        send.set_wr_rdma(rkey, remote_addr)
        self.qp.post_send(send)
        send.close()  # once: pyverbs to v64 leaks it otherwise, and aborts at a second close

    def poll(self) -> list[tuple[int, int]]:
        """Return (wr_id, status) of what completed."""
        _, completions = self.cq.poll(16)
        return [(completion.wr_id, completion.status) for completion in completions]

    def state(self) -> int:
        """Return `enum ibv_qp_state`: 3 is RTS, 6 is ERR."""
        attributes, _ = self.qp.query(IBV_QP_STATE)
        return int(attributes.qp_state)

    def close(self) -> None:
        for thing in (self.qp, self.mr, self.cq, self.pd, self.context):
            thing.close()


@pytest.fixture
def verbs_end() -> Iterator[Callable[..., VerbsEnd]]:
    """Make ends of rxe; they are closed afterwards. `verbs_end("rxe1", gid_index=1)`."""
    made: list[VerbsEnd] = []

    def make(device: str, *, gid_index: int = 1, length_bytes: int = 1 << 21, mtu_bytes: int = 4096) -> VerbsEnd:
        made.append(VerbsEnd(device, gid_index, length_bytes, mtu_bytes))
        return made[-1]

    yield make
    for end in made:
        end.close()


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """The kernel as the judge of P2PDMA verdicts."""
    return Oracle()


@pytest.fixture(scope="session")
def topology() -> Callable[[], Topology]:
    """Read the tree anew."""
    return Topology


@pytest.fixture(scope="session")
def judge(oracle: Oracle) -> Callable[[str], tuple[list[str], dict[str, int]]]:
    """Ask about every client of one provider: (where we and the kernel differ, how many there are of each verdict)."""

    def ask(serial: str) -> tuple[list[str], dict[str, int]]:
        provider, loses, found = oracle.controllers[serial], loses_bus_addresses(), Topology()
        wrong: list[str] = []
        kinds: dict[str, int] = {}
        # Its own memory first: that gives the numbers of map types their names.
        for client in sorted(oracle.controllers.values(), key=lambda one: one != provider):
            verdict = found.pair(client.address, f"p2pmem:{provider.address}").verdict
            answer = oracle.ask(provider, client)
            differs = disagreements(verdict, answer, oracle.bus_type, loses_bus=loses)
            wrong += [f"{client.serial} -> {serial}: {text}; {answer}" for text in differs]
            kinds[verdict.kind.value] = kinds.get(verdict.kind.value, 0) + 1
        return wrong, kinds

    return ask


# Everything is imported before the rights go: nobody may not read an environment below root's home.
AS_NOBODY = """
import json, os, sys
from p2prw.engine.topology.pairs import Topology
os.setgroups([]); os.setgid(65534); os.setuid(65534)
verdict = Topology().pair(*sys.argv[1:]).verdict
print(json.dumps({"verdict": verdict.kind, "distance": verdict.distance, "fixes": verdict.fixes, "why": verdict.why}))
"""


@pytest.fixture(scope="session")
def unprivileged(oracle: Oracle) -> Callable[[str, str], dict[str, Any]]:
    """Return the verdict for two serial numbers as a process without any right comes to it."""

    def judge(client: str, provider: str) -> dict[str, Any]:
        names = [oracle.controllers[client].address, f"p2pmem:{oracle.controllers[provider].address}"]
        command = [sys.executable, "-c", AS_NOBODY, *names]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return judge


@pytest.fixture(scope="session")
def text_of() -> Callable[..., str]:
    """Run a program of the guest and return what it says; AssertionError when it fails."""

    def run(*command: str, timeout_s: float = 180) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def rdma_objects(text_of: Callable[..., str]) -> Callable[[], dict[str, int]]:
    """Count what all processes hold of the kernel's RDMA stack: `rdma_objects()["qp"]`.

    Of all: the kernel names the thread that made an object, not its process.
    """

    def count() -> dict[str, int]:
        found = {}
        for kind in ("qp", "mr", "cq", "pd"):
            rows = text_of("rdma", "resource", "show", kind).splitlines()
            found[kind] = sum(" pid " in row for row in rows)  # the kernel's own have no pid
        return found

    return count
