"""The real door on this host: sockets are really opened, and nothing stays open."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from p2prw.engine.doctor.probe import HostProbe, this_host
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, write_sysfs
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError


@pytest.fixture
def real(tmp_path):
    return HostProbe(SysfsRoot(tmp_path / "sys"))


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_the_software_device_opens_and_closes(real):
    real.software("soft0")
    before = open_descriptors()
    state = real.software("soft0")
    assert state.address.startswith("127.") and state.receive_buffer_bytes > 0
    assert open_descriptors() == before
    with pytest.raises(HostError, match="no netdev"):
        real.software("soft:nosuch0")


def test_a_taken_port_is_found_with_its_holder(real):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        try:
            holder.bind(("127.0.0.1", 4791))
        except OSError as error:
            assert error.errno == errno.EADDRINUSE  # somebody else holds it: as good
        held = real.udp_port_holder()
    assert held is not None
    address, who = held
    assert address and "4791" in who
    assert "lo" in real.netdevs()


def test_bindings_are_states_not_errors(real):
    state = real.binding("auto")
    assert state.name is not None or state.code in ("no_binding", "binding_unusable")
    assert state.name is not None or (state.why and state.fix)


def test_verbs_devices_are_opened_once(tmp_path, real, monkeypatch):
    binding = ScriptedBinding()
    monkeypatch.setattr("p2prw.engine.providers.verbs_open.load_binding", lambda wanted="auto": binding)
    write_sysfs(tmp_path / "sys", gids=[("0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2")])
    assert real.verbs_devices("auto")[0].opened
    real.verbs_devices("auto")
    assert binding.script.contexts_open == 0
    real.open_device("rxe0", 1, "auto")
    assert binding.script.contexts_open == 0
    with pytest.raises(HostError):
        real.open_device("rxe0", 2, "auto")


def test_memory_is_checked_and_not_opened(real):
    real.check_memory(parse_memory_spec("host,size=1MiB"))
    with pytest.raises(HostError) as caught:
        real.check_memory(parse_memory_spec("p2pmem:0000:01:00.0"))
    assert caught.value.code == "no_device"


def test_this_host_reads_its_own_files():
    view = this_host({})
    assert view.release == os.uname().release
    assert view.capabilities is not None and view.locked_memory_bytes is not None
