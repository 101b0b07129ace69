"""Page-less memory for real: BAR 2 of ivshmem behind vfio-pci, exported as dma-bufs, copied, seen from outside.

The function is bound for the tests of this file alone, and given back.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.memory.vfio_function import VFIO, VfioFunction
from p2prw.engine.model import Offer, QueuePairOptions, Route, Timeouts
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError
from p2prw.units import KIB, MIB

PCI = Path("/sys/bus/pci")
UNSAFE = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
OPTIONS = QueuePairOptions(timeout=18)
PATIENT = Timeouts(handshake_s=60.0, idle_s=60.0)
SIZE = 64 * KIB + 1


def opening(spec: str, role: Any = "both") -> Any:
    return prepare_memory(parse_memory_spec(spec), role).open()


def refusal(spec: str, role: Any = "both") -> HostError:
    with pytest.raises(HostError) as caught:
        opening(spec, role)
    return caught.value


@dataclass
class Bound:
    """The function behind vfio-pci, and what was said on the way there."""

    address: str
    before: HostError
    unsafe: HostError

    def bar(self, options: str = "") -> str:
        return f"vfio:{self.address}/2{options}"


@pytest.fixture(scope="module")
def bound(ivshmem, text_of) -> Iterator[Bound]:
    text_of("modprobe", "-a", "vfio-pci", "vfio_iommu_type1")
    device = PCI / "devices" / ivshmem
    before = refusal(f"vfio:{ivshmem}/2")
    # What the error says to type.
    (device / "driver_override").write_text("vfio-pci")
    (PCI / "drivers_probe").write_text(ivshmem)
    try:
        # QEMU's IOMMU remaps no interrupts here.
        unsafe = refusal(f"vfio:{ivshmem}/2")
        UNSAFE.write_text("1")
        yield Bound(ivshmem, before, unsafe)
    finally:
        UNSAFE.write_text("0")
        (device / "driver" / "unbind").write_text(ivshmem)
        (device / "driver_override").write_text("\n")


def test_what_is_said_on_the_way(bound, nvme) -> None:
    assert bound.before.code == "not_bound_to_vfio" and "driver_override" in str(bound.before.fix)
    assert (bound.unsafe.code, bound.unsafe.errno) == ("unsafe_interrupts", "EPERM")
    assert "allow_unsafe_interrupts" in str(bound.unsafe.fix)
    error = refusal(f"vfio:{nvme('c')}/0")
    assert (error.code, error.why) == ("not_bound_to_vfio", "its driver is nvme")
    error = refusal(f"bar:{bound.address}/2", "sink")
    assert error.code == "bound_device" and str(error.fix).startswith(f"vfio:{bound.address}/2")


@pytest.fixture
def function(bound) -> Iterator[VfioFunction]:
    opened = VFIO.open(SysfsRoot(), bound.address)
    assert opened.enable_memory()
    yield opened
    opened.close()


def exported_bytes(function: VfioFunction, ranges: list[tuple[int, int]]) -> int:
    descriptor = function.export(2, ranges)
    try:
        with pytest.raises(OSError):
            mmap.mmap(descriptor, 4096)  # the exporter maps nothing: the CPU goes through the device's own file
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def test_ranges_become_one_dmabuf_of_their_sum(function) -> None:
    assert exported_bytes(function, [(4096, 8192)]) == 8192
    # The kernel's own dma vec.
    assert exported_bytes(function, [(MIB, 4096), (0, 8192)]) == 12288


@pytest.mark.parametrize(
    ("index", "ranges", "number"),
    [
        (2, [(0, 100)], errno.EINVAL),
        (2, [(100, 4096)], errno.EINVAL),
        (2, [(16 * MIB, 4096)], errno.EINVAL),
        (2, [(0, 0)], errno.EINVAL),
        (2, [], errno.EINVAL),
        (0, [(0, 4096)], errno.EINVAL),
        (6, [(0, 4096)], errno.ENODEV),
    ],
)
def test_ranges_that_the_kernel_does_not_export(function, index, ranges, number) -> None:
    with pytest.raises(OSError) as caught:
        function.export(index, ranges)
    assert caught.value.errno == number


def test_memory_of_any_alignment(bound, outside) -> None:
    memory = opening(bound.bar(",offset=1048579,size=70000"))
    other = opening(bound.bar(",offset=2MiB,size=4KiB"))
    try:
        assert memory.offers == {Offer.DMABUF, Offer.CPU_MAPPING} and memory.bulk
        data = random.Random(5).randbytes(70000)
        memory.write_at(0, memoryview(data))
        other.write_at(1, memoryview(b"beside"))
        memory.commit()
        assert outside.peek("ivshmem-shared", 1048579, 70000) == data
        assert outside.peek("ivshmem-shared", 2 * MIB + 1, 6) == b"beside"
        descriptor, offset = memory.dmabuf()
        # 70000 bytes from byte 3 of a page lie in 18 pages.
        assert (offset, os.lseek(descriptor, 0, os.SEEK_END)) == (3, 18 * 4096)
    finally:
        memory.close()
        other.close()


def told(route: Any) -> list[tuple[str, bool, str | None]]:
    return [(one.route, one.ok, one.errno or one.wc_status) for one in route.attempts]


def there_and_back(address: str, bound: Bound, outside: Any, tmp_path: Path, seed: int, options: Any) -> list[Any]:
    """A file into the served BAR, out of it into a BAR of ours, and from there into host memory; the four routes."""
    data = random.Random(seed).randbytes(SIZE)
    source = tmp_path / "source"
    source.write_bytes(data)
    wrote: Any = api.write(f"{address}/bar+5", f"file:{source}", **options)
    assert (wrote.error, wrote.verify.status) == (None, "verified")
    assert outside.peek("ivshmem-shared", 8 * MIB + 5, SIZE) == data
    read: Any = api.read(f"{address}/bar+5", bound.bar(f",offset=4097,size={SIZE}"), **options)
    assert (read.error, read.verify.status) == (None, "verified")
    assert outside.peek("ivshmem-shared", 4097, SIZE) == data
    again: Any = api.write(f"{address}/mem", bound.bar(f",offset=4097,size={SIZE}"), **options)
    assert (again.error, again.verify.local_digest) == (None, wrote.verify.local_digest)
    return [wrote.remote_route, read.local_route, read.remote_route, again.local_route]


def test_source_and_sink_over_the_software_device(bound, outside, tmp_path) -> None:
    options = {"timeouts": PATIENT}
    regions = {"bar": bound.bar(",offset=8MiB,size=4MiB"), "mem": "host,size=1MiB"}
    with api.serving(regions, timeouts=PATIENT) as address:
        for route in there_and_back(str(address), bound, outside, tmp_path, 11, options):
            assert told(route) == [("cpu", True, None)]
            assert (route.mover, route.peer_to_peer, route.memory) == ("cpu", False, "vfio")


@pytest.mark.parametrize("binding", ["pyverbs", "ibverbs"])
def test_over_rxe_it_bounces_and_every_other_way_is_refused(bound, outside, tmp_path, binding) -> None:
    options: dict[str, Any] = {
        "device": "rxe0",
        "verbs_binding": binding,
        "queue_pair": OPTIONS,
        "timeouts": PATIENT,
    }
    regions = {"bar": bound.bar(",offset=8MiB,size=4MiB"), "mem": "host,size=1MiB"}
    with api.serving(regions, listen="10.9.0.1:0", insecure=True, **options) as address:
        for route in there_and_back(str(address), bound, outside, tmp_path, 12, options):
            assert told(route) == [("dmabuf", False, None), ("bounce", True, None)]
            why = route.attempts[0].why
            assert "rxe" in why and "struct pages" in why and "vfio memory has none" in why
            assert (route.staged, route.mover, route.peer_to_peer) == (True, "cpu", False)
        source = bound.bar(",size=64KiB")
        refused: Any = api.write(f"{address}/mem", source, route=Route.DMABUF, **options)
        assert (refused.exit_code, refused.error.code, refused.error.errno) == (3, "route_unavailable", None)
        assert "rxe moves bytes with the CPU through struct pages, and vfio memory has none" in refused.error.why
        for name, number in ((Route.DMABUF, "EOPNOTSUPP"), (Route.PIN, "EFAULT")):
            forced: Any = api.write(f"{address}/mem", source, route=name, force_route=True, **options)
            assert (forced.exit_code, forced.error.code, forced.error.errno) == (3, "no_route", number)
        direct: Any = api.write(f"{address}/mem", source, require_direct=True, **options)
        assert (direct.exit_code, direct.error.code) == (3, "not_direct")


def test_everything_was_let_go(bound) -> None:
    held = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name.isdigit()
            and os.path.exists(f"/proc/self/fd/{name}")]  # fmt: skip
    assert not [one for one in held if "vfio" in one or "dmabuf" in one]
