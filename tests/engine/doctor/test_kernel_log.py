"""Kernel lines for a report: those that matter, none that may hold a secret."""

from __future__ import annotations

import os

from p2prw.engine.doctor.kernel_log import read_kernel_log, relevant

RECORDS = [
    "6,1,1500000,-;nvme nvme0: 2/0/0 queues",
    "6,2,2,-;usb 1-1: new device",
    "4,3,3000000,-;rdma_rxe: loaded",
    "5,4,0,-;Kernel command line: pci=nocrs console=ttyS0 ds=http://u:secret@h/",
    '5,5,0,-;Unknown kernel command line parameters "secret pci", will be passed to user space.',
    "30,6,9,-;systemd[1]: starting rdma with secret",
]


def test_kernel_lines_that_matter(tmp_path):
    assert relevant(RECORDS) == ["[1.500000] nvme nvme0: 2/0/0 queues", "[3.000000] rdma_rxe: loaded"]
    assert relevant(["garbage", ";rdma", "x,y;rdma"]) == []
    missing = read_kernel_log(str(tmp_path / "none"))
    assert missing.startswith("not read") and "dmesg" in missing
    log = tmp_path / "kmsg"
    log.write_text(RECORDS[0])
    assert read_kernel_log(str(log)) == "[1.500000] nvme nvme0: 2/0/0 queues\n"


def test_the_log_of_this_host_can_be_asked():
    real = read_kernel_log()
    assert real.startswith(("[", "not read", "no line")) and (os.geteuid() or "usb 1-1: new" not in real)
