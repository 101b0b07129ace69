"""Tests in the guest, reported by the host: every test below tests/lab/guest/NAME/ runs in one guest of topology NAME.

On the host those tests are collected as usual, so that -k and node ids work, but a stand-in takes the place of each:
the first of a topology boots the guest, which runs all that were selected and tells the outcome of each as it goes.
Without QEMU or a kernel they skip with the reason; with --force-lab that is a failure. Nothing is fetched here:
lab/fetch does that.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.boot import BootRequest, Run, boot
from lab.errors import LabError, MissingError
from lab.fetch import find
from lab.topology import load_topology

IN_GUEST = os.environ.get("LAB_GUEST") == "1"
GUEST_TESTS = Path(__file__).resolve().parent / "guest"
ROOT = GUEST_TESTS.parents[2]
BOOT_LIMIT_S = {False: 1500.0, True: 3600.0}
"""By `--long`: the boot and all tests of a topology."""
PCI_ONLY = ("shapes", "shapes_amd")
"""Their tests ask about PCI: they boot without RDMA, whose modules take seconds to load under emulation."""
REPORTS = "reports.jsonl"


class GuestFailure(Exception):
    """The text of a failure in the guest."""


class Guest:
    """One boot: the outcome of each test it ran, by node id."""

    def __init__(self, topology: str, node_ids: list[str], log_folder: Path, *, long: bool = False) -> None:
        self.outcomes: dict[str, list[dict[str, Any]]] = {}
        self.trouble = ""
        self.console = ""
        output: list[bytes] = []
        parts = find()
        described = load_topology(topology)
        with Run(described) as run:
            (run.shared / "selected").write_text("\n".join(node_ids) + "\n")
            command = [
                "python",
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:hypothesispytest",
                "--durations=40",
                *(["--long"] if long else []),
                f"@{run.shared / 'selected'}",
            ]
            rdma = topology not in PCI_ONLY
            # One processor where there is little to do: no kernel that patches its code under another one's feet.
            processors = 2 if rdma else 1
            limit_s = BOOT_LIMIT_S[long]
            request = BootRequest(command, described, rxe=rdma, peer=rdma, cpus=processors, timeout_s=limit_s)
            try:
                boot(parts, request, run, output.append)
            except LabError as error:
                self.trouble = str(error)
            log_folder.mkdir(parents=True, exist_ok=True)
            (log_folder / f"{topology}.output").write_bytes(b"".join(output))
            shutil.copy(run.folder / "console", log_folder / f"{topology}.console")
            self._read(run.shared / REPORTS)
        self.output = b"".join(output).decode(errors="replace")

    def _read(self, path: Path) -> None:
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                report = json.loads(line)
            except ValueError:
                continue  # the guest died while it wrote
            self.outcomes.setdefault(report["nodeid"], []).append(report)

    def why_missing(self) -> str:
        tail = "\n".join(self.output.splitlines()[-60:])
        return f"the guest did not report this test\n{self.trouble}\n--- the last output of the guest\n{tail}"


class GuestItem(pytest.Item):
    """Stands for a test that runs in the guest."""

    topology: str

    def runtest(self) -> None:
        guest = guest_of(self)
        reports = guest.outcomes.get(self.nodeid)
        if reports is None:
            raise GuestFailure(guest.why_missing())
        for report in reports:
            for title, text in report["sections"]:
                self.add_report_section("call", f"in the guest, {report['when']}, {title}", text)
        for report in reports:
            if report["outcome"] == "failed":
                raise GuestFailure(f"in the guest, {report['when']}:\n{report['text']}")
            if report["outcome"] == "skipped":
                pytest.skip(f"in the guest: {report['text']}")
        self.user_properties.append(("guest_s", round(sum(report["duration"] for report in reports), 3)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, GuestFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


GUESTS = pytest.StashKey[dict[str, Guest | MissingError]]()


def guest_of(item: GuestItem) -> Guest:
    """Boot at the first call for a topology; what cannot be booted skips, or fails when forced."""
    guests = item.session.stash.setdefault(GUESTS, {})
    if item.topology not in guests:
        selected = [
            other.nodeid
            for other in item.session.items
            if isinstance(other, GuestItem) and other.topology == item.topology
        ]
        try:
            guests[item.topology] = Guest(item.topology, selected, log_folder(), long=is_long(item.config))
        except MissingError as error:
            guests[item.topology] = error
    guest = guests[item.topology]
    if isinstance(guest, MissingError):
        if item.config.getoption("--force-lab"):
            raise GuestFailure(f"--force-lab was given, but the lab cannot be used here: {guest}")
        pytest.skip(" ".join(str(guest).split()))
    return guest


def is_long(config: pytest.Config) -> bool:
    return bool(config.getoption("--long"))


def log_folder() -> Path:
    """Where a boot's console and output are kept for reading afterwards (not in version control)."""
    return ROOT / ".cache" / "lab"


def topology_of(path: Path) -> str | None:
    return path.relative_to(GUEST_TESTS).parts[0] if path.is_relative_to(GUEST_TESTS) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IN_GUEST:
        return
    for index, item in enumerate(items):
        topology = topology_of(item.path)
        if topology is None or isinstance(item, GuestItem):
            continue
        assert item.parent is not None
        stand_in = GuestItem.from_parent(item.parent, name=item.name)
        stand_in.topology = topology
        stand_in.own_markers[:] = [mark for mark in item.own_markers if mark.name not in ("usefixtures", "parametrize")]
        stand_in.keywords.update(item.keywords)
        # The first of a topology waits for the boot and for all of its tests.
        stand_in.add_marker(pytest.mark.timeout(BOOT_LIMIT_S[is_long(item.config)] + 60))
        items[index] = stand_in


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the guest: say what came out at once, so that what was run before a crash counts."""
    if not IN_GUEST or (report.when != "call" and report.outcome == "passed"):
        return
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    line = {
        "nodeid": report.nodeid,
        "when": report.when,
        "outcome": report.outcome,
        "text": text,
        "duration": report.duration,
        "sections": report.sections,
    }
    with (Path(os.environ["LAB_SHARED"]) / REPORTS).open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture
def force_lab(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Skip for want of the lab with this reason, or fail where that is forced."""

    def missing(reason: str) -> None:
        if request.config.getoption("--force-lab"):
            pytest.fail(f"--force-lab was given, but the lab cannot be used here: {reason}")
        pytest.skip(" ".join(reason.split()))

    return missing
