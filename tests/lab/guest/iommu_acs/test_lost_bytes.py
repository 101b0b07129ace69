"""A path that the kernel allows and the machine does not carry: bytes are lost and every return code says success.

With an IOMMU, QEMU translates what a device sends before it looks at switches: a bus address, which the kernel takes
for two devices under one switch, has no translation, so the write ends as a DMA fault in the log and nowhere else. It
is why p2prw reads the bytes back.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path
from typing import Any

import pytest

from p2prw import api
from p2prw.engine.model import QueuePairOptions, Timeouts
from p2prw.engine.pattern import parse_pattern
from p2prw.units import MIB

LENGTH = 64 * 1024
PATIENT = Timeouts(handshake_s=60.0, idle_s=60.0)
FILLER = b"\xee" * LENGTH


@pytest.fixture
def controller_memory(nvme):
    path = Path("/sys/bus/pci/devices") / nvme("a") / "p2pmem/allocate"
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), LENGTH) as memory:
        memory[:] = FILLER
        yield memory


def read_direct(disk: Path, memory: mmap.mmap) -> int:
    descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        return os.preadv(descriptor, [memory], 0)
    finally:
        os.close(descriptor)


def test_bytes_do_not_arrive_and_nobody_says_so(controller_memory, nvme, nvme_disk, outside, text_of) -> None:
    data = random.Random(8).randbytes(LENGTH)
    outside.poke("nvme-b", 0, data)
    with mmap.mmap(-1, LENGTH) as host:
        assert read_direct(nvme_disk("b"), host) == LENGTH
        assert host[:] == data, "the disk and the way to host memory are sound"
    assert read_direct(nvme_disk("b"), controller_memory) == LENGTH, "the kernel allowed it and saw no error"
    assert controller_memory[:] == FILLER, "and nothing arrived"
    faults = [line for line in text_of("dmesg").splitlines() if "[DMA Write" in line]
    assert any(f"[{nvme('b')}]" in line for line in faults), "the IOMMU stopped it and only the log knows"


def test_a_file_staged_over_this_path_ends_4(nvme, nvme_disk, outside) -> None:
    """The drive reads into the ring, reports success, and the digest of the file finds that nothing came."""
    outside.poke("nvme-b", MIB, random.Random(10).randbytes(MIB))
    disk, via = f"file:{nvme_disk('b')},offset=1MiB,size=1MiB", f"p2pmem:{nvme('a')}"
    options: dict[str, Any] = {"queue_pair": QueuePairOptions(timeout=18), "device": "rxe0", "timeouts": PATIENT}
    regions = {"mem": "host,size=1MiB", "known": "host,size=1MiB,pattern=words:3", "disk": disk}
    with api.serving(regions, listen="10.9.0.1:0", insecure=True, via=via, **options) as address:
        lost = [
            api.write(f"{address}/mem", disk, via=via, staging_chunk_bytes=256 * 1024, **options),
            api.read(f"{address}/disk", "host", **options),
        ]
        assert api.write(f"{address}/mem", disk, **options).exit_code == 0, "through host memory all is well"
        sink = f"file:{nvme_disk('b')},offset=2MiB,size=1MiB"
        spoilt = api.read(f"{address}/known", sink, via=via, overwrite=True, **options)
    for result in lost:
        assert result.error is not None
        assert (result.exit_code, result.error.code) == (4, "verify_mismatch")
        verify = result.verify
        assert (verify.status, verify.first_bad_offset, verify.classification) == ("mismatch", 0, "never_arrived")
        assert f"p2prw topology {nvme('b')} {nvme('a')}" in str(verify.why)
        assert result.results[0].bytes == MIB, "every completion was a success"
    # The other way round the drive writes what it could not read, whatever that is, and reports success too.
    assert spoilt.error is not None
    assert (spoilt.exit_code, spoilt.error.code, spoilt.verify.first_bad_offset) == (4, "verify_mismatch", 0)
    assert outside.peek("nvme-b", 2 * MIB, 64) != parse_pattern("words:3").bytes_at(0, 64)


def test_own_memory_needs_no_path(controller_memory, nvme_disk, outside) -> None:
    data = random.Random(9).randbytes(LENGTH)
    outside.poke("nvme-a", 0, data)
    assert read_direct(nvme_disk("a"), controller_memory) == LENGTH
    assert controller_memory[:] == data


def test_other_root_port_is_refused(controller_memory, nvme_disk) -> None:
    with pytest.raises(OSError) as caught:
        read_direct(nvme_disk("c"), controller_memory)
    assert caught.value.errno in (errno.EINVAL, errno.EREMOTEIO)


def test_acs_redirects_at_the_root_ports(text_of) -> None:
    listing = text_of("lspci", "-vvv", "-s", "00:10.0")
    assert "SrcValid+" in listing
    assert "ReqRedir+ CmpltRedir+ UpstreamFwd+" in listing
