"""The report archive: everything that a bug report needs, and no secret."""

from __future__ import annotations

import io
import json
import os
import tarfile

from p2prw.scenario.bundle import bundle, harmless, kernel_log, relevant, report_files

SECRET = "correct-horse-battery-staple"


def texts(data, directory):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(directory, filter="data")
        return {name: (directory / name).read_text() for name in archive.getnames()}


def test_everything_is_in_it_and_no_secret(outcome, tmp_path):
    token = tmp_path / "token"
    token.write_text(SECRET)
    environ = {"P2PRW_TOKEN_FILE": str(token), "P2PRW_PASSWORD": SECRET, "GITHUB_TOKEN": SECRET, "CI": "true"}
    files = report_files(outcome(), environ, {"inventory": {}}, "steps: []\n", "plan\n")
    data = bundle(files, 1.0)
    found = texts(data, tmp_path)
    names = (
        "result.json",
        "params.json",
        "environment.json",
        "machine.json",
        "scenario.yaml",
        "plan.txt",
        "kernel.log",
    )
    assert set(found) == {f"p2prw-report/{name}" for name in names}
    assert not [name for name, text in found.items() if SECRET in text]
    variables = json.loads(found["p2prw-report/environment.json"])["variables"]
    assert variables == {"P2PRW_TOKEN_FILE": str(token), "CI": "true"}
    assert harmless({"HOME": "/x", "P2PRW_DEVICE": "rxe0"}) == {"P2PRW_DEVICE": "rxe0"}


def test_kernel_lines_that_matter(tmp_path):
    records = [
        "6,1,1500000,-;nvme nvme0: 2/0/0 queues",
        "6,2,2,-;usb 1-1: new device",
        "4,3,3000000,-;rdma_rxe: loaded",
    ]
    assert relevant(records) == ["[1.500000] nvme nvme0: 2/0/0 queues", "[3.000000] rdma_rxe: loaded"]
    missing = kernel_log(str(tmp_path / "none"))
    assert missing.startswith("not read") and "dmesg" in missing
    log = tmp_path / "kmsg"
    log.write_text(records[0])
    assert kernel_log(str(log)) == "[1.500000] nvme nvme0: 2/0/0 queues\n"
    real = kernel_log()
    assert real.startswith(("[", "not read", "no line")) and (os.geteuid() or "usb 1-1: new" not in real)
