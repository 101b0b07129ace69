"""What skip_unless asks for, and what this or another host answers."""

from __future__ import annotations

import os
import platform

import pytest

from p2prw.errors import RequestError
from p2prw.scenario.needs import FORMS, ThisHost, lacks, parse_need


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("devise rxe0", "device rxe0"),
        ("root now", "too much"),
        ("device", "too little"),
        ("kernel 6.2", "kernel >= 6.2"),
        ("memory p2pmen", "p2pmem"),
        ("memory p2pmem:nonsense", "not a PCI address"),
    ],
)
def test_what_is_wrong_is_explained(text, hint):
    with pytest.raises(RequestError) as caught:
        parse_need(text)
    assert hint in str(caught.value)


def test_every_form_can_be_written():
    for word, form in FORMS.items():
        assert parse_need(form).word == word


def answer(text, host):
    return lacks(parse_need(text), host)


def test_what_a_host_lacks_is_said(host, tmp_path):
    assert answer("root", host) == "this process is not root"
    host.root = True
    assert answer("root", host) is None
    assert answer("device soft0", host) is None
    assert "there is no device rxe0" in (answer("device rxe0", host) or "")
    host.lacking = {"p2pmem": "no PCI device with p2pmem memory was found on this host"}
    assert "p2pmem" in (answer("memory p2pmem", host) or "")
    assert answer("memory host", host) is None
    assert answer(f"file {tmp_path}", host) is None
    assert answer(f"file {tmp_path}/x", host) == f"there is no file {tmp_path}/x"
    assert answer("env CI", host) == "the variable CI is not set"
    host.variables["CI"] = "1"
    assert answer("env CI", host) is None


@pytest.mark.parametrize(
    ("wanted", "has"),
    [
        (">= 6.1", True),
        (">= 6.1.0", True),
        (">= 6.2", False),
        (">= 5.15", True),
        ("< 6.2", True),
        ("< 6.1", False),
        (">= 6", True),
        (">= 6.10", False),
    ],
)
def test_kernels_compare_as_numbers(host, wanted, has):
    assert (answer(f"kernel {wanted}", host) is None) == has


def test_this_host():
    here = ThisHost({"CI": ""})
    assert here.is_root() == (os.geteuid() == 0)
    assert here.kernel() == platform.release()
    assert "soft0" in here.devices() and here.devices() is here.devices()
    assert answer("kernel >= 2.6", here) is None
    assert answer("memory host", here) is None and answer("memory file", here) is None
    assert answer("env CI", here) is not None, "an empty variable is an unset one"
    assert "ff:1f.7" in (answer("memory bar:0000:ff:1f.7/0", here) or "")
    for kind in ("p2pmem", "bar", "vfio", "cuda", "dm", "dmaheap", "udmabuf"):
        lacking = answer(f"memory {kind}", here)
        assert lacking is None or lacking.strip(), kind
