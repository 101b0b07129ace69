"""`p2prw devices` on a terminal: nothing is cut, whatever the width."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from p2prw.reporters.device_page import device_page

DEVICE: dict[str, Any] = {
    "row": "device", "name": "soft:fe80::fc:ff:fe00:1%eth0", "driver": "soft", "mover": "cpu", "state": "ACTIVE",
    "rate_gbit_per_s": None, "active_mtu_bytes": 1024, "netdev": "eth0", "address": "fe80::fc:ff:fe00:1", "port": 1,
    "note": "the CPU copies every byte", "routes": {"host": {"routes": ["cpu"], "refused": []}}, "pci_address": None,
    "numa_node": None, "binding": None, "link_layer": "Ethernet", "limits": None, "gids": [],
}  # fmt: skip
MEMORY = {
    "row": "memory", "kind": "bar", "spec": "bar:0000:01:00.0/2", "size_bytes": 1 << 20, "available_bytes": None,
    "driver": None, "numa_node": None, "usable": True, "pci_address": "0000:01:00.0",
    "description": "64-bit prefetchable memory of a processing accelerator, write-combining", "note": "[bold]x\x1b[2J",
}  # fmt: skip
UNSEEN = {"row": "unseen", "what": "udmabuf", "why": "it is not there", "try": "modprobe udmabuf"}


def show(rows, width, **options):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=False, markup=False, highlight=False)
    for part in device_page(rows, **options):
        console.print(part)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("verbose", [False, True])
def test_nothing_is_cut(width, verbose):
    text = show([DEVICE, MEMORY, UNSEEN], width, verbose=verbose)
    assert max(map(len, text.splitlines())) <= width
    joined = "".join(text.split())
    for word in (DEVICE["name"], DEVICE["note"], MEMORY["spec"], MEMORY["description"], UNSEEN["try"], "1MiB"):
        assert "".join(str(word).split()) in joined


def test_names_from_outside_are_no_markup_and_no_escapes():
    text = show([DEVICE, MEMORY], 80)
    assert "[bold]x\\x1b[2J" in text and "\x1b" not in text


def test_columns_in_which_nobody_has_anything_are_left_out():
    text = show([DEVICE, MEMORY], 80)
    assert "RATE" not in text and "FREE" not in text and "DRIVER" in text
    assert "RATE" in show([{**DEVICE, "rate_gbit_per_s": 2.5}], 80)


def test_nothing_at_all():
    assert "none" in show([], 80)
