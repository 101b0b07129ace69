"""Checks of what containers and namespaces hide: device files, other namespaces' RDMA devices and netdevs."""

from __future__ import annotations

from collections.abc import Iterator

from p2prw.engine.doctor.findings import Ask, Finding, Status
from p2prw.engine.doctor.view import HostView


def check_container(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Say whether this is one: half of the other findings are read differently then."""
    if host.is_container:
        yield Finding("container", Status.OK, "this is a container: what it was not given cannot be seen")


def check_device_files(host: HostView, ask: Ask) -> Iterator[Finding]:
    """Every verbs device has a file in /dev/infiniband; a container has only those it was given."""
    for node in host.sysfs.list("class/infiniband_verbs"):
        # `abi_version` stands beside the devices.
        if not node.startswith("uverbs"):
            continue
        name = host.sysfs.read_text(f"class/infiniband_verbs/{node}/ibdev") or node
        path = f"/dev/infiniband/{node}"
        exists, may = host.dev.exists(f"infiniband/{node}"), host.dev.may_open(f"infiniband/{node}")
        if exists and may:
            yield Finding("device_file", Status.OK, f"{path} ({name}) can be opened", subject=name)
            continue
        given = f"docker run --device {path} --ulimit memlock=-1 ..."
        yield Finding(
            "device_file",
            ask.lacking(device=name),
            f"{path} ({name}) " + ("may not be opened by this user" if exists else "is not there"),
            "sysfs shows the device, and libibverbs opens it by this file"
            + ("" if exists else "; containers get only the device files they are given"),
            f"sudo chmod 0666 {path}   (udev's rule in rdma-core does so)"
            if exists
            else given
            if host.is_container
            else "sudo udevadm trigger --subsystem-match=infiniband_verbs",
            subject=name,
            details={"path": path, "exists": exists},
        )


def check_rdma_namespaces(host: HostView, ask: Ask) -> Iterator[Finding]:
    """In exclusive mode a device belongs to one network namespace (`rdma system`; drivers/infiniband/core/device.c)."""
    mode = host.sysfs.read_text("module/ib_core/parameters/netns_mode")
    if mode is None:
        return
    if mode in ("Y", "1"):
        yield Finding("rdma_namespaces", Status.OK, "RDMA devices are shared by all network namespaces")
        return
    seen = host.sysfs.list("class/infiniband")
    if seen:
        yield Finding(
            "rdma_namespaces", Status.OK, f"RDMA devices belong to one network namespace each; here: {', '.join(seen)}"
        )
        return
    yield Finding(
        "rdma_namespaces",
        ask.lacking(verbs=True),
        "RDMA devices belong to one network namespace each, and none to this one",
        "ib_core is in exclusive mode (netns_mode=N)",
        "sudo rdma dev set mlx5_0 netns NAME   (on the host), or: sudo rdma system set netns shared",
    )


def check_network_namespace(host: HostView, ask: Ask) -> Iterator[Finding]:
    """sysfs shows the network namespace it was mounted in; after `unshare -n` that is another one."""
    if host.probe is None:
        return
    shown = set(host.sysfs.list("class/net"))
    ours = set(host.probe.netdevs())
    if shown and ours - shown:
        yield Finding(
            "network_namespace",
            Status.WARN,
            f"/sys shows another network namespace: {', '.join(sorted(ours - shown))} is not in /sys/class/net",
            "GIDs and port states of verbs devices are read from there and may name netdevs that are not ours",
            "ip netns exec NAME p2prw doctor   (it mounts the right /sys), or: mount -t sysfs sysfs /sys",
        )
