"""What is handed to vng and to the guest, and that a guest which runs too long leaves nothing behind."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lab.boot import BootRequest, Run, boot, job_script, vng_command
from lab.errors import GuestTimeout, LabError, MissingError
from lab.fetch import Parts, find
from lab.kernel import Kernel
from lab.places import REPOSITORY
from lab.topology import Topology, load_topology

PARTS = Parts(Kernel("9.9", Path("/cache/vmlinuz")), Path("/cache/tools/bin"), Path("/cache/guest/bin/python"))
BARE = Topology("bare")


def fake_vng(folder: Path, body: str) -> Parts:
    """A `vng` that is a shell script; $JOB is the script the guest would run."""
    folder.mkdir()
    script = folder / "vng"
    script.write_text("#!/bin/bash\nfor word; do :; done\nJOB=${word#bash }\n" + body)
    script.chmod(0o755)
    return Parts(PARTS.kernel, folder, PARTS.guest_python)


@pytest.fixture(autouse=True)
def own_cache(request, monkeypatch, tmp_path):
    """A lock of our own: these do not wait for somebody's real guest."""
    if "real" not in request.node.name:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_job_runs_the_scripts_then_the_command_and_keeps_its_code(tmp_path) -> None:
    request = BootRequest(["echo", "two words"], BARE, workdir=tmp_path, environment={"WORD": "it's"})
    script = tmp_path / "job.sh"
    script.write_text(job_script(PARTS, request, tmp_path))
    done = subprocess.run(["bash", str(script)], check=False)
    assert (done.returncode, (tmp_path / "exit_code").read_text()) == (0, "0\n")
    assert (tmp_path / "output").read_text() == "two words\n"
    text = job_script(PARTS, BootRequest(["false"], BARE, rxe=True, peer=True), tmp_path)
    assert text.index("rxe.sh") < text.index("peer.sh") < text.index("false")


def test_vng_is_told_of_kernel_files_and_tree(tmp_path) -> None:
    topology = load_topology("iommu_acs")
    with Run(topology, tmp_path / "run") as run:
        words = vng_command(PARTS, BootRequest(["true"], topology), run)
        assert run.backing["ivshmem-shared"].stat().st_size == 16 << 20
    assert words[:2] == ["vng", "--verbose"]
    assert "--disable-kvm" in words
    assert "intel_iommu=on" in words
    (options,) = [word.removeprefix("--qemu-opts=") for word in words if word.startswith("--qemu-opts=")]
    assert f"file={run.files}/nvme-a.img,if=none,id=drive-a,format=raw" in shlex.split(options)
    assert "virtio-9p-pci,fsdev=lab,mount_tag=p2prw-lab" in shlex.split(options), "what cached.sh mounts"
    assert "--disable-kvm" not in vng_command(PARTS, BootRequest(["true"], BARE, kvm=True), run)


def test_output_and_code_come_back(tmp_path) -> None:
    parts = fake_vng(tmp_path / "tools", 'bash "$JOB"')
    output: list[bytes] = []
    with Run(BARE) as run:
        request = BootRequest(["sh", "-c", "echo out; echo err >&2; exit 9"], BARE, workdir=tmp_path)
        assert boot(parts, request, run, output.append) == 9
        folder = run.folder
    assert b"".join(output) == b"out\nerr\n"
    assert not folder.exists()


def test_guest_that_dies_shows_its_console(tmp_path) -> None:
    parts = fake_vng(tmp_path / "tools", "echo Kernel: oops; exit 0")
    with Run(BARE) as run, pytest.raises(LabError, match=r"without a result[\s\S]*Kernel: oops") as caught:
        boot(parts, BootRequest(["true"], BARE), run, lambda _: None)
    assert caught.value.exit_code == 70


