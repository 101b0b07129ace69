"""`p2prw smoke` where there is something to find: rxe and p2pmem appear by themselves, BARs are left alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 240


def smoke(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        ["p2prw", "smoke", "--quick", "--seed", "3", "--json", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode
    assert "Traceback" not in done.stderr
    return document


def cells_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document["results"] if row["row"] == "cell"]


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    """One run with nothing named."""
    return smoke()


def test_all_that_is_found_passes(everything) -> None:
    failed = [(row["device"], row["memory"], row["reason"]) for row in cells_of(everything) if row["status"] != "pass"]
    assert not failed
    assert everything["exit_code"] == 0
    assert everything["verify"]["status"] == "verified"


def test_rxe_and_p2pmem_appear_by_themselves(everything, nvme) -> None:
    cells = cells_of(everything)
    assert {row["device"] for row in cells} >= {"rxe0", "rxe1", "soft0", "soft:::1"}
    cmb = {f"p2pmem:{nvme(serial)}" for serial in ("a", "c")}
    for device, memories in (("rxe0", cmb), ("soft0", cmb), ("rxe1", set()), ("soft:::1", set())):
        here = [row for row in cells if row["device"] == device]
        # --quick tries other memory on one device of a driver.
        for memory in ("host", "file", *memories):
            found = {(row["operation"], row["size_class"]) for row in here if row["memory"] == memory}
            assert found == {(o, s) for o in ("read", "write") for s in ("small", "odd", "large")}


def test_routes_are_named_and_what_was_not_available_is_no_failure(everything) -> None:
    """Cell by cell: pin is refused on controller memory by rxe, and the cell passes by another route."""
    for row in cells_of(everything):
        local, remote = row["route"]["local"], row["route"]["remote"]
        assert local["mover"] == remote["mover"] == "cpu"
        assert not local["peer_to_peer"], "rxe copies with the CPU: never peer to peer"
        if row["device"].startswith("soft"):
            assert (local["chosen"], remote["chosen"]) == ("cpu", "cpu")
            continue
        assert remote["chosen"] == "pin"
        if row["memory"].startswith("p2pmem"):
            pin = local["attempts"][0]
            # mm/gup.c: one answer to a source (read-only registration), another to a sink.
            refusal = "EREMOTEIO" if row["operation"] == "write" else "EFAULT"
            assert (pin["route"], pin["ok"], pin["errno"]) == ("pin", False, refusal)
            assert local["chosen"] in ("odp", "bounce")
        elif row["memory"] in ("host", "file"):
            assert local["chosen"] == "pin"
        else:
            assert local["chosen"] == "bounce", "rxe imports no dma-buf"


def test_bars_are_left_alone_with_the_reason(everything, ivshmem) -> None:
    assert not [row for row in cells_of(everything) if row["memory"].startswith(("bar", "vfio"))]
    (bars,) = [row for row in everything["results"] if row["row"] == "skip" and row["memory"] == "bar"]
    assert "only with --memory" in bars["reason"]


@pytest.mark.long
def test_a_named_bar_takes_part(ivshmem) -> None:
    document = smoke("--device", "rxe0", "--memory", f"bar:{ivshmem}/2")
    cells = cells_of(document)
    assert [row["status"] for row in cells] == ["pass"] * 6, [row["reason"] for row in cells]
    assert {row["route"]["local"]["chosen"] for row in cells} == {"bounce"}


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[str]:
    """A software device in the other network namespace, serving what smoke needs."""
    ready = tmp_path / "ready"
    words = ["p2prw", "serve", "--smoke", "--listen", "10.9.1.2:0", "--insecure", "--ready-file", str(ready)]
    server = subprocess.Popen(["ip", "netns", "exec", "peer", *words], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if ready.exists():
                break
            assert server.poll() is None
            subprocess.run(["sleep", "0.1"], check=True)
        yield ready.read_text().strip()
    finally:
        server.terminate()
        assert server.wait(120) == 0


@pytest.mark.long
def test_a_peer_on_another_device(peer, nvme) -> None:
    """The kernel's rxe here, our software device there, over a wire: `auto` finds the way."""
    document = smoke(peer, "--memory", "host", "--memory", f"p2pmem:{nvme('a')}")
    cells = cells_of(document)
    assert [row["status"] for row in cells] == ["pass"] * 12, [row["reason"] for row in cells]
    assert {row["route"]["local"]["device"] for row in cells} == {"rxe1"}
    assert {row["route"]["remote"]["driver"] for row in cells} == {"soft"}
