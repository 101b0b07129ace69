"""The kernel's lines about RDMA, PCI, NVMe and IOMMUs, for a bug report; the one door to /dev/kmsg."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterable

WORDS = re.compile(r"rdma|rxe|siw|infiniband|ib_|mlx|p2p|pci|nvme|iommu|dmar|vfio|aer|udmabuf", re.IGNORECASE)
MOST_LINES = 2000
_RECORD_BYTES = 8192  # fs/proc: /dev/kmsg gives one record a read, PRINTK_MESSAGE_MAX at most
# The boot line may name hosts, disks and keys: doctor --collect keeps what is known to be harmless of it.
_BOOT_LINE = re.compile(r"command line", re.IGNORECASE)


def read_kernel_log(path: str = "/dev/kmsg") -> str:
    """Return the lines, or why they may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return f"not read: {path}: {error.strerror}; as root: dmesg | grep -iE '{WORDS.pattern}'\n"
    records: list[str] = []
    deadline_s = time.monotonic() + 5.0
    try:
        while time.monotonic() < deadline_s:
            try:
                record = os.read(descriptor, _RECORD_BYTES)
            except OSError as error:
                if error.errno == errno.EPIPE:  # it was overwritten while we read: the next one is there
                    continue
                break  # EAGAIN: that was the last one
            if not record:
                break
            records.append(record.decode("utf-8", "replace").rstrip("\n"))
    finally:
        os.close(descriptor)
    return "".join(f"{line}\n" for line in relevant(records)) or "no line about RDMA, PCI, NVMe or IOMMUs\n"


def relevant(records: Iterable[str]) -> list[str]:
    """Return `[seconds] text` of the records that matter, the last ones where there are very many.

    Records of programs that write into the log, and the boot line, are left out: nobody knows what is in them.
    """
    found = []
    for record in records:
        head, _, text = record.partition(";")
        fields = head.split(",")
        if WORDS.search(text) and not _BOOT_LINE.search(text) and _is_from_the_kernel(fields[0]):
            stamp = f"{int(fields[2]) / 1e6:.6f}" if len(fields) > 2 and fields[2].isdigit() else "-"
            found.append(f"[{stamp}] {text.splitlines()[0]}")
    return found[-MOST_LINES:]


def _is_from_the_kernel(prefix: str) -> bool:
    # Documentation/ABI/testing/dev-kmsg: the prefix is a syslog priority; facility 0 is the kernel's own.
    return prefix.isdigit() and int(prefix) >> 3 == 0
