"""The software device must work; the port and buffers it gets are said."""

from __future__ import annotations

import dataclasses

import pytest

from p2prw.engine.doctor.findings import Ask
from p2prw.engine.doctor.software import (
    WANTED_RECEIVE_BYTES,
    WANTED_SEND_BYTES,
    check_roce_port,
    check_software_device,
)
from p2prw.engine.doctor.view import HostView
from p2prw.engine.providers.soft_socket import RECEIVE_BUFFER_WANTED_BYTES, SEND_BUFFER_WANTED_BYTES
from p2prw.errors import HostError


def statuses(view, ask=None):
    return {finding.id: finding.status for finding in check_software_device(view, ask or Ask())}


def test_all_is_well(host):
    assert statuses(host()) == {"software_device": "ok", "socket_buffers": "ok"}


@pytest.mark.parametrize(("ask", "status"), [(Ask(), "fail"), (Ask(device="soft:eth0"), "fail"), (Ask("rxe0"), "warn")])
def test_a_device_that_does_not_open(host, probe, ask, status):
    probe.software_state = HostError("netdev lo is down", fix="ip link set dev lo up", errno="ENETDOWN")
    assert statuses(host(), ask) == {"software_device": status}


def test_the_named_device_is_the_one_that_is_opened(host, probe):
    statuses(host(), Ask(device="soft:10.0.0.1"))
    statuses(host(), Ask(device="rxe0"))
    assert probe.calls == [("software", "soft:10.0.0.1"), ("software", "soft0")]


def test_the_figures_are_the_devices_own():
    assert (WANTED_RECEIVE_BYTES, WANTED_SEND_BYTES) == (RECEIVE_BUFFER_WANTED_BYTES, SEND_BUFFER_WANTED_BYTES)


def test_small_buffers_and_no_segmentation(host, probe):
    probe.software_state = dataclasses.replace(
        probe.software_state, receive_buffer_bytes=212992, has_segmentation=False
    )
    assert statuses(host()) == {"software_device": "ok", "socket_buffers": "warn", "segmentation": "warn"}
    (buffers,) = [one for one in check_software_device(host(), Ask()) if one.id == "socket_buffers"]
    assert buffers.fix == "sudo sysctl net.core.rmem_max=16777216 net.core.wmem_max=4194304"


@pytest.mark.parametrize(
    ("who", "device", "status", "word"),
    [
        (None, "auto", "ok", "free"),
        ("the kernel holds UDP port 4791: an rxe device (rdma link show)", "auto", "ok", "rxe"),
        ("the kernel holds UDP port 4791: an rxe device (rdma link show)", "soft:eth0", "warn", "netns"),
        ("process 7 (python) holds UDP port 4791", "auto", "warn", "ss -lunp"),
    ],
)
def test_port_4791(host, probe, one, who, device, status, word):
    probe.holder = None if who is None else ("10.9.0.1", who)
    finding = one(check_roce_port, host(), Ask(device=device))
    assert finding.status == status and word in f"{finding.title} {finding.fix}"


def test_a_holder_without_a_process_is_rxe_where_there_is_one(host, probe, one):
    probe.holder = ("127.0.0.1", "another process holds UDP port 4791")
    assert one(check_roce_port, host()).status == "warn"
    view = host({"sys/class/infiniband/rxe0/node_type": "1: CA"})
    finding = one(check_roce_port, view)
    assert finding.status == "ok" and "the kernel, for rxe0" in finding.title
    probe.holder = ("127.0.0.1", "process 7 (python) holds UDP port 4791")
    assert one(check_roce_port, view).status == "warn"


def test_a_snapshot_opens_nothing(tmp_path, host):
    view = HostView(host().sysfs)
    assert not [*check_software_device(view, Ask()), *check_roce_port(view, Ask())]
