"""`--report FILE`: one archive for a bug report: parameters, environment, machine, plan, results, kernel log lines.

No secrets: of the environment only the variables that p2prw reads, and of a token file only its path.
"""

from __future__ import annotations

import errno
import io
import os
import re
import tarfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

from p2prw.config_settings import BY_NAME
from p2prw.reporters.document import dump_pretty

KERNEL_WORDS = re.compile(r"rdma|rxe|siw|infiniband|ib_|mlx|p2p|pci|nvme|iommu|dmar|vfio|aer|udmabuf", re.IGNORECASE)
MOST_KERNEL_LINES = 2000
_RECORD_BYTES = 8192  # fs/proc: /dev/kmsg gives one record a read, PRINTK_MESSAGE_MAX at most


def bundle(files: Mapping[str, str], now_s: float) -> bytes:
    """Return the archive of these texts, in one directory; `now_s` is every file's time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode("utf-8", "backslashreplace")
            member = tarfile.TarInfo(f"p2prw-report/{name}")
            member.size, member.mtime, member.mode = len(data), int(now_s), 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def report_files(
    document: Mapping[str, Any], environ: Mapping[str, str], machine: Mapping[str, Any], scenario: str, plan: str
) -> dict[str, str]:
    """Return name -> text of everything that a report holds."""
    return {
        "result.json": dump_pretty(document),
        "params.json": dump_pretty(document["params"]),
        "environment.json": dump_pretty({**document["environment"], "variables": harmless(environ)}),
        "machine.json": dump_pretty(machine),
        "scenario.yaml": scenario,
        "plan.txt": plan,
        "kernel.log": kernel_log(),
    }


def harmless(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that p2prw reads: a variable that it does not know may hold anything."""
    known = {setting.variable for setting in BY_NAME.values()} | {"TERM", "NO_COLOR", "CI"}
    return {name: text for name, text in sorted(environ.items()) if name in known}


def machine() -> dict[str, Any]:
    """Return what `p2prw devices --json` lists, and why where that fails: a report must not need a healthy host."""
    from p2prw.engine.inventory import take_inventory
    from p2prw.errors import P2prwError

    try:
        return {"inventory": take_inventory()}
    except (P2prwError, OSError) as error:
        return {"error": str(error)}


def kernel_log(path: str = "/dev/kmsg") -> str:
    """Return the kernel's lines about RDMA, PCI, NVMe and IOMMUs, or why they may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return f"not read: {path}: {error.strerror}; as root: dmesg | grep -iE '{KERNEL_WORDS.pattern}'\n"
    lines: list[str] = []
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
            lines.append(record.decode("utf-8", "replace").rstrip("\n"))
    finally:
        os.close(descriptor)
    return "".join(f"{line}\n" for line in relevant(lines)) or "no line about RDMA, PCI, NVMe or IOMMUs\n"


def relevant(records: Iterable[str]) -> list[str]:
    """Return `seconds text` of the records that matter, the last ones where there are very many."""
    found = []
    for record in records:
        head, _, text = record.partition(";")
        if KERNEL_WORDS.search(text):
            fields = head.split(",")
            stamp = f"{int(fields[2]) / 1e6:.6f}" if len(fields) > 2 and fields[2].isdigit() else "-"
            found.append(f"[{stamp}] {text.splitlines()[0]}")
    return found[-MOST_KERNEL_LINES:]
