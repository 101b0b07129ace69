"""Processor and kernel, from the proc beside a sysfs tree."""

from __future__ import annotations

import platform
from pathlib import Path

from p2prw.engine.topology.host import read_host_facts
from p2prw.engine.topology.rules import HostFacts, Processor, parse_kernel
from p2prw.engine.topology.sysfs import SysfsRoot


def test_this_host() -> None:
    facts = read_host_facts(SysfsRoot())
    assert facts.kernel == parse_kernel(platform.release())
    assert facts.processor is not None


def test_a_copied_tree_without_proc(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    assert read_host_facts(SysfsRoot(tmp_path / "sys")) == HostFacts(None, None, False)


def test_a_copied_tree_with_proc(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(
        "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t\t: sse hypervisor avx\n"
    )
    (tmp_path / "proc/sys/kernel/osrelease").write_text("7.1.2\n")
    assert read_host_facts(SysfsRoot(tmp_path / "sys")) == HostFacts(Processor("AuthenticAMD", 26), (7, 1), True)
