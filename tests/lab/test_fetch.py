"""What is missing is said with what to type; versions come from the index; failures keep their exit codes."""

from __future__ import annotations

import os
import time

import pytest

from lab import kernel
from lab.commands import run
from lab.errors import FetchError, LabError, MissingError
from lab.fetch import fetch
from lab.host import Need, check_host_packages, ensure_host_packages
from lab.places import REPOSITORY, cache_folder
from lab.python_env import project_dependencies

RECORD = """\
Package: linux-image-amd64
Depends: linux-base-amd64, linux-image-9.8.7+deb99-amd64 (= 9.8.7-1), linux-modules-amd64
"""


def test_kernel_release_comes_from_the_meta_package() -> None:
    assert kernel.release_of(RECORD) == "9.8.7+deb99-amd64"
    assert kernel.release_of("") is None


def test_options_that_are_off_are_named() -> None:
    assert kernel.missing_options("CONFIG_PCI_P2PDMA=y\nCONFIG_RDMA_RXE=m\n") == []
    assert kernel.missing_options("# CONFIG_PCI_P2PDMA is not set\nCONFIG_RDMA_RXE=m") == ["CONFIG_PCI_P2PDMA"]


def test_newest_whole_kernel_of_the_cache(tmp_path) -> None:
    assert kernel.cached_kernel(tmp_path) is None
    for number, name in enumerate(("9.9", "9.10")):
        folder = tmp_path / "kernel" / name
        folder.mkdir(parents=True)
        (folder / ".complete").touch()
        os.utime(folder / ".complete", (time.time(), 1000 + number))
    (tmp_path / "kernel/half").mkdir()
    found = kernel.cached_kernel(tmp_path)
    assert found is not None
    assert (found.version, found.image.name) == ("9.10", "vmlinuz")


def test_other_systems_are_told_to_bring_a_kernel(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(kernel, "os_release", lambda: {"ID": "fedora"})
    with pytest.raises(MissingError, match=r"fedora[\s\S]*--kernel PATH"):
        kernel.fetch_kernel(tmp_path)


def test_missing_programs_are_named_with_the_command(monkeypatch) -> None:
    needs = [Need("some-package", program="no-such-program-anywhere"), Need("python3", program="sh")]
    with pytest.raises(MissingError, match=r"misses no-such-program-anywhere[\s\S]*some-package$"):
        check_host_packages(needs)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingError, match="some-package"):
        ensure_host_packages(needs)
    check_host_packages([Need("x", files=("etc/*",)), Need("y", program="sh")])


def test_failed_fetch_keeps_the_reason_and_its_code() -> None:
    with pytest.raises(FetchError, match=r"could not fetch the lab: it: sh ended with 3\nno network$") as caught:
        run(["sh", "-c", "echo no network; exit 3"], failure=FetchError, what="it")
    assert caught.value.exit_code == 75
    with pytest.raises(MissingError, match="no program not-there") as missing:
        run(["not-there"], failure=MissingError, what="it")
    assert missing.value.exit_code == 70
    with pytest.raises(LabError, match=r"did not end within 0 s"):
        run(["sleep", "5"], failure=LabError, what="it", timeout_s=0.1)


def test_own_kernel_must_exist(tmp_path) -> None:
    with pytest.raises(MissingError, match="no kernel image"):
        fetch(kernel_path=tmp_path / "bzImage")


def test_cache_is_outside_the_repository(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "p2prw-lab"
    assert not cache_folder().is_relative_to(REPOSITORY)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MissingError, match="XDG_CACHE_HOME"):
        cache_folder()


def test_guest_gets_what_the_project_needs() -> None:
    assert any(word.startswith("numpy") for word in project_dependencies(REPOSITORY))
