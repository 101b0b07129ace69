"""Real loop devices: written and read in place, gone on with after a kill, and guarded while others live on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024
DEVICE_BYTES = 24 * MIB


def run(*command: str, stdin: str | None = None) -> str:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=30).stdout


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Make loop devices of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    made: list[str] = []

    def make(content: bytes = b"", *options: str) -> str:
        backing = tmp_path / f"disk{len(made)}"
        with backing.open("wb") as file:
            file.write(content)
            file.truncate(DEVICE_BYTES)
        try:
            made.append(run("losetup", "--show", "-f", *options, str(backing)).strip())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot make a loop device: {error}")
        return made[-1]

    yield make
    for device in made:
        subprocess.run(["losetup", "-d", device], check=False, timeout=60)


def content_of(device: str) -> bytes:
    with open(device, "rb") as file:
        return file.read()


def test_to_and_from_a_device_and_on_after_a_kill(server, p2prw, tmp_path, loop, data, until):
    content = data(DEVICE_BYTES, 5)
    (tmp_path / "in.bin").write_bytes(content)
    there, here = loop(), loop()
    one = server(f"--region=disk=file:{there},access=rw")
    words = ("write", f"{one.address}/disk", "--from", "file:in.bin", "--resume")
    running = p2prw.start(*words, "--mtu", 512, "--no-gso")
    until(lambda: content_of(there)[8 * MIB :].strip(b"\0"), 30, "some of it")
    running.process.kill()
    running.process.communicate()
    one.wait_for_line("peer_lost")
    row = p2prw(*words).ok().row
    # Nothing is noted for a device: what it holds is compared, and what agrees is not moved again.
    assert row["skipped_bytes"] >= 4 * MIB and row["bytes"] == DEVICE_BYTES - row["skipped_bytes"]
    assert content_of(there) == content
    error = p2prw("read", f"{one.address}/disk", "--to", f"file:{here}").failed(3, "exists")
    assert "--overwrite" in error["try"]
    p2prw("read", f"{one.address}/disk", "--to", f"file:{here}", "--overwrite").ok()
    assert content_of(here) == content


def test_a_device_that_is_lived_on_is_left_alone(server, p2prw, tmp_path, loop):
    """Mounted, or with a partition table: at either end only the flag that names the device goes further."""
    mounted, parted, other = loop(), loop(), loop()
    folder = tmp_path / "mounted"
    folder.mkdir()
    try:
        run("mkfs.ext4", "-q", mounted)
        run("mount", "-o", "ro", mounted, str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot make and mount a file system here: {error}")
    try:
        entry = bytes((0, 0, 2, 0, 0x83, 0, 0, 0)) + (2048).to_bytes(4, "little") + (8192).to_bytes(4, "little")
        with open(parted, "r+b") as file:
            file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        before = {device: content_of(device) for device in (mounted, parted)}
        one = server("--region=a=host,size=64KiB,pattern=words:3")
        for device, code in ((mounted, "mounted"), (parted, "partitioned")):
            read = ("read", f"{one.address}/a", "--to", f"file:{device}", "--overwrite", "--size", "64KiB")
            refusals = p2prw.together(
                read,
                (*read, "--force-block-device", other),
                ("serve", f"--region=disk=file:{device},access=rw", "--listen=127.0.0.1:0"),
            )
            for refused in refusals:
                told = refused.failed(3, code)
                assert f"--force-block-device {device}" in told["try"], told
        assert {device: content_of(device) for device in (mounted, parted)} == before
        # The flag that names it: the user has the last word.
        where = f"file:{parted},size=64KiB"
        p2prw("read", f"{one.address}/a", "--to", where, "--overwrite", "--force-block-device", parted).ok()
        assert content_of(parted)[: 64 * 1024] != before[parted][: 64 * 1024]
    finally:
        run("umount", str(folder))
