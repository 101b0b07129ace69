"""The guest has what the lab promises: a kernel with P2PDMA, rxe, both bindings, controller memory, a bare BAR."""

from __future__ import annotations

import importlib
import mmap
import os
import subprocess
import time
from pathlib import Path

from lab.kernel import missing_options

PCI = Path("/sys/bus/pci/devices")
GIDS = Path("/sys/class/infiniband/rxe0/ports/1/gids")

PORT = 18600


def listens(port: int) -> bool:
    """Any address, either version; state 0A is LISTEN."""
    rows = (Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()).splitlines()
    fields = [row.split() for row in rows]
    return any(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in fields)


def test_kernel_has_what_the_lab_lives_on() -> None:
    config = Path(f"/lib/modules/{os.uname().release}/config")
    assert not missing_options(config.read_text())


def test_rxe0_is_up_and_has_its_addresses(text_of) -> None:
    assert "link rxe0/1 state ACTIVE" in text_of("rdma", "link")
    assert (GIDS / "1").read_text().strip() == "0000:0000:0000:0000:0000:ffff:0a09:0001"
    assert (GIDS / "2").read_text().strip() == "fd09:0000:0000:0000:0000:0000:0000:0001"


def test_rxe1_is_on_the_wire_to_the_peer(text_of) -> None:
    assert "netdev wire0" in text_of("rdma", "link", "show", "rxe1/1")
    assert "10.9.1.2" in text_of("ip", "-n", "peer", "-brief", "address")


def test_pyverbs_sees_rxe() -> None:
    device = importlib.import_module("pyverbs.device")
    with device.Context(name="rxe0") as context:
        attributes = context.query_device()
        assert (attributes.max_sge, attributes.max_sge_rd, attributes.max_qp_rd_atom) == (32, 32, 128)


def test_ibverbs_wheel_imports_beside_pyverbs() -> None:
    binding = importlib.import_module("ibverbs")
    assert binding.__file__, "a package, not a leftover folder"


def test_command_line_runs(text_of) -> None:
    assert text_of("p2prw", "version").startswith("p2prw ")


def test_loopback_by_perftest(text_of) -> None:
    """The kernel's own RDMA without us: if this fails, nothing below means anything."""
    common = ["ib_write_bw", "-d", "rxe0", "-x", "1", "-s", "65536", "-n", "20", "-F", "-p", str(PORT)]
    with subprocess.Popen(common, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            # The client tries once: wait until the server listens.
            while not listens(PORT) and server.poll() is None:
                time.sleep(0.05)
            report = text_of(*common, "10.9.0.1")
        finally:
            server.terminate()
    (row,) = [line.split() for line in report.splitlines() if line.split()[:2] == ["65536", "20"]]
    assert float(row[3]) > 1.0, "MB/s"


def test_p2pmem_attributes(nvme) -> None:
    pool = PCI / nvme("a") / "p2pmem"
    size, available = (int((pool / name).read_text()) for name in ("size", "available"))
    assert size == 128 << 20
    assert size - (1 << 20) < available < size, "the controller keeps its queues there"
    assert (pool / "published").read_text().strip() == "1"
    assert not (PCI / nvme("b") / "p2pmem").exists(), "no controller memory, no pool"


def test_p2pmem_maps_and_holds_bytes(nvme) -> None:
    pool = PCI / nvme("a") / "p2pmem"
    before = int((pool / "available").read_text())
    with open(pool / "allocate", "r+b") as file, mmap.mmap(file.fileno(), 64 << 10) as memory:
        assert int((pool / "available").read_text()) == before - (64 << 10)
        memory[4096:4106] = b"controller"
        assert memory[4096:4106] == b"controller"
    assert int((pool / "available").read_text()) == before, "given back when unmapped"


def test_bar_without_a_driver_is_a_file_on_the_host(ivshmem, outside) -> None:
    with open(PCI / ivshmem / "resource2", "r+b") as file, mmap.mmap(file.fileno(), 0) as bar:
        assert len(bar) == 16 << 20
        bar[0:8] = b"from in!"
        assert outside.peek("ivshmem-shared", 0, 8) == b"from in!"
        outside.poke("ivshmem-shared", 8, b"from out")
        assert bar[8:16] == b"from out"