def test_guest_that_hangs_is_killed_with_its_children(tmp_path) -> None:
    parts = fake_vng(tmp_path / "tools", f"sleep 300 & echo $! >{tmp_path}/child; wait")
    with Run(BARE) as run, pytest.raises(GuestTimeout, match="killed after 1 s") as caught:
        boot(parts, BootRequest(["true"], BARE, timeout_s=0.7), run, lambda _: None)
    assert caught.value.exit_code == 124
    assert is_gone(int((tmp_path / "child").read_text()))


@pytest.mark.parametrize("end", ["echo HugeTLB; sleep 300", "echo HugeTLB; echo Kernel panic - not syncing"])
def test_boot_that_fails_is_tried_again(tmp_path, capsys, end) -> None:
    """The kernel stops in the middle of its words; the second one gets to the command, whose silence is no hang."""
    body = f'if [ -e {tmp_path}/once ]; then bash "$JOB"; else touch {tmp_path}/once; {end}; fi'
    parts = fake_vng(tmp_path / "tools", body)
    output: list[bytes] = []
    request = BootRequest(["sh", "-c", "sleep 1; echo out; exit 9"], BARE, workdir=tmp_path, silence_s=0.5)
    with Run(BARE) as run:
        assert boot(parts, request, run, output.append) == 9
    assert b"".join(output) == b"out\n"
    said = capsys.readouterr().err
    assert said.count("booting it again") == 1 and "HugeTLB" in said


def test_panic_after_the_command_began_is_its_own_fault(tmp_path, capsys) -> None:
    parts = fake_vng(tmp_path / "tools", 'bash "$JOB" & sleep 1; echo Kernel panic - not syncing; kill %1')
    with Run(BARE) as run, pytest.raises(LabError, match=r"without a result[\s\S]*Kernel panic"):
        boot(parts, BootRequest(["sleep", "60"], BARE, workdir=tmp_path), run, lambda _: None)
    assert "again" not in capsys.readouterr().err


def test_boot_that_always_hangs_is_given_up(tmp_path, capsys) -> None:
    parts = fake_vng(tmp_path / "tools", f"echo $$ >>{tmp_path}/pids; sleep 300")
    with Run(BARE) as run, pytest.raises(GuestTimeout, match=r"said nothing for 0 s .*, 3 times in turn"):
        boot(parts, BootRequest(["true"], BARE, silence_s=0.2), run, lambda _: None)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3 and all(is_gone(pid) for pid in pids)
    assert capsys.readouterr().err.count("booting it again") == 2


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_real_guest_that_runs_too_long_leaves_no_qemu(tmp_path, force_lab) -> None:
    """Two seconds: QEMU runs by then, the kernel has hardly begun."""
    try:
        find()
    except MissingError as error:
        force_lab(str(error))
    command = [str(REPOSITORY / "lab/run"), "--timeout", "2", "--folder", str(tmp_path / "run"), "--", "true"]
    environment = os.environ | {"P2PRW_PYTHON": sys.executable, "P2PRW_VENV": str(tmp_path / "none")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=290, env=environment, check=False)
    assert done.returncode == 124, done.stderr
    assert "lab: killed after 2 s (--timeout)" in done.stderr
    assert is_gone(int((tmp_path / "run/qemu.pid").read_text()))


def test_command_line_errors(tmp_path) -> None:
    def code(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "lab", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60)
        return done.returncode, done.stderr

    assert code()[0] == 2
    assert code("--topology", "nope", "--", "true") == (
        2,
        "lab: no topology 'nope' (No such file or directory); there are: "
        + ", ".join(sorted(path.stem for path in (REPOSITORY / "lab/topologies").glob("*.yaml")))
        + "\n",
    )
    assert code("--kernel", str(tmp_path / "none"), "--", "true")[0] == 70


def test_scripts_are_well_formed() -> None:
    for name in ("run", "fetch", "guest/cached.sh", "guest/rxe.sh", "guest/peer.sh", "guest/bin/p2prw"):
        path = REPOSITORY / "lab" / name
        assert path.stat().st_mode & 0o111, f"chmod +x lab/{name}"
        subprocess.run(["bash", "-n", str(path)], check=True)
