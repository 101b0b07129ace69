"""Device memory over the scripted binding: its owner reads it by loopback, and everything is given back in order."""

from __future__ import annotations

import errno

import pytest

from p2prw.engine.model import Access
from p2prw.engine.providers.verbs_binding import HcaFacts
from p2prw.engine.providers.verbs_dm import SCRATCH_BYTES
from p2prw.engine.providers.verbs_open import open_verbs_device
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, VerbsScript, write_sysfs
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError

LENGTH = 3 * SCRATCH_BYTES + 17
HCA = HcaFacts(32, 32, 16384, 128, 128, 32767, max_dm_bytes=1 << 20)


@pytest.fixture
def rig(tmp_path):
    scripts = []

    def make(**script):
        write_sysfs(tmp_path, driver="mlx5_core")
        binding = ScriptedBinding(VerbsScript(**script), hca=HCA)
        scripts.append(binding.script)
        return open_verbs_device("rxe0", binding=binding, sysfs=SysfsRoot(tmp_path)), binding.script

    yield make
    for script in scripts:
        assert (script.regions_open, script.queue_pairs_open, script.dms_open, script.contexts_open) == (0, 0, 0, 0)


def test_bytes_go_in_and_come_out_by_loopback(rig) -> None:
    device, script = rig()
    assert device.info.limits.max_dm_bytes == 1 << 20
    dm = device.allocate_dm(LENGTH)
    data = bytes(range(251)) * (LENGTH // 251 + 1)
    dm.copy_in(0, memoryview(data)[:LENGTH])
    into = bytearray(LENGTH - 5)
    dm.copy_out(3, memoryview(into)[: LENGTH - 10])
    assert into[: LENGTH - 10] == data[3 : LENGTH - 7] and into[LENGTH - 10 :] == bytes(5)
    assert script.queue_pairs_open == 1, "one loopback serves all copies"
    registration = dm.register(Access.REMOTE_READ, 4096, 100)
    assert registration.vec[0][:2] == (0, 100), "addresses begin at 0"
    registration.close()
    dm.close()
    dm.close()
    with pytest.raises(HostError) as caught:
        dm.register(Access.REMOTE_READ, 0, 1)
    assert caught.value.code == "memory_closed"
    device.close()


def test_a_device_takes_its_memory_with_it(rig) -> None:
    device, script = rig()
    dm = device.allocate_dm(4096)
    dm.copy_in(0, memoryview(b"x"))
    device.close()
    assert script.dms_open == 0
    dm.close()


def test_too_much_and_out_of_range(rig) -> None:
    device, _ = rig()
    with pytest.raises(HostError) as caught:
        device.allocate_dm((1 << 20) + 1)
    assert (caught.value.errno, "dm,size=" in str(caught.value.fix)) == ("ENOMEM", True)
    dm = device.allocate_dm(4096)
    with pytest.raises(HostError) as caught:
        dm.register(Access.REMOTE_READ, 4096, 1)
    assert (caught.value.code, caught.value.errno) == ("cannot_register", "EINVAL")
    device.close()


def test_the_errno_of_the_driver(rig) -> None:
    device, _ = rig(dm_errno=errno.EOPNOTSUPP)
    with pytest.raises(HostError) as caught:
        device.allocate_dm(4096)
    assert (caught.value.code, caught.value.errno) == ("cannot_register", "EOPNOTSUPP")
    device.close()


@pytest.mark.parametrize("script", [{"loopback": False}, {"modify_errno": {"RTR": errno.EINVAL}}])
def test_no_loopback_no_reading(rig, script) -> None:
    device, state = rig(**script)
    dm = device.allocate_dm(4096)
    with pytest.raises(HostError) as caught:
        dm.copy_out(0, memoryview(bytearray(8)))
    assert (caught.value.code, caught.value.exit_code) == ("no_loopback", 3)
    assert "--no-verify" in str(caught.value.fix)
    dm.close()
    assert state.regions_open == 0
    device.close()
