"""The kernel as the judge of our P2PDMA verdicts: every NVMe controller reads its disk into every controller's memory.

Run in the guest: `lab/run --topology shapes -- python -m lab.oracle --redirect acs-a`. Each pair is asked once, because
the kernel keeps its answer. It is asked three ways: whether the O_DIRECT read succeeds and its bytes arrive, what the
log says, and, by a kretprobe on calc_map_type_and_dist, which map type and distance it came to. The first cannot tell
a bus address from the way through the host bridge; the probe can.
"""

from __future__ import annotations

import argparse
import errno
import mmap
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2prw.engine.topology.pairs import Topology
from p2prw.engine.topology.verdict import MapType, Verdict

LENGTH = 64 * 1024
_PCI = Path("/sys/bus/pci/devices")
_NVME = Path("/sys/class/nvme")
_TRACING = Path("/sys/kernel/tracing")
_PROBE = "r:p2prw/answer calc_map_type_and_dist type=$retval:s32 dist=+0($arg3):s32"
_FILLER = b"\xee" * LENGTH
_ACS = re.compile(r"pci=disable_acs_redir=(\S+)")
_REFUSED = "do not share an upstream bridge or whitelisted host bridge"
_NOT_LISTED = re.compile(r"[Hh]ost bridge not in P2PDMA whitelist: ([0-9a-f]{4}:[0-9a-f]{4})")


@dataclass(frozen=True, slots=True)
class KernelAnswer:
    """What the kernel did with one pair."""

    errno: str | None
    """None: the read succeeded."""
    arrived: bool
    """The bytes of the disk are in the memory."""
    map_type: int | None
    """The number that calc_map_type_and_dist returned; None without a probe."""
    distance: int | None
    log: tuple[str, ...] = ()

    @property
    def redirects(self) -> tuple[str, ...]:
        """What the kernel would have disable_acs_redir name."""
        found = next((match[1] for line in self.log if (match := _ACS.search(line))), "")
        return tuple(name for name in found.split(";") if name)

    @property
    def is_refused(self) -> bool:
        """The log says that host bridges do not help."""
        return any(_REFUSED in line for line in self.log)

    @property
    def unlisted(self) -> str | None:
        """The host bridge that the log misses in the whitelist (said where ACS redirects)."""
        return next((match[1] for line in self.log if (match := _NOT_LISTED.search(line))), None)


def disagreements(verdict: Verdict, kernel: KernelAnswer, bus_type: int | None, *, loses_bus: bool) -> list[str]:
    """Return where our verdict differs from what the kernel did; empty where it agrees. Pure.

    `bus_type` is this kernel's number of PCI_P2PDMA_MAP_BUS_ADDR (it moved once); NOT_SUPPORTED stands before it,
    THRU_HOST_BRIDGE after it. `loses_bus`: QEMU with an IOMMU, which loses what goes by bus address.
    """
    found = []
    if verdict.works is None:
        return [f"we do not know: {verdict.why}"]
    if verdict.works != (kernel.errno is None):
        found.append(f"we say {verdict.kind}, the read ended with {kernel.errno or 'success'}")
    lost = loses_bus and verdict.kind is MapType.BUS_ADDRESS and verdict.distance != 0
    if verdict.works and kernel.errno is None and kernel.arrived == lost:
        found.append(f"we say {verdict.kind}, and the bytes {'arrived' if kernel.arrived else 'did not arrive'}")
    if kernel.map_type is not None and bus_type is not None:
        named = {bus_type - 1: MapType.NOT_SUPPORTED, bus_type: MapType.BUS_ADDRESS}
        said = named.get(kernel.map_type, MapType.THROUGH_HOST_BRIDGE)
        if said is not verdict.kind:
            found.append(f"we say {verdict.kind}, the kernel {said}")
        if kernel.distance != verdict.distance:
            found.append(f"we say distance {verdict.distance}, the kernel {kernel.distance}")
    if set(kernel.redirects) != set(verdict.redirects):
        found.append(f"we say ACS redirects at {verdict.redirects or 'none'}, the kernel {kernel.redirects or 'none'}")
    if kernel.is_refused != (verdict.kind is MapType.NOT_SUPPORTED):
        found.append(f"we say {verdict.kind}, the log {'refuses' if kernel.is_refused else 'does not refuse'} it")
    if kernel.unlisted and kernel.unlisted not in verdict.why:
        found.append(f"the log misses {kernel.unlisted} in the whitelist, we say: {verdict.why}")
    return found


@dataclass(frozen=True, slots=True)
class Controller:
    """One NVMe controller of the guest."""

    serial: str
    address: str
    disk: Path

    @property
    def has_memory(self) -> bool:
        """Its CMB is a p2pmem provider."""
        return (_PCI / self.address / "p2pmem/allocate").exists()

    @property
    def pattern(self) -> bytes:
        """What its disk holds."""
        return random.Random(self.serial).randbytes(LENGTH)


def controllers() -> dict[str, Controller]:
    """Return the guest's NVMe controllers by serial number."""
    found = {}
    for path in _NVME.iterdir():
        serial = (path / "serial").read_text().strip()
        found[serial] = Controller(serial, (path / "device").resolve().name, Path("/dev") / f"{path.name}n1")
    return dict(sorted(found.items()))


