"""What containers and namespaces hide has a name of its own."""

from __future__ import annotations

import os

import pytest

from p2prw.engine.doctor.containers import (
    check_container,
    check_device_files,
    check_network_namespace,
    check_rdma_namespaces,
)
from p2prw.engine.doctor.findings import Ask

VERBS = {"sys/class/infiniband_verbs/uverbs0/ibdev": "mlx5_0", "sys/class/infiniband_verbs/abi_version": "6"}
MODE = "sys/module/ib_core/parameters/netns_mode"


def test_a_container_says_so(host, one):
    assert not list(check_container(host(), Ask()))
    assert one(check_container, host({".dockerenv": ""})).status == "ok"


def test_a_missing_device_file(host, one):
    view = host({**VERBS, ".dockerenv": ""})
    finding = one(check_device_files, view)
    assert (finding.status, finding.subject) == ("warn", "mlx5_0")
    assert "docker run --device /dev/infiniband/uverbs0" in str(finding.fix)
    assert one(check_device_files, view, Ask(device="mlx5_0")).status == "fail"
    assert one(check_device_files, view, Ask(device="mlx5_1")).status == "warn"


def test_a_device_file_without_right(host, one, monkeypatch):
    view = host({**VERBS, "dev/infiniband/uverbs0": ""})
    assert one(check_device_files, view).status == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    finding = one(check_device_files, view)
    assert finding.status == "warn" and "may not be opened" in finding.title


def test_outside_a_container_udev_is_asked(host, one):
    assert "udevadm" in str(one(check_device_files, host(VERBS)).fix)


@pytest.mark.parametrize(
    ("contents", "status"),
    [
        ({MODE: "Y"}, "ok"),
        ({MODE: "N", "sys/class/infiniband/rxe0/node_type": "1: CA"}, "ok"),
        ({MODE: "N"}, "fail"),
    ],
)
def test_rdma_namespaces(host, one, contents, status):
    assert one(check_rdma_namespaces, host(contents), Ask(device="mlx5_0")).status == status


def test_no_rdma_core_no_word_about_namespaces(host):
    assert not list(check_rdma_namespaces(host(), Ask()))


def test_sysfs_of_another_network_namespace(host, one, probe):
    view = host({"sys/class/net/eth0/mtu": "1500", "sys/class/net/lo/mtu": "65536"})
    probe.own_netdevs = ("lo", "eth0")
    assert not list(check_network_namespace(view, Ask()))
    probe.own_netdevs = ("lo", "wire1")
    assert "wire1" in one(check_network_namespace, view).title
