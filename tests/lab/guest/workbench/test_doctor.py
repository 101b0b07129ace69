"""`devices` and `doctor` on a real kernel: what is there is seen, what is broken named, what is hidden is unknown."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from p2prw.engine.doctor.checks import examine, failures
from p2prw.engine.doctor.collect import write_collection
from p2prw.engine.doctor.findings import Ask, Finding
from p2prw.engine.doctor.probe import this_host
from p2prw.engine.doctor.view import HostView
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.topology.pairs import Topology
from p2prw.engine.topology.snapshot import open_tree
from p2prw.engine.topology.sysfs import SysfsRoot

NOBODY = 65534
STATE = Path("/sys/class/infiniband/rxe0/ports/1/state")


def examined(ask: Ask | None = None) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in examine(this_host(os.environ), ask):
        found.setdefault(finding.id, []).append(finding)
    return found


def document(text_of, *arguments: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(text_of("p2prw", *arguments, "--json"))
    return said


def as_nobody(function: Callable[[], Any]) -> Any:
    """Call it in a child that has dropped all rights; modules must be loaded before, for it cannot read them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer: Any = function()
        except BaseException:
            answer = {"traceback": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert "traceback" not in answer, answer["traceback"]
    return answer


def test_devices_shows_rxe_providers_and_the_free_bar(text_of, nvme, ivshmem) -> None:
    rows = document(text_of, "devices")["results"]
    rxe = next(row for row in rows if row.get("name") == "rxe0")
    assert (rxe["driver"], rxe["mover"], rxe["state"], rxe["active_mtu_bytes"]) == ("rxe", "cpu", "ACTIVE", 4096)
    assert rxe["limits"]["max_sge"] == 32 and "10.9.0.1" in [gid["address"] for gid in rxe["gids"]]
    assert rxe["routes"]["p2pmem"]["routes"] == ["pin", "odp", "bounce"]
    assert rxe["routes"]["udmabuf"]["routes"] == ["bounce"]
    memory = {row["spec"]: row for row in rows if row["row"] == "memory"}
    pool = memory[f"p2pmem:{nvme('a')}"]
    assert pool["size_bytes"] == 128 << 20 and 0 < pool["available_bytes"] < pool["size_bytes"]
    bar = memory[f"bar:{ivshmem}/2"]
    assert (bar["size_bytes"], bar["prefetchable"], bar["is_64bit"], bar["driver"]) == (16 << 20, True, True, None)


def test_doctor_passes_on_the_healthy_guest(text_of, nvme) -> None:
    said = document(text_of, "doctor", "--device", "rxe0", "--memory", f"p2pmem:{nvme('a')}")
    assert said["exit_code"] == 0
    status = {(row["id"], row["subject"]): row["status"] for row in said["results"]}
    assert status["software_device", None] == status["device_opens", "rxe0"] == "ok"
    assert status["port_state", "rxe0/1"] == status["gids", "rxe0/1"] == status["mtu", "rxe0/1"] == "ok"
    assert status["p2pmem", f"p2pmem:{nvme('a')}"] == status["memory", f"p2pmem:{nvme('a')}"] == "ok"
    assert status["kernel_options", None] == status["acs", None] == "ok"


def test_rxe_owns_the_port(text_of) -> None:
    (port,) = examined()["udp_4791"]
    assert port.status == "ok" and "rxe" in port.title
    (port,) = examined(Ask(device="soft:dummy0"))["udp_4791"]
    assert port.status == "warn"


@contextmanager
def link_down(text_of) -> Iterator[None]:
    text_of("ip", "link", "set", "dummy0", "down")
    try:
        yield
    finally:
        text_of("ip", "link", "set", "dummy0", "up")
        # The kernel forgets IPv6 addresses of a netdev that goes down; others count on it.
        text_of("ip", "address", "replace", "fd09::1/64", "dev", "dummy0", "nodad")
        deadline = time.monotonic() + 60
        while "ACTIVE" not in STATE.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)


def test_a_port_that_is_down_has_its_finding(text_of) -> None:
    with link_down(text_of):
        found = examined(Ask(device="rxe0"))
    (port,) = found["port_state"]
    assert port.status == "fail" and "DOWN" in port.title and "ip link set dev dummy0 up" in str(port.fix)
    assert found["device_opens"][0].details["code"] == "port_down"
    assert examined(Ask(device="rxe0"))["port_state"][0].status == "ok", "and it is well again"


def test_a_module_that_is_not_loaded_has_its_finding(ivshmem) -> None:
    if Path("/sys/module/vfio_pci").exists():
        subprocess.run(["modprobe", "-r", "vfio_pci"], check=False)
    ask = Ask(memory=parse_memory_spec(f"vfio:{ivshmem}/2"))
    found = examined(ask)
    assert [(one.subject, one.status, one.details["state"]) for one in found["module"]] == [
        ("vfio_pci", "fail", "available")
    ]
    assert found["module"][0].fix == "sudo modprobe vfio_pci"
    assert found["iommu"][0].status == "fail", "this guest has none"


def test_little_locked_memory_has_its_finding() -> None:
    examined()

    def limited() -> list[str]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        (finding,) = examined(Ask(device="rxe0"))["locked_memory"]
        return [finding.status.value, finding.title]

    assert as_nobody(limited) == ["fail", "only 64 KiB of memory may be locked"]


def test_without_rights_acs_is_unknown_and_never_absent(nvme) -> None:
    pair = Ask(pair=("nvme1", f"p2pmem:{nvme('a')}"))
    privileged = examined(pair)
    assert privileged["acs"][0].status == "ok"

    def look() -> dict[str, Any]:
        found = examined(pair)
        return {
            name: [found[name][0].status.value, found[name][0].title, found[name][0].fix] for name in ("acs", "pair")
        }

    seen = as_nobody(look)
    assert seen["acs"][0] == "unknown" and "not known" in seen["acs"][1] and "sudo" in seen["acs"][2]
    assert seen["pair"][0] == "unknown"
    assert as_nobody(lambda: [one.title for one in failures(examine(this_host(os.environ)))]) == []


def test_the_collection_gives_the_same_answers(tmp_path: Path) -> None:
    path = write_collection(this_host(os.environ), tmp_path)
    text = path.read_text()
    assert len(text) < 1 << 20
    for secret in ("52:54:00", "0a09:0001", os.uname().nodename):
        assert not re.search(rf"\b{re.escape(secret)}\b", text), secret
    copy = open_tree(tmp_path)
    mine, theirs = Topology(SysfsRoot()).all_pairs(), Topology(copy).all_pairs()
    assert mine and [one.verdict for one in mine] == [one.verdict for one in theirs]
    files_only = HostView(SysfsRoot())
    assert [(one.id, one.status) for one in examine(HostView(copy))] == [
        (one.id, one.status) for one in examine(files_only)
    ]