class Oracle:
    """Asks the kernel; made once for a boot."""

    def __init__(self) -> None:
        self.controllers = controllers()
        self.has_probe = self._set_probe()
        self.bus_type: int | None = None
        self._redirected: dict[str, str] = {}
        for controller in self.controllers.values():
            self._write(controller)

    def providers(self) -> list[Controller]:
        """Return those with memory."""
        return [controller for controller in self.controllers.values() if controller.has_memory]

    def redirect_once(self, serial: str) -> str:
        """Turn ACS redirect on at the port above a controller, the first time it is asked for; return the port.

        No pair below it may have been asked yet.
        """
        if serial in self._redirected:
            return self._redirected[serial]
        port = self._redirected[serial] = (_PCI / self.controllers[serial].address).resolve().parent.name
        # SV RR CR UF, as the kernel sets them at every port where an IOMMU is on.
        subprocess.run(["setpci", "-s", port, "ECAP_ACS+0x6.w=001d"], check=True, timeout=60)
        return port

    def bind_again(self, controller: Controller) -> None:
        """Unbind and bind a controller's driver: the kernel forgets what it answered about its memory."""
        driver = _PCI / controller.address / "driver"
        folder = driver.resolve()
        (folder / "unbind").write_text(controller.address)
        (folder / "bind").write_text(controller.address)
        deadline_s = time.monotonic() + 60
        while not controller.has_memory or not any((_PCI / controller.address / "nvme").iterdir()):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{controller.serial} did not come back")
            time.sleep(0.1)
        self.controllers = controllers()

    def ask(self, provider: Controller, client: Controller) -> KernelAnswer:
        """Let `client` read its disk into memory of `provider`."""
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.lseek(log, 0, os.SEEK_END)
            if self.has_probe:
                (_TRACING / "trace").write_text("")
            failed, arrived = self._read_into(provider, client)
            map_type, distance = self._probed()
            lines = tuple(line for line in _records(log) if client.address in line or "whitelist" in line)
        finally:
            os.close(log)
        if provider == client and self.bus_type is None:
            # Distance 0 is a bus address in every kernel: that gives the number its name.
            self.bus_type = map_type
        return KernelAnswer(failed, arrived, map_type, distance, lines)

    def _read_into(self, provider: Controller, client: Controller) -> tuple[str | None, bool]:
        with (
            (_PCI / provider.address / "p2pmem/allocate").open("r+b") as file,
            mmap.mmap(file.fileno(), LENGTH) as memory,
        ):
            memory[:] = _FILLER
            disk = os.open(client.disk, os.O_RDONLY | os.O_DIRECT)
            try:
                count = os.preadv(disk, [memory], 0)
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, str(error.errno)), False
            finally:
                os.close(disk)
            return (None if count == LENGTH else f"{count} bytes"), memory[:] == client.pattern

    def _write(self, controller: Controller) -> None:
        """Give the disk its pattern, by the way through host memory, and see that it is there."""
        disk = os.open(controller.disk, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, LENGTH) as memory:
                memory[:] = controller.pattern
                os.pwritev(disk, [memory], 0)
                memory[:] = _FILLER
                os.preadv(disk, [memory], 0)
                if memory[:] != controller.pattern:
                    raise OSError(f"{controller.serial}: the disk does not keep what is written")
        finally:
            os.close(disk)

    def _set_probe(self) -> bool:
        try:
            (_TRACING / "kprobe_events").write_text(f"{_PROBE}\n")
            (_TRACING / "events/p2prw/answer/enable").write_text("1")
        except OSError:
            return False
        return True

    def _probed(self) -> tuple[int | None, int | None]:
        text = (_TRACING / "trace").read_text() if self.has_probe else ""
        found = re.findall(r"type=(-?\d+) dist=(-?\d+)", text)
        return (int(found[0][0]), int(found[0][1])) if found else (None, None)


def _records(log: int) -> Iterator[str]:
    while True:
        try:
            yield os.read(log, 8192).decode(errors="replace")
        except BlockingIOError:
            return
        except BrokenPipeError:
            continue  # the ring went past us: what is left still comes


def loses_bus_addresses() -> bool:
    """QEMU with an IOMMU translates before it looks at switches (tests/lab/guest/iommu_acs/test_lost_bytes.py)."""
    return any(Path("/sys/class/iommu").glob("*"))


def main(arguments: list[str] | None = None) -> int:
    """Judge every pair, print each, and return 1 where we and the kernel differ."""
    parser = argparse.ArgumentParser(prog="python -m lab.oracle", description=__doc__)
    parser.add_argument(
        "--redirect", action="append", default=[], metavar="SERIAL", help="set ACS at the port above it"
    )
    options = parser.parse_args(arguments)
    oracle = Oracle()
    for serial in options.redirect:
        oracle.redirect_once(serial)
    topology, loses = Topology(), loses_bus_addresses()
    counts: dict[str, int] = {}
    wrong = 0
    for provider in oracle.providers():
        # Its own memory first: that names the numbers.
        for client in sorted(oracle.controllers.values(), key=lambda one: one != provider):
            verdict = topology.pair(client.address, f"p2pmem:{provider.address}").verdict
            found = disagreements(verdict, oracle.ask(provider, client), oracle.bus_type, loses_bus=loses)
            counts[verdict.kind] = counts.get(verdict.kind, 0) + 1
            wrong += bool(found)
            row = f"{client.serial:10} -> {provider.serial:10} {verdict.kind:20} {verdict.distance}"
            _tell(f"{row}  {'; '.join(found) or 'agrees'}")
    total = sum(counts.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    probe = (
        "map types read by kretprobe" if oracle.has_probe else "no kretprobe: bus address or host bridge not told apart"
    )
    _tell(f"{total} pairs, {total - wrong} agree ({kinds}); {probe}")
    return int(bool(wrong))


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
